# Registers all classes of the other configs.
custom_imports = dict(
    imports=[
        'unsam_mm.models',
        'unsam_mm.datasets',
        'unsam_mm.evaluation.coco_metric',
        'unsam_mm.evaluation.prompt_metric',
        'unsam_mm.engine',
    ],
    allow_failed_imports=False,
)
default_scope = 'mmdet'

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=10),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # Every 1000 iterations and at the end. The last two are not deleted, so one is complete while the other is written.
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1000, max_keep_ckpts=2),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    # mim test ... --cfg-options default_hooks.visualization.draw=True draws the best masks of each image.
    visualization=dict(type='DetVisualizationHook', draw=False, interval=1, score_thr=0.0),
)
custom_hooks = [
    dict(type='UnSAMDataRootHook'),
    dict(type='UnSAMFirstEvaluationHook'),  # evaluates the untrained model, for comparison with the trained one
]

visualizer = dict(type='UnSAMVisualizer', max_masks=100, vis_backends=[dict(type='LocalVisBackend')])
log_processor = dict(type='LogProcessor', window_size=10, by_epoch=False)
log_level = 'INFO'

env_cfg = dict(
    cudnn_benchmark=False, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='nccl')
)
randomness = dict(seed=0)
load_from = None
resume = False
