"""Data in COCO's format: a generated set for the demo and the tests, and checks of any other."""

from mmhcg.data.shapes import make_shapes

__all__ = ['make_shapes']
