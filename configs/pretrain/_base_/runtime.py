"""What both recipes share: SGD with Nesterov's momentum, and how often a run is scored and saved."""

default_scope = 'mmpretrain'

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, nesterov=True),
)
train_cfg = dict(by_epoch=True, val_interval=10)  # every restart ends after a multiple of ten epochs
val_cfg = dict()
test_cfg = dict()

default_hooks = dict(
    logger=dict(type='LoggerHook', interval=100),
    checkpoint=dict(type='CheckpointHook', interval=10, max_keep_ckpts=3),
)
visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
