# PACO-LVIS v1 val: 2410 images of COCO, objects and parts.
# For images elsewhere: --cfg-options test_dataloader.dataset.data_root=/my/paco. See docs/datasets.md.
_base_ = './benchmark.py'

test_dataloader = dict(
    dataset=dict(
        type='UnSAMCocoDataset',
        data_root='data/paco',
        ann_file='annotations/paco_lvis_v1_val.json',
        data_prefix=dict(img=''),
        homepage='https://github.com/facebookresearch/paco (annotations) and https://cocodataset.org (train2017.zip, val2017.zip)',
    ),
)
val_dataloader = test_dataloader
