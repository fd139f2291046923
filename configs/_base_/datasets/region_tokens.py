# Folders of any images; region tokens and pseudo-masks are made before training and kept. No annotation is needed.
# The datasets below get these two when the command line has been read, so both can be set there.
data_root = ''  # a folder, or [a,b,...]; empty: eleven images that scikit-image carries, three of them held out
ann_file = ''  # COCO file: all its images are tested; without it, the held-out images against their pseudo-masks

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
    batch_size=1,  # and 128 prompts
    num_workers=1,  # reads tokens and finds distances while the model trains: a sixth of a step
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
        max_images=24,  # a minute or two; with ann_file, all
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='UnSAMCocoMetric')
test_evaluator = val_evaluator
