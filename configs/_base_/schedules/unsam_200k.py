# The published schedule of the whole-image models: 8 epochs of 0.4 million images.
max_iters = 200_000
train_cfg = dict(type='UnSAMTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

embedding = dict(lr_mult=1.0, decay_mult=0.0)
optim_wrapper = dict(
    type='AmpOptimWrapper',  # float16; without a CUDA device: --cfg-options optim_wrapper.type=OptimWrapper
    # 5e-5 is the paper's, and stands in the name of the released checkpoint. The released yaml has 1e-6, and a batch of 4.
    optimizer=dict(type='AdamW', lr=5e-5, weight_decay=0.05),
    clip_grad=dict(max_norm=0.01, norm_type=2),  # of the gradient of the whole model
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

# The released warm-up of 10 iterations has factor 1.0, so there is none.
param_scheduler = [
    dict(type='MultiStepLR', milestones=[177_776, 192_592], gamma=0.1, begin=0, end=max_iters, by_epoch=False)
]

# For another number of GPUs: --cfg-options auto_scale_lr.enable=True changes the learning rate in proportion.
auto_scale_lr = dict(enable=False, base_batch_size=16)
