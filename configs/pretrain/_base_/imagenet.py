"""ImageNet: 630 epochs of cosine with warm restarts, mixup, label smoothing."""

_base_ = 'runtime.py'

classes = 1000
periods = [10, 20, 40, 80, 160, 320]  # 630 epochs

model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        num_classes=classes, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True
    ),
    backbone=dict(type='mmhcg.HCGNet', arch='b', out_indices=(3,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=classes,
        in_channels=1244,
        loss=dict(
            type='LabelSmoothLoss',
            # 0.1 spread over the other 999 classes. This loss spreads e over all K, the true one included:
            # the others get e / K = 0.1 / (K - 1), the true one 1 - e + e / K = 0.9.
            label_smooth_val=0.1 * classes / (classes - 1),
            num_classes=classes,
            mode='original',
        ),
        topk=(1, 5),
    ),
    train_cfg=dict(augments=dict(type='Mixup', alpha=0.4)),
)

# Resized by Pillow, as torchvision does it: OpenCV's bilinear filter does not smooth what it makes smaller.
resize = dict(backend='pillow', interpolation='bilinear')
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224, **resize),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=256, edge='short', **resize),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
loader = dict(batch_size=128, num_workers=8, persistent_workers=True)
train_dataloader = dict(
    dataset=dict(type='ImageNet', data_root='data/imagenet', split='train', pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True),
    **loader,
)
val_dataloader = dict(
    dataset=dict(type='ImageNet', data_root='data/imagenet', split='val', pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False),
    **loader,
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(weight_decay=4e-5))  # on everything: norms and biases, too
# lr = 0.1 x (128 images x GPUs) / 256: MMEngine multiplies 0.1 by images an iteration / 256.
auto_scale_lr = dict(enable=True, base_batch_size=256)
param_scheduler = dict(
    type='CosineRestartLR', periods=periods, restart_weights=[1] * len(periods), eta_min=0, by_epoch=True
)
train_cfg = dict(max_epochs=sum(periods))
