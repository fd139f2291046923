"""Images of every kind under the session: stacks, channels, lazy arrays, new pixels."""

import numpy as np
import pytest
from skimage import data

from napari_unsam.model.frame import Channels
from napari_unsam.model.pixels import to_uint8
from napari_unsam.viewer.layers import OBJECTS_NAME, PREVIEW_NAME
from tests.test_napari.stand_ins import is_problem
from unsam_mm.errors import ImageError


def test_a_stack_is_segmented_plane_by_plane(viewer, session, mouse, settle):
    grey = data.coins()
    stack = viewer.add_image(
        np.stack([grey, grey[::-1], grey.T[:303, :303].repeat(2, axis=1)[:, :384]]), scale=(3, 1, 1)
    )
    session.set_image(stack)
    viewer.dims.set_point(0, 3)
    mouse((3, 100, 100))
    settle(session.controller)
    preview = viewer.layers[PREVIEW_NAME]
    assert set(preview.data[:, 0, 0]) == {1}
    assert preview.data_to_world((1, 0, 0)) == (3, 0, 0)
    session.commit()
    assert viewer.layers[OBJECTS_NAME].data.any(axis=(1, 2)).tolist() == [False, True, False]
    viewer.dims.set_point(0, 6)
    assert session.controller.target.plane.index == (2, 0, 0)
    assert session.controller.hierarchy is None


def test_the_contour_moves_to_the_plane_that_is_clicked(viewer, session, settle):
    turned = np.array([[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]])
    stack = viewer.add_image(np.stack([data.coins()] * 3), scale=(3, 1, 1), translate=(5, 0, 0), rotate=turned)
    session.set_image(stack)
    for plane in (0, 2):
        viewer.dims.set_point(0, 5 + 3 * plane)
        session.click(stack.data_to_world((plane, 100, 100)))
        settle(session.controller)
        preview = viewer.layers[PREVIEW_NAME]
        assert set(preview.data[:, 0, 0]) == {plane}
        assert preview.data_to_world((plane, 30, 40)) == pytest.approx(stack.data_to_world((plane, 30, 40)))
    assert len({prompt.position[0] for prompt in session.controller.prompts.points}) == 2


def test_a_3d_view_is_explained_and_the_work_goes_on_in_2d(viewer, session, mouse, settle):
    stack = viewer.add_image(np.stack([data.coins()] * 2))
    session.set_image(stack)
    viewer.dims.ndisplay = 3
    mouse((0, 100, 100))
    assert is_problem(session, 'switch to 2D')
    viewer.dims.ndisplay = 2
    mouse((0, 100, 100))
    settle(session.controller)
    assert session.controller.proposal is not None


def test_new_pixels_need_a_new_tree(on_coffee):
    on_coffee.image.data = data.coffee()[::-1]
    assert on_coffee.controller.hierarchy is None


def test_new_pixels_need_a_new_tree_although_another_image_was_chosen_meanwhile(on_coffee, viewer):
    coffee = on_coffee.image
    on_coffee.set_image(viewer.add_image(data.coins()))
    coffee.data = data.coffee()[::-1]
    on_coffee.set_image(coffee)
    assert on_coffee.controller.hierarchy is None


def test_the_tree_of_a_removed_image_is_dropped_although_another_one_is_chosen(on_coffee, viewer):
    coffee = on_coffee.image
    on_coffee.set_image(viewer.add_image(data.coins()))
    viewer.layers.remove(coffee)
    viewer.add_layer(coffee)
    on_coffee.set_image(coffee)
    assert on_coffee.controller.hierarchy is None


def test_any_plane_of_the_image_can_be_asked_for(viewer, session):
    stack = viewer.add_image(np.stack([data.coins(), data.coins()[::-1]]))
    session.set_image(stack)
    target = session.target_at((1, 0, 0))
    assert target.plane.index == (1, 0, 0)
    assert (target.read() == data.coins()[::-1]).all()
    viewer.dims.ndisplay = 3
    assert session.target_at((1, 0, 0)) == target
    with pytest.raises(ImageError, match='no slice'):
        session.target_at((2, 0, 0))


def test_chosen_channels_are_what_the_model_sees_and_objects_lie_on_all_of_them(viewer, session, settle):
    coins = data.coins()
    image = viewer.add_image(np.stack([coins, 255 - coins, coins // 2]), scale=(2, 1, 1))
    session.set_image(image)
    session.set_channels(Channels(0, (1,)))
    assert (session.controller.target.read() == to_uint8(255 - coins, image.contrast_limits)).all()
    viewer.dims.set_point(0, 4)
    session.click((4, 100, 100))
    settle(session.controller)
    session.commit()
    assert session.objects.data.shape == (1, *coins.shape)
    assert {session.objects.get_value((z, 100, 100), world=True) for z in (0, 2, 4)} == {1}
    session.set_channels(Channels(0, (0, 1, 2)))
    assert session.controller.hierarchy is None
    assert session.controller.target.read().shape == (*coins.shape, 3)
    session.set_channels(None)
    assert session.objects is None


@pytest.mark.parametrize('kind', ['dask', 'zarr', 'multiscale'])
def test_arrays_that_are_not_in_memory_are_segmented_too(viewer, session, settle, kind):
    da, zarr = pytest.importorskip('dask.array'), pytest.importorskip('zarr')
    coins = np.stack([data.coins()] * 2)
    pixels = {
        'dask': lambda: da.from_array(coins, chunks=(1, 128, 128)),
        'zarr': lambda: zarr.array(coins, chunks=(1, 128, 128)),
        'multiscale': lambda: [coins, coins[:, ::2, ::2]],
    }[kind]()
    session.set_image(viewer.add_image(pixels, multiscale=kind == 'multiscale', contrast_limits=(0, 255)))
    viewer.dims.set_point(0, 1)
    session.click((1, 100, 100))
    settle(session.controller)
    session.commit()
    assert session.objects.data[1].any()
    assert not session.objects.data[0].any()
