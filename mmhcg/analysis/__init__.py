"""What networks and detectors cost and see: counts, timings, pictures, dissection, attacks, curves."""
