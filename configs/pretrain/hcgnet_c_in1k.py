"""HCGNet-C on ImageNet, the authors' recipe. Published: 19.36 % top-1 and 4.93 % top-5 error."""

_base_ = '_base_/imagenet.py'

model = dict(backbone=dict(arch='c'), head=dict(in_channels=2428))
