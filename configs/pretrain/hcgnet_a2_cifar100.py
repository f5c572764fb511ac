"""HCGNet-A2 on CIFAR-100. Published: 16.54 % error."""

_base_ = 'hcgnet_a1_cifar100.py'

model = dict(backbone=dict(arch='a2'), head=dict(in_channels=716))
