# Takes twenty minutes on one and a half CPU cores. The learning rate decays until train_cfg.max_iters. A resumed
# training continues the decay with which it started, so its max_iters should not be changed.
max_iters = 4000
train_cfg = dict(type='UnSAMTrainLoop', max_iters=max_iters, val_interval=100_000)  # validation only at the end
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1.2e-3, weight_decay=0.02),
    clip_grad=dict(max_norm=1.0),
)

param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=100, by_epoch=False),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False),
]
