# The second round of UnSAM, 0.4 million images: the model of the first round labels its training images anew, before the
# first iteration. Predictions with a score above 0.7 become labels; of the old ones those stay that none of them overlaps
# by an IoU above 0.5. The paper has one such round; how it was scheduled, neither paper nor code say: here as the first.
_base_ = './unsam_r50_2000q_4xb4-200k_sa1b-0.4m.py'

load_from = 'work_dirs/unsam_r50_2000q_4xb4-200k_sa1b-0.4m/latest.pth'
model = dict(backbone=dict(init_cfg=None))  # what is loaded holds the backbone
custom_hooks = [
    dict(type='UnSAMDataRootHook'),
    dict(type='UnSAMSelfTrainingHook', at_iters=[0], min_score=0.7, max_iou=0.5),
]
