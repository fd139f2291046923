# SA-1B: the first 1000 images, by name, of a folder that training has not seen. The paper's 1000 are not published.
# For images elsewhere: --cfg-options test_dataloader.dataset.data_root=/my/sa1b_val. See docs/datasets.md.
_base_ = './benchmark.py'

test_dataloader = dict(
    dataset=dict(
        type='UnSAMSA1B',
        labels='human',
        data_root='data/sa1b_val',
        indices=1000,
        homepage='https://ai.meta.com/datasets/segment-anything',
    ),
)
val_dataloader = test_dataloader
