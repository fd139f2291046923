# As unsam_200k.py, for a quarter of the images: 8 epochs of 0.1 million. The learning rate drops after the same
# fractions of the iterations.
_base_ = './unsam_200k.py'
max_iters = 50_000
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='MultiStepLR', milestones=[44_444, 48_148], gamma=0.1, begin=0, end=max_iters, by_epoch=False)
]
