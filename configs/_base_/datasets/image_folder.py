# Any folder of images; pseudo-masks are made at first sight and kept. No annotation is needed.
# The datasets below get these two when the command line has been read, so both can be set there.
data_root = ''  # empty: eleven images that scikit-image carries, three of them held out
ann_file = ''  # COCO file: all its images are tested; without it, the held-out images against their pseudo-masks

crop_px = 256
load_image = dict(type='UnSAMLoadImage')
pseudo_masks = dict(
    type='UnSAMPseudoMasks',
    preset='default',
    max_masks=100,  # the paper has 200 on 1024 px crops
    min_area_px=1024,
)  # two tokens of the backbone a side; what is smaller takes longer to learn than minutes

train_pipeline = [
    load_image,
    pseudo_masks,
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomResize', scale=(crop_px, crop_px), ratio_range=(1.0, 1.75), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(crop_px, crop_px), recompute_bbox=True, allow_negative_crop=True),
    # What a crop leaves of a mask may be smaller than one cell of the logits, 4 px. keep_empty=False is MMDetection's
    # way to say that an image left without masks stays: it teaches what is no object.
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
    num_workers=0,  # a worker would keep a ViT of its own, and take a core from training
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
