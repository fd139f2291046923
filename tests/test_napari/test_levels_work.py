"""Levels at work in a viewer without a window: choosing, accepting, editing and reviewing objects."""

from types import SimpleNamespace

import numpy as np
import pytest
from napari.components import ViewerModel
from skimage import data

from napari_unsam.controller import SegmentationController
from napari_unsam.engine.planes import EmbeddedPlane
from napari_unsam.levels.cuts import RegionFilter
from napari_unsam.levels.disjoint import Selection
from napari_unsam.levels.edits import ObjectEdits, Reviewing
from napari_unsam.levels.preview import LEVELS_NAME, REVIEW_NAME
from napari_unsam.levels.region_properties import Brightness
from napari_unsam.levels.selector import PreviewMode, RegionSelector
from napari_unsam.viewer.object_write import ObjectWrite
from napari_unsam.viewer.session import ViewerSession
from tests.test_napari.coin_tree import coin_tree
from tests.test_napari.stand_ins import colour_tree, drawn_mask

ON_COIN, ON_GROUND = (124, 225), (298, 190)


@pytest.fixture(scope='module')
def coins_tree():
    return coin_tree()


@pytest.fixture
def work(make_controller, coins_tree):
    """At work on the photo of coins, which is scaled and moved."""
    viewer = ViewerModel()
    session = ViewerSession(viewer, make_controller(lambda image, progress: coins_tree))
    session.set_image(viewer.add_image(data.coins(), name='Coins', scale=(2, 2), translate=(7, -3)))
    work = RegionSelector(session)
    yield work
    work.close()
    session.close()


@pytest.fixture
def accepted(work, settle):
    """The best objects were accepted."""
    work.show_best()
    settle(work.session.controller)
    work.accept()
    return work


def shown(work):
    return work.session.viewer.layers[LEVELS_NAME].data


def is_shown(viewer, name=LEVELS_NAME):
    return name in viewer.layers and viewer.layers[name].visible


def is_problem(work, words):
    status = work.session.controller.status
    return status.is_problem and words in status.text


def point_at(work, pixel):
    work.session.viewer.mouse_over_canvas = True
    work.session.viewer.cursor.position = tuple(work.session.image.data_to_world(pixel))


def test_the_slider_shows_the_regions_of_a_level_where_the_image_is(work, settle):
    work.show_level(0.7)
    work.show_level(0.16)
    settle(work.session.controller)
    assert (work.mode, work.level) == (PreviewMode.LEVEL, 0.16)
    assert (shown(work)[ON_COIN] > 0, shown(work)[ON_GROUND]) == (True, 0)
    preview = work.session.viewer.layers[LEVELS_NAME]
    assert preview.data_to_world(ON_COIN) == pytest.approx(work.session.image.data_to_world(ON_COIN))
    before = shown(work).copy()
    work.show_level(0.7)
    assert not np.array_equal(shown(work), before)


def test_what_is_chosen_reviewed_and_made_stays_on_an_image_that_is_moved(accepted):
    work, image = accepted, accepted.session.image
    Reviewing(work.session).next()
    work.show_level(0.16)
    work.add_class('coins')
    work.make_layers()
    work.show_level(0.16)
    image.scale, image.translate = (3, 0.5), (-40, 11)
    for name in (LEVELS_NAME, REVIEW_NAME, 'coins'):
        layer = work.session.viewer.layers[name]
        assert layer.data_to_world(ON_COIN) == pytest.approx(image.data_to_world(ON_COIN)), name


def test_a_region_of_any_kind_fills_the_image_when_nothing_is_background(work, settle):
    work.set_region_filter(RegionFilter(1, 1, 1, 0, Brightness.ANY))
    work.show_level(0.5)
    settle(work.session.controller)
    assert shown(work).all()


def test_the_proposed_level_holds_the_coins(work, settle):
    work.propose_level()
    settle(work.session.controller)
    assert work.mode is PreviewMode.LEVEL
    assert len(work.selection) in (24, 25)
    assert shown(work)[ON_COIN] > 0


def test_accepting_is_one_action_and_says_what_each_object_is(accepted):
    objects = accepted.session.objects
    rows = objects.features
    assert len(rows) == len(np.unique(objects.data)) - 1 > 10
    assert set(rows) >= {'granularity', 'score', 'stability', 'level'}
    assert rows['granularity'].tolist() == pytest.approx(
        (1 + np.log10(rows['area_px'] / objects.data.size) / 4).tolist()
    )
    assert not is_shown(accepted.session.viewer)
    accepted.session.controller.undo()
    assert not objects.data.any()
    assert len(objects.features) == 0
    accepted.session.controller.redo()
    assert len(objects.features) == len(rows)


def test_accepting_again_leaves_objects_alone(accepted, settle):
    before = accepted.session.objects.data.copy()
    accepted.show_best()
    settle(accepted.session.controller)
    accepted.accept()
    assert np.array_equal(accepted.session.objects.data, before)
    assert is_problem(accepted, 'Nothing was accepted')


def test_accepting_before_choosing_is_said(work):
    work.accept()
    assert is_problem(work, 'No regions are shown')


def test_without_an_image_nothing_happens_and_that_is_said(work):
    work.session.set_image(None)
    work.show_level(0.5)
    assert is_problem(work, 'Choose an image')


def test_another_plane_takes_the_preview_away(make_controller, coins_tree, settle):
    viewer = ViewerModel()
    session = ViewerSession(viewer, make_controller(lambda image, progress: coins_tree))
    session.set_image(viewer.add_image(np.stack([data.coins()] * 3)))
    work = RegionSelector(session)
    viewer.dims.set_point(0, 1)
    work.show_best()
    settle(session.controller)
    assert viewer.layers[LEVELS_NAME].data.shape == (1, *data.coins().shape)
    assert viewer.layers[LEVELS_NAME].translate[0] == 1
    work.accept()
    assert np.flatnonzero(session.objects.data.any(axis=(1, 2))).tolist() == [1]
    work.show_best()
    viewer.dims.set_point(0, 2)
    assert not is_shown(viewer)
    assert work.mode is PreviewMode.NOTHING
    work.show_best()
    settle(session.controller)
    assert viewer.layers[LEVELS_NAME].translate[0] == 2
    work.close()
    session.close()


def test_an_object_is_split_and_merged_under_the_cursor_each_as_one_action(accepted, settle):
    edits, objects = ObjectEdits(accepted), accepted.session.objects
    before, rows = objects.data.copy(), len(objects.features)
    label = before[ON_COIN]
    point_at(accepted, ON_COIN)
    edits.split()
    split = objects.data.copy()
    parts = np.unique(split[before == label])
    assert label not in parts
    assert len(parts[parts > 0]) >= 2
    assert np.array_equal(split[before != label], before[before != label])
    assert len(objects.features) == rows - 1 + len(parts[parts > 0])
    edits.merge()
    assert (objects.data[before == label] == split[ON_COIN]).mean() > 0.8
    accepted.session.controller.undo()
    assert np.array_equal(objects.data, split)
    accepted.session.controller.undo()
    assert np.array_equal(objects.data, before)
    assert len(objects.features) == rows


def test_buttons_act_on_the_selected_object_since_the_mouse_is_on_them(accepted):
    edits, objects = ObjectEdits(accepted), accepted.session.objects
    objects.selected_label = int(objects.data[ON_COIN])
    accepted.session.viewer.mouse_over_canvas = False
    accepted.session.viewer.cursor.position = (0, 0)
    before = len(objects.features)
    edits.split()
    assert len(objects.features) > before
    assert objects.selected_label in set(objects.features['index'])
    objects.selected_label = 9999
    edits.split()
    assert is_problem(accepted, 'selected on this slice')


def test_layers_of_one_slice_lie_in_it_and_name_the_layers_of_their_wholes(make_controller, coins_tree, settle):
    session = ViewerSession(ViewerModel(), make_controller(lambda image, progress: coins_tree))
    viewer = session.viewer
    session.set_image(viewer.add_image(np.stack([data.coins()] * 3), scale=(4, 2, 2)))
    work = RegionSelector(session)
    for z in (0, 2):
        viewer.dims.set_point(0, z * 4)
        for name, level in (('parts', 0.16), ('wholes', 0.4)):
            work.show_level(level)
            settle(session.controller)
            work.add_class(name)
        work.make_layers()
    parts, wholes = viewer.layers['parts [1]'], viewer.layers['wholes [1]']
    assert np.flatnonzero(parts.data.any(axis=(1, 2))).tolist() == [2]
    assert parts.data.shape == wholes.data.shape == (3, *data.coins().shape)
    assert set(parts.features['parent']) - {''} == {'wholes [1]'}
    work.close()
    session.close()


def test_layers_that_were_recorded_and_not_made_are_not_forgotten_without_a_word(work, settle):
    work.show_level(0.16)
    settle(work.session.controller)
    work.add_class('coins')
    work.session.image.data = data.coins()[::-1].copy()
    assert work.classes == []
    assert 'Classes cleared' in work.session.controller.status.text


def test_editing_beside_objects_is_said(accepted):
    point_at(accepted, ON_GROUND)
    for edit in (ObjectEdits(accepted).split, ObjectEdits(accepted).merge):
        edit()
        assert is_problem(accepted, 'No object is under the cursor')


def test_all_like_a_clicked_mask_are_found_widened_and_accepted(work, settle):
    controller = work.session.controller
    work.find_similar()
    settle(controller)
    assert is_problem(work, 'click an object, then press Shift-F')
    work.session.click(work.session.image.data_to_world(ON_COIN))
    settle(controller)
    work.find_similar()
    assert work.mode is PreviewMode.SIMILAR
    strict = len(work.selection)
    work.set_min_similarity(0.2)
    assert len(work.selection) > max(strict, 10)
    count = len(work.selection)
    work.accept()
    assert len(work.session.objects.features) == count
    assert work.examples == []


def test_examples_add_up_until_they_are_forgotten(accepted, settle):
    for pixel in (ON_COIN, (45, 38)):
        if accepted.session.objects.data[pixel]:
            point_at(accepted, pixel)
            accepted.find_similar()
    assert len(accepted.examples) >= 1
    accepted.clear_examples()
    assert (accepted.examples, accepted.mode) == ([], PreviewMode.NOTHING)


def test_noted_levels_become_linked_layers_as_one_action(work, settle):
    viewer = work.session.viewer
    work.set_region_filter(RegionFilter(10, 0.9, 1, 0, Brightness.ANY))
    for name, level in (('coins', 0.17), ('rows', 0.59)):
        work.show_level(level)
        settle(work.session.controller)
        work.add_class(name)
    work.make_layers()
    coins, rows = viewer.layers['coins'].features, viewer.layers['rows'].features
    assert coins['level'].unique().tolist() == [0.17]
    assert set(coins['parent_id']) <= {0, *rows['index']}
    assert coins.groupby('parent_id').size().max() > 3
    work.session.controller.undo()
    assert 'coins' not in viewer.layers
    assert 'rows' not in viewer.layers


def test_a_layer_without_a_name_or_without_regions_is_not_made(work, settle):
    work.add_class('nuclei')
    assert is_problem(work, 'No regions are shown')
    work.make_layers()
    assert is_problem(work, 'Add at least one class')
    work.show_best()
    settle(work.session.controller)
    work.add_class('  ')
    assert is_problem(work, 'Enter a class name')


def test_review_goes_from_the_least_certain_object_on_and_counts(accepted):
    reviewing, viewer, objects = Reviewing(accepted.session), accepted.session.viewer, accepted.session.objects
    count = len(objects.features)
    reviewing.accept()
    assert is_problem(accepted, 'Press Next')
    reviewing.next()
    first = reviewing.queue.current
    assert first == reviewing.queue.labels[0] == objects.selected_label
    middle = np.mean(np.nonzero(objects.data == first), axis=1)
    assert viewer.scene.camera.center[1:] == pytest.approx(objects.data_to_world(middle), abs=60)
    reviewing.accept()
    assert (len(reviewing.queue.done), reviewing.queue.left) == (1, count - 1)
    second = reviewing.queue.current
    reviewing.reject()
    assert not (objects.data == second).any()
    assert reviewing.queue.left == count - 2
    assert reviewing.queue.current not in (first, second, None)
    accepted.session.controller.undo()
    accepted.session.controller.undo()
    assert (len(reviewing.queue.done), reviewing.queue.left) == (0, count)
    reviewing.close()


def test_one_object_is_spoken_of_in_the_singular(work, settle):
    work.show_best()
    settle(work.session.controller)
    chosen = work.selection
    work.selection = Selection(chosen.source[:1], chosen.nodes[:1])
    work.accept()
    assert work.session.controller.status.text == 'Accepted 1 object. Press U to undo.'
    assert work.session.history.undo_name == 'accept 1 object'


def test_an_outline_marks_the_object_in_question_and_goes_with_the_next_action(accepted):
    reviewing, viewer, objects = Reviewing(accepted.session), accepted.session.viewer, accepted.session.objects
    before, selected, size_hw = list(viewer.layers), set(viewer.layers.selection), objects.data.shape
    count = len(before) + 1
    reviewing.next()
    mark = viewer.layers[REVIEW_NAME]
    assert (drawn_mask(mark, size_hw) == (objects.data == reviewing.queue.current)).all()
    assert mark.data_to_world((1, 1)) == objects.data_to_world((1, 1))
    assert viewer.layers.selection == selected
    reviewing.accept()
    mark = viewer.layers[REVIEW_NAME]
    assert (drawn_mask(mark, size_hw) == (objects.data == reviewing.queue.current)).all()
    accepted.session.controller.undo()
    assert not is_shown(viewer, REVIEW_NAME)
    reviewing.next()
    assert is_shown(viewer, REVIEW_NAME)
    assert len(viewer.layers) == count
    reviewing.close()
    assert list(viewer.layers) == before


@pytest.mark.parametrize('how', ['erased', 'layer deleted'])
def test_a_review_leaves_an_object_that_is_gone(accepted, how):
    reviewing, viewer, objects = Reviewing(accepted.session), accepted.session.viewer, accepted.session.objects
    reviewing.next()
    label, left = reviewing.queue.current, reviewing.queue.left
    if how == 'erased':
        objects.fill(tuple(np.argwhere(objects.data == label)[0]), 0)
        assert reviewing.queue.left == left - 1
    else:
        viewer.layers.remove(objects)
    assert reviewing.queue.current is None
    assert not is_shown(viewer, REVIEW_NAME)
    assert accepted.session.controller.status.text == f'Object {label} was removed; press Next to continue.'
    reviewing.close()


def test_an_object_of_several_planes_is_marked_on_all_of_them(viewer, session):
    session.set_image(viewer.add_image(np.stack([data.coins()] * 4)))
    labels = np.zeros((4, *data.coins().shape), bool)
    labels[1, 20:30, 40:60] = labels[2, 20:40, 40:50] = True
    session.write_objects('write', [ObjectWrite((slice(0, 4), slice(0, 303), slice(0, 384)), labels, 1)])
    reviewing = Reviewing(session)
    reviewing.next()
    segments = viewer.layers[REVIEW_NAME].data
    for z in (1, 2):
        drawn = drawn_mask(SimpleNamespace(data=segments[segments[:, 0, 0] == z]), labels.shape[1:])
        assert (drawn == labels[z]).all()
    assert set(segments[:, 0, 0]) == {1, 2}
    reviewing.close()


def test_a_review_without_objects_says_so(work):
    Reviewing(work.session).next()
    assert 'No objects yet' in work.session.controller.status.text


def test_a_plane_too_large_for_one_tree_has_no_levels_and_that_is_said(mailbox, settle):
    controller = SegmentationController(lambda target, progress: EmbeddedPlane(None, None), deliver=mailbox)
    session = ViewerSession(ViewerModel(), controller)
    session.set_image(session.viewer.add_image(data.coins()))
    work = RegionSelector(session)
    work.show_best()
    settle(controller)
    assert is_problem(work, 'at most 2048 px')
    assert work.mode is PreviewMode.NOTHING
    work.close()
    session.close()


def test_other_pixels_take_the_preview_away_and_are_measured_again(work, settle):
    work.show_best()
    settle(work.session.controller)
    work.session.image.data = data.coins()[::-1].copy()
    assert not is_shown(work.session.viewer)
    work.show_level(0.2)
    settle(work.session.controller)
    assert is_shown(work.session.viewer)


def test_a_measurement_that_another_run_has_replaced_can_be_asked_for_again(work, settle):
    work.show_level(0.16)
    work.session.controller.run('Something else', lambda progress: None, lambda _nothing: None)
    work.show_level(0.16)
    settle(work.session.controller)
    assert len(work.selection) > 20


def test_other_axes_in_view_leave_no_preview_of_the_ones_before(make_controller, settle):
    viewer = ViewerModel()
    session = ViewerSession(viewer, make_controller(colour_tree))
    session.set_image(viewer.add_image(np.stack([data.coins()[:40, :60]] * 30)))
    work = RegionSelector(session)
    for order in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        viewer.dims.order = order
        work.show_level(0.3)
        settle(session.controller)
        assert [layer.name for layer in viewer.layers].count(LEVELS_NAME) == 1
    work.close()
    assert LEVELS_NAME not in viewer.layers
    session.close()


def test_a_cancelled_measurement_can_be_asked_for_again(work, settle):
    work.show_level(0.16)
    work.session.controller.cancel()
    assert work.mode is PreviewMode.LEVEL
    work.show_level(0.16)
    settle(work.session.controller)
    assert len(work.selection) > 20
