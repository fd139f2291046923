"""Makes MMDetection importable, and Mask2Former usable, if MMCV was installed without its compiled ops.

Compiling MMCV needs a toolchain and half an hour. This package does not need the compiled ops: Mask2Former uses two,
which have a pure-torch path; the CutLER detector uses two more, which are in `unsam_mm._torch_ops`. Without the
compiled ops, however, MMDetection cannot be imported because of one unguarded import, and MMCV passes CUDA tensors to a
missing op. If the compiled ops are missing, this module solves both problems.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import sys
import warnings
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn

from unsam_mm.errors import UnSAMError
from unsam_mm.image_io.opencv import import_opencv

_NAME = 'mmcv._ext'
_TORCH_OPS = ('nms', 'roi_align_forward')
_NOTICE = 'Could not import OneDL. Skipping OneDL datasets.'


class _MissingOps(ModuleType):
    """Replaces `mmcv._ext`: two ops are in plain torch, for prediction; a call of any other op raises `UnSAMError`."""

    def __init__(self) -> None:
        super().__init__(_NAME)
        # Without a loader, `mmcv.utils.check_ops_exist` still returns False.
        self.__spec__ = ModuleSpec(_NAME, loader=None)

    def __getattr__(self, op: str) -> Callable:
        if op.startswith('__'):
            raise AttributeError(op)
        if op in _TORCH_OPS:
            return getattr(importlib.import_module('unsam_mm._torch_ops'), op)

        def missing(*args: object, **kwargs: object) -> NoReturn:
            remedy = 'or choose a module that does not need the op'
            if op == 'roi_align_backward':
                remedy = 'since RoI heads only predict without one, they are not trained'
            raise UnSAMError(
                f'mmcv.ops: "{op}" has no pure-torch path and MMCV was installed without compiled ops; '
                f'install an MMCV wheel built for this torch, {remedy}'
            )

        return missing


def ensure_mmcv_ops() -> bool:
    """Makes `import mmdet.models` work with or without MMCV's compiled ops. Call it before importing mmdet.

    A second call changes nothing. OpenCV, which MMCV imports, does not change Qt's variables (see `import_opencv`).

    Returns:
        True if MMCV's compiled ops are used, False if they are replaced.

    Raises:
        ModuleNotFoundError: If MMCV or MMDetection is not installed.
    """
    import_opencv()
    if (loaded := sys.modules.get(_NAME)) is not None:
        return not isinstance(loaded, _MissingOps)
    compiled = _import_compiled_ops()
    if not compiled:
        sys.modules[_NAME] = _MissingOps()
        # For CUDA tensors this module would call the compiled op, although its pure-torch path runs on CUDA, too.
        importlib.import_module('mmcv.ops.multi_scale_deform_attn').IS_CUDA_AVAILABLE = False
    _import_mmdet()
    return compiled


def _import_compiled_ops() -> bool:
    try:
        if importlib.util.find_spec(_NAME) is None:
            return False
    except ModuleNotFoundError as error:
        raise _not_installed('mmcv') from error
    try:
        importlib.import_module(_NAME)
    except ImportError as error:
        warnings.warn(
            f'the compiled ops of MMCV cannot be loaded and are not used ({error}); they were built for another torch',
            stacklevel=3,
        )
        return False
    return True


def _import_mmdet() -> None:
    """Imports `mmdet.datasets` without printing its notice about an optional package."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            importlib.import_module('mmdet.datasets')
    except ModuleNotFoundError as error:
        if error.name != 'mmdet':
            raise
        raise _not_installed('mmdet') from error
    for line in printed.getvalue().splitlines():
        if line != _NOTICE:
            sys.stdout.write(f'{line}\n')


def _not_installed(package: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(f"{package} is not installed; run: pip install 'unsam_mm[mm]'", name=package)
