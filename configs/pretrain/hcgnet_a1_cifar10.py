"""HCGNet-A1 on CIFAR-10. Published: 3.15 % error."""

_base_ = '_base_/cifar.py'
