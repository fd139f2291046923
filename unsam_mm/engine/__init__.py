"""What surrounds the model in a run: where the images are, pictures of its masks, and the score that it starts from."""

from unsam_mm._mmcv_ops import ensure_mmcv_ops

ensure_mmcv_ops()

from unsam_mm.engine.data_root import UnSAMDataRootHook, resolve_data_root  # noqa: E402
from unsam_mm.engine.first_evaluation import UnSAMFirstEvaluationHook  # noqa: E402
from unsam_mm.engine.visualizer import UnSAMVisualizer  # noqa: E402

__all__ = ['UnSAMDataRootHook', 'UnSAMFirstEvaluationHook', 'UnSAMVisualizer', 'resolve_data_root']
