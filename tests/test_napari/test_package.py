"""The plugin as napari finds it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from napari.settings import get_plugin_settings
from npe2 import PluginManifest

import napari_unsam
from napari_unsam import sample_data as _sample_data
from napari_unsam.engine import settings as _settings
from napari_unsam.engine.inference import InferenceSettings

ROOT = Path(napari_unsam.__file__).parent
MANIFEST = ROOT / 'napari.yaml'
HEAVY = ('torch', 'transformers', 'mmdet', 'mmengine')


@pytest.fixture(scope='module')
def manifest():
    return PluginManifest.from_file(MANIFEST)


def loaded_after(statement):
    code = f'import sys; {statement}; print([name for name in {HEAVY} if name in sys.modules])'
    return subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize(
    'statement',
    [
        'import napari_unsam',
        'import napari_unsam.qt.widget, napari_unsam.sample_data',
        (
            "import os; os.environ['QT_QPA_PLATFORM'] = 'offscreen'; from qtpy.QtWidgets import QApplication; "
            'app = QApplication([]); from napari.components import ViewerModel; '
            'from napari_unsam.qt.widget import SegmentationWidget; SegmentationWidget(ViewerModel())'
        ),
    ],
    ids=['package', 'modules', 'open dock'],
)
def test_no_model_library_is_loaded_before_the_first_job(statement):
    assert loaded_after(statement) == '[]'


@pytest.mark.slow
def test_the_package_itself_loads_neither_napari_nor_qt():
    code = "import sys, napari_unsam; print([name for name in ('napari', 'qtpy', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == '[]'


def test_every_command_of_the_manifest_can_be_imported(manifest):
    manifest.validate_imports()


def test_the_dock_is_in_the_menu_for_segmentation(manifest):
    commands = {widget.command for widget in manifest.contributions.widgets}
    assert {item.command for item in manifest.contributions.menus['napari/layers/segment']} == commands


@pytest.mark.parametrize('name', ['coffee', 'coins', 'cell', 'nuclei', 'em_stack', 'movie'])
def test_sample_images_come_without_a_download(name, manifest):
    [(pixels, attributes, kind)] = getattr(_sample_data, name)()
    assert kind == 'image'
    assert attributes['name']
    assert np.ptp(pixels) > 100
    assert name in {entry.key for entry in manifest.contributions.sample_data}


def test_how_models_run_and_what_is_kept_are_preferences_of_napari(manifest, npe2pm, plugin_settings, tmp_path):
    npe2pm.register(manifest)
    assert _settings.inference() == InferenceSettings(store=_settings.default_store())
    chosen = get_plugin_settings(_settings.PLUGIN).inference
    chosen.device, chosen.threads, chosen.engine = 'cpu', 3, 'tree'
    chosen.store_folder, chosen.store_gb = str(tmp_path), 2.5
    assert _settings.inference() == InferenceSettings('tree', 'cpu', 3, tmp_path, 2.5)
    chosen.store_gb = 0
    assert _settings.inference().store is None


def test_the_hint_for_new_users_is_shown_until_it_is_dismissed(manifest, npe2pm, plugin_settings):
    npe2pm.register(manifest)
    assert _settings.wants_hint()
    _settings.dismiss_hint()
    assert not _settings.wants_hint()


def test_without_preferences_the_defaults_hold(npe2pm, plugin_settings):
    assert _settings.inference() == InferenceSettings()
    _settings.dismiss_hint()
    assert _settings.wants_hint()
