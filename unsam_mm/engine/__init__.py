"""Training: resumable train loop, self-training, data paths, distributed CPU training, visualization."""

from unsam_mm._mmcv_ops import ensure_mmcv_ops

ensure_mmcv_ops()

from unsam_mm.engine.distributed import join_cpu_processes
from unsam_mm.engine.hooks import UnSAMDataRootHook, UnSAMFirstEvaluationHook, resolve_data_root
from unsam_mm.engine.resuming import find_resumable
from unsam_mm.engine.self_training import UnSAMSelfTrainingHook
from unsam_mm.engine.train_loop import UnSAMTrainLoop
from unsam_mm.engine.visualizer import UnSAMVisualizer
from unsam_mm.models.channel_order import check_channel_order

__all__ = [
    'UnSAMDataRootHook',
    'UnSAMFirstEvaluationHook',
    'UnSAMSelfTrainingHook',
    'UnSAMTrainLoop',
    'UnSAMVisualizer',
    'check_channel_order',
    'find_resumable',
    'join_cpu_processes',
    'resolve_data_root',
]
