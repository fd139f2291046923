# EntitySeg, validation, low resolution: 1314 images.
# For images elsewhere: --cfg-options test_dataloader.dataset.data_root=/my/entityseg. See docs/datasets.md.
_base_ = './benchmark.py'

test_dataloader = dict(
    dataset=dict(
        type='UnSAMCocoDataset',
        data_root='data/entityseg',
        ann_file='annotations/entity_segmentation/entityv2_010203_entity_val_lr.json',
        data_prefix=dict(img='images_lr'),
        homepage='https://github.com/adobe-research/EntitySeg-Dataset',
    ),
)
val_dataloader = test_dataloader
