# UnSAM's training set: SA-1B's images (or any others) with the pseudo-masks of `python -m unsam_mm generate`.
# The next two settings are copied to the data set after the command line is read, so both can be set there.
data_root = 'data/sa1b'  # images, at any depth
pseudo_masks_root = 'data/sa1b_pseudo_masks'  # written by `generate`; only images with masks in it are used

train_pipeline = [
    dict(type='UnSAMLoadImage'),
    dict(type='UnSAMLoadMasks'),
    # Images are not resized, even if they are smaller than the crop; the images of a batch are padded to one size.
    dict(type='RandomCrop', crop_size=(1024, 1024), recompute_bbox=True, allow_negative_crop=True),
    dict(type='RandomFlip', prob=0.5),  # as in the released code; not in the paper
    # With keep_empty=False, MMDetection keeps images that have no masks left.
    dict(type='FilterAnnotations', by_box=False, by_mask=True, min_gt_mask_area=1, keep_empty=False),
    # 200 masks as in the paper; the released code has 500. Both draw masks as with sampling='uniform'.
    dict(type='UnSAMCapMasks', max_masks=200, sampling='score'),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(type='UnSAMSA1B', labels='pseudo', pipeline=train_pipeline),
)
