import threading

import numpy as np
import pytest

from napari_unsam._controller import Level
from napari_unsam._planes import Plane
from napari_unsam._prompts import PointPrompt, Polarity
from tests.test_napari.stand_ins import PATCHES, patches_target, patches_tree
from unsam_mm.errors import ImageError


def is_problem(controller, words):
    return controller.status.level is Level.PROBLEM and words in controller.status.text


def test_a_click_shows_the_best_mask_under_it(controller):
    assert controller.add_prompt((0, 0))
    proposal = controller.proposal
    assert (proposal.rank, proposal.count) == (2, 3)
    assert proposal.box_xyxy == (0, 0, 6, 2)
    assert proposal.mask.all()
    assert proposal.area_px == 12
    assert controller.status.text.startswith('J shows a coarser mask')


def test_coarser_and_finer_walk_the_nested_masks_and_stop_at_the_ends(controller):
    controller.add_prompt((0, 0))
    areas = [controller.proposal.area_px]
    for step in (controller.coarser, controller.coarser, controller.finer, controller.finer, controller.finer):
        step()
        areas.append(controller.proposal.area_px)
    assert areas == [12, 24, 24, 12, 4, 4]
    assert 'finest mask' in controller.status.text


def test_a_negative_click_rules_out_the_masks_that_hold_it(controller):
    controller.add_prompt((0, 0))
    controller.add_prompt((0, 5), Polarity.NEGATIVE)
    assert controller.proposal.area_px == 4
    assert (controller.proposal.rank, controller.proposal.count) == (1, 1)


def test_a_second_positive_click_widens_the_mask_to_hold_both(controller):
    controller.add_prompt((0, 0))
    controller.add_prompt((3, 0))
    assert controller.proposal.area_px == 24


def test_plain_clicks_take_the_polarity_that_is_set(controller):
    controller.toggle_polarity()
    controller.add_prompt((0, 0))
    controller.toggle_polarity()
    controller.add_prompt((0, 1))
    assert [prompt.polarity for prompt in controller.prompts] == [Polarity.NEGATIVE, Polarity.POSITIVE]


@pytest.mark.parametrize(
    'clicks',
    [
        pytest.param([((0, 0), Polarity.NEGATIVE)], id='only a negative click'),
        pytest.param([((0, 0), Polarity.POSITIVE), ((0, 1), Polarity.NEGATIVE)], id='both in one leaf'),
    ],
)
def test_clicks_that_no_region_fits_are_kept_and_explained(controller, clicks):
    for position, polarity in clicks:
        controller.add_prompt(position, polarity)
    assert controller.proposal is None
    assert len(controller.prompts) == len(clicks)
    assert is_problem(controller, 'undo a click')


def test_undo_brings_back_the_clicks_and_mask_of_before(controller):
    controller.add_prompt((0, 0))
    controller.add_prompt((3, 0))
    controller.undo_prompt()
    assert len(controller.prompts) == 1
    controller.undo_prompt()
    assert controller.proposal is None
    assert not controller.can_undo_prompt
    controller.undo_prompt()
    assert controller.status.text == 'There is no click to undo.'


def test_clicks_go_when_their_object_is_committed_and_undo_brings_them_back(controller):
    controller.add_prompt((0, 0))
    controller.object_committed(label=5, area_px=12)
    assert controller.prompts == ()
    assert controller.proposal is None
    assert controller.status.text.startswith('Object 5 committed, 12 px')
    controller.undo_prompt()
    assert controller.proposal.area_px == 12


def test_signals_announce_what_changed(controller):
    heard = []
    controller.prompts_changed.connect(lambda: heard.append('prompts'))
    controller.proposal_changed.connect(lambda: heard.append('proposal'))
    controller.add_prompt((0, 0))
    assert heard == ['prompts', 'proposal']
    controller.coarser()
    assert heard == ['prompts', 'proposal', 'proposal']


@pytest.mark.parametrize('position', [(-1, 0), (0, 6), (99.0, 99.0)])
def test_a_click_outside_the_image_is_harmless_and_said(controller, position):
    assert not controller.add_prompt(position)
    assert controller.prompts == ()
    assert is_problem(controller, 'outside "Patches"')


def test_without_an_image_nothing_happens_and_the_user_is_told(make_controller):
    controller = make_controller()
    assert not controller.add_prompt((0, 0))
    assert is_problem(controller, 'Choose an image')
    controller.embed()
    controller.cancel()
    controller.set_prompts([PointPrompt((0.0, 0.0))])
    assert controller.prompts == ()
    assert not controller.is_busy


def test_stepping_before_a_click_is_harmless_and_said(controller):
    controller.coarser()
    assert is_problem(controller, 'click on an object first')


def test_the_first_click_makes_the_region_tree_and_then_shows_its_mask(make_controller, mailbox):
    controller = make_controller()
    controller.set_target(patches_target())
    controller.add_prompt((0, 0))
    assert controller.is_busy
    assert controller.proposal is None
    mailbox.open_until(lambda: not controller.is_busy)
    assert controller.proposal.area_px == 12


def test_clicks_while_the_tree_is_made_wait_for_it_and_start_no_second_one(make_controller, mailbox):
    images, release = [], threading.Event()

    def embed(image, progress):
        images.append(image)
        release.wait(10)
        return patches_tree()

    controller = make_controller(embed)
    controller.set_target(patches_target())
    controller.add_prompt((0, 0))
    controller.add_prompt((3, 0))
    release.set()
    mailbox.open_until(lambda: not controller.is_busy)
    assert controller.proposal.area_px == 24
    assert len(images) == 1
    assert images[0] is PATCHES


def test_progress_is_passed_on(make_controller, mailbox):
    def embed(image, progress):
        progress(0.25, 'halfway to the middle')
        return patches_tree()

    controller, told = make_controller(embed), []
    controller.progress_changed.connect(lambda *news: told.append(news))
    controller.set_target(patches_target())
    controller.embed()
    mailbox.open_until(lambda: not controller.is_busy)
    assert told == [(0.0, 'Starting'), (0.25, 'halfway to the middle')]


def test_cancel_stops_the_model_and_keeps_the_clicks(make_controller):
    entered, left = threading.Event(), threading.Event()

    def embed(image, progress):
        try:
            while True:
                entered.set()
                progress(0.5, 'working')
        finally:
            left.set()

    controller = make_controller(embed)
    controller.set_target(patches_target())
    controller.add_prompt((0, 0))
    assert entered.wait(10)
    controller.cancel()
    assert left.wait(10)
    assert not controller.is_busy
    assert len(controller.prompts) == 1
    assert controller.status.text.startswith('Cancelled')


def test_a_failed_job_is_explained_and_can_be_started_again(make_controller, mailbox):
    attempts = []

    def embed(image, progress):
        attempts.append(image)
        if len(attempts) == 1:
            raise ImageError('Patches: every pixel has the value 7')
        return patches_tree()

    controller = make_controller(embed)
    controller.set_target(patches_target())
    controller.embed()
    mailbox.open_until(lambda: not controller.is_busy)
    assert is_problem(controller, 'every pixel has the value 7')
    controller.embed()
    mailbox.open_until(lambda: not controller.is_busy)
    assert controller.hierarchy is not None


def test_clicks_and_trees_of_a_plane_are_there_again_when_it_is_looked_at_again(make_controller, mailbox):
    planes = [Plane(shape=(9, 4, 6), axes=(1, 2), index=(z, 0, 0)) for z in (2, 5)]
    controller = make_controller()
    controller.set_target(patches_target(plane=planes[0]))
    controller.add_prompt((2, 0, 0))
    mailbox.open_until(lambda: not controller.is_busy)
    controller.set_target(patches_target(plane=planes[1]))
    assert controller.proposal is None
    assert controller.hierarchy is None
    controller.clear_prompts()
    controller.set_target(None, reason='The view is 3D.')
    assert controller.status.text == 'The view is 3D.'
    controller.set_target(patches_target(plane=planes[0]))
    assert controller.proposal.area_px == 12


def test_a_tree_is_finished_and_kept_while_another_plane_is_looked_at(make_controller, mailbox):
    planes = [Plane(shape=(9, 4, 6), axes=(1, 2), index=(z, 0, 0)) for z in (2, 5)]
    controller = make_controller()
    controller.set_target(patches_target(plane=planes[0]))
    controller.embed()
    controller.set_target(patches_target(plane=planes[1]))
    mailbox.open_until(lambda: not controller.is_busy)
    assert controller.hierarchy is None
    controller.set_target(patches_target(plane=planes[0]))
    assert controller.hierarchy is not None


def test_the_clicks_go_when_another_image_is_chosen(controller):
    controller.add_prompt((0, 0))
    controller.set_target(patches_target(source='another'))
    assert controller.prompts == ()
    assert not controller.can_undo_prompt


def test_an_image_whose_pixels_changed_needs_a_new_tree(controller):
    controller.add_prompt((0, 0))
    controller.forget('patches')
    assert controller.hierarchy is None
    assert controller.proposal is None


def test_forgetting_another_image_leaves_the_mask_on_screen_alone(controller):
    controller.add_prompt((0, 0))
    controller.coarser()
    before = controller.candidates
    controller.forget('another')
    assert controller.candidates is before


def test_forgetting_an_image_stops_its_job(make_controller):
    release = threading.Event()
    controller = make_controller(lambda image, progress: (release.wait(10), patches_tree())[1])
    controller.set_target(patches_target())
    controller.embed()
    controller.forget('patches')
    assert not controller.is_busy
    release.set()


def test_old_trees_make_room_for_new_ones(make_controller, mailbox, monkeypatch):
    monkeypatch.setattr('napari_unsam._controller._CACHED_PX', 2 * PATCHES.size)
    controller = make_controller()
    for source in 'abc':
        controller.set_target(patches_target(source))
        controller.embed()
        mailbox.open_until(lambda: not controller.is_busy)
    kept = []
    for source in 'abc':
        controller.set_target(patches_target(source))
        kept.append(controller.hierarchy is not None)
    assert kept == [False, True, True]


def test_clicks_set_outside_the_image_are_left_out(controller):
    controller.set_prompts([PointPrompt((0.0, 0.0)), PointPrompt((-9.0, 0.0))])
    assert controller.prompts == (PointPrompt((0.0, 0.0)),)


def test_the_regions_of_the_model_are_used_by_default(make_controller, mailbox):
    from napari_unsam._controller import SegmentationController

    with_default = SegmentationController(lambda image, progress: patches_tree(), deliver=mailbox)
    with_default.set_target(patches_target())
    with_default.add_prompt((0, 0))
    with_default.add_prompt((0, 5), Polarity.NEGATIVE)
    mailbox.open_until(lambda: not with_default.is_busy)
    assert np.array_equal(with_default.candidates.nodes, [0])
    assert with_default.close(timeout_s=10)
