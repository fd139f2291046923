"""The session: mouse and keys go in, layers show what comes out."""

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers.base import LayerLock
from skimage import data

from napari_unsam.model.prompts import Polarity
from napari_unsam.viewer.layers import OBJECTS_NAME, PREVIEW_NAME, PROMPTS_NAME, SHAPES_NAME
from napari_unsam.viewer.object_write import ObjectWrite
from napari_unsam.viewer.session import ViewerSession
from tests.test_napari.stand_ins import ON_CUP, ON_TABLE, colour_tree, drawn_mask, is_problem, press, world
from unsam_mm.errors import UnSAMError

KEYS = 'JKNGUQ'


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


def test_a_commit_before_the_plane_is_ready_waits_for_the_mask(viewer, session, settle):
    image = viewer.add_image(data.coffee())
    session.set_image(image)
    session.click(image.data_to_world(ON_CUP))
    session.commit()
    assert session.history.undo_name == 'click'
    settle(session.controller)
    assert session.objects.data[ON_CUP] == 1
    assert not session.controller.prompts


def test_a_commit_that_waited_for_a_plane_goes_with_its_cancellation(viewer, session, settle):
    image = viewer.add_image(data.coffee())
    session.set_image(image)
    session.click(image.data_to_world(ON_CUP))
    session.commit()
    session.controller.cancel()
    session.controller.embed()
    settle(session.controller)
    assert session.controller.proposal is not None
    assert session.history.undo_name == 'click'


def test_a_commit_that_waited_for_a_plane_is_told_where_it_was_not_done(viewer, session, settle):
    session.set_image(viewer.add_image(np.stack([data.coffee()[..., 0]] * 3)))
    viewer.dims.set_point(0, 0)
    session.click((0, *ON_CUP))
    session.commit()
    viewer.dims.set_point(0, 2)
    settle(session.controller)
    assert is_problem(session, 'Commit cancelled')
    assert session.history.undo_name == 'click'


def test_a_layer_whose_type_is_too_small_for_a_label_is_not_written_to(on_coffee, mouse):
    objects = on_coffee.ensure_objects()
    objects.data = np.full(objects.data.shape, 255, np.uint8)
    objects.data[100:200, 250:350] = 0
    mouse(world(on_coffee, ON_CUP))
    on_coffee.commit()
    assert is_problem(on_coffee, 'uint8, too small for 256')
    assert set(np.unique(objects.data)) == {0, 255}


def test_objects_that_would_not_fit_into_memory_are_told(viewer, session):
    session.set_image(viewer.add_image(np.broadcast_to(data.coins()[:64, :64], (500_000_000, 64, 64))))
    with pytest.raises(UnSAMError, match='would take 8192 GB'):
        session.ensure_objects()


def test_other_pixels_of_another_kind_take_the_prompts_away(viewer, session, settle):
    image = viewer.add_image(data.coffee()[..., 0])
    session.set_image(image)
    session.click(ON_CUP)
    settle(session.controller)
    image.data = np.stack([data.coffee()[..., 1]] * 3)
    assert not session.controller.prompts
    viewer.dims.set_point(0, 1)
    session.click((1, *ON_CUP))
    settle(session.controller)
    assert session.controller.proposal is not None


def test_undoing_a_commit_on_an_image_that_is_gone_brings_no_layer_back(on_coffee, viewer, mouse):
    mouse(world(on_coffee, ON_CUP))
    on_coffee.commit()
    viewer.layers.clear()
    on_coffee.controller.undo()
    assert len(viewer.layers) == 0


def test_prompts_of_a_plane_that_was_given_up_are_answered_when_it_is_in_view_again(viewer, session, settle):
    session.set_image(viewer.add_image(np.stack([data.coffee()[..., 0]] * 3)))
    viewer.dims.set_point(0, 0)
    session.click((0, *ON_CUP))
    viewer.dims.set_point(0, 2)
    session.click((2, *ON_CUP))
    settle(session.controller)
    viewer.dims.set_point(0, 0)
    settle(session.controller)
    assert session.controller.proposal is not None


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
    on_coffee.inputs.prompting = False
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
    assert not len(viewer.layers[PREVIEW_NAME].data)
    press(objects, 'Control-Z')
    assert not objects.data.any()
    assert len(objects.features) == 0
    assert len(on_coffee.controller.prompts.points) == 1
    press(objects, 'Control-Shift-Z')
    assert objects.data.any()
    assert not on_coffee.controller.prompts


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
    assert is_problem(on_coffee, 'clear the prompts (Q)')
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


def test_points_removed_or_moved_with_naparis_own_tools_are_followed(on_coffee, viewer, mouse, settle):
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
    settle(on_coffee.controller)
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


def test_a_removed_objects_layer_is_made_again(on_coffee, viewer, mouse):
    for _ in range(2):
        mouse(world(on_coffee, ON_CUP))
        on_coffee.commit()
        viewer.layers.remove(viewer.layers[OBJECTS_NAME])
    assert on_coffee.objects is None


def test_closing_gives_mouse_and_keys_back_and_leaves_only_the_users_layers(on_coffee, viewer, mouse):
    mouse(world(on_coffee, ON_CUP))
    on_coffee.commit()
    image, objects = on_coffee.image, on_coffee.objects
    on_coffee.close()
    fresh = ViewerModel()
    for name in ('mouse_drag_callbacks', 'mouse_wheel_callbacks', 'mouse_double_click_callbacks'):
        assert getattr(viewer, name) == getattr(fresh, name)
    assert list(viewer.layers) == [image, objects]
    assert not any(press(receiver, 'N') for receiver in (viewer, objects))


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
    assert on_coffee.history.undo_name is None


def test_without_an_image_there_is_nothing_to_write_to(session):
    with pytest.raises(UnSAMError, match='Choose an image'):
        session.ensure_objects()


def test_layers_are_made_before_they_are_needed_and_go_if_they_were_not(viewer, session):
    image = viewer.add_image(data.coins())
    session.set_image(image)
    counts = [len(viewer.layers)]
    while session.prepare():
        counts.append(len(viewer.layers))
    assert max(np.diff(counts)) == 1
    assert {OBJECTS_NAME, PROMPTS_NAME, PREVIEW_NAME} <= {layer.name for layer in viewer.layers}
    assert viewer.layers.selection.active is image
    session.set_image(None)
    assert list(viewer.layers) == [image]
    assert not session.prepare()


def test_a_click_is_drawn_with_its_mask(on_coffee, viewer, settle):
    while on_coffee.prepare():
        pass
    on_coffee.click(world(on_coffee, ON_CUP))
    assert on_coffee.controller.is_predicting
    assert not len(viewer.layers[PROMPTS_NAME].data)
    settle(on_coffee.controller)
    assert len(viewer.layers[PROMPTS_NAME].data) == 1
    assert len(viewer.layers[PREVIEW_NAME].data)


def test_a_click_whose_answer_takes_long_is_drawn_at_once(viewer, session):
    session.set_image(viewer.add_image(data.coins()))
    session.click((100, 100))
    assert session.controller.is_busy
    assert viewer.layers[PROMPTS_NAME].visible
    assert len(viewer.layers[PROMPTS_NAME].data) == 1


def test_keys_of_a_panel_work_on_the_layers_of_the_plugin(on_coffee, viewer):
    pressed = []
    on_coffee.inputs.add({'split': lambda: pressed.append('H')})
    on_coffee.make_shapes_layer()
    for receiver in (viewer, viewer.layers[SHAPES_NAME]):
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


def test_a_step_of_granularity_makes_no_thumbnail_and_leaves_nothing_of_the_longer_outline(on_coffee, viewer, mouse):
    mouse(world(on_coffee, ON_CUP))
    preview, made = viewer.layers[PREVIEW_NAME], []
    for _ in range(5):
        on_coffee.controller.larger_mask()  # until there is room for the longest outline
    preview.events.thumbnail.connect(made.append)
    for step in (on_coffee.controller.smaller_mask, on_coffee.controller.larger_mask):
        for _ in range(5):
            step()
            area_px = on_coffee.controller.proposal.area_px
            assert drawn_mask(preview, (400, 600)).sum() == area_px
    assert not made
