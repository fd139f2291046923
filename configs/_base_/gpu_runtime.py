# As default_runtime.py, for trainings that take days: fewer log lines, about one checkpoint per hour, and no evaluation
# before training.
_base_ = './default_runtime.py'

default_hooks = dict(
    logger=dict(interval=50),
    checkpoint=dict(interval=5000),
)
custom_hooks = [dict(type='UnSAMDataRootHook')]
log_processor = dict(window_size=50)

# Timeout in seconds. At the end of a round of self-training, processes wait for the slowest one.
env_cfg = dict(dist_cfg=dict(timeout=7200))
