# ADE20K instances, validation: 2000 images. The paper's own file was not published; this is Mask2Former's, of 100 things.
# Elsewhere: --cfg-options test_dataloader.dataset.data_root=/my/ade20k. See docs/datasets.md.
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
        type='UnSAMCocoDataset',
        data_root='data/ADEChallengeData2016',
        ann_file='ade20k_instance_val.json',
        data_prefix=dict(img='images/validation'),
        homepage='http://sceneparsing.csail.mit.edu; the JSON file is made by datasets/prepare_ade20k_ins_seg.py of Mask2Former',
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_evaluator = dict(type='UnSAMCocoMetric')

val_dataloader = test_dataloader
val_evaluator = test_evaluator
