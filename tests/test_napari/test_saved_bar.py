"""The offer of saved work: it asks before anything is lost, and says what could not be read."""

import numpy as np
import pytest
from skimage import data

from napari_unsam.qt.saved_bar import SavedBar
from napari_unsam.viewer.object_write import ObjectWrite
from napari_unsam.viewer.session import ViewerSession
from tests.test_napari.stand_ins import colour_tree


@pytest.fixture
def lost(viewer, make_controller, start):
    """A session over an image of which an earlier session left an object in each of two blocks."""
    pixels = np.stack([data.coins()[:60, :80]] * 2)
    for is_lost in (True, False):
        session = ViewerSession(viewer, make_controller(colour_tree))
        session.set_image(viewer.add_image(pixels, name='Coins'))
        if is_lost:
            autosave = start()
            autosave.watch(session)
            ones = np.ones((1, 9, 9), bool)
            places = [(slice(z, z + 1), slice(0, 9), slice(0, 9)) for z in (0, 1)]
            session.write_objects('write', [ObjectWrite(place, ones, i) for i, place in enumerate(places, 1)])
            autosave.close()
            session.close()
            viewer.layers.clear()
    yield session
    session.close()


@pytest.fixture
def bar(qtbot, lost, start):
    bar = SavedBar(lost, start())
    qtbot.addWidget(bar)
    assert not bar.isHidden()
    return bar


@pytest.mark.parametrize('is_sure', [False, True])
def test_discarding_asks_first(bar, monkeypatch, is_sure):
    asked = []
    monkeypatch.setattr(bar, 'confirm', lambda title, question: asked.append(question) or is_sure)
    folder = bar._saved.folder
    bar.discard_button.click()
    assert len(asked) == 1
    assert '2 objects and 0 prompts on "Coins"' in asked[0]
    assert folder.exists() is not is_sure
    assert bar.isHidden() is is_sure


def test_what_cannot_be_read_is_said_and_can_still_be_discarded(bar, lost, settle, monkeypatch):
    folder = bar._saved.folder
    sorted((folder / 'blocks').iterdir())[0].write_bytes(b'PK')
    bar.restore_button.click()
    settle(lost.controller)
    lost.write_objects('write', [ObjectWrite((slice(0, 1),) * 3, np.ones((1, 1, 1), bool), 9)])
    assert len(np.unique(lost.objects.data)) == 3
    assert lost.history.undo_name == 'write'
    assert not bar.isHidden()
    assert bar.restore_button.isHidden()
    assert str(folder) in bar.label.text()
    assert '1 of the saved prompts and blocks of labels could not be read' in bar.label.text()
    monkeypatch.setattr(bar, 'confirm', lambda title, question: True)
    bar.discard_button.click()
    assert not folder.exists()


def test_work_of_another_shape_is_refused_in_a_line_and_can_be_tried_again(bar, lost, settle):
    shape = bar._saved.shape
    object.__setattr__(bar._saved, 'shape', (1, *shape[1:]))
    object.__setattr__(bar._saved, '_blocks', bar._saved._blocks[:1])
    bar.restore_button.click()
    settle(lost.controller)
    assert lost.controller.status.is_problem
    assert 'the saved objects have shape (1, 60, 80)' in lost.controller.status.text
    assert 'choose the same channels as before' in lost.controller.status.text
    assert lost.objects is None
    assert not bar.restore_button.isHidden()


def test_work_is_restored_once_however_often_it_is_asked_for(bar, lost, settle):
    for _ in range(2):
        bar.restore_button.click()
        lost.image_changed.emit()
        assert not bar.restore_button.isHidden()
    settle(lost.controller)
    lost.history.undo()
    assert lost.history.undo_name is None


def test_work_is_not_put_on_another_image_that_is_chosen_meanwhile(bar, lost, settle):
    other = lost.viewer.add_image(np.zeros((2, 60, 80)), name='Other')
    bar.restore_button.click()
    lost.set_image(other)
    settle(lost.controller)
    assert 'another image was chosen' in lost.controller.status.text
    assert lost.objects is None
