# LVIS v1 val: 19,809 images of COCO's train2017 and val2017. The paper uses 5000 and does not say which.
# For images elsewhere: --cfg-options test_dataloader.dataset.data_root=/my/lvis. See docs/datasets.md.
_base_ = './benchmark.py'

test_dataloader = dict(
    dataset=dict(
        type='UnSAMCocoDataset',
        data_root='data/lvis_v1',
        ann_file='annotations/lvis_v1_val.json',
        data_prefix=dict(img=''),
        homepage='https://www.lvisdataset.org (lvis_v1_val.json) and https://cocodataset.org (train2017.zip, val2017.zip)',
    ),
)
val_dataloader = test_dataloader
