"""Whatever a user does is taken back by U and done again by Shift-U."""

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from napari.components import ViewerModel
from skimage import data

from napari_unsam.controller import HINT, SegmentationController
from napari_unsam.engine.inference import InferenceSettings
from napari_unsam.engine.planes import PlaneEmbedder
from napari_unsam.model.frame import Channels
from napari_unsam.model.prompts import Polarity
from napari_unsam.viewer.layers import OBJECTS_NAME
from napari_unsam.viewer.object_write import ObjectWrite
from napari_unsam.viewer.session import ViewerSession
from tests.test_napari.stand_ins import ON_CUP, ON_TABLE, patches_tree, planes_of, press, world
from unsam_mm.errors import UnSAMError


@pytest.fixture
def clicked(on_coffee, mouse):
    """A session with a click on the cup."""
    mouse(world(on_coffee, ON_CUP))
    return on_coffee


@pytest.fixture
def back(on_coffee, viewer, settle):
    """Presses U or Shift-U and waits for the answer."""

    def go(key='U'):
        press(viewer, key)
        settle(on_coffee.controller)

    return go


def shown(session):
    """What is on screen of the mask."""
    proposal = session.controller.proposal
    return proposal.box_xyxy, proposal.area_px, proposal.rank


def test_the_switch_of_what_clicks_say(clicked, back):
    clicked.controller.toggle_polarity()
    clicked.controller.set_polarity(Polarity.NEGATIVE)
    back()
    assert clicked.controller.polarity is Polarity.POSITIVE
    assert len(clicked.controller.prompts.points) == 1
    back('Shift-U')
    assert clicked.controller.polarity is Polarity.NEGATIVE


@pytest.mark.parametrize(
    'choose',
    [
        pytest.param(lambda controller: controller.smaller_mask(), id='step'),
        pytest.param(lambda controller: controller.step_region(3), id='wheel'),
        pytest.param(lambda controller: [controller.set_granularity(at) for at in (0.2, 0.4, 0.9)], id='slider'),
    ],
)
def test_the_choice_of_a_mask_however_many_steps_it_took(clicked, back, choose):
    before = shown(clicked)
    choose(clicked.controller)
    after = shown(clicked)
    assert after != before
    back()
    assert shown(clicked) == before
    assert len(clicked.controller.prompts.points) == 1
    back('Shift-U')
    assert shown(clicked) == after


def test_a_step_that_shows_the_same_mask_is_no_action(clicked):
    clicked.controller.step_region(1000)
    clicked.controller.step_region(1)
    clicked.controller.undo()
    assert clicked.history.undo_name == 'click'


def test_the_mask_that_was_chosen_is_there_again_when_a_later_click_is_taken_back(clicked, back, mouse):
    clicked.controller.smaller_mask()
    chosen = shown(clicked)
    mouse(world(clicked, ON_TABLE), button=2)
    back()
    assert shown(clicked) == chosen


def test_the_mask_that_was_chosen_is_there_again_when_a_commit_is_taken_back(clicked, back):
    clicked.controller.step_region(2)
    chosen = shown(clicked)
    clicked.commit()
    back()
    assert shown(clicked)[:2] == chosen[:2]
    back('Shift-U')
    assert not clicked.controller.prompts


def test_a_choice_on_one_plane_is_not_shown_on_another(viewer, session, settle):
    session.set_image(viewer.add_image(np.stack([data.coins()] * 2)))
    for plane in (0, 1):
        viewer.dims.set_point(0, plane)
        session.click((plane, 100, 100))
        settle(session.controller)
    best = shown(session)
    viewer.dims.set_point(0, 0)
    settle(session.controller)
    session.controller.smaller_mask()
    viewer.dims.set_point(0, 1)
    settle(session.controller)
    session.controller.undo()
    settle(session.controller)
    assert shown(session) == best


def test_a_granularity_on_a_plane_in_tiles(viewer, make_controller, mailbox, settle, monkeypatch, generator):
    from napari_unsam.engine import planes as _engine
    from unsam_mm.prompting.tree_engine import TreeEngine

    monkeypatch.setattr(_engine, 'MAX_WHOLE_PX', 300)
    monkeypatch.setattr(_engine, '_TILE_PX', 256)
    monkeypatch.setattr(_engine, 'make_engine', lambda name, device, weights: TreeEngine(generator))
    controller = make_controller()
    controller.planes.embedder = PlaneEmbedder(InferenceSettings('tree'))
    session = ViewerSession(viewer, controller)
    session.set_image(viewer.add_image(data.coins()))
    session.click((55, 44))
    settle(controller)
    before = controller.proposal.area_px
    controller.set_granularity(0.9)
    settle(controller)
    after = controller.proposal.area_px
    assert after > before
    controller.undo()
    assert controller.proposal.area_px == before
    controller.redo()
    assert controller.proposal.area_px == after
    for direction in (-1, 1):
        shown = controller.proposal.area_px
        controller.step_region(direction)
        settle(controller)
        assert (controller.proposal.area_px - shown) * direction > 0
    session.close()


def test_the_choice_of_channels_with_the_prompts_that_it_took_away(viewer, session, settle):
    image = viewer.add_image(np.stack([data.coins()] * 3))
    session.set_image(image)
    viewer.dims.set_point(0, 0)
    session.click((0, 100, 100))
    settle(session.controller)
    session.commit()
    session.click((0, 200, 200))
    settle(session.controller)
    objects = session.objects
    session.set_channels(Channels(0, (1,)))
    assert not session.controller.prompts
    assert session.objects is not objects
    session.controller.undo()
    assert session.channels is None
    assert len(session.controller.prompts.points) == 1
    assert session.objects is objects
    session.controller.redo()
    assert session.channels == Channels(0, (1,))
    assert not session.controller.prompts
    assert session.ensure_objects().data.shape == (1, *data.coins().shape)


def test_actions_on_an_image_that_is_gone_are_harmless(viewer, session):
    image = viewer.add_image(np.stack([data.coins()] * 3))
    session.set_image(image)
    session.set_channels(Channels(0, (1,)))
    viewer.layers.remove(image)
    session.controller.undo()
    assert session.channels is None
    assert OBJECTS_NAME not in viewer.layers


def test_the_status_says_what_was_undone_even_once_the_mask_is_there_again(clicked, back):
    clicked.controller.step_region(2)
    clicked.commit()
    back()
    assert clicked.controller.proposal is not None
    assert clicked.controller.status.text == 'Undone: commit object 1. Press Shift-U to redo.'
    clicked.controller.smaller_mask()
    assert clicked.controller.status.text == HINT


def test_a_commit_into_a_layer_that_was_deleted_by_hand_which_is_there_again(clicked, mouse, viewer, settle):
    clicked.commit()
    mouse(world(clicked, ON_TABLE))
    clicked.commit()
    objects, place = clicked.objects, list(viewer.layers)
    both = objects.data.copy()
    viewer.layers.remove(objects)
    clicked.controller.undo()
    assert clicked.objects is objects
    assert list(viewer.layers) == place
    assert set(np.unique(objects.data)) == {0, 1}
    assert list(objects.features['index']) == [1]
    press(objects, 'Shift-U')
    assert (objects.data == both).all()
    viewer.layers.remove(objects)
    clicked.controller.undo()
    clicked.controller.redo()
    assert (clicked.objects.data == both).all()


class Desk:
    """Objects of a small stack, written and painted."""

    SHAPE = (3, 8, 9)

    def __init__(self):
        self.session = ViewerSession(ViewerModel(), SegmentationController(planes_of(lambda *_: patches_tree())))
        self.session.set_image(self.session.viewer.add_image(np.zeros(self.SHAPE)))
        self.labels = self.session.ensure_objects()

    def write(self, label, corner, size):
        box = tuple(slice(a, min(a + b, n)) for a, b, n in zip(corner, size, self.SHAPE, strict=True))
        mask = np.ones([part.stop - part.start for part in box], bool)
        mask.flat[::3] = False
        mask.flat[0] = True
        self.session.write_objects('write', [ObjectWrite(box, mask, label, {'score': 0.5})])

    def stroke(self, label, corner, size):
        """A drag of the brush, of several dabs."""
        with self.labels.block_history():
            for step in range(size[2]):
                self.labels.brush_size = 1 + size[1]
                self.labels.paint((*corner[:2], min(corner[2] + step, self.SHAPE[2] - 1)), label)

    def fill(self, label, corner, size):
        self.labels.n_edit_dimensions = 2 + size[0] % 2
        self.labels.fill(corner, label)

    def polygon(self, label, corner, size):
        self.labels.n_edit_dimensions = 2
        z, y, x = corner
        self.labels.paint_polygon([(z, y, x), (z, y + size[1], x), (z, y + size[1], x + size[2])], label)

    def set_items(self, label, corner, size):
        places = [np.arange(a, min(a + max(size), n)) for a, n in zip(corner, self.SHAPE, strict=True)]
        shortest = min(map(len, places))
        values = label + np.arange(shortest) % 2
        self.labels.data_setitem(tuple(place[:shortest] for place in places), values.astype(np.uint32))

    def state(self):
        rows = self.labels.features
        areas = dict(zip(rows['index'], rows['area_px'], strict=True)) if len(rows) else {}
        return self.labels.data.tobytes(), areas


_ACTS = st.tuples(
    st.sampled_from(['write', 'stroke', 'fill', 'polygon', 'set_items']),
    st.integers(0, 3),
    st.tuples(*(st.integers(0, n - 1) for n in Desk.SHAPE)),
    st.tuples(*(st.integers(1, 4) for _ in range(3))),
)
_MOVES = st.sampled_from(['U', 'Shift-U', 'Control-Z', 'Control-Shift-Z', 'undo', 'redo'])


@settings(max_examples=20, deadline=None, derandomize=True, phases=(Phase.generate,))
@given(st.lists(st.one_of(_ACTS, _ACTS, _MOVES), max_size=14))
def test_every_undo_gives_exactly_the_state_before_whatever_the_objects_were_changed_with(acts):
    desk = Desk()
    done, undone = [desk.state()], []
    for act in acts:
        if isinstance(act, tuple):
            getattr(desk, act[0])(*act[1:])
            if act[0] == 'write' or desk.state() != done[-1]:
                done.append(desk.state())
                undone.clear()
            continue
        is_undo = act in ('U', 'Control-Z', 'undo')
        if act in ('undo', 'redo'):
            getattr(desk.labels, act)()  # as scripts call it
        else:
            press(desk.labels, act)
        source, target = (done, undone) if is_undo else (undone, done)
        if len(source) > is_undo:  # the first state was not done
            target.append(source.pop())
        assert desk.state() == done[-1]
    areas = desk.state()[1]
    counted = {label: np.count_nonzero(desk.labels.data == label) for label in areas}
    assert areas == counted
    desk.session.close()


@pytest.fixture
def desk():
    desk = Desk()
    yield desk
    desk.session.close()


def test_undo_of_a_commit_leaves_pixels_alone_that_somebody_else_has_changed(desk):
    desk.write(1, (0, 0, 0), (1, 4, 4))
    desk.labels.data[0, 0, :2] = 5  # as a script does, which tells nobody
    desk.session.controller.undo()
    assert np.unique(desk.labels.data).tolist() == [0, 5]
    desk.session.controller.redo()
    assert desk.labels.data[0, 0, :2].tolist() == [5, 5]


@pytest.mark.parametrize('move', ['undo', 'redo'])
def test_undo_and_redo_pass_over_an_array_whose_type_is_too_small_for_their_labels(desk, move):
    desk.write(300, (0, 0, 0), (1, 4, 4))
    if move == 'undo':
        desk.write(7, (0, 0, 0), (1, 4, 4))
        desk.labels.data = desk.labels.data.astype(np.uint8)
    else:
        desk.session.controller.undo()
        desk.labels.data = np.zeros(desk.SHAPE, np.uint8)
    before = desk.labels.data.copy()
    getattr(desk.session.controller, move)()
    assert (desk.labels.data == before).all()  # not 44, which is what NumPy makes of 300


def test_a_layer_of_which_the_highest_label_is_taken_says_what_to_do(desk):
    desk.labels.data_setitem((np.array([0]), np.array([0]), np.array([0])), 2**32 - 1)
    with pytest.raises(UnSAMError, match='too small for 4294967296; give its objects lower labels'):
        desk.write(desk.session.next_label(), (0, 0, 0), (1, 4, 4))


@pytest.mark.parametrize('shape', [(2, 2, 2), (2, 2)])
def test_undo_and_redo_pass_over_an_array_of_another_shape_that_was_put_in_place(desk, shape):
    desk.write(1, (0, 0, 0), (1, 4, 4))
    desk.labels.data = np.full(shape, 4, np.uint32)
    desk.session.controller.undo()
    desk.session.controller.redo()
    assert (desk.labels.data == 4).all()


def test_a_stroke_has_a_name(desk):
    desk.stroke(3, (0, 2, 2), (1, 1, 2))
    assert desk.session.history.undo_name == 'paint label 3'
    desk.stroke(0, (0, 2, 2), (1, 1, 2))
    assert desk.session.history.undo_name == 'erase by hand'


def test_after_the_session_naparis_own_undo_reaches_no_further_back_than_its_end(desk):
    desk.stroke(3, (0, 2, 2), (1, 1, 2))
    desk.write(1, (0, 0, 0), (1, 8, 9))
    before = desk.labels.data.copy()
    desk.session.close()
    desk.labels.undo()
    assert (desk.labels.data == before).all()
    desk.labels.paint((1, 1, 1), 9)
    desk.labels.undo()
    assert (desk.labels.data == before).all()


@pytest.fixture
def painted(desk):
    """A viewer with a layer of objects that was painted in between two sessions; the second has just begun."""
    desk.write(2, (2, 0, 0), (1, 2, 2))
    desk.session.close()
    desk.stroke(3, (0, 2, 2), (1, 1, 2))
    desk.session = ViewerSession(desk.session.viewer, SegmentationController(planes_of(lambda *_: patches_tree())))
    return desk


def test_after_the_session_naparis_own_undo_knows_of_no_stroke_before_it(painted):
    painted.session.set_image(painted.session.viewer.layers[0])
    painted.write(1, (0, 0, 0), (1, 8, 9))
    before = painted.labels.data.copy()
    painted.session.close()
    painted.labels.undo()
    assert (painted.labels.data == before).all()


def test_strokes_are_actions_also_in_objects_of_images_that_were_not_chosen(painted):
    while painted.session.prepare():
        pass
    before = painted.state()
    painted.stroke(5, (1, 2, 2), (1, 1, 2))
    press(painted.labels, 'U')
    assert painted.state() == before
    assert painted.session.history.redo_name == 'paint label 5'


@pytest.mark.parametrize('is_editable', [True, False])
def test_the_end_of_a_session_leaves_the_tool_and_the_lock_of_the_layer_as_they_are(desk, is_editable):
    desk.stroke(3, (0, 2, 2), (1, 1, 2))
    desk.labels.mode, desk.labels.editable = 'paint', is_editable
    mode = desk.labels.mode
    desk.session.close()
    assert (desk.labels.mode, desk.labels.editable) == (mode, is_editable)


@pytest.mark.parametrize('first', [0, 1])
def test_of_two_sessions_in_a_viewer_the_one_that_stays_keeps_its_keys(desk, make_controller, first):
    viewer, sessions = desk.session.viewer, [desk.session]
    sessions.append(ViewerSession(viewer, make_controller()))
    sessions[1].set_image(viewer.layers[0])
    while sessions[1].prepare():
        pass
    ended, stays = sessions[first], sessions[1 - first]
    for label in (1, 2, 3):
        box = (slice(0, 1), slice(label, label + 1), slice(0, 3))
        stays.write_objects('write', [ObjectWrite(box, np.ones((1, 1, 3), bool), label)])
    ended.close()
    assert stays.objects is desk.labels
    press(desk.labels, 'U')
    press(viewer, 'U')
    desk.labels.undo()
    assert not desk.labels.data.any()
    desk.labels.redo()
    assert desk.labels.data.any()
    stays.close()
    assert not viewer.keymap
    assert not {'undo', 'redo'} & set(vars(desk.labels))


def test_objects_of_two_sessions_can_be_deleted_from_the_viewer(desk, make_controller):
    other = ViewerSession(desk.session.viewer, make_controller())
    other.set_image(other.viewer.layers[0])
    other.ensure_objects()
    other.viewer.layers.remove(desk.labels)
    assert desk.session.objects is other.objects is None
    other.close()
