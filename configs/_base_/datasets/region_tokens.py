# Folders of images; region tokens and pseudo-masks are computed before training and stored. No annotation is needed.
# The next two settings are copied to the datasets below after the command line is read, so both can be set there.
data_root = ''  # a folder, or [a,b,...]; empty: eleven images of scikit-image, three of them held out
ann_file = ''  # COCO file whose images are all tested; empty: the held-out images and their pseudo-masks are used

region_tokens = dict(type='UnSAMRegionTokens', n_tokens=768, max_masks=300)

train_pipeline = [
    region_tokens,
    dict(type='UnSAMPackRegions', flip_prob=0.5),
]
test_pipeline = [
    dict(region_tokens, skip_broken=False),
    dict(type='UnSAMPackRegions', test_mode=True),
]

train_dataloader = dict(
    batch_size=1,  # image with 128 prompts
    num_workers=1,  # reads tokens and computes distances, which takes a sixth of the time of a training step
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(type='UnSAMRegionFolders', split='train', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='UnSAMRegionFolders',
        split='held_out',
        max_images=24,  # takes a minute or two; with ann_file, all images are tested
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='UnSAMCocoMetric')
test_evaluator = val_evaluator
