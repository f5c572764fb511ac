"""HCGNet-A1 on CIFAR-100. Published: 18.13 % error."""

_base_ = '_base_/cifar.py'

model = dict(
    # Mean and deviation of CIFAR-100's training pixels
    data_preprocessor=dict(num_classes=100, mean=[129.3, 124.1, 112.4], std=[68.2, 65.4, 70.4]),
    head=dict(num_classes=100),
)
train_dataloader = dict(dataset=dict(classes=100))
val_dataloader = dict(dataset=dict(classes=100))
test_dataloader = val_dataloader
