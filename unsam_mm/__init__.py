"""UnSAM, Segment Anything without Supervision, for MMDetection and napari.

The names below are loaded when they are first used, so ``import unsam_mm`` is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from unsam_mm._numba_cache import ensure_cache_folder

ensure_cache_folder()

__version__ = '0.1.0'

_HOMES = {
    'MaskHierarchy': 'unsam_mm.masks.hierarchy',
    'MaskSet': 'unsam_mm.masks.mask_set',
    'PseudoMaskGenerator': 'unsam_mm.generator',
    'UnSAMAutomaticMaskGenerator': 'unsam_mm.prompting',
    'UnSAMPredictor': 'unsam_mm.prompting',
    'unsam_model_registry': 'unsam_mm.prompting',
}
__all__ = sorted(_HOMES)

if TYPE_CHECKING:
    from unsam_mm.generator import PseudoMaskGenerator
    from unsam_mm.masks.hierarchy import MaskHierarchy
    from unsam_mm.masks.mask_set import MaskSet
    from unsam_mm.prompting import UnSAMAutomaticMaskGenerator, UnSAMPredictor, unsam_model_registry


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, '__version__']
