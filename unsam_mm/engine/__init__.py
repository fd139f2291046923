"""Training: resumable train loop, self-training, data paths, distributed CPU training, visualization."""

from unsam_mm._mmcv_ops import ensure_mmcv_ops

ensure_mmcv_ops()

from unsam_mm.engine.data_root import UnSAMDataRootHook, resolve_data_root  # noqa: E402
from unsam_mm.engine.distributed import join_cpu_processes  # noqa: E402
from unsam_mm.engine.first_evaluation import UnSAMFirstEvaluationHook  # noqa: E402
from unsam_mm.engine.resume import find_resumable  # noqa: E402
from unsam_mm.engine.self_training import UnSAMSelfTrainingHook  # noqa: E402
from unsam_mm.engine.train_loop import UnSAMTrainLoop  # noqa: E402
from unsam_mm.engine.visualizer import UnSAMVisualizer  # noqa: E402
from unsam_mm.models.channel_order import check_channel_order  # noqa: E402

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
