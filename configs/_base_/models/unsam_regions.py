# The region model: 1.2 million weights, which read tokens of images. The frozen DINOv2-S/14 has its part in the tokens.
model = dict(
    type='UnSAMRegionModel',
    data_preprocessor=dict(type='UnSAMRegionPreprocessor'),
    net=dict(width=128, heads=4, encoder_layers=3, decoder_layers=2, prompt_channels=32),
    # Of each image so many tokens are clicked on, and so many masks around each are asked for.
    train_cfg=dict(n_seeds=32, targets_per_seed=4),
    # Masks that repeat better ones are scored lower, down to none of theirs with repetition=1.
    test_cfg=dict(n_seeds=768, granularity_step=0.03, max_masks=1000, duplicate_iou=0.97, repetition=0.4),
)
