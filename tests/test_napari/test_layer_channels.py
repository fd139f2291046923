"""Layers that are channels of one image: what the model sees, and what has it look again."""

import numpy as np
import pytest
from skimage import data

from napari_unsam.engine.embeddings import plane_key
from napari_unsam.model.frame import LayerChannels
from napari_unsam.model.pixels import plane_pixels, to_uint8
from napari_unsam.model.plane import Plane
from napari_unsam.qt.image_panel import ImagePanel
from tests.test_napari.stand_ins import is_problem
from unsam_mm.errors import ImageError

NUCLEI = data.coins()
MEMBRANE = NUCLEI[::-1].astype(np.uint16) * 16


@pytest.fixture
def stained(viewer, session):
    """A session on an image whose other channels are layers of their own; the fourth lies elsewhere."""
    image = viewer.add_image(NUCLEI, name='Nuclei', scale=(2, 2))
    viewer.add_image(MEMBRANE, name='Membrane', scale=(2, 2), contrast_limits=(100, 3000))
    viewer.add_image(255 - NUCLEI, name='Third', scale=(2, 2))
    viewer.add_image(NUCLEI, name='Elsewhere', scale=(2, 2), translate=(5, 0))
    session.set_image(image)
    return session


def choose(session, *names):
    session.set_channels(LayerChannels(tuple(session.viewer.layers[name] for name in names)))


def test_layers_are_seen_as_colours_each_at_its_own_contrast_limits(stained):
    choose(stained, 'Nuclei', 'Membrane')
    seen = stained.controller.target.read()
    assert (seen[..., 0] == to_uint8(NUCLEI, stained.image.contrast_limits)).all()
    assert (seen[..., 1] == to_uint8(MEMBRANE, (100, 3000))).all()
    assert not seen[..., 2].any()


def test_one_other_layer_alone_is_seen_as_grey(stained):
    choose(stained, 'Membrane')
    assert (stained.controller.target.read() == to_uint8(MEMBRANE, (100, 3000))).all()


def test_what_is_kept_on_disk_is_of_all_channels(stained):
    choose(stained, 'Nuclei', 'Membrane', 'Third')
    before = plane_key(stained.controller.target.read(), '')
    for name in ('Nuclei', 'Membrane', 'Third'):
        layer = stained.viewer.layers[name]
        kept, layer.data = layer.data, layer.data[:, ::-1]
        assert plane_key(stained.controller.target.read(), '') != before
        layer.data = kept
    assert plane_key(stained.controller.target.read(), '') == before


def test_objects_and_prompts_stay_where_they_are_when_channels_are_chosen(stained, settle):
    stained.click((200, 200))
    choose(stained, 'Nuclei', 'Membrane')
    assert len(stained.controller.prompts.points) == 1
    assert stained.controller.plane is None
    stained.controller.embed()
    settle(stained.controller)
    stained.commit()
    assert stained.objects.data.shape == NUCLEI.shape


def test_new_pixels_of_any_channel_have_the_model_look_again_and_those_of_others_do_not(stained, settle):
    choose(stained, 'Nuclei', 'Membrane')
    for name, is_seen in (('Membrane', True), ('Third', False)):
        stained.controller.embed()
        settle(stained.controller)
        layer = stained.viewer.layers[name]
        layer.data = layer.data[::-1]
        assert (stained.controller.plane is None) is is_seen


def test_a_channel_that_is_removed_leaves_the_image_alone(stained):
    choose(stained, 'Nuclei', 'Membrane')
    stained.viewer.layers.remove('Membrane')
    assert stained.channels is None
    assert '"Membrane" was removed' in stained.controller.status.text
    assert stained.controller.target.read().ndim == 2


@pytest.mark.parametrize(
    ('other', 'placed', 'words'),
    [
        pytest.param(NUCLEI[:100], {'scale': (2, 2)}, '303 x 384 px and "Other" 100 x 384', id='shape'),
        pytest.param(NUCLEI, {}, 'does not lie on "Nuclei"', id='scale'),
        pytest.param(NUCLEI, {'scale': (2, 2), 'rotate': 5}, 'does not lie on "Nuclei"', id='rotation'),
        pytest.param(NUCLEI, {'scale': (2, 2), 'units': 'um'}, 'does not lie on "Nuclei"', id='units'),
        pytest.param(np.dstack([NUCLEI] * 3), {'scale': (2, 2)}, 'is an RGB image', id='colours'),
    ],
)
def test_layers_that_do_not_lie_on_each_other_are_refused_with_the_reason(stained, other, placed, words):
    stained.viewer.add_image(other, name='Other', **placed)
    with pytest.raises(ImageError, match=words):
        choose(stained, 'Nuclei', 'Other')
    with pytest.raises(ImageError, match=words):
        choose(stained, 'Other')
    assert stained.channels is None


def test_pyramids_are_read_at_the_resolutions_that_all_channels_have(viewer):
    plane = Plane(NUCLEI.shape, (0, 1), (0, 0))
    pyramid = [NUCLEI, NUCLEI[::2, ::2], NUCLEI[::4, ::4]]
    layers = [viewer.add_image(pyramid[:levels], multiscale=True, contrast_limits=(0, 255)) for levels in (3, 2)]
    seen = plane_pixels(layers[0], plane, LayerChannels(tuple(layers)))
    assert [pixels.shape for pixels in seen] == [(303, 384, 3), (152, 192, 3)]
    assert (seen[1][10:20, 30:50][..., 1] == NUCLEI[::2, ::2][10:20, 30:50]).all()


def pick(combo, text):
    combo.setCurrentText(text)
    combo.activated.emit(combo.currentIndex())


def test_the_panel_offers_the_other_layers_and_says_why_one_cannot_be_a_channel(stained, qtbot):
    layers = stained.viewer.layers
    layers.selection = {stained.image}
    panel = ImagePanel(stained)
    qtbot.addWidget(panel)
    pick(panel.axis_choice, 'Layers')
    pick(panel.channel_choices[1], 'Membrane')
    assert stained.channels == LayerChannels((layers['Nuclei'], layers['Membrane']))
    pick(panel.channel_choices[2], 'Elsewhere')
    assert is_problem(stained, '"Elsewhere" does not lie on "Nuclei"')
    assert [combo.currentText() for combo in panel.channel_choices] == ['Nuclei', 'Membrane', 'None']
    layers.remove('Membrane')
    assert panel.axis_choice.currentText() == 'No axis'
    assert all(combo.isHidden() for combo in panel.channel_choices)
    panel.close_session()
