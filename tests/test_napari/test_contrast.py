"""Contrast limits: the model sees what the user sees, and looks again once the slider rests."""

import numpy as np
import pytest
from qtpy.QtTest import QTest
from skimage import data

from napari_unsam.model.frame import LayerChannels
from napari_unsam.qt import image_panel
from napari_unsam.qt.image_panel import ImagePanel
from tests.test_napari.stand_ins import colour_tree

REST_MS = 60


@pytest.fixture
def looks():
    """The brightest value in each image that was looked at."""
    return []


@pytest.fixture
def seen(viewer, make_controller, looks, qtbot, monkeypatch, settle):
    """A session on a stack with one plane ready, and its panel, whose patience is short."""
    from napari_unsam.viewer.session import ViewerSession

    def embed(image, progress):
        looks.append(int(image.max()))
        return colour_tree(image, progress)

    monkeypatch.setattr(image_panel, 'CONTRAST_DELAY_MS', REST_MS)
    session = ViewerSession(viewer, make_controller(embed))
    session.set_image(viewer.add_image(np.stack([data.coins()[:100, :120]] * 2), contrast_limits=(0, 255)))
    viewer.dims.set_point(0, 0)
    panel = ImagePanel(session)
    qtbot.addWidget(panel)
    session.click((0, 50, 50))
    settle(session.controller)
    looks.clear()
    yield session
    panel.close_session()
    session.close()


def drag(layer, *tops):
    for top in tops:
        layer.contrast_limits = (0, top)


def test_a_drag_of_the_slider_is_looked_at_once_when_it_rests(seen, looks, settle):
    drag(seen.image, *range(1000, 500, -10))
    assert not seen.controller.is_busy
    assert seen.controller.plane is not None
    QTest.qWait(2 * REST_MS)
    assert 'Contrast changed' in seen.controller.status.text
    settle(seen.controller)
    assert len(looks) == 1
    assert looks[0] == round(int(seen.image.data[0].max()) * 255 / 510)
    assert seen.controller.proposal is not None


def test_other_planes_are_looked_at_again_when_they_are_wanted(seen, looks, viewer, settle):
    viewer.dims.set_point(0, 1)
    drag(seen.image, 500)
    QTest.qWait(2 * REST_MS)
    assert not seen.controller.is_busy
    viewer.dims.set_point(0, 0)
    assert seen.controller.plane is None


def test_the_contrast_of_a_channel_counts_too(seen, looks, viewer, settle):
    other = viewer.add_image(seen.image.data, contrast_limits=(0, 255))
    seen.set_channels(LayerChannels((seen.image, other)))
    seen.controller.embed()
    settle(seen.controller)
    drag(other, 300)
    QTest.qWait(2 * REST_MS)
    settle(seen.controller)
    assert len(looks) == 2


def test_an_image_that_is_not_in_view_is_forgotten_at_once(seen, viewer):
    stack = seen.image
    seen.set_image(viewer.add_image(data.coins()))
    drag(stack, 300)
    seen.set_image(stack)
    assert seen.controller.plane is None


def test_colours_have_no_contrast_limits(viewer, session, settle):
    session.set_image(viewer.add_image(data.coffee()))
    heard = []
    session.contrast_changed.connect(lambda: heard.append(True))
    session.image.contrast_limits = (0, 100)
    assert not heard
