"""Several objects begun before the first is committed."""

import numpy as np
import pytest
from skimage import data

from napari_unsam.io.autosave import Autosave
from napari_unsam.model.plane import Plane
from napari_unsam.model.prompts import Prompts
from napari_unsam.model.targets import Proposal
from napari_unsam.qt.mask_panel import MaskPanel
from napari_unsam.qt.prompt_panel import PromptPanel
from napari_unsam.viewer.pending import PENDING_NAME, pending_object, proposal_of
from tests.test_napari.stand_ins import ON_CUP, ON_TABLE, drawn_mask, is_problem, press, world


@pytest.fixture
def begin(on_coffee, mouse):
    """Clicks on a place of the photo; gives the mask on screen, as large as the photo."""

    def click(place):
        mouse(world(on_coffee, place))
        proposal = on_coffee.controller.proposal
        mask = np.zeros((400, 600), bool)
        x0, y0, x1, y1 = proposal.box_xyxy
        mask[y0:y1, x0:x1] = proposal.mask
        return mask

    return click


def test_an_object_that_is_kept_waits_while_the_next_click_begins_another(on_coffee, begin, viewer):
    cup = begin(ON_CUP)
    press(viewer, 'Shift-H')
    assert on_coffee.controller.proposal is None
    assert (drawn_mask(viewer.layers[PENDING_NAME], (400, 600)) == cup).all()
    begin(ON_TABLE)
    assert len(on_coffee.controller.prompts_here.points) == 1
    assert len(on_coffee.controller.prompts.points) == 2
    assert on_coffee.objects is None or not on_coffee.objects.data.any()


def test_outlines_of_pending_objects_stay_on_an_image_that_is_moved(on_coffee, begin, viewer):
    begin(ON_CUP)
    on_coffee.next_object()
    on_coffee.image.translate = (-40, 11)
    assert viewer.layers[PENDING_NAME].data_to_world(ON_CUP) == pytest.approx(on_coffee.image.data_to_world(ON_CUP))


def test_a_commit_writes_all_that_wait_and_one_undo_brings_them_back(on_coffee, begin, viewer, settle):
    masks = [begin(ON_CUP)]
    on_coffee.next_object()
    masks.append(begin(ON_TABLE) & ~masks[0])
    press(viewer, 'N')
    objects = on_coffee.objects
    assert [(objects.data == label).sum() for label in (1, 2)] == [mask.sum() for mask in masks]
    assert objects.features['index'].tolist() == [1, 2]
    assert objects.selected_label == 2
    assert not on_coffee.controller.prompts
    assert not viewer.layers[PENDING_NAME].visible
    assert on_coffee.history.undo_name == 'commit 2 objects'
    on_coffee.controller.undo()
    settle(on_coffee.controller)
    assert not objects.data.any()
    assert (drawn_mask(viewer.layers[PENDING_NAME], (400, 600)) == masks[0]).all()
    assert on_coffee.controller.proposal is not None


def test_the_mask_that_was_stepped_to_is_the_one_that_waits(on_coffee, begin):
    begin(ON_CUP)
    on_coffee.controller.smaller_mask()
    area = on_coffee.controller.proposal.area_px
    on_coffee.next_object()
    on_coffee.commit()
    assert on_coffee.objects.features['area_px'].tolist() == [area]


def test_keeping_a_mask_can_be_undone_and_done_again(on_coffee, begin, settle):
    cup = begin(ON_CUP)
    on_coffee.next_object()
    on_coffee.controller.undo()
    settle(on_coffee.controller)
    assert on_coffee.controller.proposal.area_px == cup.sum()
    assert not on_coffee.controller.prompts.pending
    on_coffee.controller.redo()
    assert len(on_coffee.controller.prompts.pending) == 1
    assert on_coffee.controller.proposal is None


def test_objects_that_wait_may_lie_on_several_planes(viewer, session, settle):
    session.set_image(viewer.add_image(np.stack([data.coins()] * 3)))
    for plane in (0, 2):
        viewer.dims.set_point(0, plane)
        session.click((plane, 100, 100))
        settle(session.controller)
        session.next_object()
    assert set(viewer.layers[PENDING_NAME].data[:, 0, 0]) == {0, 2}
    session.commit()
    assert session.objects.data.any(axis=(1, 2)).tolist() == [True, False, True]
    assert not session.controller.prompts


def test_an_object_without_a_free_pixel_goes_on_waiting(on_coffee, begin):
    begin(ON_CUP)
    on_coffee.next_object()
    begin(ON_CUP)
    on_coffee.commit()
    assert on_coffee.objects.features['index'].tolist() == [1]
    assert '1 left out' in on_coffee.controller.status.text
    assert len(on_coffee.controller.prompts_here.points) == 1
    assert not on_coffee.controller.prompts.pending


def test_clearing_the_plane_takes_those_that_wait_there_too(on_coffee, begin):
    begin(ON_CUP)
    on_coffee.next_object()
    on_coffee.controller.clear_prompts()
    assert not on_coffee.controller.prompts
    on_coffee.controller.undo()
    assert len(on_coffee.controller.prompts.pending) == 1


def test_without_a_mask_there_is_nothing_to_keep(on_coffee):
    on_coffee.next_object()
    assert is_problem(on_coffee, 'No mask to keep')
    assert on_coffee.history.undo_name is None


def test_the_outlines_go_and_come_with_the_image(on_coffee, begin, viewer):
    coffee = on_coffee.image
    begin(ON_CUP)
    on_coffee.next_object()
    on_coffee.set_image(None)
    assert PENDING_NAME not in viewer.layers
    on_coffee.set_image(coffee)
    begin(ON_TABLE)
    assert len(viewer.layers[PENDING_NAME].data)


def test_a_mask_comes_back_from_its_run_lengths():
    random = np.random.default_rng(0)
    plane = Plane((5, 40, 60), (1, 2), (3, 0, 0))
    mask = random.random((7, 9)) < 0.5
    pending = pending_object(Proposal((10, 20, 19, 27), mask, 0.4, 0.9, plane=plane, rank=1, count=3), object_id=2)
    back = proposal_of(pending, plane.shape)
    assert (back.mask == mask).all()
    assert (back.plane, back.box_xyxy, back.granularity, back.score) == (plane, (10, 20, 19, 27), 0.4, 0.9)


def test_what_waits_is_saved_and_comes_back_in_another_session(on_coffee, begin, tmp_path, viewer):
    autosave = Autosave(tmp_path)
    autosave.watch(on_coffee)
    begin(ON_CUP)
    on_coffee.next_object()
    before = on_coffee.controller.prompts
    autosave.close()
    on_coffee.controller.set_prompts_without_undo(on_coffee.image.unique_id, Prompts())
    later = Autosave(tmp_path)
    saved = later.find(on_coffee.image)
    assert saved.prompts == before
    later.restore(on_coffee, saved)
    on_coffee.commit()
    assert on_coffee.objects.data[ON_CUP] == 1
    later.close()


def test_the_panels_say_how_many_wait(on_coffee, begin, qtbot):
    prompt_panel, mask_panel = PromptPanel(on_coffee), MaskPanel(on_coffee)
    qtbot.addWidget(prompt_panel)
    qtbot.addWidget(mask_panel)
    assert not prompt_panel.next_button.isEnabled()
    begin(ON_CUP)
    prompt_panel.next_button.click()
    assert mask_panel.commit_button.text() == 'Commit object  [N]'
    begin(ON_TABLE)
    assert mask_panel.commit_button.text() == 'Commit 2 objects  [N]'
    mask_panel.commit_button.click()
    assert on_coffee.next_label() == 3
    assert not mask_panel.commit_button.isEnabled()
