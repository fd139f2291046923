# The published schedule of the promptable models: 4 epochs of 0.1 million images, batch size 8. The released yaml has
# 400,000 iterations with batch size 1, and its learning rate drops after 88.9 and 96.3 % of them.
max_iters = 50_000
train_cfg = dict(type='UnSAMTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# Norms of the backbone need their own keys: the key of the whole backbone takes precedence over norm_decay_mult.
in_backbone = dict(lr_mult=0.1, decay_mult=0.0)
swin_blocks = [2, 2, 6, 2]
backbone_norms = [
    'patch_embed.norm',
    *[f'norm{stage}' for stage in range(4)],
    *[f'stages.{stage}.downsample.norm' for stage in range(3)],
    *[f'stages.{stage}.blocks.{block}.norm' for stage in range(4) for block in range(swin_blocks[stage])],
]
embedding = dict(lr_mult=1.0, decay_mult=0.0)
embeddings = ['prompt_embed', 'type_embed', 'kind_embed', 'mask_tokens', 'query_embed', 'query_feat', 'level_embed']
optim_wrapper = dict(
    type='AmpOptimWrapper',  # float16; without a CUDA device: --cfg-options optim_wrapper.type=OptimWrapper
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=0.01, norm_type=2),  # norm of the gradient of the whole model
    paramwise_cfg=dict(
        custom_keys={
            'backbone': dict(lr_mult=0.1, decay_mult=1.0),
            'relative_position_bias_table': in_backbone,
            **{f'backbone.{name}': in_backbone for name in backbone_norms},
            **dict.fromkeys(embeddings, embedding),
        },
        norm_decay_mult=0.0,
    ),
)

# The learning rate drops after 90 and 95 % of the iterations, as in the paper. There is no warm-up, since the released
# warm-up of 10 iterations has the factor 1.0.
param_scheduler = [
    dict(type='MultiStepLR', milestones=[45_000, 47_500], gamma=0.1, begin=0, end=max_iters, by_epoch=False)
]

# With another number of GPUs, --cfg-options auto_scale_lr.enable=True scales the learning rate with the batch size.
auto_scale_lr = dict(enable=False, base_batch_size=8)
