"""HCGNet-A3 on CIFAR-100. Published: 15.96 % error."""

_base_ = 'hcgnet_a1_cifar100.py'

model = dict(backbone=dict(arch='a3'), head=dict(in_channels=1374))
