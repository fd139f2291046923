# ADE20K instances, validation: 2000 images. The paper's file was not published; this is Mask2Former's, of 100 things.
# For images elsewhere: --cfg-options test_dataloader.dataset.data_root=/my/ade20k. See docs/datasets.md.
_base_ = './benchmark.py'

test_dataloader = dict(
    dataset=dict(
        type='UnSAMCocoDataset',
        data_root='data/ADEChallengeData2016',
        ann_file='ade20k_instance_val.json',
        data_prefix=dict(img='images/validation'),
        homepage='http://sceneparsing.csail.mit.edu; the JSON file is made by datasets/prepare_ade20k_ins_seg.py of Mask2Former',
    ),
)
val_dataloader = test_dataloader
