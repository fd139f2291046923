# UnSAM+, ResNet-50, 0.1 million images of SA-1B: human masks, and the pseudo-masks that overlap none of them.
_base_ = [
    '_base_/models/unsam_r50.py',
    '_base_/datasets/sa1b_plus.py',
    '_base_/datasets/benchmark_coco.py',
    '_base_/schedules/unsam_50k.py',
    '_base_/gpu_runtime.py',
]
# Written by: python -m unsam_mm convert dino_resnet50 weights/dino_resnet50.pth
dino = dict(type='Pretrained', checkpoint='weights/dino_resnet50.pth')
model = dict(backbone=dict(init_cfg=dict(_delete_=True, **dino)))
val_dataloader = val_cfg = val_evaluator = None  # as published, without evaluation; use `mim test` afterwards
