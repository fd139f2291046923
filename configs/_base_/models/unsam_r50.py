# The published whole-image model: ResNet-50, Mask2Former with 2000 queries and one class. Values without a source are
# those of Mask2Former for instance segmentation (arXiv 2112.01527), as in the released code.
channels = 256
num_heads = 8
num_levels = 3  # strides 32, 16 and 8, in this order, in both decoders
num_queries = 2000  # UnSAM's; Mask2Former has 100

data_preprocessor = dict(
    type='DetDataPreprocessor',
    mean=[123.675, 116.28, 103.53],  # ImageNet's, RGB, with which the DINO ResNet-50 was trained
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,  # MMDetection's pipelines load BGR
    pad_size_divisor=32,  # the coarsest level of the backbone; padding is 0 after normalisation and is not masked
    pad_mask=True,  # masks need the size of the padded batch: points are sampled in relative coordinates
)

# Position embeddings of both decoders: row or column i of N has the angle 2 pi (i + 1) / (N + 1e-6); 128 channels for
# y, then 128 for x. The temperature (10000), eps and offset are MMDetection's defaults.
positional_encoding = dict(num_feats=channels // 2, normalize=True)

model = dict(
    type='UnSAM',
    data_preprocessor=data_preprocessor,
    backbone=dict(
        type='ResNet',
        depth=50,
        out_indices=(0, 1, 2, 3),
        style='pytorch',  # the 3 x 3 convolution has the stride (STRIDE_IN_1X1: False)
        frozen_stages=-1,  # all stages are trained (FREEZE_AT: 0) ...
        norm_cfg=dict(type='BN', requires_grad=False),  # ... but not their norms (FrozenBN)
        norm_eval=True,
        # Training configs set dict(type='Pretrained', checkpoint=...) with the file that `python -m unsam_mm convert
        # dino_resnet50` writes.
        init_cfg=None,
    ),
    mask_head=dict(
        type='UnSAMHead',
        in_channels=[256, 512, 1024, 2048],  # of the four stages of a ResNet-50
        feat_channels=channels,
        out_channels=channels,
        num_queries=num_queries,
        num_transformer_feat_level=num_levels,
        positional_encoding=positional_encoding,
        pixel_decoder=dict(
            type='MSDeformAttnPixelDecoder',
            num_outs=num_levels,
            norm_cfg=dict(type='GN', num_groups=32),
            act_cfg=dict(type='ReLU'),
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
                    ffn_cfg=dict(embed_dims=channels, feedforward_channels=1024),  # half of the transformer decoder's
                ),
            ),
            positional_encoding=positional_encoding,
        ),
        transformer_decoder=dict(
            num_layers=9,  # queries attend to each level three times
            return_intermediate=True,
            layer_cfg=dict(
                self_attn_cfg=dict(embed_dims=channels, num_heads=num_heads, batch_first=True),
                cross_attn_cfg=dict(embed_dims=channels, num_heads=num_heads, batch_first=True),
                ffn_cfg=dict(embed_dims=channels, feedforward_channels=2048),
            ),
        ),
        loss_cls=dict(
            type='CrossEntropyLoss',
            loss_weight=2.0,
            class_weight=[1.0, 0.1],  # object, no object
        ),
        loss_mask=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=5.0),
        loss_dice=dict(type='DiceLoss', naive_dice=True, eps=1.0, loss_weight=5.0),  # 1 - (2 AB + 1) / (A + B + 1)
    ),
    train_cfg=dict(
        num_points=12544,  # 112 x 112
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
    test_cfg=dict(max_per_image=1000, mask_format='rle'),  # the 1000 detections that AR@1000 counts
)
