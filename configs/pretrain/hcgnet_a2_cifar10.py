"""HCGNet-A2 on CIFAR-10. Published: 2.29 % error."""

_base_ = '_base_/cifar.py'

model = dict(backbone=dict(arch='a2'), head=dict(in_channels=716))
