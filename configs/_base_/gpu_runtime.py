# As default_runtime.py, for trainings of days: fewer lines in the log, a checkpoint every hour or so, no evaluation of
# untrained weights.
_base_ = './default_runtime.py'

default_hooks = dict(
    logger=dict(interval=50),
    checkpoint=dict(interval=5000),
)
custom_hooks = [dict(type='UnSAMDataRootHook')]
log_processor = dict(window_size=50)

# Seconds that fast processes wait for slow ones at the end of a round of self-training.
env_cfg = dict(dist_cfg=dict(timeout=7200))
