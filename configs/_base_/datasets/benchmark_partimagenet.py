# PartImageNet, val: 2957 images; the paper counts 2956.
# For images elsewhere: --cfg-options test_dataloader.dataset.data_root=/my/partimagenet. See docs/datasets.md.
_base_ = './benchmark.py'

test_dataloader = dict(
    dataset=dict(
        type='UnSAMCocoDataset',
        data_root='data/partimagenet',
        ann_file='val.json',
        data_prefix=dict(img='val'),
        homepage='https://github.com/TACJu/PartImageNet',
    ),
)
val_dataloader = test_dataloader
