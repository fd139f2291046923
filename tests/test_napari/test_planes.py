import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from napari.components import Dims, ViewerModel
from napari.layers import Image
from skimage import data

from napari_unsam.model.frame import Channels, Frame, channel_axes, labelled_channels
from napari_unsam.model.pixels import plane_pixels, to_uint8
from napari_unsam.model.plane import Plane, plane_in_view
from unsam_mm.errors import ImageError

STACK = Plane(shape=(5, 40, 60), axes=(1, 2), index=(3, 0, 0))


def model_image(layer, plane, channels=None):
    """All pixels of a plane at full resolution."""
    return plane_pixels(layer, plane, channels)[0][:, :]


@pytest.mark.parametrize(
    ('position', 'pixel'),
    [
        pytest.param((3, 0, 0), (0, 0), id='centre of the first pixel'),
        pytest.param((3.4, 39.49, -0.5), (39, 0), id='edges of a pixel belong to it'),
        pytest.param((3, 39.5, 0), None, id='below the image'),
        pytest.param((3, 0, -0.51), None, id='left of the image'),
        pytest.param((2, 7, 7), None, id='on another plane'),
    ],
)
def test_a_position_is_the_pixel_whose_centre_is_nearest(position, pixel):
    assert STACK.pixel(position) == pixel


def test_a_plane_addresses_its_pixels_in_the_whole_array():
    array = np.zeros(STACK.shape)
    array[STACK.slices((10, 1, 21, 3))] = 1
    assert np.argwhere(array)[[0, -1]].tolist() == [[3, 1, 10], [3, 2, 20]]
    assert array[STACK.slicing].sum() == array.sum() == 22


def test_the_plane_index_follows_the_layers_own_coordinates_and_not_the_sliders():
    viewer = ViewerModel()
    layer = viewer.add_image(np.zeros((10, 40, 60)), scale=(2, 0.5, 0.5), translate=(100, 0, 0))
    viewer.dims.set_point(0, 108)
    assert plane_in_view(Frame(layer), viewer.dims) == Plane(shape=(10, 40, 60), axes=(1, 2), index=(4, 0, 0))


@pytest.mark.parametrize(
    'beside',
    [
        pytest.param({'scale': (1, 1, 1)}, id='planes half as far apart'),
        pytest.param({'scale': (0.25, 1, 1)}, id='many planes for each'),
        pytest.param({'scale': (2, 1, 1), 'translate': (1, 0, 0)}, id='planes between those of the image'),
    ],
)
def test_the_plane_that_is_written_is_the_one_that_is_shown_beside_another_layer(beside):
    shape = (9, 4, 5)
    numbers = np.broadcast_to(np.arange(shape[0])[:, None, None], shape)
    viewer = ViewerModel()
    layer = viewer.add_image(numbers.astype(float), scale=(2, 1, 1))
    viewer.add_image(np.zeros((40, 4, 5)), **beside)
    for step in range(17):  # every other one lies half-way between two planes
        viewer.dims.set_point(0, step)
        plane = plane_in_view(Frame(layer, world_units=viewer.dims.units), viewer.dims)
        assert plane.index[0] == shown_plane(layer)


def shown_plane(layer):
    """Which plane napari shows of a layer whose pixels are the number of their plane; None if it shows none."""
    return None if layer._slice.empty else layer._slice.image.raw.flat[0]


_SPACING = st.sampled_from([0.1, 0.25, 0.3, 0.5, 1.0, 2.0, 3.0])
_UNITS = st.sampled_from(['pixel', 'um', 'nm'])


@pytest.mark.filterwarnings('ignore:Non-orthogonal slicing')
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    spacing=_SPACING,
    other_spacing=_SPACING,
    start=st.sampled_from([0.0, 0.05, 0.5, 1.0, -2.25]),
    other_start=st.sampled_from([0.0, 0.15, 0.5, -1.0]),
    units=st.tuples(_UNITS, _UNITS).filter(lambda pair: ('pixel' in pair) == (pair[0] == pair[1] == 'pixel')),
    turned=st.sampled_from([None, (0, 30, 0), (25, 0, 0)]),
    order=st.sampled_from([(0, 1, 2), (1, 2, 0), (2, 0, 1)]),
)
def test_at_every_step_of_a_slider_the_plane_is_the_one_on_screen(
    spacing, other_spacing, start, other_start, units, turned, order
):
    axis = order[0]
    shape = (6, 7, 8)
    numbers = np.broadcast_to(np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(3)]), shape)
    viewer = ViewerModel()
    layer = viewer.add_image(
        numbers.astype(float), scale=(spacing,) * 3, translate=(start,) * 3, rotate=turned, units=(units[0],) * 3
    )
    viewer.add_labels(
        np.zeros((5, 6, 7), np.uint8),
        scale=(other_spacing,) * 3,
        translate=(other_start,) * 3,
        units=(units[1],) * 3,
    )
    viewer.dims.order = order
    for step in range(min(viewer.dims.nsteps[axis], 15)):
        viewer.dims.set_current_step(axis, step)
        try:
            written = plane_in_view(Frame(layer, world_units=viewer.dims.units), viewer.dims).index[axis]
        except ImageError:
            written = None
        assert written == shown_plane(layer)


@pytest.mark.parametrize('at', [0, 3])
def test_a_plane_that_is_gone_to_is_shown_whatever_the_units_of_other_layers(at):
    viewer = ViewerModel()
    layer = viewer.add_image(np.zeros((5, 4, 6)), scale=(2, 1, 1), translate=(7, 0, 0), units=['um'] * 3)
    viewer.add_image(np.zeros((5, 4, 6)), units=['nm'] * 3)
    frame = Frame(layer, world_units=viewer.dims.units)
    viewer.dims.set_point(0, frame.to_world((at, 0, 0))[0])
    assert plane_in_view(frame, viewer.dims).index == (at, 0, 0)
    assert frame.to_data(frame.to_world((at, 2.5, 3))) == pytest.approx((at, 2.5, 3))


def test_a_2d_image_beside_a_stack_keeps_its_one_plane():
    viewer = ViewerModel()
    viewer.add_image(np.zeros((10, 40, 60)))
    layer = viewer.add_image(data.coins())
    assert plane_in_view(Frame(layer), viewer.dims) == Plane(shape=(303, 384), axes=(0, 1), index=(0, 0))


def test_a_plane_across_the_stack_is_read_with_its_axes_in_the_arrays_order():
    viewer = ViewerModel()
    stack = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    layer = viewer.add_image(stack, contrast_limits=(0, 255))
    viewer.dims.order = (1, 2, 0)
    viewer.dims.set_point(1, 3)
    plane = plane_in_view(Frame(layer), viewer.dims)
    assert plane.axes == (0, 2)
    assert plane.size_hw == (4, 6)
    assert (model_image(layer, plane) == stack[:, 3, :]).all()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        pytest.param(lambda viewer: setattr(viewer.dims, 'ndisplay', 3), 'switch to 2D', id='3D view'),
        pytest.param(lambda viewer: setattr(viewer.dims, 'order', (2, 1, 0)), 'no axis', id='axis the image lacks'),
    ],
)
def test_a_view_without_a_plane_says_what_to_do(change, message):
    viewer = ViewerModel()
    viewer.add_image(np.zeros((10, 40, 60)))
    layer = viewer.add_image(data.coins())
    change(viewer)
    with pytest.raises(ImageError, match=message):
        plane_in_view(Frame(layer), viewer.dims)


def test_a_slider_beyond_the_end_of_a_short_stack_is_reported():
    viewer = ViewerModel()
    viewer.add_image(np.zeros((10, 40, 60)))
    short = viewer.add_image(np.zeros((3, 40, 60)))
    viewer.dims.set_point(0, 8)
    with pytest.raises(ImageError, match='no slice at this slider position'):
        plane_in_view(Frame(short), viewer.dims)


def test_the_model_sees_what_the_contrast_limits_show():
    counts = data.cell().astype(np.uint16) * 16
    plane = Plane(counts.shape, (0, 1), (0, 0))
    layer = Image(counts, contrast_limits=(0, 255 * 16))
    assert model_image(layer, plane).dtype == np.uint8
    assert (model_image(layer, plane) == data.cell()).all()
    layer.contrast_limits = (800, 2400)
    assert (model_image(layer, plane)[counts <= 800] == 0).all()
    assert (model_image(layer, plane)[counts >= 2400] == 255).all()


@pytest.mark.parametrize('dtype', [bool, np.int16, np.float32])
def test_pixels_of_any_type_become_uint8(dtype):
    pixels = np.array([[0, 1], [1, 0]], dtype)
    assert to_uint8(pixels, (0, 1)).tolist() == [[0, 255], [255, 0]]


def test_pixels_that_are_no_number_become_black():
    assert to_uint8(np.array([np.nan, 0.5, np.inf]), (0, 1)).tolist() == [0, 128, 255]


def test_an_rgb_image_reaches_the_model_as_it_is_without_alpha():
    rgba = np.dstack([data.coffee(), np.full(data.coffee().shape[:2], 255, np.uint8)])
    layer = Image(rgba, rgb=True)
    assert (model_image(layer, Plane((400, 600), (0, 1), (0, 0))) == data.coffee()).all()


def test_a_pyramid_is_read_at_full_resolution():
    coins = data.coins()
    layer = Image([coins, coins[::2, ::2]], multiscale=True, contrast_limits=(0, 255))
    plane = plane_in_view(Frame(layer), Dims(ndim=2))
    assert plane.size_hw == (303, 384)
    assert (model_image(layer, plane) == coins).all()


class Counting:
    """An array of zeros that knows how many of its elements were read."""

    def __init__(self, shape):
        self.shape, self.ndim, self.dtype, self.read = shape, len(shape), np.dtype(np.uint16), 0

    def __getitem__(self, index):
        part = np.broadcast_to(np.uint16(0), self.shape)[index]
        self.read += part.size
        return part


def test_only_the_pixels_that_are_wanted_are_read():
    array = Counting((5, 100_000, 100_000))
    layer = Image(np.zeros((5, 4, 4)), contrast_limits=(0, 1))
    layer_pixels = plane_pixels(layer, Plane((5, 4, 4), (1, 2), (3, 0, 0)))[0]
    lazy = type(layer_pixels)(array, Plane(array.shape, (1, 2), (3, 0, 0)), (0, 255))
    assert lazy.shape == (100_000, 100_000)
    assert lazy[500:510, 700:720].shape == (10, 20)
    assert array.read == 200


def test_a_pyramid_gives_those_coarser_arrays_that_halve_the_plane_alone():
    grey = np.zeros((4, 256, 256), np.uint8)
    plane = Plane(grey.shape, (1, 2), (2, 0, 0))
    halved = Image([grey, grey[:, ::2, ::2], grey[:, ::4, ::4]], multiscale=True, contrast_limits=(0, 255))
    assert [pixels.shape for pixels in plane_pixels(halved, plane)] == [(256, 256), (128, 128), (64, 64)]
    thinned = Image([grey, grey[::2, ::2, ::2]], multiscale=True, contrast_limits=(0, 255))
    assert [pixels.shape for pixels in plane_pixels(thinned, plane)] == [(256, 256)]


def test_chosen_channels_reach_the_model_as_colours():
    channels = np.stack([data.coins()[:64, :96], data.coins()[64:128, :96], data.coins()[128:192, :96]])
    layer, plane = Image(channels, contrast_limits=(0, 255)), Plane((1, 64, 96), (1, 2), (0, 0, 0))
    assert (model_image(layer, plane, Channels(0, (2,))) == channels[2]).all()
    seen = model_image(layer, plane, Channels(0, (1, 0)))
    assert (seen[..., 0] == channels[1]).all()
    assert (seen[..., 1] == channels[0]).all()
    assert not seen[..., 2].any()


@pytest.mark.parametrize(
    ('shape', 'axes'), [((4, 30, 40), [0]), ((40, 3, 30, 40), [1]), ((30, 40), []), ((1, 30, 40), [])]
)
def test_short_axes_may_be_of_channels(shape, axes):
    assert channel_axes(Image(np.zeros(shape))) == axes


def test_an_axis_that_is_called_one_of_channels_is_taken_for_it():
    assert labelled_channels(Image(np.zeros((5, 3, 30, 40)), axis_labels=['t', 'c', 'y', 'x'])) == Channels(1)
    assert labelled_channels(Image(np.zeros((5, 3, 30, 40)))) is None


@pytest.mark.parametrize('at', [0, 1, 2])
def test_all_channels_share_one_plane_wherever_the_slider_stands(at):
    viewer = ViewerModel()
    layer = viewer.add_image(np.zeros((5, 3, 40, 60)), scale=(1, 2, 0.5, 0.5), translate=(0, 7, 0, 0))
    viewer.dims.set_point(1, 7 + 2 * at)
    viewer.dims.set_point(0, 4)
    frame = Frame(layer, Channels(1))
    assert plane_in_view(frame, viewer.dims) == Plane((5, 1, 40, 60), (2, 3), (4, 0, 0, 0))
    objects = viewer.add_labels(np.ones(frame.shape, np.uint32), **frame.transform())
    assert objects.get_value(layer.data_to_world((4, at, 20, 30)), world=True) == 1


def test_a_view_along_the_channels_says_what_to_do():
    viewer = ViewerModel()
    layer = viewer.add_image(np.zeros((5, 3, 40, 60)))
    viewer.dims.order = (0, 2, 1, 3)
    with pytest.raises(ImageError, match='channel axis'):
        plane_in_view(Frame(layer, Channels(1)), viewer.dims)


@pytest.mark.parametrize('chosen', [(), (0, 1, 2, 3)])
def test_no_more_than_three_channels_can_be_chosen(chosen):
    with pytest.raises(ImageError, match='one to 3 channels'):
        Channels(0, chosen)
