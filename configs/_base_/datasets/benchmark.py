# Pipeline and metric of the seven benchmarks of the paper; benchmark_*.py add the images and their annotations.
test_pipeline = [
    dict(type='UnSAMLoadImage', skip_broken=False),
    dict(type='Resize', scale=(2048, 1024), keep_ratio=True),  # shortest edge 1024, longest at most 2048
    dict(type='UnSAMLoadMasks', at_original_size=True),  # ground truth for the metric, loaded image by image
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'gt_areas')),
]
test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(pipeline=test_pipeline, test_mode=True),
)
test_evaluator = dict(type='UnSAMCocoMetric')

val_dataloader = test_dataloader
val_evaluator = test_evaluator
