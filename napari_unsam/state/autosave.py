"""What a crash must not take: prompts, committed objects and their rows, saved moments after every action.

::

    autosave = Autosave(folder)
    autosave.watch(session)
    saved = autosave.find(session.image)   # when an image is chosen
    autosave.restore(session, saved)       # if the user wants it back
    autosave.exported(session)             # after an export: closing drops what is safe elsewhere
    autosave.close()                       # when the dock goes

Each image has a folder, and each session a folder in it, which is locked while the session lives. So what another
window is at work on is never taken for what a crash has left.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

import numpy as np
from filelock import FileLock, Timeout
from scipy.ndimage import find_objects

from napari_unsam._commit import ObjectWrite, free_now, renumbered
from napari_unsam._words import counted
from napari_unsam.state.history import Together
from napari_unsam.state.records import SavedSession, Work, count_prompts, read_work, remove_work, write_work
from unsam_mm.errors import StoreError

if TYPE_CHECKING:
    import pandas as pd
    from napari.layers import Image, Labels

    from napari_unsam._session import ViewerSession

_SAMPLES = 4096  # of an image's values, which tell it from others
_LOCK = 'lock'
_WORKING_SHARE = 0.1  # of the time that saving may take; long stacks are saved less often
_TORN_TRIES = 3
_DAY_S = 86_400.0
_LABEL_EVENTS = ('paint', 'labels_update', 'set_data', 'data', 'features')
_KEPT_IN = 'unsam_saved_in'  # in a layer's metadata: the folders that hold its objects
_OWN_COLUMNS = ('index', 'area_px')  # counted anew when objects are written

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Restored:
    """What `Autosave.restore` brought back.

    Attributes:
        objects: How many.
        prompts: How many.
        damaged: Parts that could not be read: blocks of labels, and prompts.
    """

    objects: int
    prompts: int
    damaged: int


@dataclass(eq=False)
class _Record:
    """The work on one image in this process."""

    folder: Path
    pending: Work | None = None
    is_exported: bool = False
    is_empty: bool = True
    lock: FileLock | None = None
    objects: ref[Labels] | None = None
    replaces: list[Path] = field(default_factory=list)


def image_identity(image: Image) -> str:
    """Tells one image from others, in this session and the next.

    Where it comes from, its name, shape and type; and a sample of its values if they are in memory.
    """
    data = image.data[0] if image.multiscale else image.data
    source = image.source
    # Names of dask arrays and places of zarr arrays stand for their content, which would take long to read.
    origin = [source.path, source.sample, getattr(data, 'name', None), getattr(data, 'store_path', None)]
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((image.name, tuple(data.shape), str(data.dtype), [str(part) for part in origin])).encode())
    if isinstance(data, np.ndarray):
        per_axis = _SAMPLES ** (1 / max(data.ndim, 1))
        sample = data[tuple(slice(None, None, int(np.ceil(length / per_axis)) or 1) for length in data.shape)]
        digest.update(np.ascontiguousarray(sample))
    return digest.hexdigest()


class Autosave:
    """Saves the work of sessions in a background thread, and finds what earlier ones left.

    Args:
        folder: Where work is kept.
        delay_s: Between an action and its saving; several actions meanwhile are saved as one.
        keep_days: How long work that nobody took up again is kept.
        on_problem: Told one line where saving fails, once in a row; called in the background thread.
    """

    def __init__(
        self,
        folder: Path,
        delay_s: float = 0.5,
        keep_days: float = 30.0,
        on_problem: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._folder, self._delay_s, self._keep_days = Path(folder), delay_s, keep_days
        self._on_problem, self._has_problem = on_problem, False
        self._name = uuid.uuid4().hex[:16]
        self._records: dict[str, _Record] = {}
        # By image layer, so that renaming one does not lose its record; weakly, since it may hold gigabytes.
        self._identities: WeakKeyDictionary[Image, str] = WeakKeyDictionary()
        self._sessions: dict[ViewerSession, _Watch] = {}
        self._wake = threading.Condition()
        self._is_busy = self._is_flushed = self._is_closed = False
        self._thread: threading.Thread | None = None

    def watch(self, session: ViewerSession) -> None:
        """Saves what is done in a session from now on."""
        self._sessions[session] = _Watch(session, self._note)
        self._note(session)

    def find(self, image: Image) -> SavedSession | None:
        """The latest work on an image that a session left which is no more; None if there is none."""
        found = []
        for folder in self._folder.glob(f'{self._identity(image)}/*/'):
            if folder.name != self._name and _is_abandoned(folder):
                saved = read_work(folder)
                if saved is not None and not saved.is_empty:
                    found.append(saved)
        return max(found, key=lambda saved: saved.saved_at, default=None)

    def restore(self, session: ViewerSession, saved: SavedSession) -> Restored:
        """Brings objects and prompts back, as one action that can be undone.

        The saved work is kept until this session has saved it as its own.

        Raises:
            StoreError: If the objects are of an image of another shape than the session's.
        """
        array, damaged = saved.labels()
        writes = []
        if array is not None and array.any():
            objects = session.ensure_objects()
            if objects.data.shape != array.shape:
                raise StoreError(
                    f'the saved objects have shape {array.shape}, the image has {objects.data.shape}; '
                    f'they stay in {saved.folder}'
                )
            writes = _writes(array, saved.features)
            if highest := int(np.max(objects.data, initial=0)):  # the user has begun anew meanwhile
                writes = free_now(renumbered(writes, highest), objects.data)
        if len(saved.position) == session.viewer.dims.ndim:
            session.viewer.dims.point = saved.position
        name = f'restore {counted(len(writes), "object")}' if writes else 'restore prompts'
        objects = [session.writing(name, writes)] if writes else []
        prompts = session.controller.taking_up(session.image.unique_id, saved.prompts, saved.polarity)
        session.history.do(Together(name, [*objects, prompts]))
        self.take_over(session, saved)
        return Restored(len(writes), count_prompts(saved.prompts), damaged + saved.lost_prompts)

    def is_in_view(self, session: ViewerSession, saved: SavedSession) -> bool:
        """Whether the saved objects are still in the viewer, as when only the dock was closed."""
        objects = session.objects
        if objects is None or str(saved.folder) not in objects.metadata.get(_KEPT_IN, ()):
            return False
        return bool(np.any(objects.data))

    def take_over(self, session: ViewerSession, saved: SavedSession) -> None:
        """Has work that is still in the viewer saved as that of this session."""
        with self._wake:
            self._record(self._identity(session.image)).replaces.append(saved.folder)
        self._note(session)

    def discard(self, saved: SavedSession) -> None:
        """Removes saved work that the user does not want back."""
        remove_work(saved.folder)

    def exported(self, session: ViewerSession) -> None:
        """Notes that the work on the session's image is safe elsewhere as it is now."""
        if session.image is not None:
            with self._wake:
                self._record(self._identity(session.image)).is_exported = True

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Saves everything now; returns whether that was done within the timeout."""
        with self._wake:
            self._is_flushed = bool(self._waiting())
            self._wake.notify_all()
            return self._wake.wait_for(lambda: not self._is_busy and not self._waiting(), timeout_s)

    def close(self, timeout_s: float = 10.0) -> None:
        """Saves what is left, and ends. What was exported and not changed since is dropped; the rest can be restored."""
        for watch in self._sessions.values():
            watch.end()
        self._sessions.clear()
        if self._thread is not None:
            self.flush(timeout_s)
            with self._wake:
                self._is_closed = True
                self._wake.notify_all()
            self._thread.join(timeout_s)
        for record in self._records.values():
            if record.lock is not None:
                record.lock.release()
            if record.is_exported or record.is_empty:
                remove_work(record.folder)

    def _note(self, session: ViewerSession) -> None:
        """Takes down the state of a session; called in its thread after each change, so it has to be quick."""
        import pandas as pd

        image = session.image
        if image is None or self._is_closed:
            return
        with self._wake:
            record = self._record(self._identity(image))
        # With other channels, an image has objects of another shape; the others are still there.
        if session.objects is not None:
            record.objects = ref(session.objects)
        objects = record.objects() if record.objects is not None else None
        if objects is not None and objects not in session.viewer.layers:
            objects = None
        if objects is not None:
            objects.metadata[_KEPT_IN] = {*objects.metadata.get(_KEPT_IN, ()), str(record.folder)}
        work = Work(
            image_name=image.name,
            prompts=session.controller.prompts_of(image.unique_id),
            polarity=session.controller.polarity,
            position=tuple(session.viewer.dims.point),
            labels=None if objects is None else objects.data,
            features=pd.DataFrame() if objects is None else objects.features.copy(),
        )
        with self._wake:
            record.pending, record.is_exported = work, False
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name='unsam-autosave', daemon=True)
                self._thread.start()
            self._wake.notify_all()

    def _identity(self, image: Image) -> str:
        if image not in self._identities:
            self._identities[image] = image_identity(image)
        return self._identities[image]

    def _record(self, identity: str) -> _Record:
        if identity not in self._records:
            self._records[identity] = _Record(self._folder / identity / self._name)
        return self._records[identity]

    def _waiting(self) -> list[str]:
        return [identity for identity, record in self._records.items() if record.pending is not None]

    def _run(self) -> None:
        self._tidy()
        pause_s = self._delay_s
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._waiting() or self._is_closed)
                if not self._waiting():
                    return
                # From the first action on, not from the last: a busy user is saved too.
                self._wake.wait_for(lambda: self._is_flushed or self._is_closed, pause_s)
                self._is_busy = True
                waiting = self._waiting()
            started_s = time.monotonic()
            for identity in waiting:
                self._save(identity)
            pause_s = max(self._delay_s, (time.monotonic() - started_s) / _WORKING_SHARE)
            with self._wake:
                self._is_busy = False
                self._is_flushed = self._is_flushed and bool(self._waiting())
                self._wake.notify_all()

    def _save(self, identity: str) -> None:
        record = self._records[identity]
        try:
            for _ in range(_TORN_TRIES):
                with self._wake:
                    work, record.pending = record.pending, None
                self._write(record, identity, work)
                if record.pending is None:
                    break  # else the labels have changed while they were read
        except (StoreError, OSError) as error:
            logger.warning('the work could not be saved: %s', error)
            if not self._has_problem:
                self._on_problem(f'Autosave: {error}')
            self._has_problem = True
            return
        self._has_problem = False
        for folder in record.replaces:
            remove_work(folder)
        record.replaces.clear()

    def _write(self, record: _Record, identity: str, work: Work) -> None:
        was_empty, record.is_empty = (
            record.is_empty,
            not work.prompts and (work.labels is None or not work.labels.any()),
        )
        if record.is_empty and was_empty:
            return
        if record.lock is None:
            record.folder.mkdir(parents=True, exist_ok=True)
            record.lock = FileLock(record.folder / _LOCK, thread_local=False)
            record.lock.acquire(timeout=0)
        write_work(record.folder, identity, work)

    def _tidy(self) -> None:
        """Removes work that was not taken up for too long."""
        for folder in self._folder.glob('*/*/'):
            with suppress(OSError):
                if time.time() - folder.stat().st_mtime > self._keep_days * _DAY_S and _is_abandoned(folder):
                    remove_work(folder)


class _Watch:
    """Tells of each change in a session."""

    def __init__(self, session: ViewerSession, note: Callable[[ViewerSession], None]) -> None:
        self._session, self._tell = session, note
        self._objects: Labels | None = None
        for signal in self._signals():
            signal.connect(self._changed)
        self._follow_objects()

    def end(self) -> None:
        for signal in self._signals():
            signal.disconnect(self._changed)
        self._follow(None)

    def _signals(self) -> list[Any]:
        session = self._session
        return [session.image_changed, session.history.changed, session.controller.prompts_changed]

    def _changed(self) -> None:
        self._follow_objects()
        self._tell(self._session)

    def _objects_changed(self, event: object = None) -> None:
        # A layer that is being taken away, or belongs to an image that is not in view, is not the session's.
        if self._objects is self._session.objects:
            self._tell(self._session)

    def _follow_objects(self) -> None:
        self._follow(self._session.objects)

    def _follow(self, objects: Labels | None) -> None:
        if objects is self._objects:
            return
        for layer, act in ((self._objects, 'disconnect'), (objects, 'connect')):
            for name in _LABEL_EVENTS if layer is not None else ():
                getattr(layer.events[name], act)(self._objects_changed)
        self._objects = objects


def _writes(array: np.ndarray, features: pd.DataFrame) -> list[ObjectWrite]:
    """One for each object in an array of labels, with its row."""
    import pandas as pd

    rows = {}
    if 'index' in features:
        for row in features.to_dict('records'):
            rows[int(row['index'])] = {
                name: value for name, value in row.items() if name not in _OWN_COLUMNS and not pd.isna(value)
            }
    return [
        ObjectWrite(region, array[region] == label, label, rows.get(label, {}))
        for label, region in enumerate(find_objects(array), start=1)
        if region is not None
    ]


def _is_abandoned(folder: Path) -> bool:
    """Whether the session that made a folder is no more."""
    lock = FileLock(folder / _LOCK, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return False
    lock.release()
    return True
