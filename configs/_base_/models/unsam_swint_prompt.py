# The published promptable model: Swin-T, the pixel decoder of MaskDINO, six masks for each prompt. Values without a
# source are those of Semantic-SAM (arXiv 2307.04767), as in the released code.
channels = 256
num_heads = 8
num_levels = 4  # strides 8 to 64

data_preprocessor = dict(
    type='DetDataPreprocessor',
    mean=[123.675, 116.28, 103.53],  # ImageNet's, RGB
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,  # MMDetection's pipelines load BGR
    pad_size_divisor=32,  # padding is 0 after normalisation and is not masked
    pad_mask=True,  # masks need the size of the padded batch
)

model = dict(
    type='UnSAM',
    data_preprocessor=data_preprocessor,
    backbone=dict(
        type='SwinTransformer',
        embed_dims=96,
        depths=(2, 2, 6, 2),
        num_heads=(3, 6, 12, 24),
        window_size=7,
        out_indices=(0, 1, 2, 3),
        init_cfg=None,
    ),
    mask_head=dict(
        type='UnSAMPromptHead',
        feat_channels=channels,
        num_tokens=6,
        release=False,  # True reproduces the known defects of the released code
        pixel_decoder=dict(
            type='UnSAMPixelDecoder',
            in_channels=[96, 192, 384, 768],  # of the four stages of a Swin-T
            feat_channels=channels,
            positional_encoding=dict(num_feats=channels // 2, normalize=True),
            encoder=dict(
                num_layers=6,
                layer_cfg=dict(
                    self_attn_cfg=dict(
                        embed_dims=channels,
                        num_heads=num_heads,
                        num_levels=num_levels,
                        num_points=4,
                        dropout=0.0,  # MMCV's default is 0.1
                        batch_first=True,
                    ),
                    ffn_cfg=dict(embed_dims=channels, feedforward_channels=2048),
                ),
            ),
        ),
        decoder=dict(num_layers=9, num_levels=num_levels, num_heads=num_heads, num_points=4, feedforward_channels=2048),
    ),
    train_cfg=dict(
        num_points=12544,  # 112 x 112
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
        prompts_per_image=60,
        # The released training uses prompts of one click only. Here, with probabilities:
        box_prob=0.2,
        granularity_prob=0.2,  # the prompt has the granularity of its mask, which is then its only target
        correction_prob=0.25,  # the prompt gets further clicks at the largest errors of its prediction
        correction_rounds=3,  # maximum number of these clicks; 3 as in UnSAMv2 (arXiv 2511.13714)
        earlier_mask_prob=0.5,  # a corrected prompt also has the mask of its last prediction
    ),
    test_cfg=dict(mask_format='rle'),
)
