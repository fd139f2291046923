"""Precomputing all slices of a stack: what is analysed, what is not analysed again, and what the user can do meanwhile."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from skimage import data

from napari_unsam.controller import SegmentationController
from napari_unsam.engine.embeddings import EmbeddingStore, embed_stack
from napari_unsam.engine.inference import InferenceSettings
from napari_unsam.engine.planes import PlaneEmbedder
from napari_unsam.model.plane import Plane, parallel_planes
from napari_unsam.qt.image_panel import ImagePanel
from napari_unsam.viewer.session import ViewerSession
from tests.test_napari.stand_ins import NestedPlane, colour_tree, is_problem

SIDE_PX, PLANES = 96, 6


class Embedder:
    """Makes trees by colour, and keeps on disk only which planes it has made; each waits for leave to be made."""

    def __init__(self, folder):
        self.store, self.made = EmbeddingStore(folder, 10**9), []
        self.leave = threading.Semaphore(1000)

    def __call__(self, target, progress):
        return NestedPlane(colour_tree(target.read(), progress))

    def stack(self, targets, progress, kept):
        return embed_stack([target.read for target in targets], self._arrays, '', self.store, progress, kept)

    def _arrays(self, pixels, progress):
        while not self.leave.acquire(timeout=0.01):
            progress(0.5, 'waiting')
        self.made.append(int(pixels[0, 0]))
        return {'mean': np.array([pixels.mean()])}


def numbered_stack():
    """Parts of a photo, each with its number in its first pixel."""
    planes = np.stack([data.coins()[10 * z : 10 * z + SIDE_PX, :SIDE_PX] for z in range(PLANES)])
    planes[:, 0, 0] = range(PLANES)
    return planes


@pytest.fixture
def embedder(tmp_path):
    return Embedder(tmp_path)


@pytest.fixture
def on_stack(viewer, mailbox, embedder):
    """A session over the stack, at plane 2."""
    controller = SegmentationController(embedder, deliver=mailbox)
    session = ViewerSession(viewer, controller)
    session.set_image(viewer.add_image(numbered_stack(), contrast_limits=(0, 255)))
    viewer.dims.set_point(0, 2)
    yield session
    session.close()
    assert controller.close(timeout_s=10)


def test_the_planes_of_a_stack_come_the_nearest_first():
    plane = Plane((5, 4, 6), (1, 2), (3, 0, 0))
    assert [one.index[0] for one in parallel_planes(plane)] == [3, 2, 4, 1, 0]
    assert {one.index for one in parallel_planes(Plane((2, 3, 4, 4), (2, 3), (0, 0, 0, 0)))} == {
        (t, z, 0, 0) for t in range(2) for z in range(3)
    }


def test_all_planes_are_made_once_and_none_again(on_stack, embedder, settle):
    on_stack.stack.precompute()
    settle(on_stack.controller)
    assert embedder.made == [2, 1, 3, 0, 4, 5]
    assert on_stack.controller.status.text == 'All 6 slices are precomputed.'
    on_stack.stack.precompute()
    settle(on_stack.controller)
    assert len(embedder.made) == PLANES


def test_a_cancelled_run_goes_on_where_it_stopped(on_stack, embedder, mailbox, settle):
    embedder.leave = threading.Semaphore(3)
    on_stack.stack.precompute()
    progress = []
    on_stack.controller.progress_changed.connect(lambda fraction, text: progress.append(text))
    mailbox.open_until(lambda: 'slice 4 of 6: waiting' in progress)
    on_stack.controller.cancel()
    assert embedder.made == [2, 1, 3]
    assert 'analysed slices' in on_stack.controller.status.text
    embedder.leave = threading.Semaphore(1000)
    on_stack.stack.precompute()
    settle(on_stack.controller)
    assert embedder.made == [2, 1, 3, 0, 4, 5]


def test_a_click_is_answered_in_the_midst_of_a_plane(on_stack, embedder, mailbox):
    embedder.leave = threading.Semaphore(2)
    on_stack.stack.precompute()
    on_stack.click((2, 50, 50))
    mailbox.open_until(lambda: on_stack.controller.proposal is not None)
    assert on_stack.controller.job == 'Precomputing 6 slices'
    assert len(embedder.made) <= 2
    on_stack.commit()
    assert on_stack.objects.data[2].any()


def test_a_plane_that_is_on_disk_is_ready_once_it_comes_into_view(on_stack, viewer, settle):
    on_stack.stack.precompute()
    settle(on_stack.controller)
    viewer.dims.set_point(0, 5)
    settle(on_stack.controller)
    assert on_stack.controller.plane is not None


def test_other_pixels_end_the_run_and_what_is_on_disk_counts_no_more(on_stack, embedder, viewer, mailbox, settle):
    on_stack.stack.precompute()
    settle(on_stack.controller)
    embedder.leave = threading.Semaphore(0)
    on_stack.image.data = numbered_stack()[:, ::-1]
    viewer.dims.set_point(0, 5)
    assert not on_stack.controller.is_busy
    on_stack.stack.precompute()
    on_stack.image.data = numbered_stack()[:, :, ::-1]
    settle(on_stack.controller)
    assert is_problem(on_stack, 'has changed')


def test_a_store_without_room_for_the_stack_is_said(on_stack, embedder, settle):
    embedder.store.max_bytes = 1_500
    on_stack.stack.precompute()
    settle(on_stack.controller)
    assert len(embedder.made) < PLANES
    assert is_problem(on_stack, 'slices fit on disk')


def test_only_stacks_have_planes_to_make_ready(viewer, session):
    session.stack.precompute()
    assert is_problem(session, 'Choose an image')
    session.set_image(viewer.add_image(data.coins()))
    assert not session.stack.is_stack
    session.set_image(viewer.add_image(numbered_stack()))
    assert session.stack.is_stack


@pytest.mark.parametrize(
    ('folder', 'side_px', 'words'), [(False, SIDE_PX, 'has size 0'), (True, 2100, 'analysed in windows')]
)
def test_what_cannot_be_kept_is_said_before_anything_is_made(
    viewer, make_controller, tmp_path, settle, folder, side_px, words
):
    controller = make_controller()
    controller.planes.embedder = PlaneEmbedder(InferenceSettings('tree', store=tmp_path if folder else None))
    session = ViewerSession(viewer, controller)
    session.set_image(viewer.add_image(np.zeros((2, side_px, SIDE_PX), np.uint8), contrast_limits=(0, 255)))
    targets = [session.target_at((z, 0, 0)) for z in (0, 1)]
    controller.run(
        'Making ready', lambda progress: controller.planes.embedder.stack(targets, progress, int), lambda report: None
    )
    settle(controller)
    assert is_problem(session, words)
    session.close()


def test_the_panel_offers_it_for_stacks_shows_how_far_it_is_and_cancels(on_stack, embedder, viewer, mailbox, qtbot):
    photo = viewer.add_image(data.coffee())
    viewer.layers.selection = {photo}
    panel = ImagePanel(on_stack)
    qtbot.addWidget(panel)
    assert panel.stack_button.isHidden()
    panel.image_choice.value = viewer.layers[0]
    assert not panel.stack_button.isHidden()
    embedder.leave = threading.Semaphore(1)
    panel.stack_button.click()
    mailbox.open_until(lambda: 'Slice 2 of 6: waiting' in panel.progress_bar.format())
    assert not panel.stack_button.isEnabled()
    panel.cancel_button.click()
    assert panel.stack_button.isEnabled()
    assert len(embedder.made) == 1
    panel.close_session()


class MeddlingSource:
    """Compared with another source, has another thread do something, and gives it a moment."""

    def __init__(self, meddle):
        self._meddle, self.threads = meddle, []

    def __hash__(self):
        return 0

    def __eq__(self, other):
        if other is not self and not self.threads:
            self.threads.append(threading.Thread(target=self._meddle))
            self.threads[0].start()
            self.threads[0].join(0.2)
        return other is self


def test_a_plane_that_is_kept_while_another_image_is_forgotten_is_not_lost(on_stack):
    stack, target = on_stack.stack, on_stack.target_at((0, 0, 0))
    meddling = MeddlingSource(lambda: stack._mark_stored(replace(target, source='late'), 0))
    for source in (meddling, 'gone', 'stays'):
        stack._mark_stored(replace(target, source=source), 0)
    stack.forget('gone')
    meddling.threads[0].join()
    assert [kept.source for kept in stack._stored] == [meddling, 'stays', 'late']
