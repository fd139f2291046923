"""MMCV without compiled ops, and OpenCV's builds with a Qt of their own."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from unsam_mm import _mmcv_ops
from unsam_mm.errors import UnSAMError
from unsam_mm.image_io.opencv import import_opencv

QT_PLUGINS = 'QT_QPA_PLATFORM_PLUGIN_PATH'


def run_python(code: str, **variables: str) -> subprocess.CompletedProcess:
    """Runs code in a fresh interpreter that finds this package and has no Qt variables but the given ones."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith('QT_')}
    environment['PYTHONPATH'] = os.pathsep.join(sys.path)
    return subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code],
        env=environment | variables,
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.mark.slow
def test_mmdet_models_import_after_ensure_mmcv_ops_in_a_fresh_interpreter_nothing_is_printed_and_qt_starts_afterwards():
    pytest.importorskip('PyQt6')
    done = run_python(
        'from unsam_mm._mmcv_ops import ensure_mmcv_ops\n'
        'first = ensure_mmcv_ops()\n'
        'assert ensure_mmcv_ops() is first\n'
        'import mmdet.models, mmcv.ops.multi_scale_deform_attn as deform, os\n'
        'assert first or not deform.IS_CUDA_AVAILABLE\n'
        f'assert "{QT_PLUGINS}" not in os.environ\n'
        'import unsam_mm.models\n'
        'from PyQt6.QtWidgets import QApplication\n'
        'print(QApplication([]).platformName())',
        QT_QPA_PLATFORM='offscreen',
    )
    assert done.stdout.strip() == 'offscreen'


@pytest.mark.slow
def test_importing_the_module_imports_neither_mmcv_nor_torch():
    done = run_python(
        'import sys, unsam_mm._mmcv_ops\nprint([name for name in ("mmcv", "mmdet", "torch", "cv2") if name in sys.modules])'
    )
    assert done.stdout.strip() == '[]'


def test_a_missing_op_names_itself_and_the_remedy_when_it_is_called():
    ops = _mmcv_ops._MissingOps()
    assert hasattr(ops, 'softnms')
    with pytest.raises(UnSAMError, match='"softnms" has no pure-torch path.*install an MMCV wheel'):
        ops.softnms(1, 2)


def test_mmcvs_roi_align_and_nms_predict_without_compiled_ops_and_training_is_refused_with_the_reason():
    if _mmcv_ops.ensure_mmcv_ops():
        pytest.skip('MMCV has compiled ops here')
    import torch
    from mmcv.ops import RoIAlign, nms

    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3.9], [5, 5, 8, 8]])
    assert nms(boxes, torch.tensor([0.8, 0.9, 0.7]), 0.5)[1].tolist() == [1, 2]
    features = torch.ones(1, 2, 8, 8, requires_grad=True)
    pooled = RoIAlign(2)(features, torch.tensor([[0.0, 1, 1, 5, 5]]))
    assert torch.allclose(pooled, torch.ones(1, 2, 2, 2))
    with pytest.raises(UnSAMError, match='"roi_align_backward".*install an MMCV wheel.*only predict without one'):
        pooled.sum().backward()


def test_compiled_ops_that_are_loaded_already_are_used(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmcv._ext', ModuleType('mmcv._ext'))
    assert _mmcv_ops.ensure_mmcv_ops() is True


def test_compiled_ops_of_another_torch_are_reported_and_not_used(monkeypatch):
    def fail(name):
        raise ImportError('undefined symbol: _ZN2at')

    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: object())
    monkeypatch.setattr(importlib, 'import_module', fail)
    with pytest.warns(UserWarning, match=r'undefined symbol.*built for another torch'):
        assert _mmcv_ops._import_compiled_ops() is False


def test_without_mmcv_the_error_names_the_extra_to_install(monkeypatch):
    def fail(name):
        raise ModuleNotFoundError("No module named 'mmcv'", name='mmcv')

    monkeypatch.setattr(importlib.util, 'find_spec', fail)
    with pytest.raises(ModuleNotFoundError, match=r"mmcv is not installed; run: pip install 'unsam_mm\[mm\]'"):
        _mmcv_ops._import_compiled_ops()


def test_a_qt_path_that_points_into_opencv_is_removed(monkeypatch):
    cv2 = import_opencv()
    monkeypatch.setenv(QT_PLUGINS, str(Path(cv2.__file__).parent / 'qt' / 'plugins'))
    import_opencv()
    assert QT_PLUGINS not in os.environ


def test_a_qt_path_that_the_user_set_survives_the_first_import_of_opencv(tmp_path):
    done = run_python(
        f'from unsam_mm.image_io.opencv import import_opencv\nimport os\nimport_opencv()\nprint(os.environ["{QT_PLUGINS}"])',
        **{QT_PLUGINS: str(tmp_path)},
    )
    assert done.stdout.strip() == str(tmp_path)
