import threading
import time
from types import SimpleNamespace

import pytest

from napari_unsam.engine.inference import JobCancelled
from napari_unsam.engine.planes import PlaneCache
from napari_unsam.model.candidates import Candidates
from napari_unsam.model.plane import Plane
from napari_unsam.model.prompts import PointPrompt, Polarity, Prompts, ShapeKind, ShapePrompt
from tests.test_napari.stand_ins import PATCHES, NestedPlane, patches_target, patches_tree
from unsam_mm.errors import ImageError


def is_problem(controller, words):
    return controller.status.is_problem and words in controller.status.text


@pytest.fixture
def click(controller, settle):
    """Clicks and waits for the answer."""

    def click(position, polarity=None):
        done = controller.add_prompt(position, polarity)
        settle(controller)
        return done

    return click


def test_a_click_shows_the_best_mask_under_it(controller, click):
    assert click((0, 0))
    proposal = controller.proposal
    assert (proposal.rank, proposal.count) == (2, 3)
    assert proposal.box_xyxy == (0, 0, 6, 2)
    assert proposal.mask.all()
    assert proposal.area_px == 12
    assert controller.status.text.startswith('J: larger mask')


def test_clicks_are_answered_in_the_inference_thread(controller, settle, monkeypatch):
    threads, answer = [], NestedPlane.answer

    def noting(plane, *prompt, **more):
        threads.append(threading.current_thread())
        return answer(plane, *prompt, **more)

    monkeypatch.setattr(NestedPlane, 'answer', noting)
    controller.add_prompt((0, 0))
    settle(controller)
    assert threads
    assert threading.current_thread() not in threads


def test_larger_and_smaller_mask_walk_the_masks_and_stop_at_the_ends(controller, click):
    click((0, 0))
    areas = [controller.proposal.area_px]
    for step in (
        controller.larger_mask,
        controller.larger_mask,
        controller.smaller_mask,
        controller.smaller_mask,
        controller.smaller_mask,
    ):
        step()
        areas.append(controller.proposal.area_px)
    assert areas == [12, 24, 24, 12, 4, 4]
    assert 'smallest' in controller.status.text


def test_granularity_slides_along_the_regions_under_the_click(controller, click):
    click((0, 0))
    areas = []
    for granularity in (0.0, 0.9, 1.0):
        controller.set_granularity(granularity)
        areas.append(controller.proposal.area_px)
    controller.step_region(-1)
    assert [*areas, controller.proposal.area_px] == [4, 12, 24, 12]
    assert controller.proposal.rank == 0


def test_a_step_from_between_the_masks_goes_to_the_next_one(controller, click):
    click((0, 0))
    controller.set_granularity(0.0)
    controller.larger_mask()
    assert (controller.proposal.area_px, controller.proposal.rank) == (12, 2)


def test_a_negative_click_rules_out_the_masks_that_hold_it(controller, click):
    click((0, 0))
    click((0, 5), Polarity.NEGATIVE)
    assert controller.proposal.area_px == 4
    assert (controller.proposal.rank, controller.proposal.count) == (1, 1)


def test_a_second_positive_click_widens_the_mask_to_hold_both(controller, click):
    click((0, 0))
    click((3, 0))
    assert controller.proposal.area_px == 24


def test_plain_clicks_take_the_polarity_that_is_set(controller, click):
    controller.toggle_polarity()
    click((0, 0))
    controller.toggle_polarity()
    click((0, 1))
    assert [point.polarity for point in controller.prompts.points] == [Polarity.NEGATIVE, Polarity.POSITIVE]


def test_a_lone_negative_click_says_that_it_needs_a_positive_one(controller, click):
    click((0, 0), Polarity.NEGATIVE)
    assert controller.proposal is None
    assert is_problem(controller, 'Click on the object')
    click((3, 0))
    assert controller.proposal is not None


def test_clicks_of_both_kinds_on_one_pixel_are_kept_and_explained(controller, click):
    click((0, 0))
    click((0, 0), Polarity.NEGATIVE)
    assert controller.proposal is None
    assert len(controller.prompts.points) == 2
    assert is_problem(controller, 'object and background clicks')


def test_tasks_wait_for_each_other_and_stop_no_longer_run(controller, settle):
    done, begun = [], threading.Event()

    def run(progress):
        begun.set()
        while 'both' not in done:
            progress(0.5, 'running')
            time.sleep(0.001)
        return 'run'

    def task(name):
        return lambda progress: time.sleep(0.02) or name

    def both(name):
        done.extend([name, 'both'])

    controller.run('Long', run, done.append)
    begun.wait(10)
    controller.run('First', task('first'), done.append, is_task=True)
    controller.run('Second', task('second'), both, is_task=True)
    assert controller.has_job('Long')
    assert controller.has_job('Second')
    assert '"First" runs first' in controller.status.text
    settle(controller)
    assert done == ['first', 'second', 'both', 'run']


def test_a_cancel_stops_tasks_that_wait_too(controller, settle):
    done = []
    for name in ('First', 'Second'):
        controller.run(name, lambda progress: time.sleep(0.05), done.append, is_task=True)
    controller.cancel()
    assert not controller.has_job('Second')
    controller.run('Third', lambda progress: 'third', done.append, is_task=True)
    settle(controller)
    assert done == ['third']


def test_a_step_beyond_the_last_mask_is_told_also_after_sliding(controller, click):
    click((0, 0))
    controller.step_region(9)
    controller.larger_mask()
    assert 'largest' in controller.status.text


def test_a_box_is_answered_like_a_click(controller, settle):
    corners = ((0.0, 0.0), (0.0, 5.0), (1.0, 5.0), (1.0, 0.0))
    controller.set_prompts(Prompts(shapes=(ShapePrompt(ShapeKind.BOX, corners),)))
    settle(controller)
    assert controller.proposal.area_px == 12


def test_undo_and_redo_take_clicks_one_by_one_and_name_them(controller, click, settle):
    click((0, 0))
    click((3, 0))
    assert controller.history.undo_name == 'click'
    controller.undo()
    settle(controller)
    assert controller.proposal.area_px == 12
    controller.undo()
    assert controller.proposal is None
    controller.undo()
    assert controller.status.text == 'Nothing to undo.'
    controller.redo()
    controller.redo()
    settle(controller)
    assert controller.proposal.area_px == 24
    controller.redo()
    assert controller.status.text == 'Nothing to redo.'


def test_ending_an_object_takes_its_prompts_and_begins_the_next_one(controller, click, settle):
    click((0, 0))
    controller.history.do(controller.next_object_action(controller.prompts_here))
    assert controller.prompts == Prompts(object_id=2)
    assert controller.proposal is None
    click((3, 0))
    assert [point.object_id for point in controller.prompts.points] == [2]
    controller.undo()
    controller.undo()
    settle(controller)
    assert [point.object_id for point in controller.prompts.points] == [1]
    assert controller.proposal.area_px == 12


def test_what_waits_for_the_answer_is_done_with_the_answer_to_the_last_click(controller, settle):
    areas = []
    controller.add_prompt((0, 0))
    controller.after_prediction(lambda: areas.append('of one click'))
    controller.add_prompt((3, 0))
    controller.after_prediction(lambda: areas.append(controller.proposal.area_px))
    settle(controller)
    assert areas == [24]


def test_signals_announce_what_changed(controller, settle):
    heard = []
    controller.prompts_changed.connect(lambda: heard.append('prompts'))
    controller.proposal_changed.connect(lambda: heard.append('proposal'))
    controller.add_prompt((0, 0))
    settle(controller)
    assert heard == ['prompts', 'proposal']
    controller.larger_mask()
    assert heard == ['prompts', 'proposal', 'proposal']


@pytest.mark.parametrize('position', [(-1, 0), (0, 6), (99.0, 99.0)])
def test_a_click_outside_the_image_is_harmless_and_said(controller, position):
    assert not controller.add_prompt(position)
    assert not controller.prompts
    assert is_problem(controller, 'outside "Patches"')


def test_without_an_image_nothing_happens_and_the_user_is_told(make_controller):
    controller = make_controller()
    assert not controller.add_prompt((0, 0))
    assert is_problem(controller, 'Choose an image')
    controller.embed()
    controller.cancel()
    controller.clear_prompts()
    controller.set_prompts(Prompts((PointPrompt((0.0, 0.0)),)))
    assert not controller.prompts
    assert not controller.is_busy


def test_what_was_said_meanwhile_does_not_stand_for_the_reason_why_nothing_can_be_segmented(make_controller):
    controller = make_controller()
    controller.undo()
    controller.embed()
    assert is_problem(controller, 'Choose an image')


def test_stepping_before_a_click_is_harmless_and_said(controller):
    for step in (controller.larger_mask, lambda: controller.step_region(1), lambda: controller.set_granularity(0.5)):
        step()
        assert is_problem(controller, 'click on an object first')
        controller.show_info('')


@pytest.fixture
def larger(controller, click):
    """Searches other masks on a plane in tiles with masks of one size; returns the plane and the job, which does not run."""

    class OneSize(NestedPlane):
        n_asked = 0

        def answer(self, *prompt, **more):
            self.n_asked += 1
            return [controller.candidates.shown]

    def ask(steps):
        plane, jobs = OneSize(patches_tree()), []
        controller._jobs = SimpleNamespace(start=lambda _lane, _name, *job: jobs.append(job))
        controller.planes._planes[controller.target] = plane
        controller.candidates = Candidates.from_masks([controller.candidates.shown])
        controller.step_region(steps)
        return plane, *jobs[0]

    click((0, 0))
    jobs = controller._jobs
    yield ask
    controller._jobs = jobs


@pytest.mark.parametrize(('steps', 'word'), [(1, 'largest'), (-1, 'smallest')])
def test_at_the_end_of_the_sizes_of_a_plane_in_tiles_it_is_said(controller, larger, steps, word):
    _plane, work, on_done = larger(steps)
    on_done(work(lambda fraction, text: None))
    assert controller.status.text == f'This is the {word} mask.'


def test_the_search_for_a_larger_mask_can_be_left_between_two_sizes(larger):
    plane, work, _on_done = larger(1)

    def progress(fraction, text):
        if plane.n_asked:
            raise JobCancelled

    with pytest.raises(JobCancelled):
        work(progress)
    assert plane.n_asked == 1


def test_the_first_click_makes_the_plane_ready_and_then_shows_its_mask(make_controller, settle):
    controller = make_controller()
    controller.set_target(patches_target())
    controller.add_prompt((0, 0))
    assert controller.is_busy
    assert controller.proposal is None
    settle(controller)
    assert controller.proposal.area_px == 12


def test_clicks_while_the_plane_is_made_ready_wait_for_it_and_start_it_once(make_controller, settle):
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
    settle(controller)
    assert controller.proposal.area_px == 24
    assert len(images) == 1
    assert images[0].base is PATCHES


def test_a_click_is_answered_in_the_midst_of_a_long_job(controller, mailbox):
    answered, results, steps = threading.Event(), [], []

    def propagate(progress):
        while not answered.is_set():
            progress(0.5, 'Propagating')
            steps.append('slice')
        return 'done'

    controller.run('Propagating', propagate, results.append)
    controller.add_prompt((0, 0))
    mailbox.open_until(lambda: controller.proposal is not None)
    assert controller.job == 'Propagating'
    answered.set()
    mailbox.open_until(lambda: bool(results))
    assert results == ['done']
    assert steps
    assert not controller.is_busy


def test_a_long_job_gets_planes_from_memory_and_keeps_those_it_makes(controller, mailbox):
    made = []
    targets = [controller.target, patches_target('another')]

    def work(progress):
        return [controller.planes.get_or_embed(target, progress) for target in (*targets, *targets)]

    controller.run('Looking', work, made.extend)
    mailbox.open_until(lambda: bool(made))
    assert made[0] is controller.plane
    assert made[1] is made[3]


def test_a_long_job_that_fails_tells_the_user_and_its_owner(controller, mailbox):
    reasons = []

    def work(progress):
        raise ImageError('slice 7 is empty')

    controller.run('Propagating', work, print, reasons.append)
    mailbox.open_until(lambda: bool(reasons))
    assert reasons == ['slice 7 is empty']
    assert is_problem(controller, 'slice 7 is empty')


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
    assert len(controller.prompts.points) == 1
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


def test_clicks_and_trees_of_a_plane_are_there_again_when_it_is_looked_at_again(make_controller, settle):
    planes = [Plane(shape=(9, 4, 6), axes=(1, 2), index=(z, 0, 0)) for z in (2, 5)]
    controller = make_controller()
    controller.set_target(patches_target(plane=planes[0]))
    controller.add_prompt((2, 0, 0))
    settle(controller)
    controller.set_target(patches_target(plane=planes[1]))
    assert controller.proposal is None
    assert controller.hierarchy is None
    controller.clear_prompts()
    controller.set_target(None, reason='The view is 3D.')
    assert controller.status.text == 'The view is 3D.'
    controller.set_target(patches_target(plane=planes[0]))
    settle(controller)
    assert controller.proposal.area_px == 12


def test_a_plane_is_finished_and_kept_while_another_one_is_looked_at(make_controller, mailbox):
    planes = [Plane(shape=(9, 4, 6), axes=(1, 2), index=(z, 0, 0)) for z in (2, 5)]
    controller = make_controller()
    controller.set_target(patches_target(plane=planes[0]))
    controller.embed()
    controller.set_target(patches_target(plane=planes[1]))
    mailbox.open_until(lambda: not controller.is_busy)
    assert controller.hierarchy is None
    controller.set_target(patches_target(plane=planes[0]))
    assert controller.hierarchy is not None


def test_the_clicks_stay_with_their_image_when_another_one_is_chosen(controller, click, settle):
    click((0, 0))
    controller.set_target(patches_target(source='another'))
    assert not controller.prompts
    controller.set_target(patches_target())
    settle(controller)
    assert controller.proposal.area_px == 12


def test_an_image_whose_pixels_changed_is_looked_at_again(controller, click):
    click((0, 0))
    controller.forget('patches')
    assert controller.hierarchy is None
    assert controller.proposal is None


def test_forgetting_another_image_leaves_the_mask_on_screen_alone(controller, click):
    click((0, 0))
    controller.larger_mask()
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


def test_the_least_recently_used_planes_are_dropped():
    cache = PlaneCache(lambda target, progress: NestedPlane(patches_tree()), max_px=2 * PATCHES.size)
    targets = [patches_target(source) for source in 'abc']
    for target in targets:
        cache.get_or_embed(target, lambda fraction, text: None)
    assert [cache.get(target) is not None for target in targets] == [False, True, True]


@pytest.mark.parametrize('drop', [lambda cache: cache.forget_source('patches'), PlaneCache.clear])
def test_a_plane_that_is_dropped_while_it_is_analysed_is_not_kept(drop):
    def embed(target, progress):
        drop(cache)
        return NestedPlane(patches_tree())

    cache, target = PlaneCache(embed), patches_target()
    assert cache.get_or_embed(target, lambda fraction, text: None).hierarchy is not None
    assert cache.get(target) is None


def test_clicks_set_outside_the_image_are_left_out(controller):
    controller.set_prompts(Prompts((PointPrompt((0.0, 0.0)), PointPrompt((-9.0, 0.0)))))
    assert controller.prompts.points == (PointPrompt((0.0, 0.0)),)
