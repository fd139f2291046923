# As unsam.py, with twice as many iterations and a round of self-training in the middle.
_base_ = './unsam.py'

train_cfg = dict(max_iters=600)
custom_hooks = [
    *_base_.custom_hooks,
    # The score of 0.7 is the paper's, for a model that was trained for days; few predictions of this model exceed it.
    dict(type='UnSAMSelfTrainingHook', at_iters=[300], min_score=0.7, max_iou=0.5),
]
