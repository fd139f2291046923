# As sa1b.py, for the promptable model: the whole image is resized to the size of the crop, and all masks are used.
_base_ = './sa1b.py'

train_pipeline = [
    dict(type='UnSAMLoadImage'),
    dict(type='UnSAMLoadMasks'),
    # As in the released code: the longer edge becomes 1014 to 1034 px.
    dict(type='RandomResize', scale=(1024, 1024), ratio_range=(0.99, 1.01), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(1024, 1024), recompute_bbox=True, allow_negative_crop=True),
    dict(type='RandomFlip', prob=0.5),
    # With keep_empty=False, MMDetection keeps images that have no masks left.
    dict(type='FilterAnnotations', by_box=False, by_mask=True, min_gt_mask_area=1, keep_empty=False),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=train_pipeline))
