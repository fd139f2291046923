# Whole-image and promptable segmentation with one Swin-T and one pixel decoder: the queries of unsam_r50.py and the
# tokens of unsam_swint_prompt.py, with the same settings. There is no published model of this kind.
_base_ = './unsam_swint_prompt.py'

channels = 256
num_heads = 8
num_levels = 3  # of the queries: strides 32, 16 and 8, as in Mask2Former; prompts attend to stride 64 as well
num_queries = 2000

model = dict(
    mask_head=dict(
        _delete_=True,
        type='UnSAMJointHead',
        whole_image_weight=1.0,  # both losses are sums over 9 or 10 layers, with similar weights for each mask
        prompts_weight=1.0,
        pixel_decoder=_base_.model.mask_head.pixel_decoder,
        whole_image=dict(
            type='UnSAMHead',
            in_channels=[96, 192, 384, 768],  # of the four stages of a Swin-T
            feat_channels=channels,
            out_channels=channels,
            num_queries=num_queries,
            num_transformer_feat_level=num_levels,
            positional_encoding=dict(num_feats=channels // 2, normalize=True),
            transformer_decoder=dict(
                num_layers=9,  # queries attend to each level three times
                return_intermediate=True,
                layer_cfg=dict(
                    self_attn_cfg=dict(embed_dims=channels, num_heads=num_heads, batch_first=True),
                    cross_attn_cfg=dict(embed_dims=channels, num_heads=num_heads, batch_first=True),
                    ffn_cfg=dict(embed_dims=channels, feedforward_channels=2048),
                ),
            ),
        ),
        prompts=dict(
            type='UnSAMPromptHead',
            feat_channels=channels,
            num_tokens=_base_.model.mask_head.num_tokens,
            release=_base_.model.mask_head.release,
            decoder=_base_.model.mask_head.decoder,
        ),
    ),
    train_cfg=dict(
        assigner=dict(
            type='UnSAMHungarianAssigner',
            match_costs=[  # the weights of the losses of the queries
                dict(type='ClassificationCost', weight=2.0),
                dict(type='CrossEntropyLossCost', weight=5.0, use_sigmoid=True),
                dict(type='DiceCost', weight=5.0, pred_act=True, eps=1.0),
            ],
        ),
        sampler=dict(type='MaskPseudoSampler'),
    ),
    test_cfg=dict(max_per_image=1000),  # the 1000 detections that AR@1000 counts
)
