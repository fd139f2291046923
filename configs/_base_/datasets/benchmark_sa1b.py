# SA-1B: the first 1000 images, by name, of a folder that training has not seen. The paper's 1000 are not published.
# Elsewhere: --cfg-options test_dataloader.dataset.data_root=/my/sa1b_val. See docs/datasets.md.
test_pipeline = [
    dict(type='UnSAMLoadImage', channel_order='rgb', skip_broken=False),
    dict(type='Resize', scale=(2048, 1024), keep_ratio=True),  # shortest edge 1024, longest at most 2048
    dict(type='UnSAMLoadMasks', at_original_size=True),  # the reference of the metric, an image at a time
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'gt_areas'),
    ),
]
test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='UnSAMSA1B',
        labels='human',
        data_root='data/sa1b_val',
        indices=1000,
        homepage='https://ai.meta.com/datasets/segment-anything',
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_evaluator = dict(type='UnSAMCocoMetric')

val_dataloader = test_dataloader
val_evaluator = test_evaluator
