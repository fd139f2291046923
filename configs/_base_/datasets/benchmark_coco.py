# COCO val2017: 5000 images.
# For images elsewhere: --cfg-options test_dataloader.dataset.data_root=/my/coco. See docs/datasets.md.
_base_ = './benchmark.py'

test_dataloader = dict(
    dataset=dict(
        type='UnSAMCocoDataset',
        data_root='data/coco',
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017'),
        homepage='https://cocodataset.org (val2017.zip, annotations_trainval2017.zip)',
    ),
)
val_dataloader = test_dataloader
