# One click at each object of COCO val2017.
_base_ = './benchmark_coco.py'

test_pipeline = [
    dict(type='UnSAMLoadImage', skip_broken=False),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),  # shortest edge 800, longest at most 1333, as released
    dict(type='UnSAMLoadMasks', at_original_size=True),  # ground truth of the metric, loaded image by image
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'gt_areas')),
    dict(type='UnSAMClickPrompts'),
]
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_evaluator = dict(_delete_=True, type='UnSAMPromptIoUMetric')

val_dataloader = test_dataloader
val_evaluator = test_evaluator
