# The second round of UnSAM, 0.4 million images: before the first iteration, the model of the first round predicts new
# labels for its training images. Predictions with a score above 0.7 become labels; old labels whose IoU with one of
# them exceeds 0.5 are removed. The paper has one such round. Its schedule is not published; here it is that of the
# first round.
_base_ = './unsam_r50_2000q_4xb4-200k_sa1b-0.4m.py'

load_from = 'work_dirs/unsam_r50_2000q_4xb4-200k_sa1b-0.4m/latest.pth'
model = dict(backbone=dict(init_cfg=None))  # the checkpoint contains the backbone
custom_hooks = [
    dict(type='UnSAMDataRootHook'),
    dict(type='UnSAMSelfTrainingHook', at_iters=[0], min_score=0.7, max_iou=0.5),
]
