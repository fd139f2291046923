import numpy as np
import pytest
from napari.layers.base import LayerLock
from napari.utils.key_bindings import coerce_keybinding
from skimage import data

from napari_unsam._commit import ObjectWrite
from napari_unsam._controller import Level
from napari_unsam._frame import Channels
from napari_unsam._layers import OBJECTS_NAME, PREVIEW_NAME, PROMPTS_NAME, SHAPES_NAME
from napari_unsam._pixels import to_uint8
from napari_unsam._prompts import Polarity, ShapeKind
from napari_unsam._session import ViewerSession
from tests.test_napari.stand_ins import colour_tree, drawn_mask
from unsam_mm.errors import ImageError, UnSAMError

ON_CUP, ON_TABLE = (150, 300), (20, 20)  # row and column in the photo of the coffee cup
KEYS = 'JKNGUQ'


class Mouse:
    """A press, an optional drag and a release, as napari hands them to its callbacks; then the answer is waited for."""

    def __init__(self, viewer, session, settle):
        self.viewer, self.session, self.settle = viewer, session, settle

    def __call__(self, world, button=1, modifiers=(), travel_px=0):
        event = _Event('mouse_press', world, button, modifiers)
        running = [iter(callback(self.viewer, event)) for callback in self.viewer.mouse_drag_callbacks[-1:]]
        steps = [('mouse_move', travel_px)] * bool(travel_px) + [('mouse_release', travel_px)]
        for kind, travel in [('mouse_press', 0), *steps]:
            event.type, event.pos = kind, np.array([50 + travel, 50])
            for generator in running:
                next(generator, None)
        self.settle(self.session.controller)

    def wheel(self, turned, modifiers=('Alt',)):
        event = _Event('mouse_wheel', (0, 0), 0, modifiers)
        event.delta, event.handled = (0, turned), False
        self.viewer.mouse_wheel_callbacks[-1](self.viewer, event)
        return event.handled


class _Event:
    def __init__(self, kind, world, button, modifiers):
        self.type, self.position, self.button, self.modifiers = kind, world, button, modifiers
        self.pos = np.array([50, 50])


@pytest.fixture
def mouse(viewer, session, settle):
    return Mouse(viewer, session, settle)


@pytest.fixture
def on_coffee(viewer, session, settle):
    """A session at work on a photo that is scaled and moved, with its region tree made."""
    image = viewer.add_image(data.coffee(), scale=(2, 2), translate=(100, -30), rotate=10, name='Coffee')
    session.set_image(image)
    session.controller.embed()
    settle(session.controller)
    return session


def world(session, pixel):
    return session.image.data_to_world(pixel)


def is_problem(session, words):
    return session.controller.status.level is Level.PROBLEM and words in session.controller.status.text


def press(receiver, key):
    """Presses a key as napari does for a layer or a viewer."""
    receiver.keymap[coerce_keybinding(key)](receiver)


def test_a_click_shows_a_point_and_the_contour_of_its_mask_where_the_image_is(on_coffee, viewer, mouse):
    mouse(world(on_coffee, ON_CUP))
    points, preview = viewer.layers[PROMPTS_NAME], viewer.layers[PREVIEW_NAME]
    assert points.data.tolist() == pytest.approx(np.array([ON_CUP]))
    mask = drawn_mask(preview, (400, 600))
    assert mask[ON_CUP]
    assert mask.sum() == on_coffee.controller.proposal.area_px
    for layer in (points, preview):
        assert layer.data_to_world(ON_CUP) == pytest.approx(world(on_coffee, ON_CUP))
        assert layer.units == on_coffee.image.units
        assert layer.locked is LayerLock.DELETION


def test_the_selected_layer_stays_selected_when_the_layers_of_the_plugin_appear(on_coffee, viewer, mouse):
    mouse(world(on_coffee, ON_CUP))
    assert viewer.layers.selection.active is on_coffee.image


@pytest.mark.parametrize(
    ('how', 'polarity'),
    [
        pytest.param({}, Polarity.POSITIVE, id='left'),
        pytest.param({'modifiers': ('Shift',)}, Polarity.NEGATIVE, id='Shift-left'),
        pytest.param({'button': 2}, Polarity.NEGATIVE, id='right'),
    ],
)
def test_shift_and_the_right_button_mean_the_other_polarity(on_coffee, how, polarity, mouse):
    mouse(world(on_coffee, ON_CUP), **how)
    assert [prompt.polarity for prompt in on_coffee.controller.prompts.points] == [polarity]


def test_polarities_differ_in_colour_and_in_shape(on_coffee, viewer, mouse):
    mouse(world(on_coffee, ON_CUP))
    mouse(world(on_coffee, ON_TABLE), button=2)
    points = viewer.layers[PROMPTS_NAME]
    assert len(np.unique(points.face_color, axis=0)) == 2
    assert [str(symbol) for symbol in points.symbol] == ['disc', 'diamond']


@pytest.mark.parametrize('how', [{'travel_px': 40}, {'button': 3}])
def test_dragging_the_view_and_other_buttons_are_no_prompt(on_coffee, how, mouse):
    mouse(world(on_coffee, ON_CUP), **how)
    assert on_coffee.controller.prompts.points == ()


def test_clicks_belong_to_the_selected_layer_while_it_paints(on_coffee, viewer, mouse):
    viewer.add_labels(np.zeros((400, 600), int)).mode = 'paint'
    mouse(world(on_coffee, ON_CUP))
    assert on_coffee.controller.prompts.points == ()


def test_clicks_are_no_prompts_while_prompting_is_off(on_coffee, mouse):
    on_coffee.prompting = False
    mouse(world(on_coffee, ON_CUP))
    assert on_coffee.controller.prompts.points == ()


def test_a_click_beside_the_image_is_harmless_and_said(on_coffee, viewer, mouse):
    mouse((-5000, -5000))
    assert is_problem(on_coffee, 'outside "Coffee"')
    assert list(viewer.layers) == [on_coffee.image]


def test_without_an_image_clicks_and_keys_are_harmless_and_said(session, viewer, mouse):
    mouse((0, 0))
    assert is_problem(session, 'Choose an image')
    for key in KEYS:
        press(viewer, key)
    assert len(viewer.layers) == 0


def test_the_keys_work_on_the_viewer_and_on_the_layers_of_the_plugin(on_coffee, viewer, mouse):
    mouse(world(on_coffee, ON_CUP))
    area = on_coffee.controller.proposal.area_px
    press(viewer, 'K')
    assert on_coffee.controller.proposal.area_px < area
    press(viewer.layers[PROMPTS_NAME], 'J')
    assert on_coffee.controller.proposal.area_px == area
    press(viewer.layers[PREVIEW_NAME], 'G')
    assert on_coffee.controller.polarity is Polarity.NEGATIVE
    press(viewer, 'N')
    assert viewer.layers[OBJECTS_NAME].features['area_px'].tolist() == [area]
    press(viewer.layers[OBJECTS_NAME], 'U')
    assert len(on_coffee.controller.prompts.points) == 1
    press(viewer.layers[OBJECTS_NAME], 'Q')
    assert on_coffee.controller.prompts.points == ()


def test_committed_objects_lie_on_the_image_and_ctrl_z_reaches_them(on_coffee, viewer, mouse):
    mouse(world(on_coffee, ON_CUP))
    on_coffee.commit()
    objects = viewer.layers[OBJECTS_NAME]
    assert objects.data.dtype == np.uint32
    assert objects.data_to_world(ON_CUP) == pytest.approx(world(on_coffee, ON_CUP))
    assert viewer.layers.index(objects) == viewer.layers.index(on_coffee.image) + 1
    assert not viewer.layers[PREVIEW_NAME].visible
    objects.undo()
    assert not objects.data.any()
    assert len(objects.features) == 0


def test_a_commit_where_everything_is_taken_says_so(on_coffee, viewer, mouse):
    for _ in range(2):
        mouse(world(on_coffee, ON_CUP))
        on_coffee.commit()
    assert is_problem(on_coffee, 'Nothing was committed')
    on_coffee.keep_existing = False
    on_coffee.commit()
    assert np.unique(viewer.layers[OBJECTS_NAME].data).tolist() == [0, 2]


def test_a_commit_of_nothing_keeps_the_clicks_and_says_how_to_go_on(on_coffee, viewer, mouse):
    for _ in range(2):
        mouse(world(on_coffee, ON_CUP))
        on_coffee.commit()
    assert len(on_coffee.controller.prompts.points) == 1
    assert is_problem(on_coffee, 'clear them (Q) to go on to another object')
    press(viewer, 'Q')
    mouse(world(on_coffee, ON_TABLE))
    assert len(on_coffee.controller.prompts.points) == 1


def test_committing_before_a_click_is_harmless_and_said(on_coffee, viewer):
    on_coffee.commit()
    assert is_problem(on_coffee, 'no mask to commit')
    assert OBJECTS_NAME not in viewer.layers


def test_a_point_added_with_naparis_own_tool_is_one_click(on_coffee, viewer, mouse):
    mouse(world(on_coffee, ON_CUP))
    heard = []
    on_coffee.controller.prompts_changed.connect(lambda: heard.append(len(on_coffee.controller.prompts.points)))
    on_coffee.controller.toggle_polarity()
    viewer.layers[PROMPTS_NAME].add([ON_TABLE])
    assert heard == [2]
    assert [prompt.polarity for prompt in on_coffee.controller.prompts.points] == [Polarity.POSITIVE, Polarity.NEGATIVE]


def test_points_removed_or_moved_with_naparis_own_tools_are_followed(on_coffee, viewer, mouse):
    mouse(world(on_coffee, ON_CUP))
    mouse(world(on_coffee, ON_TABLE), button=2)
    points = viewer.layers[PROMPTS_NAME]
    points.selected_data = {0}
    points.remove_selected()
    assert [prompt.polarity for prompt in on_coffee.controller.prompts.points] == [Polarity.NEGATIVE]
    points.data = np.array([[30.0, 40.0]])
    assert on_coffee.controller.prompts.points[0].position == (30, 40)
    on_coffee.controller.undo()
    on_coffee.controller.undo()
    assert points.data == pytest.approx(np.array([ON_CUP, ON_TABLE]))


def test_a_point_added_outside_the_image_is_taken_away_again(on_coffee, viewer, mouse):
    mouse(world(on_coffee, ON_CUP))
    viewer.layers[PROMPTS_NAME].add([(-50, 0)])
    assert len(viewer.layers[PROMPTS_NAME].data) == 1


def test_choosing_another_image_takes_its_prompts_away_and_keeps_its_objects(on_coffee, viewer, mouse):
    mouse(world(on_coffee, ON_CUP))
    on_coffee.commit()
    coffee, objects = on_coffee.image, on_coffee.objects
    coins = viewer.add_image(data.coins(), name='Coins')
    on_coffee.set_image(coins)
    assert set(viewer.layers) == {coffee, objects, coins}
    assert on_coffee.objects is None
    on_coffee.set_image(coffee)
    assert on_coffee.objects is objects


def test_clicks_are_drawn_again_when_their_image_is_chosen_again(on_coffee, viewer, mouse, settle):
    coffee = on_coffee.image
    mouse(world(on_coffee, ON_CUP))
    on_coffee.set_image(None)
    on_coffee.set_image(coffee)
    settle(on_coffee.controller)
    assert len(viewer.layers[PROMPTS_NAME].data) == 1
    assert drawn_mask(viewer.layers[PREVIEW_NAME], (400, 600)).sum() == on_coffee.controller.proposal.area_px


def test_removing_the_image_ends_the_work_on_it(on_coffee, viewer, mouse):
    mouse(world(on_coffee, ON_CUP))
    viewer.layers.remove(on_coffee.image)
    assert on_coffee.image is None
    assert len(viewer.layers) == 0
    mouse((0, 0))
    assert is_problem(on_coffee, 'Choose an image')


def test_removing_every_layer_at_once_is_harmless(on_coffee, viewer, mouse):
    mouse(world(on_coffee, ON_CUP))
    on_coffee.commit()
    viewer.layers.clear()
    assert len(viewer.layers) == 0
    assert on_coffee.image is None


def test_removing_the_prompt_layer_clears_the_clicks_and_the_next_click_brings_it_back(on_coffee, viewer, mouse):
    mouse(world(on_coffee, ON_CUP))
    viewer.layers.remove(viewer.layers[PROMPTS_NAME])
    assert on_coffee.controller.prompts.points == ()
    assert PREVIEW_NAME not in viewer.layers
    mouse(world(on_coffee, ON_CUP))
    assert len(viewer.layers[PROMPTS_NAME].data) == 1


def test_removing_the_prompt_layer_clears_the_clicks_on_all_planes(viewer, session, settle):
    stack = viewer.add_image(np.stack([data.coins()] * 2))
    session.set_image(stack)
    for plane in range(2):
        viewer.dims.set_point(0, plane)
        session.click((plane, 100, 100))
    settle(session.controller)
    viewer.layers.remove(viewer.layers[PROMPTS_NAME])
    assert session.controller.prompts.points == ()
    assert list(viewer.layers) == [stack]


def test_a_removed_objects_layer_is_made_anew(on_coffee, viewer, mouse):
    for _ in range(2):
        mouse(world(on_coffee, ON_CUP))
        on_coffee.commit()
        viewer.layers.remove(viewer.layers[OBJECTS_NAME])
    assert on_coffee.objects is None


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


def test_closing_gives_mouse_and_keys_back_and_leaves_only_the_users_layers(on_coffee, viewer, mouse):
    mouse(world(on_coffee, ON_CUP))
    on_coffee.commit()
    callbacks = len(viewer.mouse_drag_callbacks)
    image, objects = on_coffee.image, on_coffee.objects
    on_coffee.close()
    assert len(viewer.mouse_drag_callbacks) == callbacks - 1
    assert list(viewer.layers) == [image, objects]
    for receiver in (viewer, objects):
        with pytest.raises(KeyError):
            press(receiver, 'N')


def test_a_new_session_goes_on_with_the_objects_of_a_closed_one(on_coffee, viewer, make_controller, mouse, settle):
    mouse(world(on_coffee, ON_CUP))
    on_coffee.commit()
    image, objects = on_coffee.image, on_coffee.objects
    on_coffee.close()
    session = ViewerSession(viewer, make_controller(colour_tree))
    session.set_image(image)
    session.click(image.data_to_world(ON_TABLE))
    settle(session.controller)
    session.commit()
    assert objects.features['index'].tolist() == [1, 2]
    press(objects, 'U')
    assert len(session.controller.prompts.points) == 1
    session.close()


def layer(viewer, session):
    """The layer of the boxes, outlines and scribbles."""
    session.make_shapes_layer()
    return viewer.layers[SHAPES_NAME]


def drawn(row, column, height, width):
    return np.array(
        [[row, column], [row, column + width], [row + height, column + width], [row + height, column]], float
    )


def test_a_box_drawn_with_naparis_tool_is_one_prompt_and_is_answered(on_coffee, viewer, settle):
    heard = []
    on_coffee.controller.prompts_changed.connect(lambda: heard.append(len(on_coffee.controller.prompts.shapes)))
    layer(viewer, on_coffee).add_rectangles(drawn(60, 180, 200, 250))
    settle(on_coffee.controller)
    assert heard == [1]
    assert on_coffee.controller.prompts.shapes[0].kind is ShapeKind.BOX
    assert on_coffee.controller.proposal is not None
    on_coffee.controller.undo()
    assert len(layer(viewer, on_coffee).data) == 0


def test_a_scribble_takes_the_polarity_and_an_outline_is_always_positive(on_coffee, viewer, settle):
    on_coffee.controller.toggle_polarity()
    layer(viewer, on_coffee).add_paths(np.array([[100.0, 250], [110, 300], [150, 320]]))
    layer(viewer, on_coffee).add_polygons(drawn(60, 180, 200, 250))
    settle(on_coffee.controller)
    shapes = on_coffee.controller.prompts.shapes
    assert [(shape.kind, shape.polarity) for shape in shapes] == [
        (ShapeKind.SCRIBBLE, Polarity.NEGATIVE),
        (ShapeKind.OUTLINE, Polarity.POSITIVE),
    ]
    assert len(np.unique(layer(viewer, on_coffee).edge_color, axis=0)) == 2


def test_shapes_removed_or_changed_with_naparis_tools_are_followed(on_coffee, viewer, settle):
    shapes = layer(viewer, on_coffee)
    shapes.add_rectangles([drawn(60, 180, 200, 250), drawn(10, 10, 40, 40)])
    shapes.selected_data = {0}
    shapes.remove_selected()
    settle(on_coffee.controller)
    assert [shape.vertices[0] for shape in on_coffee.controller.prompts.shapes] == [(10.0, 10.0)]
    assert on_coffee.history.undo_name == 'remove shape'
    on_coffee.controller.undo()
    assert len(shapes.data) == 2


def test_a_shape_without_a_pixel_is_taken_away_again_and_said(on_coffee, viewer):
    layer(viewer, on_coffee).add_rectangles(drawn(60, 180, 0, 0))
    assert len(layer(viewer, on_coffee).data) == 0
    assert is_problem(on_coffee, 'draw it larger')


def test_a_tool_is_in_the_hand_until_it_is_put_down(on_coffee, viewer, mouse):
    taken = []
    on_coffee.tool_changed.connect(taken.append)
    on_coffee.draw(ShapeKind.BOX)
    assert str(layer(viewer, on_coffee).mode) == 'add_rectangle'
    mouse(world(on_coffee, ON_CUP))
    assert not on_coffee.controller.prompts, 'the mouse draws, it does not click'
    on_coffee.draw(None)
    mouse(world(on_coffee, ON_CUP))
    assert len(on_coffee.controller.prompts.points) == 1
    assert taken == [ShapeKind.BOX, None]


def test_a_tool_without_an_image_is_harmless_and_said(session):
    session.draw(ShapeKind.BOX)
    assert is_problem(session, 'Choose an image')
    assert session.tool is None


def test_alt_and_the_wheel_slide_along_the_regions_and_the_wheel_alone_zooms(on_coffee, viewer, mouse):
    mouse(world(on_coffee, ON_CUP))
    area = on_coffee.controller.proposal.area_px
    assert mouse.wheel(1)
    assert on_coffee.controller.proposal.area_px > area
    assert mouse.wheel(-1)
    assert on_coffee.controller.proposal.area_px == area
    assert not mouse.wheel(1, modifiers=())


def test_u_takes_the_last_action_back_whatever_it_was_and_shift_u_does_it_again(on_coffee, viewer, mouse, settle):
    mouse(world(on_coffee, ON_CUP))
    area = on_coffee.controller.proposal.area_px
    on_coffee.commit()
    objects = on_coffee.objects
    assert on_coffee.history.undo_name == 'commit object 1'
    press(viewer, 'U')
    settle(on_coffee.controller)
    assert not objects.data.any()
    assert on_coffee.controller.proposal.area_px == area
    press(viewer, 'U')
    assert not on_coffee.controller.prompts
    press(viewer, 'Shift-U')
    press(viewer, 'Shift-U')
    assert np.count_nonzero(objects.data) == area
    assert not on_coffee.controller.prompts


def test_a_commit_right_after_a_click_is_of_the_mask_that_answers_it(on_coffee, viewer, settle):
    on_coffee.click(world(on_coffee, ON_CUP))
    on_coffee.commit()
    settle(on_coffee.controller)
    assert on_coffee.objects.data[ON_CUP] == 1
    assert not on_coffee.controller.prompts


def test_panels_write_many_objects_as_one_action(on_coffee):
    square = np.ones((10, 10), bool)
    first = on_coffee.next_label()
    writes = [
        ObjectWrite((slice(at, at + 10), slice(at, at + 10)), square, first + i, {'level': i, 'parent_id': 0})
        for i, at in enumerate((0, 50))
    ]
    on_coffee.write_objects('accept 2 objects', writes)
    assert on_coffee.objects.features[['index', 'level']].to_numpy().tolist() == [[1, 0], [2, 1]]
    assert on_coffee.next_label() == 3
    assert on_coffee.history.undo() == 'accept 2 objects'
    assert not on_coffee.objects.data.any()
    on_coffee.write_objects('nothing', [])
    assert not on_coffee.history.can_undo


def test_any_plane_of_the_image_can_be_asked_for(viewer, session):
    stack = viewer.add_image(np.stack([data.coins(), data.coins()[::-1]]))
    session.set_image(stack)
    target = session.target_at((1, 0, 0))
    assert target.plane.index == (1, 0, 0)
    assert (target.read() == data.coins()[::-1]).all()
    viewer.dims.ndisplay = 3
    assert session.target_at((1, 0, 0)) == target
    with pytest.raises(ImageError, match='no plane'):
        session.target_at((2, 0, 0))


def test_without_an_image_there_is_nothing_to_write_to(session):
    with pytest.raises(UnSAMError, match='Choose an image'):
        session.ensure_objects()


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


def test_a_change_of_contrast_offers_to_look_at_the_image_again(viewer, session, settle):
    image = viewer.add_image(data.coins())
    session.set_image(image)
    image.contrast_limits = (10, 200)
    assert 'contrast' not in session.controller.status.text
    session.controller.embed()
    settle(session.controller)
    image.contrast_limits = (20, 180)
    assert 'Press Embed' in session.controller.status.text


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


def test_layers_are_made_before_they_are_needed_and_go_if_they_were_not(viewer, session):
    image = viewer.add_image(data.coins())
    session.set_image(image)
    assert session.prepare()
    assert not session.prepare()
    assert {OBJECTS_NAME, PROMPTS_NAME, PREVIEW_NAME} <= {layer.name for layer in viewer.layers}
    assert viewer.layers.selection.active is image
    session.set_image(None)
    assert list(viewer.layers) == [image]
    assert not session.prepare()


def test_keys_of_a_panel_work_on_the_layers_of_the_plugin(on_coffee, viewer):
    pressed = []
    on_coffee.add_keys({'H': lambda: pressed.append('H')})
    for receiver in (viewer, layer(viewer, on_coffee)):
        press(receiver, 'H')
    assert pressed == ['H', 'H']


def test_the_outline_keeps_its_width_on_screen(on_coffee, viewer, mouse):
    mouse(world(on_coffee, ON_CUP))
    preview = viewer.layers[PREVIEW_NAME]
    viewer.scene.camera.zoom = 1.0
    on_coffee.fit_outline()
    before = preview.edge_width
    viewer.scene.camera.zoom = 8.0
    on_coffee.fit_outline()
    assert preview.edge_width == pytest.approx(before / 8)
