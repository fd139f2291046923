# Small whole-image model: frozen DINOv2-S/14, light Mask2Former. Trains on two CPU cores.
channels = 128  # half of Mask2Former's 256: a quarter of the cost
num_levels = 3  # strides 32, 16 and 8, as in Mask2Former
num_queries = 150  # the paper has 2000; a crop of 256 px contains tens of masks

data_preprocessor = dict(
    type='DetDataPreprocessor',
    mean=[123.675, 116.28, 103.53],  # ImageNet's, RGB, with which the ViT was trained
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,  # MMDetection's pipelines load BGR
    pad_size_divisor=32,  # the coarsest stride
    pad_mask=True,  # masks need the size of the padded batch: points are sampled in relative coordinates
)

model = dict(
    type='UnSAM',
    data_preprocessor=data_preprocessor,
    backbone=dict(type='UnSAMViTBackbone', vit='dinov2_vits14', out_channels=channels),
    mask_head=dict(
        type='UnSAMHead',
        in_channels=[channels] * 4,
        feat_channels=channels,
        out_channels=channels,
        num_queries=num_queries,
        num_transformer_feat_level=num_levels,
        positional_encoding=dict(num_feats=channels // 2, normalize=True),
        pixel_decoder=dict(
            type='MSDeformAttnPixelDecoder',
            num_outs=num_levels,
            norm_cfg=dict(type='GN', num_groups=32),
            act_cfg=dict(type='ReLU'),
            encoder=dict(
                num_layers=2,  # Mask2Former has 6; here the inputs are already the tokens of a transformer
                layer_cfg=dict(
                    self_attn_cfg=dict(
                        embed_dims=channels, num_heads=8, num_levels=num_levels, num_points=4, batch_first=True
                    ),
                    ffn_cfg=dict(embed_dims=channels, feedforward_channels=4 * channels),
                ),
            ),
            positional_encoding=dict(num_feats=channels // 2, normalize=True),
        ),
        transformer_decoder=dict(
            num_layers=3,  # queries attend to each level once; in Mask2Former, three times
            return_intermediate=True,
            layer_cfg=dict(
                self_attn_cfg=dict(embed_dims=channels, num_heads=8, batch_first=True),
                cross_attn_cfg=dict(embed_dims=channels, num_heads=8, batch_first=True),
                ffn_cfg=dict(embed_dims=channels, feedforward_channels=8 * channels),
            ),
        ),
    ),
    train_cfg=dict(
        num_points=1024,  # a quarter of the 64 x 64 logits of a 256 px crop; the paper's 12544 are a fifth of 256 x 256
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
        assigner=dict(
            type='UnSAMHungarianAssigner',
            match_costs=[  # the weights of the losses
                dict(type='ClassificationCost', weight=2.0),
                dict(type='CrossEntropyLossCost', weight=5.0, use_sigmoid=True),
                dict(type='DiceCost', weight=5.0, pred_act=True, eps=1.0),
            ],
        ),
        sampler=dict(type='MaskPseudoSampler'),
    ),
    test_cfg=dict(max_per_image=num_queries, mask_format='rle'),
)
