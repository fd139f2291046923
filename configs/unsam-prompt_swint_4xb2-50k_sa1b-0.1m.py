# The promptable UnSAM, Swin-T, 0.1 million images of SA-1B with pseudo-masks: 4 epochs on 4 GPUs with 2 images each.
_base_ = [
    '_base_/models/unsam_swint_prompt.py',
    '_base_/datasets/sa1b_prompts.py',
    '_base_/datasets/prompts_coco_panoptic.py',
    '_base_/schedules/unsam_prompt_50k.py',
    '_base_/gpu_runtime.py',
]
# Written by: python -m unsam_mm convert moby_swin_t_300ep_pretrained.pth weights/moby_swint.pth
moby = dict(type='Pretrained', checkpoint='weights/moby_swint.pth')
model = dict(backbone=dict(drop_path_rate=0.3, init_cfg=dict(_delete_=True, **moby)))  # 0.3 as in the released yaml
val_dataloader = val_cfg = val_evaluator = None  # as published, without evaluation; use `mim test` afterwards
