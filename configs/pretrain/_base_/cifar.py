"""CIFAR: 1270 epochs of cosine with warm restarts, mixup, and DropBlock that grows within each restart."""

_base_ = 'runtime.py'

periods = [10, 20, 40, 80, 160, 320, 640]  # 1270 epochs

model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(  # mean and deviation of CIFAR-10's training pixels; they arrive as RGB
        num_classes=10, mean=[125.3, 123.0, 113.9], std=[63.0, 62.1, 66.7], to_rgb=False
    ),
    backbone=dict(type='mmhcg.HCGNet', arch='a1', out_indices=(2,), drop_block=dict(block_size=2)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=414,
        loss=dict(type='CrossEntropyLoss', use_soft=True),
    ),
    train_cfg=dict(augments=dict(type='Mixup', alpha=1.0)),
)

train_pipeline = [
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
loader = dict(batch_size=128, num_workers=2, persistent_workers=True)
train_dataloader = dict(
    dataset=dict(
        type='mmhcg.CIFARBinary', data_root='data/cifar', split='train', classes=10, pipeline=train_pipeline
    ),
    sampler=dict(type='DefaultSampler', shuffle=True),
    **loader,
)
val_dataloader = dict(
    dataset=dict(
        type='mmhcg.CIFARBinary',
        data_root='data/cifar',
        split='test',
        classes=10,
        pipeline=[dict(type='PackInputs')],
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
    **loader,
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(lr=0.1, weight_decay=1e-4))
param_scheduler = dict(
    type='CosineRestartLR', periods=periods, restart_weights=[1] * len(periods), eta_min=0, by_epoch=True
)
custom_hooks = [dict(type='mmhcg.DropBlockSchedule', periods=periods, end=0.1)]
train_cfg = dict(max_epochs=sum(periods))
