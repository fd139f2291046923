# Twenty minutes on a core and a half. The decay spans train_cfg.max_iters, whatever that is; a resumed training keeps the
# decay that it began with, so it should end where it was meant to.
max_iters = 4000
train_cfg = dict(type='UnSAMTrainLoop', max_iters=max_iters, val_interval=100_000)  # and at the end
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
