# Whole-image and promptable segmentation in one model. Not published; data and schedule are the promptable model's.
_base_ = [
    '_base_/models/unsam_swint_joint.py',
    '_base_/datasets/sa1b_prompts.py',
    '_base_/datasets/prompts_coco.py',
    '_base_/schedules/unsam_prompt_50k.py',
    '_base_/gpu_runtime.py',
]
# Written by: python -m unsam_mm convert moby_swin_t_300ep_pretrained.pth weights/moby_swint.pth
moby = dict(type='Pretrained', checkpoint='weights/moby_swint.pth')
model = dict(backbone=dict(drop_path_rate=0.3, init_cfg=dict(_delete_=True, **moby)))  # 0.3 as for the promptable model
test_evaluator = [dict(type='UnSAMCocoMetric'), dict(type='UnSAMPromptIoUMetric')]
val_dataloader = val_cfg = val_evaluator = None  # without evaluation; use `mim test` afterwards
