"""What of mouse and keyboard is ours, and what is left to napari; events go the way they go in a window."""

import numpy as np
import pytest
from napari.utils.key_bindings import coerce_keybinding

from napari_unsam.keys import KEYS
from napari_unsam.viewer.session import ViewerSession
from tests.test_napari.stand_ins import PATCHES, Mouse, is_problem, press
from unsam_mm.errors import UnSAMError


@pytest.fixture
def mouse(viewer, make_controller, settle):
    """A mouse over a picture of four regions."""
    session = ViewerSession(viewer, make_controller())
    session.set_image(viewer.add_image(PATCHES.astype(np.uint8)))
    yield Mouse(viewer, session, settle)
    session.close()


def test_alt_and_the_wheel_leave_the_active_layer_as_it_is_while_there_are_prompts(mouse, viewer):
    others = [viewer.add_points(name=name) for name in ('A', 'B')]
    viewer.layers.selection.active = others[0]
    mouse.wheel(1)
    assert viewer.layers.selection.active is not others[0]  # as napari has it
    viewer.layers.selection.active = others[0]
    mouse((1, 1))
    for turned in (1, 1, -1):
        assert mouse.wheel(turned)
        assert viewer.layers.selection.active is others[0]


@pytest.mark.parametrize('modifiers', [('Control',), ('Control', 'Alt'), ('Shift',), ('Meta',)])
def test_the_wheel_with_other_modifiers_is_napari_s(mouse, modifiers):
    mouse((1, 1))
    before = mouse.session.controller.proposal.area_px
    assert not mouse.wheel(1, modifiers=modifiers)
    assert mouse.session.controller.proposal.area_px == before


@pytest.mark.parametrize('button', [1, 2])
def test_a_double_click_is_one_prompt_and_does_not_zoom(mouse, viewer, button):
    zoom = viewer.scene.camera.zoom
    mouse.double_click((1, 1), button)
    assert len(mouse.session.controller.prompts.points) == 1
    assert viewer.scene.camera.zoom == zoom


@pytest.mark.parametrize(
    ('prompting', 'modifiers', 'zoomed'),
    [
        pytest.param(True, ('Alt',), 0.5, id='with Alt'),
        pytest.param(False, (), 2, id='while clicks are no prompts'),
    ],
)
def test_other_double_clicks_zoom_as_ever(mouse, viewer, prompting, modifiers, zoomed):
    mouse.session.inputs.prompting = prompting
    zoom = viewer.scene.camera.zoom
    mouse.double_click((1, 1), modifiers=modifiers)
    assert viewer.scene.camera.zoom == pytest.approx(zoom * zoomed)
    assert not mouse.session.controller.prompts


@pytest.mark.parametrize(
    'arrange',
    [
        pytest.param(lambda viewer, session: setattr(viewer.dims, 'ndisplay', 3), id='3D view'),
        pytest.param(lambda viewer, session: session.set_image(None), id='no image chosen'),
    ],
)
def test_double_clicks_zoom_where_no_click_can_be_a_prompt(mouse, viewer, arrange):
    viewer.add_image(np.zeros((2, 4, 6), np.uint8))
    arrange(viewer, mouse.session)
    zoom = viewer.scene.camera.zoom
    mouse.double_click((0, 1, 1))
    assert viewer.scene.camera.zoom == pytest.approx(2 * zoom)


def test_what_a_key_cannot_do_is_told(mouse, viewer):
    def fail():
        raise UnSAMError('the disk is full')

    mouse.session.inputs.add({'propagate': fail})
    press(viewer, 'Shift-G')
    assert is_problem(mouse.session, 'the disk is full')


@pytest.mark.parametrize(
    ('button', 'modifiers', 'is_prompt'),
    [
        (1, (), True),
        (1, ('Shift',), True),
        (2, (), True),
        (2, ('Shift',), True),
        (1, ('Alt',), False),
        (1, ('Control',), False),
        (1, ('Meta',), False),
        (1, ('Shift', 'Control'), False),
        (2, ('Alt',), False),
        (3, (), False),
        (4, (), False),
    ],
)
def test_only_the_left_and_right_button_alone_or_with_shift_make_prompts(mouse, button, modifiers, is_prompt):
    mouse((1, 1), button, modifiers)
    assert len(mouse.session.controller.prompts.points) == is_prompt


@pytest.mark.parametrize('moves', [True, False], ids=['with moves', 'told of at its end alone'])
def test_a_drag_is_no_prompt(mouse, moves):
    mouse((1, 1), travel_px=30, moves=moves)
    assert not mouse.session.controller.prompts


@pytest.mark.parametrize('mode', ['paint', 'erase', 'fill', 'polygon', 'pick', 'transform'])
def test_clicks_belong_to_a_layer_in_a_mode_of_its_own(mouse, viewer, mode):
    objects = mouse.session.ensure_objects()
    viewer.layers.selection.active = objects
    objects.mode = mode
    objects.mouse_drag_callbacks.clear()  # what the tool makes of the click is not the matter
    mouse((1, 1))
    assert not mouse.session.controller.prompts


def test_a_key_waits_for_the_end_of_a_stroke(mouse, viewer):
    objects = mouse.session.ensure_objects()
    viewer.layers.selection.active = objects
    objects.mode, objects.selected_label, objects.brush_size = 'paint', 7, 1
    objects.paint((3, 5), 3)  # what U takes back if it does not wait
    mouse.press((1, 1))
    for key in ('U', 'Control-Z'):
        press(objects, key)
        assert np.unique(objects.data).tolist() == [0, 3, 7]
    mouse.release((1, 1))
    press(objects, 'U')
    assert np.unique(objects.data).tolist() == [0, 3]
    press(objects, 'Control-Z')
    assert not objects.data.any()


def test_the_keys_are_free_on_every_layer_and_on_the_viewer(mouse):
    from napari.layers import Image, Labels, Points, Shapes, Surface, Tracks, Vectors
    from napari.utils.action_manager import action_manager
    from napari.viewer import Viewer

    taken = {key for shortcuts in action_manager._shortcuts.values() for key in map(coerce_keybinding, shortcuts)}
    for kind in (Image, Labels, Points, Shapes, Surface, Tracks, Vectors, Viewer):
        for base in kind.__mro__:
            taken |= set(getattr(base, 'class_keymap', {}))
    assert not taken & {coerce_keybinding(key) for key, *_ in KEYS.values()}
