"""Controllers whose messages wait in a mailbox until the test opens it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import numpy as np
import pytest
from napari.components import ViewerModel
from skimage import data

from napari_unsam.controller import SegmentationController
from napari_unsam.io.autosave import Autosave
from napari_unsam.viewer.session import ViewerSession
from tests.test_napari.killing import wait_until_saved
from tests.test_napari.saved_work import Session
from tests.test_napari.stand_ins import Mailbox, Mouse, colour_tree, patches_target, patches_tree, planes_of

if sys.platform == 'linux' and not (os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY')):
    # Before Qt starts: without a screen it would end the process. Tests that need OpenGL are skipped then.
    os.environ['QT_QPA_PLATFORM'] = 'offscreen'


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox()


@pytest.fixture
def make_controller(mailbox):
    """Makes controllers whose messages go to the mailbox, from something that makes trees, and ends their threads."""
    made = []

    def make(embed=lambda image, progress: patches_tree()) -> SegmentationController:
        made.append(SegmentationController(planes_of(embed), deliver=mailbox))
        return made[-1]

    yield make
    assert all(controller.close(timeout_s=60) for controller in made), 'an inference thread did not end'


@pytest.fixture
def controller(make_controller, mailbox) -> SegmentationController:
    """A controller that is ready to be clicked on: the patches are its target and their tree is made."""
    controller = make_controller()
    controller.set_target(patches_target())
    controller.embed()
    mailbox.open_until(lambda: not controller.is_busy)
    return controller


@pytest.fixture
def settle(mailbox):
    """Waits until a controller has made the plane ready and has answered."""

    def wait(controller: SegmentationController) -> None:
        mailbox.open_until(lambda: not controller.is_busy and not controller.is_predicting)

    return wait


@pytest.fixture
def viewer():
    """A viewer without a window."""
    return ViewerModel()


@pytest.fixture
def session(viewer, make_controller):
    """A session in that viewer whose planes are cut by colour alone."""
    session = ViewerSession(viewer, make_controller(colour_tree))
    yield session
    session.close()


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


@pytest.fixture
def stack():
    """Four planes of a photo."""
    return np.stack([data.coins()[:200, :300]] * 4)


@pytest.fixture
def start(tmp_path):
    """Begins autosaves that share a folder."""
    begun = []

    def begin(**options):
        begun.append(Autosave(tmp_path / 'autosave', **({'delay_s': 0.01} | options)))
        return begun[-1]

    yield begin
    for autosave in begun:
        autosave.close()


@pytest.fixture
def crash(start, stack):
    """A session that did something and ended without a word: what is left of it is on disk only."""

    def run(work: Callable[[Session], None]) -> Session:
        session, autosave = Session(stack), start()
        autosave.watch(session)
        work(session)
        assert wait_until_saved(autosave)
        for record in autosave._records:
            if record.lock is not None:
                record.lock.release()  # as the system does when a process ends
        return session

    return run
