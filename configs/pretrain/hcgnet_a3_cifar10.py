"""HCGNet-A3 on CIFAR-10. Published: 2.14 % error."""

_base_ = '_base_/cifar.py'

model = dict(backbone=dict(arch='a3'), head=dict(in_channels=1374))
