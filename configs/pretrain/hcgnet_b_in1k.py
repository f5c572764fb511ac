"""HCGNet-B on ImageNet, the authors' recipe. Published: 21.5 % top-1 and 5.9 % top-5 error."""

_base_ = '_base_/imagenet.py'
