"""Kills a process that annotates and autosaves all the time, again and again, and looks at what is left each time.

``python tests/test_napari/killing.py FOLDER 20`` prints the figures of twenty kills as JSON.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from napari.components import ViewerModel
from skimage import data

from napari_unsam.controller import SegmentationController
from napari_unsam.io.autosave import Autosave
from napari_unsam.io.records import count_prompts
from napari_unsam.model.prompts import Polarity
from napari_unsam.viewer.object_table import object_granularity
from napari_unsam.viewer.object_write import ObjectWrite
from napari_unsam.viewer.session import ViewerSession
from unsam_mm.errors import UnSAMError

_CELL_HW = (20, 24)
_SHAPE = (3, 300, 384)
_MAX_STEPS = 3 * 15 * 16  # an object in each cell
_PATIENCE_S = 120.0


@dataclass
class Figures:
    """What some kills came to.

    Attributes:
        kills: How many.
        finished: Steps that were known to be saved before the last kill; each writes an object and adds a prompt.
        beyond: Steps found besides, which the last process had saved when it was killed but not told of.
        records: Left after the work was taken up once more and closed in peace.
    """

    kills: int = 0
    finished: int = 0
    beyond: int = 0
    records: int = 0


def begin(folder: Path) -> tuple[ViewerSession, Autosave]:
    """A session on a photo without a model, and an autosave."""

    def embed(_target, _progress):
        raise UnSAMError('there is no model here')

    viewer = ViewerModel()
    session = ViewerSession(viewer, SegmentationController(embed))
    session.set_image(
        viewer.add_image(np.stack([data.coins()[: _SHAPE[1]]] * _SHAPE[0]), name='Coins', scale=(2, 0.5, 0.5))
    )
    viewer.dims.set_point(0, 0)
    return session, Autosave(folder, delay_s=0.01)


def written(step: int) -> ObjectWrite:
    """The object of a step: part of a cell of its own."""
    height, width = _CELL_HW
    plane, cell = divmod(step - 1, _MAX_STEPS // 3)
    row, column = divmod(cell, 16)
    box = (
        slice(plane, plane + 1),
        slice(height * row, height * (row + 1)),
        slice(width * column, width * (column + 1)),
    )
    mask = np.random.default_rng(step).random((1, *_CELL_HW)) < 0.8
    return ObjectWrite(box, mask, step, {'score': step / 1024})


def clicked(step: int) -> tuple[tuple[float, ...], Polarity]:
    """The position and the polarity of the click of a step."""
    at = (0.0, float(step % 300), float(step % 384))
    return at, Polarity.NEGATIVE if step % 3 == 2 else Polarity.POSITIVE


def wait_until(condition: Callable[[], object], timeout_s: float = 30.0) -> bool:
    """Waits for another thread; returns whether a condition holds."""
    end_s = time.monotonic() + timeout_s
    while not (holds := condition()) and time.monotonic() < end_s:
        time.sleep(0.005)
    return bool(holds)


def wait_until_saved(autosave: Autosave, timeout_s: float = 30.0) -> bool:
    """Waits until all that was noted is on disk; returns whether it is."""
    return wait_until(lambda: all(record.work is None for record in autosave._records), timeout_s)


def annotate(folder: Path, connection: Connection) -> None:
    """Takes up what is saved, goes on until it is killed, and tells of each step that is known to be saved."""
    session, autosave = begin(folder)
    autosave.watch(session)
    saved = autosave.find(session.image)
    if saved is not None:
        restored = autosave.restore(session, saved)
        assert restored.damaged == 0
    step = 0 if session.objects is None else int(session.objects.data.max())
    connection.send(step)
    while step < _MAX_STEPS:
        for _ in range(1 + step % 3):
            step += 1
            if len(session.controller.prompts.points) < step:  # the last process may have been killed in between
                position, polarity = clicked(step)
                assert session.click(session.image.data_to_world(position), polarity)
            session.write_objects(f'commit {step}', [written(step)])
        if wait_until_saved(autosave, 60):
            connection.send(step)


def kill_again_and_again(folder: Path, n_kills: int, seed: int = 0) -> Figures:
    """Kills processes at random moments.

    Args:
        folder: For the work, and files of others.
        n_kills: How many.
        seed: Of the moments.

    Raises:
        AssertionError: If anything is lost that was saved, or anything of others has changed.
    """
    context = multiprocessing.get_context('fork')  # napari takes seconds to import, and no thread runs here yet
    moments, figures, place = np.random.default_rng(seed), Figures(), folder / 'autosave'
    session, _ = begin(place)
    others = _write_others(place)
    for _ in range(n_kills):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=annotate, args=(place, there), daemon=True)
        process.start()
        there.close()
        # At any speed some are killed while they take up what is saved, and others far from there.
        for _ in range(moments.integers(1, 6)):
            assert here.poll(_PATIENCE_S), 'the process did not go on'
            figures.finished = here.recv()
        time.sleep(moments.uniform(0.0, 0.2))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        try:
            while here.poll():
                figures.finished = here.recv()
        except EOFError:
            pass
        assert process.exitcode == -signal.SIGKILL
        figures.beyond = _check(place, session, figures.finished)
        figures.kills += 1
        assert {path: _digest(path) for path in others} == others
    last = Autosave(place)
    last.watch(session)
    assert last.restore(session, last.find(session.image)).objects == figures.finished + figures.beyond
    assert last.close()
    session.close()
    figures.records = len(list(place.glob('*/*/work.json')))
    return figures


def _check(folder: Path, session: ViewerSession, finished: int) -> int:
    """Looks whether all that is known to be saved is there; returns how many steps are there besides."""
    saved = Autosave(folder).find(session.image)
    if saved is None:
        assert finished == 0
        return 0
    labels, damaged = saved.labels()
    labels = np.zeros(_SHAPE, np.uint32) if labels is None else labels
    n_found = int(labels.max())
    rows = saved.features.set_index('index') if len(saved.features) else saved.features
    assert damaged == saved.lost_prompts == 0
    assert finished <= n_found
    assert finished <= count_prompts(saved.prompts)
    for step in range(1, n_found + 1):
        write = written(step)
        found = labels[write.box] == step
        if step <= finished:
            assert np.array_equal(found, write.mask), f'object {step} is not as it was saved'
            assert rows['score'][step] == write.features['score']
            assert rows['granularity'][step] == object_granularity(write.mask, _SHAPE)
            assert rows['area_px'][step] == np.count_nonzero(write.mask)
        else:
            assert not (found & ~write.mask).any()
    for step, point in enumerate(saved.prompts.points, start=1):
        assert (point.position, point.polarity) == clicked(step), (step, point)
    return n_found - finished


def _write_others(folder: Path) -> dict[Path, str]:
    """Files of a user in and beside the folder of autosave, with their digests."""
    names = ('../photo.tif', 'notes.txt', 'mine/photos/a.npz', 'mine/photos/blocks/b.npz')
    paths = [folder / name for name in names]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]) * 100)
    return {path: _digest(path) for path in paths}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == '__main__':
    sys.stdout.write(json.dumps(asdict(kill_again_and_again(Path(sys.argv[1]), int(sys.argv[2])))))
