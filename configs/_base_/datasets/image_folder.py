# Any folder of images; pseudo-masks are made when an image is first used, and stored. No annotation is needed.
# The next two settings are copied to the datasets below after the command line is read, so both can be set there.
data_root = ''  # empty: eleven images of scikit-image, three of them held out
ann_file = ''  # COCO file whose images are all tested; empty: the held-out images and their pseudo-masks are used

crop_px = 256
load_image = dict(type='UnSAMLoadImage')
pseudo_masks = dict(
    type='UnSAMPseudoMasks',
    preset='default',
    max_masks=100,  # the paper has 200 for crops of 1024 px
    min_area_px=1024,  # 2 x 2 tokens of the backbone; smaller masks need a longer training
)

train_pipeline = [
    load_image,
    pseudo_masks,
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomResize', scale=(crop_px, crop_px), ratio_range=(1.0, 1.75), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(crop_px, crop_px), recompute_bbox=True, allow_negative_crop=True),
    # A cropped mask may be smaller than a pixel of the logits, 4 px. With keep_empty=False, MMDetection keeps images
    # that have no masks left, which train the class "no object".
    dict(type='FilterAnnotations', min_gt_bbox_wh=(4, 4), keep_empty=False),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(load_image, skip_broken=False),
    dict(type='Resize', scale=(384, 384), keep_ratio=True),
    dict(pseudo_masks, at_original_size=True),  # references are compared at the size of the original image
    dict(type='PackDetInputs'),
]

train_dataloader = dict(
    batch_size=2,
    num_workers=0,  # a worker would load a second ViT and use a core that training needs
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(type='UnSAMImageFolder', split='train', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='UnSAMImageFolder', split='held_out', test_mode=True, pipeline=test_pipeline),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='UnSAMCocoMetric')
test_evaluator = val_evaluator
