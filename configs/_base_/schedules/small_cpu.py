# Takes a few minutes on two CPU cores.
max_iters = 300
train_cfg = dict(type='UnSAMTrainLoop', max_iters=max_iters, val_interval=1000)  # also validates at the end
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),  # twenty times the paper's, for a thousandth of its steps
    clip_grad=dict(max_norm=1.0),
)

# There is no decay, so train_cfg.max_iters can be changed without changing the schedule.
param_scheduler = [dict(type='LinearLR', start_factor=0.01, begin=0, end=20, by_epoch=False)]
