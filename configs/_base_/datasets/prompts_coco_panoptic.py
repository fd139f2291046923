# One click at each segment of COCO val2017's panoptic annotations, things and stuff, as in the paper.
_base_ = './prompts_coco.py'

test_dataloader = dict(
    dataset=dict(
        type='UnSAMCocoPanopticDataset',
        ann_file='annotations/panoptic_val2017.json',
        data_prefix=dict(img='val2017', seg='annotations/panoptic_val2017'),
        homepage='https://cocodataset.org (val2017.zip, panoptic_annotations_trainval2017.zip and the zip file in it)',
    ),
)
val_dataloader = test_dataloader
