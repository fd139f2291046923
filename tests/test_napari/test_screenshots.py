"""The walks of the documentation, done in a window with the trained model; each page shows pictures of them.

What a page quotes from the dock's status line is what the dock says, and its pictures show what the window shows. To draw them anew::

    UNSAM_SCREENSHOTS=docs/images xvfb-run -a -s "-screen 0 1280x1024x24" python -m pytest tests/test_napari/test_screenshots.py
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from npe2 import PluginManifest
from qtpy.QtCore import Qt

import napari_unsam
from napari_unsam.engine import settings as _settings
from napari_unsam.engine.inference import InferenceSettings
from napari_unsam.engine.planes import PlaneEmbedder
from napari_unsam.qt import widget as _widget
from napari_unsam.viewer.layers import OBJECTS_NAME, PREVIEW_NAME
from tests.conftest import skip_without_weights
from tests.test_napari.pictures import MAX_DIFFERENCE, Picture
from tests.test_napari.stand_ins import needs_screen
from tests.test_napari.user import User, says_about

DOCS = Path(__file__).parents[2] / 'docs'
SIZE = 1280, 860

pytestmark = [
    pytest.mark.slow,
    needs_screen,
]


class Walk:
    """A user who follows a page."""

    def __init__(self, user: User, page: str, folder: Path):
        self.user, self.folder = user, folder
        self.page = ' '.join((DOCS / page).read_text(encoding='utf-8').split())

    def reads(self, text: str) -> None:
        """The status line says what the page says that it says."""
        assert says_about(self.user.status, text), f'expected {text!r}, the status line says {self.user.status!r}'
        assert f'`{text}`' in self.page, f'the page does not quote {text!r}'

    def sees(self, name: str) -> Picture:
        """The window looks as on the picture of the page, or that picture is drawn now."""
        assert f'](images/{name}.png)' in self.page
        picture = self.user.take_picture()
        if 'UNSAM_SCREENSHOTS' in os.environ:
            picture.save(Path(os.environ['UNSAM_SCREENSHOTS']) / f'{name}.png')
            return picture
        kept = Picture.load(DOCS / 'images' / f'{name}.png')
        words, difference = picture.differing_words(kept), picture.image_difference(kept)
        if words or difference > MAX_DIFFERENCE:
            picture.save(self.folder / f'{name}.png')
        assert picture.pixels.shape == kept.pixels.shape == (*SIZE[::-1], 3)
        assert not words, f'the dock and the {name}.png of docs/images differ in these words; see {self.folder}'
        assert difference < MAX_DIFFERENCE, f'{name}.png of docs/images is another one; see {self.folder}'
        return picture


@pytest.fixture(scope='module')
def embedder():
    """The trained model, loaded once."""
    skip_without_weights()
    made = PlaneEmbedder(InferenceSettings('model', device='cpu'))
    made.load = cache(made.load)
    return made


@pytest.fixture
def follow(make_napari_viewer, npe2pm, qtbot, monkeypatch, tmp_path, embedder):
    """Opens sample data and the dock, as every page begins."""
    monkeypatch.setattr(_settings, 'default_store', lambda: tmp_path / 'store')
    monkeypatch.setattr(_widget, 'PlaneEmbedder', lambda _settings: embedder)
    npe2pm.register(PluginManifest.from_file(Path(napari_unsam.__file__).with_name('napari.yaml')))

    def begin(page: str, sample: str) -> Walk:
        viewer = make_napari_viewer(show=True)
        viewer.window.resize(*SIZE)
        viewer.open_sample('unsam_mm', sample)
        _, opened = viewer.window.add_plugin_dock_widget('unsam_mm', 'UnSAM')
        qtbot.waitUntil(lambda: opened.content is not None and opened.content.isVisible(), timeout=20_000)
        dock = opened.content
        is_there = lambda: len(dock.panels) == len(_widget.PANELS) and OBJECTS_NAME in viewer.layers  # noqa: E731
        qtbot.waitUntil(lambda: is_there() and not dock.controller.is_loading, timeout=120_000)
        viewer.fit_to_view()
        return Walk(User(viewer, dock, qtbot), page, tmp_path)

    return begin


def labels_of(user: User) -> np.ndarray:
    return np.asarray(user.dock.session.objects.data)


def test_the_tutorial(follow, tmp_path):
    walk = follow('napari_tutorial.md', 'coins')
    user = walk.user
    walk.reads('Click on an object in "Coins".')
    user.click((115, 272))
    walk.reads('J: larger mask, K: smaller mask, N: commit.')
    picture = walk.sees('tutorial_mask')
    user.viewer.layers[PREVIEW_NAME].visible = False
    without_mask = user.take_picture()
    assert picture.image_difference(without_mask) > MAX_DIFFERENCE, 'a mask that is missing is noticed'
    user.viewer.layers[PREVIEW_NAME].visible = True
    user.unfold('Mask')
    assert user.take_picture().differing_words(picture), 'a section that is missing is noticed'
    user.unfold('Image', 'Prompts', 'Mask')

    for key, area_px in (('K', 1369), ('J', 1932)):
        user.press(key)
        assert user.dock.controller.proposal.area_px == pytest.approx(area_px, rel=0.15)
    user.press('N')
    walk.reads('Object 1 committed, 1,932 px. Press U to undo.')
    walk.sees('tutorial_object')

    user.press('U')
    assert not labels_of(user).any()
    assert user.status == 'Undone: commit object 1. Press Shift-U to redo.'
    assert user.dock.controller.proposal.area_px == pytest.approx(1932, rel=0.15)
    assert user.dock.prompt_panel.redo_button.text() == 'Redo commit object 1  [Shift-U]'
    user.press('Shift-U')
    walk.reads('Redone: commit object 1. Press U to undo.')
    assert labels_of(user).any()

    user.unfold('Levels')
    user.push('Auto')
    assert user.dock.panels['LevelsPanel'].level_label.text() == 'Auto: 24 objects'
    walk.sees('tutorial_levels')
    user.push('Accept all shown')
    walk.reads('Accepted 23 objects; 1 left out (overlap with existing objects). Press U to undo.')
    assert len(np.unique(labels_of(user))) == 25

    user.unfold('Objects')
    panel = user.dock.panels['ObjectsPanel']
    panel.choose_path = lambda suggestion, kinds: tmp_path / suggestion
    user.push('Export...')
    assert user.status == f'Written: {tmp_path / "Coins.objects.tif"}'
    assert (tifffile.imread(tmp_path / 'Coins.objects.tif') == labels_of(user)).all()


def test_nuclei_are_found_from_one_example(follow, tmp_path):
    walk = follow('napari_nuclei.md', 'nuclei')
    user = walk.user
    user.click((424, 214))
    user.unfold('Levels')
    user.press('Shift-F')
    walk.reads('71 similar regions found with 1 example. Move the slider or add examples to refine.')
    walk.sees('nuclei_alike')
    user.push('Accept all shown')
    walk.reads('Accepted 71 objects. Press U to undo.')
    user.press('Q')

    count = len(user.dock.session.objects.features)
    user.press('Shift-N')
    assert user.status.endswith('right or wrong?')
    user.scroll_to(user.dock.panels['LevelsPanel'].review_label)
    walk.sees('nuclei_review')
    user.push('Wrong')
    assert len(user.dock.session.objects.features) == count - 1
    user.press('U')
    assert len(user.dock.session.objects.features) == count

    user.unfold('Objects')
    user.push('Measure')
    walk.reads('71 objects measured; see Layers > Metadata > Features table widget.')
    panel = user.dock.panels['ObjectsPanel']
    panel.choose_path = lambda suggestion, kinds: tmp_path / suggestion
    user.choose(panel.format_choice, 'Table (CSV)')
    user.push('Export...')
    table = pd.read_csv(tmp_path / 'Tissue.objects.csv')
    assert len(table) == count
    assert {'area_px', 'eccentricity', 'mean_intensity_red'} <= set(table), list(table)


def test_a_stack_is_followed_through_its_slices(follow):
    walk = follow('napari_em_stack.md', 'em_stack')
    user = walk.user
    volume, levels = user.dock.panels['VolumePanel'], user.dock.panels['LevelsPanel']
    user.go_to_slice(11)
    user.click((141, 183))
    assert user.dock.controller.proposal.area_px == pytest.approx(298, rel=0.15)
    user.unfold('3D and time')
    user.enter(volume.last_box, 12)
    user.enter(volume.first_box, 10)
    user.press('Shift-G')  # which the number field would keep, if it still had the keyboard
    walk.reads('Object 1 is in 3 slices; check slices with low bars. Press U to undo.')
    assert labels_of(user).any(axis=(1, 2)).nonzero()[0].tolist() == [10, 11, 12]
    walk.sees('em_propagated')

    user.unfold('Levels')
    user.choose(levels.brightness_choice, 'Brighter')
    user.enter(levels.min_area_box, 200)
    user.push('Auto')
    assert says_about(levels.level_label.text(), 'Auto: 56 objects')
    user.push('Accept all shown')
    walk.reads('Accepted 56 objects. Press U to undo.')
    user.unfold('3D and time')
    user.push('Propagate all here')
    walk.reads('Propagated 57 objects. Press U to undo.')
    user.go_to_slice(12)
    assert np.mean(labels_of(user)[12] > 0) > 0.6
    walk.sees('em_neurites')


def test_a_photograph_is_taken_apart(follow):
    walk = follow('napari_photograph.md', 'coffee')
    user, controller = walk.user, walk.user.dock.controller
    user.click((150, 300))
    assert controller.proposal.area_px == pytest.approx(36_074, rel=0.15)
    walk.sees('napari')
    for _ in range(3):
        user.press('K')
    user.press('N')
    walk.reads('Object 1 committed, 12,503 px. Press U to undo.')

    user.push('Box')
    user.drag((230, 320), (330, 410))
    assert controller.proposal.area_px == pytest.approx(6_046, rel=0.15)
    user.press('N')
    walk.reads('Object 2 committed, 6,046 px. Press U to undo.')
    user.push('Box')

    user.click((300, 250))
    user.click((80, 300), button=Qt.MouseButton.RightButton)
    assert controller.proposal.area_px == pytest.approx(76_903, rel=0.15)
    user.press('N')
    walk.sees('photograph_objects')

    before = labels_of(user).copy()
    user.point_at((330, 150))
    user.press('H')
    walk.reads('Object 3 split into 2. Press U to undo.')
    assert len(np.unique(labels_of(user))) == 5
    user.press('W')
    assert len(np.unique(labels_of(user))) == 4
    user.press('U')
    user.press('U')
    assert (labels_of(user) == before).all()
