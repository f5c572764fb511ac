"""What networks and detectors cost and what becomes of them: operators, parts, swaps, all of MMDetection."""
