"""The layers of the plugin stay on their image."""

import numpy as np
import pytest
from skimage import data

from napari_unsam.viewer.layers import OBJECTS_NAME, PREVIEW_NAME, PROMPTS_NAME

ON_CUP = (150, 300)


@pytest.fixture
def clicked(on_coffee, viewer, settle):
    """A session with an object on the photo and a click beside it."""
    image = viewer.layers['Coffee']
    on_coffee.click(image.data_to_world(ON_CUP))
    settle(on_coffee.controller)
    on_coffee.commit()
    on_coffee.click(image.data_to_world((340, 560)))
    settle(on_coffee.controller)
    return on_coffee


@pytest.mark.parametrize(
    ('name', 'value'), [('scale', (3, 0.5)), ('translate', (7, 8)), ('rotate', 45), ('affine', np.diag([2.0, 3, 1]))]
)
def test_prompts_outline_and_objects_move_with_their_image(clicked, viewer, name, value):
    image = viewer.layers['Coffee']
    setattr(image, name, value)
    for layer in (OBJECTS_NAME, PREVIEW_NAME, PROMPTS_NAME):
        assert viewer.layers[layer].data_to_world(ON_CUP) == pytest.approx(image.data_to_world(ON_CUP))


def test_a_click_on_an_image_that_was_moved_means_the_pixel_that_is_seen_there(clicked, viewer):
    image = viewer.layers['Coffee']
    image.scale = (0.5, 3)
    clicked.click(image.data_to_world(ON_CUP))
    assert clicked.controller.prompts.points[-1].position == pytest.approx(ON_CUP)


def test_objects_of_another_image_stay_where_they_are(clicked, viewer):
    coffee = viewer.layers['Coffee']
    before = tuple(viewer.layers[OBJECTS_NAME].scale)
    coins = viewer.add_image(data.coins())
    clicked.set_image(coins)
    coins.scale = (5, 5)
    assert tuple(viewer.layers[OBJECTS_NAME].scale) == before == tuple(coffee.scale)
