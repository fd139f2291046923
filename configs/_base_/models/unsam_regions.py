# The region model: 1.2 million weights. Its inputs are region tokens with the features of a frozen DINOv2-S/14.
model = dict(
    type='UnSAMRegionModel',
    data_preprocessor=dict(type='UnSAMRegionPreprocessor'),
    net=dict(width=128, heads=4, encoder_layers=3, decoder_layers=2, prompt_channels=32),
    # Number of clicked tokens in each image, and number of target masks for each click.
    train_cfg=dict(n_seeds=32, targets_per_seed=4),
    # Scores of masks that overlap with better masks are reduced; with repetition=1, duplicates have the score 0.
    test_cfg=dict(n_seeds=768, granularity_step=0.03, max_masks=1000, duplicate_iou=0.97, repetition=0.4),
)
