"""Generated data: a COCO-format instance set for the demo and the tests."""

from mmhcg.data.shapes import make_shapes

__all__ = ['make_shapes']
