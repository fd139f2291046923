# One click at each object of COCO val2017.
_base_ = './benchmark_coco.py'

test_pipeline = [
    _base_.test_pipeline[0],
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),  # shortest edge 800, longest at most 1333, as released
    *_base_.test_pipeline[2:],
    dict(type='UnSAMClickPrompts'),
]
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_evaluator = dict(_delete_=True, type='UnSAMPromptIoUMetric')

val_dataloader = test_dataloader
val_evaluator = test_evaluator
