import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers.base import LayerLock
from napari.utils.key_bindings import coerce_keybinding
from skimage import data

from napari_unsam._controller import Level
from napari_unsam._layers import OBJECTS_NAME, PREVIEW_NAME, PROMPTS_NAME
from napari_unsam._prompts import Polarity
from napari_unsam._session import ViewerSession
from tests.test_napari.stand_ins import colour_tree

ON_CUP, ON_TABLE = (150, 300), (20, 20)  # row and column in the photo of the coffee cup
KEYS = 'JKNGUQ'


class Mouse:
    """A press, an optional drag and a release, as napari hands them to its callbacks."""

    def __init__(self, viewer):
        self.viewer = viewer

    def __call__(self, world, button=1, modifiers=(), travel_px=0):
        event = _Event('mouse_press', world, button, modifiers)
        running = [iter(callback(self.viewer, event)) for callback in self.viewer.mouse_drag_callbacks[-1:]]
        steps = [('mouse_move', travel_px)] * bool(travel_px) + [('mouse_release', travel_px)]
        for kind, travel in [('mouse_press', 0), *steps]:
            event.type, event.pos = kind, np.array([50 + travel, 50])
            for generator in running:
                next(generator, None)


class _Event:
    def __init__(self, kind, world, button, modifiers):
        self.type, self.position, self.button, self.modifiers = kind, world, button, modifiers
        self.pos = np.array([50, 50])


@pytest.fixture
def viewer():
    return ViewerModel()


@pytest.fixture
def session(viewer, make_controller):
    session = ViewerSession(viewer, make_controller(colour_tree))
    yield session
    session.close()


@pytest.fixture
def on_coffee(viewer, session, mailbox):
    """A session at work on a photo that is scaled and moved, with its region tree made."""
    image = viewer.add_image(data.coffee(), scale=(2, 2), translate=(100, -30), rotate=10, name='Coffee')
    session.set_image(image)
    session.controller.embed()
    mailbox.open_until(lambda: not session.controller.is_busy)
    return session


def world(session, pixel):
    return session.image.data_to_world(pixel)


def is_problem(session, words):
    return session.controller.status.level is Level.PROBLEM and words in session.controller.status.text


def press(receiver, key):
    """Presses a key as napari does for a layer or a viewer."""
    receiver.keymap[coerce_keybinding(key)](receiver)


def test_a_click_shows_a_point_and_the_contour_of_its_mask_where_the_image_is(on_coffee, viewer):
    Mouse(viewer)(world(on_coffee, ON_CUP))
    points, preview = viewer.layers[PROMPTS_NAME], viewer.layers[PREVIEW_NAME]
    assert points.data.tolist() == pytest.approx(np.array([ON_CUP]))
    assert preview.contour == 2
    assert preview.data[ON_CUP] == 1
    assert preview.data.sum() == on_coffee.controller.proposal.area_px
    for layer in (points, preview):
        assert layer.data_to_world(ON_CUP) == pytest.approx(world(on_coffee, ON_CUP))
        assert layer.units == on_coffee.image.units
        assert layer.locked is LayerLock.DELETION


def test_the_selected_layer_stays_selected_when_the_layers_of_the_plugin_appear(on_coffee, viewer):
    Mouse(viewer)(world(on_coffee, ON_CUP))
    assert viewer.layers.selection.active is on_coffee.image


@pytest.mark.parametrize(
    ('how', 'polarity'),
    [
        pytest.param({}, Polarity.POSITIVE, id='left'),
        pytest.param({'modifiers': ('Shift',)}, Polarity.NEGATIVE, id='Shift-left'),
        pytest.param({'button': 2}, Polarity.NEGATIVE, id='right'),
    ],
)
def test_shift_and_the_right_button_mean_the_other_polarity(on_coffee, viewer, how, polarity):
    Mouse(viewer)(world(on_coffee, ON_CUP), **how)
    assert [prompt.polarity for prompt in on_coffee.controller.prompts] == [polarity]


def test_polarities_differ_in_colour_and_in_shape(on_coffee, viewer):
    Mouse(viewer)(world(on_coffee, ON_CUP))
    Mouse(viewer)(world(on_coffee, ON_TABLE), button=2)
    points = viewer.layers[PROMPTS_NAME]
    assert len(np.unique(points.face_color, axis=0)) == 2
    assert [str(symbol) for symbol in points.symbol] == ['disc', 'diamond']


@pytest.mark.parametrize('how', [{'travel_px': 40}, {'button': 3}])
def test_dragging_the_view_and_other_buttons_are_no_prompt(on_coffee, viewer, how):
    Mouse(viewer)(world(on_coffee, ON_CUP), **how)
    assert on_coffee.controller.prompts == ()


def test_clicks_belong_to_the_selected_layer_while_it_paints(on_coffee, viewer):
    viewer.add_labels(np.zeros((400, 600), int)).mode = 'paint'
    Mouse(viewer)(world(on_coffee, ON_CUP))
    assert on_coffee.controller.prompts == ()


def test_clicks_are_no_prompts_while_prompting_is_off(on_coffee, viewer):
    on_coffee.prompting = False
    Mouse(viewer)(world(on_coffee, ON_CUP))
    assert on_coffee.controller.prompts == ()


def test_a_click_beside_the_image_is_harmless_and_said(on_coffee, viewer):
    Mouse(viewer)((-5000, -5000))
    assert is_problem(on_coffee, 'outside "Coffee"')
    assert list(viewer.layers) == [on_coffee.image]


def test_without_an_image_clicks_and_keys_are_harmless_and_said(session, viewer):
    Mouse(viewer)((0, 0))
    assert is_problem(session, 'Choose an image')
    for key in KEYS:
        press(viewer, key)
    assert len(viewer.layers) == 0


def test_the_keys_work_on_the_viewer_and_on_the_layers_of_the_plugin(on_coffee, viewer):
    Mouse(viewer)(world(on_coffee, ON_CUP))
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
    assert len(on_coffee.controller.prompts) == 1
    press(viewer.layers[OBJECTS_NAME], 'Q')
    assert on_coffee.controller.prompts == ()


def test_committed_objects_lie_on_the_image_and_ctrl_z_reaches_them(on_coffee, viewer):
    Mouse(viewer)(world(on_coffee, ON_CUP))
    on_coffee.commit()
    objects = viewer.layers[OBJECTS_NAME]
    assert objects.data.dtype == np.uint32
    assert objects.data_to_world(ON_CUP) == pytest.approx(world(on_coffee, ON_CUP))
    assert viewer.layers.selection.active is objects
    assert viewer.layers.index(objects) == viewer.layers.index(on_coffee.image) + 1
    assert not viewer.layers[PREVIEW_NAME].data.any()
    objects.undo()
    assert not objects.data.any()
    assert len(objects.features) == 0


def test_a_commit_where_everything_is_taken_says_so(on_coffee, viewer):
    for _ in range(2):
        Mouse(viewer)(world(on_coffee, ON_CUP))
        on_coffee.commit()
    assert is_problem(on_coffee, 'Nothing was committed')
    on_coffee.keep_existing = False
    on_coffee.commit()
    assert np.unique(viewer.layers[OBJECTS_NAME].data).tolist() == [0, 2]


def test_a_commit_of_nothing_keeps_the_clicks_and_says_how_to_go_on(on_coffee, viewer):
    for _ in range(2):
        Mouse(viewer)(world(on_coffee, ON_CUP))
        on_coffee.commit()
    assert len(on_coffee.controller.prompts) == 1
    assert is_problem(on_coffee, 'clear them (Q) to go on to another object')
    press(viewer, 'Q')
    Mouse(viewer)(world(on_coffee, ON_TABLE))
    assert len(on_coffee.controller.prompts) == 1


def test_committing_before_a_click_is_harmless_and_said(on_coffee, viewer):
    on_coffee.commit()
    assert is_problem(on_coffee, 'no mask to commit')
    assert OBJECTS_NAME not in viewer.layers


def test_a_point_added_with_naparis_own_tool_is_one_click(on_coffee, viewer):
    Mouse(viewer)(world(on_coffee, ON_CUP))
    heard = []
    on_coffee.controller.prompts_changed.connect(lambda: heard.append(len(on_coffee.controller.prompts)))
    on_coffee.controller.toggle_polarity()
    viewer.layers[PROMPTS_NAME].add([ON_TABLE])
    assert heard == [2]
    assert [prompt.polarity for prompt in on_coffee.controller.prompts] == [Polarity.POSITIVE, Polarity.NEGATIVE]


def test_points_removed_or_moved_with_naparis_own_tools_are_followed(on_coffee, viewer):
    Mouse(viewer)(world(on_coffee, ON_CUP))
    Mouse(viewer)(world(on_coffee, ON_TABLE), button=2)
    points = viewer.layers[PROMPTS_NAME]
    points.selected_data = {0}
    points.remove_selected()
    assert [prompt.polarity for prompt in on_coffee.controller.prompts] == [Polarity.NEGATIVE]
    points.data = np.array([[30.0, 40.0]])
    assert on_coffee.controller.prompts[0].position == (30, 40)
    on_coffee.controller.undo_prompt()
    on_coffee.controller.undo_prompt()
    assert points.data == pytest.approx(np.array([ON_CUP, ON_TABLE]))


def test_a_point_added_outside_the_image_is_taken_away_again(on_coffee, viewer):
    Mouse(viewer)(world(on_coffee, ON_CUP))
    viewer.layers[PROMPTS_NAME].add([(-50, 0)])
    assert len(viewer.layers[PROMPTS_NAME].data) == 1


def test_choosing_another_image_takes_its_prompts_away_and_keeps_its_objects(on_coffee, viewer):
    Mouse(viewer)(world(on_coffee, ON_CUP))
    on_coffee.commit()
    coffee, objects = on_coffee.image, on_coffee.objects
    coins = viewer.add_image(data.coins(), name='Coins')
    on_coffee.set_image(coins)
    assert set(viewer.layers) == {coffee, objects, coins}
    assert on_coffee.objects is None
    on_coffee.set_image(coffee)
    assert on_coffee.objects is objects


def test_clicks_are_drawn_again_when_their_image_is_chosen_again(on_coffee, viewer):
    coffee = on_coffee.image
    Mouse(viewer)(world(on_coffee, ON_CUP))
    on_coffee.set_image(None)
    on_coffee.set_image(coffee)
    assert len(viewer.layers[PROMPTS_NAME].data) == 1
    assert viewer.layers[PREVIEW_NAME].data.sum() == on_coffee.controller.proposal.area_px


def test_removing_the_image_ends_the_work_on_it(on_coffee, viewer):
    Mouse(viewer)(world(on_coffee, ON_CUP))
    viewer.layers.remove(on_coffee.image)
    assert on_coffee.image is None
    assert len(viewer.layers) == 0
    Mouse(viewer)((0, 0))
    assert is_problem(on_coffee, 'Choose an image')


def test_removing_every_layer_at_once_is_harmless(on_coffee, viewer):
    Mouse(viewer)(world(on_coffee, ON_CUP))
    on_coffee.commit()
    viewer.layers.clear()
    assert len(viewer.layers) == 0
    assert on_coffee.image is None


def test_removing_the_prompt_layer_clears_the_clicks_and_the_next_click_brings_it_back(on_coffee, viewer):
    Mouse(viewer)(world(on_coffee, ON_CUP))
    viewer.layers.remove(viewer.layers[PROMPTS_NAME])
    assert on_coffee.controller.prompts == ()
    assert PREVIEW_NAME not in viewer.layers
    Mouse(viewer)(world(on_coffee, ON_CUP))
    assert len(viewer.layers[PROMPTS_NAME].data) == 1


def test_removing_the_prompt_layer_clears_the_clicks_on_all_planes(viewer, session, mailbox):
    stack = viewer.add_image(np.stack([data.coins()] * 2))
    session.set_image(stack)
    for plane in range(2):
        viewer.dims.set_point(0, plane)
        session.click((plane, 100, 100))
    mailbox.open_until(lambda: not session.controller.is_busy)
    viewer.layers.remove(viewer.layers[PROMPTS_NAME])
    assert session.controller.prompts == ()
    assert list(viewer.layers) == [stack]


def test_a_removed_objects_layer_is_made_anew(on_coffee, viewer):
    for _ in range(2):
        Mouse(viewer)(world(on_coffee, ON_CUP))
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


def test_a_stack_is_segmented_plane_by_plane(viewer, session, mailbox):
    grey = data.coins()
    stack = viewer.add_image(
        np.stack([grey, grey[::-1], grey.T[:303, :303].repeat(2, axis=1)[:, :384]]), scale=(3, 1, 1)
    )
    session.set_image(stack)
    viewer.dims.set_point(0, 3)
    Mouse(viewer)((3, 100, 100))
    mailbox.open_until(lambda: not session.controller.is_busy)
    preview = viewer.layers[PREVIEW_NAME]
    assert preview.data.shape == (1, 303, 384)
    assert preview.data_to_world((0, 0, 0)) == (3, 0, 0)
    session.commit()
    assert viewer.layers[OBJECTS_NAME].data.any(axis=(1, 2)).tolist() == [False, True, False]
    viewer.dims.set_point(0, 6)
    assert session.controller.target.plane.index == (2, 0, 0)
    assert session.controller.hierarchy is None


def test_the_contour_moves_to_the_plane_that_is_clicked(viewer, session, mailbox):
    turned = np.array([[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]])
    stack = viewer.add_image(np.stack([data.coins()] * 3), scale=(3, 1, 1), translate=(5, 0, 0), rotate=turned)
    session.set_image(stack)
    for plane in (0, 2):
        viewer.dims.set_point(0, 5 + 3 * plane)
        session.click(stack.data_to_world((plane, 100, 100)))
        mailbox.open_until(lambda: not session.controller.is_busy)
        placed = viewer.layers[PREVIEW_NAME].data_to_world((0, 30, 40))
        assert placed == pytest.approx(stack.data_to_world((plane, 30, 40)))
    assert len({prompt.position[0] for prompt in session.controller.prompts}) == 2


def test_a_3d_view_is_explained_and_the_work_goes_on_in_2d(viewer, session, mailbox):
    stack = viewer.add_image(np.stack([data.coins()] * 2))
    session.set_image(stack)
    viewer.dims.ndisplay = 3
    Mouse(viewer)((0, 100, 100))
    assert is_problem(session, 'switch to 2D')
    viewer.dims.ndisplay = 2
    Mouse(viewer)((0, 100, 100))
    mailbox.open_until(lambda: not session.controller.is_busy)
    assert session.controller.proposal is not None


def test_closing_gives_mouse_and_keys_back_and_leaves_only_the_users_layers(on_coffee, viewer):
    Mouse(viewer)(world(on_coffee, ON_CUP))
    on_coffee.commit()
    callbacks = len(viewer.mouse_drag_callbacks)
    image, objects = on_coffee.image, on_coffee.objects
    on_coffee.close()
    assert len(viewer.mouse_drag_callbacks) == callbacks - 1
    assert list(viewer.layers) == [image, objects]
    for receiver in (viewer, objects):
        with pytest.raises(KeyError):
            press(receiver, 'N')


def test_a_new_session_goes_on_with_the_objects_of_a_closed_one(on_coffee, viewer, make_controller, mailbox):
    Mouse(viewer)(world(on_coffee, ON_CUP))
    on_coffee.commit()
    image, objects = on_coffee.image, on_coffee.objects
    on_coffee.close()
    session = ViewerSession(viewer, make_controller(colour_tree))
    session.set_image(image)
    session.click(image.data_to_world(ON_TABLE))
    mailbox.open_until(lambda: not session.controller.is_busy)
    session.commit()
    assert objects.features['index'].tolist() == [1, 2]
    press(objects, 'U')
    assert len(session.controller.prompts) == 1
    session.close()
