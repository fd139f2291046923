# The published schedule of the whole-image models: 8 epochs of 0.4 million images.
max_iters = 200_000
train_cfg = dict(type='UnSAMTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

embedding = dict(lr_mult=1.0, decay_mult=0.0)
optim_wrapper = dict(
    type='AmpOptimWrapper',  # float16; without a CUDA device: --cfg-options optim_wrapper.type=OptimWrapper
    # 5e-5 as in the paper and in the name of the released checkpoint; the released yaml has 1e-6, and batch size 4.
    optimizer=dict(type='AdamW', lr=5e-5, weight_decay=0.05),
    clip_grad=dict(max_norm=0.01, norm_type=2),  # norm of the gradient of the whole model
    paramwise_cfg=dict(
        custom_keys={
            'backbone': dict(lr_mult=0.1, decay_mult=1.0),
            'query_embed': embedding,
            'query_feat': embedding,
            'level_embed': embedding,
        },
        norm_decay_mult=0.0,
    ),
)

# There is no warm-up, since the released warm-up of 10 iterations has the factor 1.0.
param_scheduler = [
    dict(type='MultiStepLR', milestones=[177_776, 192_592], gamma=0.1, begin=0, end=max_iters, by_epoch=False)
]

# With another number of GPUs, --cfg-options auto_scale_lr.enable=True scales the learning rate with the batch size.
auto_scale_lr = dict(enable=False, base_batch_size=16)
