# UnSAM+'s training set: SA-1B with its human masks (sa_*.json beside sa_*.jpg), and the pseudo-masks that overlap none of
# them.
_base_ = './sa1b.py'

train_pipeline = [
    *_base_.train_pipeline[:2],
    dict(type='UnSAMPlusMasks', max_iou=0.02),
    *_base_.train_pipeline[2:],
]
train_dataloader = dict(dataset=dict(labels='both', pipeline=train_pipeline))
