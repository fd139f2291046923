"""The section of the dock that adapts the model: pictures, progress, the loss, and both models on one plane."""

import json

import numpy as np
import pytest
from qtpy.QtCore import QRectF
from skimage import data

from napari_unsam.adapt.comparison import Comparison
from napari_unsam.adapt.job import AdaptJob
from napari_unsam.qt.adapt_panel import AFTER_NAME, BEFORE_NAME, AdaptPanel
from napari_unsam.qt.loss_plot import LossPlot


class FakeJob(AdaptJob):
    """A training that is done as soon as it is started."""

    def start(self, settings):
        (self.folder / 'settings.json').write_text(json.dumps({'settings': {'iterations': settings.iterations}}))
        log = self.folder / 'training' / '20260101_000000' / 'vis_data' / 'scalars.json'
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text('{"step": 5, "loss": 0.7}\n{"step": 10, "loss": 0.4}')
        (self.folder / 'adapted.safetensors').touch()

    def cancel(self):
        """There is no process."""


@pytest.fixture
def panel(qtbot, session, tmp_path, monkeypatch):
    monkeypatch.setattr('napari_unsam.qt.adapt_panel.AdaptJob', FakeJob)
    panel = AdaptPanel(session, tmp_path)
    qtbot.addWidget(panel)
    yield panel
    panel.close_session()


def test_a_training_stops_when_its_window_goes(qtbot, session, viewer, tmp_path, monkeypatch):
    stopped = []
    monkeypatch.setattr(AdaptJob, 'cancel', lambda job: stopped.append(job))
    panel = AdaptPanel(session, tmp_path)
    session.set_image(viewer.add_image(data.coins()))
    job = panel.job
    panel.deleteLater()
    qtbot.waitUntil(lambda: stopped == [job])


def test_without_an_image_nothing_can_be_adapted(panel):
    assert 'Choose an image' in panel.status_label.text()
    for control in (panel.start_button, panel.cancel_button, panel.compare_button, panel.use_box):
        assert not control.isEnabled()


def test_the_panel_takes_pictures_trains_and_shows_the_loss(panel, session, viewer, mailbox):
    session.set_image(viewer.add_image(np.stack([data.coins()] * 5), scale=(4, 1, 1)))
    panel.crops_box.setValue(3)
    panel.iterations_box.setValue(10)
    panel.start_button.click()
    assert not panel.start_button.isEnabled()
    assert panel.cancel_button.isEnabled()
    mailbox.open_until(lambda: not panel.cancel_button.isEnabled())
    assert len(list((panel.job.folder / 'images').glob('*.png'))) == 3
    assert panel.status_label.text() == 'Adapted in 10 steps on 3 crops'
    assert session.controller.status.text == 'Adapted in 10 steps on 3 crops.'
    assert panel.progress_bar.value() == 1000
    assert '0.400 at step 10 of 10' in panel.plot.accessibleDescription()
    assert panel.compare_button.isEnabled()


def test_taking_pictures_can_be_cancelled(panel, session, viewer, mailbox):
    session.set_image(viewer.add_image(np.stack([data.coins()] * 40)))
    panel.crops_box.setValue(40)
    panel.start_button.click()
    panel.cancel_button.click()
    assert panel.start_button.isEnabled()
    assert panel.job.result is None


def test_another_run_that_takes_the_place_of_taking_pictures_leaves_the_button_free(panel, session, viewer, mailbox):
    session.set_image(viewer.add_image(np.stack([data.coins()] * 40)))
    panel.crops_box.setValue(40)
    panel.start_button.click()
    session.controller.run('Something else', lambda progress: None, lambda _nothing: None)
    mailbox.open_until(lambda: not session.controller.is_busy)
    assert panel.start_button.isEnabled()


def test_an_image_with_nothing_on_it_is_told(panel, session, viewer, mailbox):
    session.set_image(viewer.add_image(np.zeros((64, 80), np.uint8)))
    panel.start_button.click()
    mailbox.open_until(lambda: panel.start_button.isEnabled())
    assert session.controller.status.is_problem
    assert 'one colour' in session.controller.status.text


def test_an_image_keeps_its_adapted_model(panel, session, viewer, mailbox):
    coins = viewer.add_image(data.coins())
    session.set_image(coins)
    panel.start_button.click()
    mailbox.open_until(lambda: panel.start_button.isEnabled())
    session.set_image(viewer.add_image(data.coffee()))
    assert panel.job.result is None
    session.set_image(coins)
    assert panel.job.result is not None


def test_a_training_goes_on_while_another_image_is_looked_at(panel, session, viewer, monkeypatch):
    coins = viewer.add_image(data.coins())
    session.set_image(coins)
    monkeypatch.setattr(type(panel.job), 'is_running', property(lambda job: job is first))
    first = panel.job
    session.set_image(viewer.add_image(data.coffee()))
    assert 'Training on another image' in panel.status_label.text()
    assert not panel.start_button.isEnabled()
    session.set_image(coins)
    assert panel.job is first
    assert panel.cancel_button.isEnabled()


def test_both_answers_lie_where_the_plane_is_and_one_is_shown(panel, session, viewer, mailbox, monkeypatch):
    def found(pixels, window, adapted, question, progress):
        labels = np.zeros(pixels.shape[:2], np.uint32)
        labels[20:40, 30:60] = 1
        return Comparison(window[0].start, window[1].start, labels, labels[::-1])

    monkeypatch.setattr('napari_unsam.qt.adapt_panel.compare', found)
    tall = np.tile(data.coins(), (5, 1))  # 1515 px: the comparison is of a window
    session.set_image(viewer.add_image(np.stack([tall] * 3), scale=(4, 2, 2), translate=(0, 7, 0)))
    viewer.dims.set_point(0, 8)
    panel.start_button.click()
    mailbox.open_until(lambda: panel.compare_button.isEnabled())
    panel.compare_button.click()
    mailbox.open_until(lambda: AFTER_NAME in viewer.layers)
    before, after = viewer.layers[BEFORE_NAME], viewer.layers[AFTER_NAME]
    assert before.data.shape == (1, 1024, 384)
    assert before.data_to_world((0, 0, 0)) == pytest.approx(session.image.data_to_world((2, 246, 0)))
    assert (before.visible, after.visible) == (False, True)
    panel.after_box.setChecked(False)
    assert (before.visible, after.visible) == (True, False)
    assert '1 object by the original model' in session.controller.status.text
    session.image.scale = (5, 1, 1)
    assert before.data_to_world((0, 0, 0)) == pytest.approx(session.image.data_to_world((2, 246, 0)))
    panel.compare_button.click()
    mailbox.open_until(lambda: viewer.layers[AFTER_NAME] is not after)
    assert len(viewer.layers) == 3


def test_clicks_are_answered_by_the_adapted_model_while_its_box_is_ticked(
    qtbot, session, viewer, tmp_path, monkeypatch
):
    used = []
    monkeypatch.setattr(session.controller, 'use_weights', used.append)
    session.set_image(viewer.add_image(data.coins()))
    panel = AdaptPanel(session, tmp_path)
    qtbot.addWidget(panel)
    panel.job.folder.mkdir(parents=True)
    (panel.job.folder / 'adapted.safetensors').touch()
    panel.refresh()
    panel.use_box.setChecked(True)
    panel.use_box.setChecked(False)
    assert used == [panel.job.result, None]


def test_the_plot_draws_rising_steps_to_the_right_and_high_losses_up(qtbot):
    plot = LossPlot('Loss')
    qtbot.addWidget(plot)
    plot.show_curve([5, 10, 15], [0.8, float('nan'), 0.4], 20)
    first, last = plot.points(QRectF(0, 0, 100, 50))
    assert (first.x(), first.y()) == (25, 0)
    assert (last.x(), last.y()) == (75, 50)
    plot.resize(240, 120)
    assert not plot.grab().isNull()


def test_a_plot_of_nothing_says_so(qtbot):
    plot = LossPlot('Loss')
    qtbot.addWidget(plot)
    assert plot.accessibleDescription() == 'Loss: no values yet'
    assert not plot.grab().isNull()
