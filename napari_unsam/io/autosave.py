"""Autosave of prompts, committed objects and their rows, moments after every action.

::

    autosave = Autosave(folder)
    autosave.watch(session)
    saved = autosave.find(session.image)   # when an image is chosen
    autosave.restore(session, saved)       # if the user wants it back
    autosave.exported(session)             # after an export: closing drops objects that are safe elsewhere
    autosave.close()                       # when the dock goes

Each image has a folder, and in it each session has a record, a folder for each layer of objects, which is locked while the
session works on the image: the work of another window is never taken for what a crash has left. A restored record is
removed when the session that restored it has left the image; one that could not be read whole stays until it is discarded.
"""

from __future__ import annotations

import glob
import logging
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

import numpy as np
from filelock import FileLock

from napari_unsam.io.records import (
    LOCK,
    SavedObjects,
    SavedSession,
    Work,
    count_prompts,
    image_identity,
    lock_abandoned,
    read_work,
    remove_work,
    write_work,
)
from napari_unsam.model.frame import Channels, Frame, LayerChannels
from napari_unsam.model.history import ActionGroup, ActionHistory, Change
from napari_unsam.model.label_boxes import LazyArray, blocks
from napari_unsam.model.text import counted
from napari_unsam.viewer.changes import SessionWatch
from napari_unsam.viewer.commit import limited_to_free, renumbered
from napari_unsam.viewer.layers import is_of
from unsam_mm.errors import StoreError, explained

if TYPE_CHECKING:
    from napari.layers import Image, Labels, Layer

    from napari_unsam.viewer.session import ViewerSession

_LOCK_S = 5.0  # another window that looks whether a record is abandoned holds its lock for a moment
_WORKING_SHARE = 0.1  # of the time that saving may take; long stacks are saved less often
_TORN_TRIES = 3
_ACTION_S = 10.0  # that an action may take
_POLL_S = 0.01
_RETRY_S = 10.0  # until what could not be saved is tried again
_EXIT_S = 120.0  # that an application which ends waits for the last save
_DAY_S = 86_400.0
_KEPT_IN = 'unsam_saved_in'  # in a layer's metadata: the folders that hold its objects

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Restored:
    """What `Autosave.restore` restored.

    Attributes:
        objects: How many.
        prompts: How many.
        damaged: Parts that could not be read: blocks of labels, and prompts. If there are any, the saved work is kept.
        relabelled: Objects that got another label, as theirs was negative or needs more than 32 bits.
    """

    objects: int
    prompts: int
    damaged: int
    relabelled: int = 0


@dataclass(eq=False)
class _Record:
    """The work on one image in this process, with one of its layers of objects.

    Attributes:
        image: Another layer may look the same, and have a record of its own.
        work: What is to be saved next, which may be gigabytes; let go once it is saved.
        failed: Whether it could not be saved, and is to be tried again.
        n_noted: How often work was noted.
        saved_at: `n_noted` of what was saved last.
        changed_at: `n_noted` when the objects were changed last.
        exported_at: `n_noted` when the objects were exported; -1 if they were not.
        prompts: Those that were noted last.
        has_problem: Whether the user was told that saving fails.
        history: Of the session, whose actions change pixels and rows one after the other.
        channels: Of the image, that the objects belong to.
        objects: The layer.
        has_left: Whether its image was in no viewer any more; when it comes back, it gets another record.
        replaces: Names of the records that this one took up.
    """

    folder: Path
    identity: str
    image: ref[Image]
    shape: tuple[int, ...] | None = None
    work: Work | None = None
    failed: bool = False
    n_noted: int = 0
    saved_at: int = 0
    changed_at: int = 0
    exported_at: int = -1
    prompts: Any = ()
    is_empty: bool = True
    has_problem: bool = False
    has_left: bool = False
    lock: FileLock | None = None
    history: ActionHistory | None = None
    channels: Channels | LayerChannels | None = None
    objects: ref[Labels] | None = None
    replaces: list[str] = field(default_factory=list)

    @property
    def is_waiting(self) -> bool:
        """Whether there is something to save that was not tried yet."""
        return self.work is not None and not self.failed

    @property
    def is_over(self) -> bool:
        """Whether nothing is to be saved any more."""
        return self.has_left and self.work is None

    @property
    def is_needed(self) -> bool:
        """Whether there is anything in it that is not safe elsewhere."""
        return not self.is_empty and (self.exported_at < self.changed_at or bool(self.prompts))

    def note(self, work: Work) -> None:
        """Has work saved in place of what waits; the caller holds the lock."""
        self.work, self.failed, self.prompts = work, False, work.prompts
        self.n_noted += 1


class Autosave:
    """Saves the work of sessions in a background thread, and finds what earlier ones left.

    Args:
        folder: Where work is kept.
        delay_s: Between an action and its saving; several actions meanwhile are saved as one.
        keep_days: How long work that nobody took up again is kept.
        on_problem: Told one line where saving fails, once per series of failures; called in the background thread.
    """

    def __init__(
        self,
        folder: Path,
        delay_s: float = 0.5,
        keep_days: float = 30.0,
        on_problem: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._folder, self._delay_s, self._keep_days = Path(folder), delay_s, keep_days
        self._on_problem = on_problem
        self._name = uuid.uuid4().hex[:16]
        self._numbers = count()
        self._records: list[_Record] = []
        # By image layer, so that renaming one does not lose its record; weakly, since it may hold gigabytes.
        self._identities: WeakKeyDictionary[Image, str] = WeakKeyDictionary()
        self._sessions: dict[ViewerSession, SessionWatch] = {}
        self._unreadable: set[Path] = set()  # folders that were reported
        self._wake = threading.Condition()
        self._is_closed = self._is_restoring = False
        self._thread: threading.Thread | None = None

    def watch(self, session: ViewerSession) -> None:
        """Saves what is done in a session from now on."""
        self._sessions[session] = SessionWatch(session, self._note, self._drop_removed)
        self._note(session)

    def find(self, image: Image) -> SavedSession | None:
        """The latest saved work on an image; None if there is none.

        `on_problem` is told once of work that cannot be read. Work that was adopted is not found.
        """
        identity, found = self._identity(image), []
        with self._wake:
            known = [record for record in self._records if record.identity == identity]
            own, adopted = {record.folder for record in known}, {name for record in known for name in record.replaces}
        for folder in self._records_below(f'{identity}/*/'):
            lock = None if folder in own else lock_abandoned(folder)
            if lock is None:
                continue
            lock.release()
            try:
                saved = read_work(folder)
            except StoreError as error:
                if folder not in self._unreadable:
                    self._unreadable.add(folder)
                    self._on_problem(str(error))
                continue
            if saved is not None and not saved.is_empty:
                found.append(saved)
                adopted.update(saved.replaces)
        left = [saved for saved in found if saved.folder.name not in adopted]
        return max(left, key=lambda saved: saved.saved_at, default=None)

    def restore(self, session: ViewerSession, saved: SavedSession, read: SavedObjects | None = None) -> Restored:
        """Restores objects and prompts as one action, after the choice of channels.

        Objects that are still in view stay as they are. The saved work is kept until this session leaves the image; longer if
        it could not be read whole.

        Args:
            session: Whose image it is of.
            saved: What `find` found.
            read: Its objects, if they were read already.

        Raises:
            StoreError: If the objects have another shape than those of the session's image.
            UnSAMError: If there is no place for objects.
        """
        self._is_restoring = True  # a save in between would hold some of it, and be the latest if the process is killed
        try:
            restored = self._bring_back(session, saved, saved.objects() if read is None else read)
        finally:
            self._is_restoring = False
        self._note(session, session.objects if restored.objects else None)
        return restored

    def is_in_view(self, session: ViewerSession, saved: SavedSession) -> bool:
        """Whether the saved objects are still in the viewer, as when only the dock was closed."""
        objects = session.objects
        if objects is None or str(saved.folder) not in objects.metadata.get(_KEPT_IN, ()):
            return False
        return _is_filled(objects.data)

    def adopt(self, session: ViewerSession, saved: SavedSession) -> None:
        """Continues saved work that is still in the viewer as that of this session."""
        self._restoring_prompts(session, saved).do()
        self._note(session)

    def discard(self, saved: SavedSession) -> None:
        """Deletes saved work.

        Raises:
            StoreError: If it cannot be removed.
        """
        remove_work(saved.folder)

    def exported(self, session: ViewerSession) -> None:
        """Notes that the objects of the session's image are safe elsewhere as they are now."""
        if session.image is not None:
            with self._wake:
                record = self._record(session.image, session.objects)
                record.exported_at = record.n_noted

    def close(self, timeout_s: float = 10.0) -> bool:
        """Saves what is left, and ends; returns whether all was saved within the timeout.

        Objects that were exported and not changed since are dropped, unless there are prompts; the rest can be restored.
        Where saving takes longer, it goes on, and Python waits for it before it ends.
        """
        for watch in self._sessions.values():
            watch.end()
        self._sessions.clear()
        with self._wake:
            self._is_closed = True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                # A daemon would be cut off in the midst of the last save.
                threading.Thread(target=self._thread.join, args=(_EXIT_S,), name='unsam-autosave-exit').start()
                return False
        return all(record.work is None for record in self._records)

    def _bring_back(self, session: ViewerSession, saved: SavedSession, read: SavedObjects) -> Restored:
        self._choose_channels(session, saved, read.shape if read.writes else None)
        if self.is_in_view(session, saved):  # what was erased since is not to come back
            read = SavedObjects([], None, 0, 0)
        writes = read.writes
        if writes:
            objects = session.ensure_objects()
            if highest := session.next_label() - 1:  # objects were added before the restore
                writes = limited_to_free(renumbered(writes, highest), objects.data)
        if len(saved.position) == session.viewer.dims.ndim:
            session.viewer.dims.point = saved.position
        name = f'restore {counted(len(writes), "object")}' if writes else 'restore prompts'
        actions = [session.writing(name, writes)] if writes else []
        actions.append(session.controller.restoring_prompts(session.image.unique_id, saved.prompts, saved.polarity))
        damaged = read.damaged + saved.lost_prompts
        if not damaged:
            actions.append(self._restoring_prompts(session, saved))
        session.history.do(ActionGroup(name, actions))
        return Restored(len(writes), count_prompts(saved.prompts), damaged, read.relabelled)

    @staticmethod
    def _choose_channels(session: ViewerSession, saved: SavedSession, shape: tuple[int, ...] | None) -> None:
        """Chooses the channels of saved work, or raises `StoreError` if objects of that shape belong to others."""
        channels = session.channels
        if saved.channels is not None or shape not in (None, Frame(session.image, channels).shape):
            channels = saved.channels
        expected = Frame(session.image, channels).shape
        if shape not in (None, expected):
            raise StoreError(
                f'the saved objects have shape {shape}, the image has {expected}; choose the same channels as before and '
                f'restore again; they stay in {saved.folder}'
            )
        session.set_channels(channels)

    def _restoring_prompts(self, session: ViewerSession, saved: SavedSession) -> Change[bool]:
        """The action by which a record takes the place of one that was restored; undone, each stands for itself."""
        with self._wake:
            record = self._record(session.image, session.objects)
        names = [name for name in (saved.folder.name, *saved.replaces) if name not in record.replaces]

        def put(is_restored: bool) -> None:
            with self._wake:
                others = [name for name in record.replaces if name not in names]
                record.replaces = [*others, *names] if is_restored else others

        return Change('restore', put, before=False, after=True)

    def _note(self, session: ViewerSession, changed: Labels | None = None) -> None:
        """Takes down the state of a session; called in its thread after each change, so it has to be quick.

        Args:
            session: The session.
            changed: The objects that were changed, if any were; the state is that of their image then.
        """
        self._drop_removed()
        image, objects = session.image, session.objects
        if changed is not None and changed is not objects:
            image, objects = next((one for one in session.viewer.layers if is_of(changed, one)), None), changed
        if image not in session.viewer.layers or self._is_closed or self._is_restoring:
            return
        with self._wake:
            record = self._record(image, objects)
        # With other channels, an image has objects of another shape; the others are still there.
        record.history = session.history
        if objects is not None:
            record.objects = ref(objects)
        is_chosen = objects is session.objects
        if is_chosen and (objects is not None or record.shape is None):
            record.channels = session.channels
        prompts = session.controller.prompts_of(image.unique_id) if is_chosen else record.prompts
        works = [(record, _work(session, record, image, prompts))]
        for other in list(self._records):  # prompts are in one record of an image
            if is_chosen and other is not record and other.image() is image and other.prompts and not other.has_left:
                works.append((other, _work(session, other, image, type(prompts)())))
        with self._wake:
            for one, work in works:
                one.note(work)
            if changed is not None:
                record.changed_at = record.n_noted
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name='unsam-autosave', daemon=True)
                self._thread.start()
            self._wake.notify_all()

    def _drop_removed(self) -> None:
        """Ends the records of images that have left all viewers."""
        layers = self._layers()
        with self._wake:
            for record in self._records:
                record.has_left |= record.image() not in layers
            self._wake.notify_all()

    def _layers(self) -> set[Layer]:
        return {layer for session in self._sessions for layer in session.viewer.layers}

    def _identity(self, image: Image) -> str:
        if image not in self._identities:
            self._identities[image] = image_identity(image)
        return self._identities[image]

    def _record(self, image: Image, objects: Labels | None) -> _Record:
        """The record of an image with a layer of objects, the last one if it has none yet; the caller holds the lock."""
        shape, layers = None if objects is None else tuple(objects.data.shape), self._layers() - {objects}
        known = [record for record in self._records if record.image() is image and not record.has_left]
        if objects is not None:  # no record loses the objects in it to those of another layer
            known = [record for record in known if record.objects is None or record.objects() not in layers]
        record = next((record for record in known if record.shape == shape), None)
        if record is None and known and None in (shape, known[-1].shape):
            record = known[-1]
            record.shape = shape or record.shape
        if record is None:
            identity = self._identity(image)
            folder = self._folder / identity / f'{self._name}-{next(self._numbers)}'
            record = _Record(folder, identity, ref(image), shape)
            self._records.append(record)
        return record

    def _run(self) -> None:
        try:
            self._tidy()
        except Exception:  # whatever other programs left there, the work of this session is saved
            logger.exception('saved work of earlier sessions could not be read')
        pause_s, is_last = self._delay_s, False
        while not is_last:
            with self._wake:
                has_failed = any(record.failed for record in self._records)
                self._wake.wait_for(self._has_something_to_do, _RETRY_S if has_failed else None)
                if any(record.is_waiting for record in self._records):
                    # From the first action on, not from the last: a busy user is saved too.
                    self._wake.wait_for(lambda: self._is_closed, pause_s)
                is_last = self._is_closed
                # Prompts that have moved on to the record of other channels are there before they go from here.
                unsaved = [record for record in self._records if record.work is not None]
                unsaved.sort(key=lambda record: not record.work.prompts)
            started_s = time.monotonic()
            for record in unsaved:
                self._save(record)
            pause_s = max(self._delay_s, (time.monotonic() - started_s) / _WORKING_SHARE)
            with self._wake:
                ended = [record for record in self._records if record.is_over]
                self._records = [record for record in self._records if record not in ended]
            for record in [*ended, *self._records] if is_last else ended:
                self._end(record)

    def _has_something_to_do(self) -> bool:
        return self._is_closed or any(record.is_waiting or record.is_over for record in self._records)

    def _save(self, record: _Record) -> None:
        """Saves the work of a record, or notes that it failed; never raises, so that the thread lives on."""
        work, number = None, 0
        try:
            for is_last in [False] * (_TORN_TRIES - 1) + [True]:
                with self._wake:
                    work, number, record.work, record.failed = record.work, record.n_noted, None, False
                if self._write(record, work, is_last):
                    break
        except Exception as error:
            with self._wake:
                if record.work is None:  # else it is newer
                    record.work, record.failed = work, True
            logger.warning('the work could not be saved', exc_info=error)
            if not record.has_problem:
                record.has_problem = True
                reason = str(error) if isinstance(error, StoreError) else explained(error)
                with suppress(RuntimeError):  # the dock may be gone
                    self._on_problem(f'Autosave: {reason}; it is tried again every {_RETRY_S:.0f} s')
        else:
            record.has_problem, record.saved_at = False, number

    def _write(self, record: _Record, work: Work, is_last_try: bool) -> bool:
        """Returns whether the record is now that of `work`; not if there is newer work, unless it is the last try.

        The last try joins pixels that may be newer than `work` with the rows that were noted last.
        """
        is_empty = not work.prompts and (work.labels is None or not _is_filled(work.labels))
        if is_empty and record.is_empty:
            return True
        if record.lock is None:
            try:
                record.folder.mkdir(parents=True, exist_ok=True)
                lock = FileLock(record.folder / LOCK, thread_local=False)
                lock.acquire(timeout=_LOCK_S)
            except (OSError, NotImplementedError) as error:
                raise StoreError(
                    f'{record.folder}: cannot be made or locked ({error}); set XDG_CACHE_HOME to a folder that can be written'
                ) from error
            record.lock = lock

        def newest() -> Work | None:
            self._wait_for_action(record)
            if record.work is None:
                return work
            if not is_last_try:
                return None
            return record.work if record.work.labels is work.labels else work

        if not write_work(record.folder, record.identity, work, newest):
            return False
        record.is_empty = is_empty
        return True

    def _wait_for_action(self, record: _Record) -> None:
        """Waits while an action changes pixels of which the rows are not noted yet."""
        end_s = time.monotonic() + _ACTION_S
        while self._is_restoring or (record.history is not None and record.history.is_busy):
            if time.monotonic() > end_s:
                return
            time.sleep(_POLL_S)

    def _end(self, record: _Record) -> None:
        """Releases a record; removes it if nothing in it is needed, and the records that it replaces."""
        unneeded: list[tuple[Path, FileLock | None]] = []
        if record.saved_at == record.n_noted:
            unneeded += [] if record.is_needed else [(record.folder, record.lock)]
            unneeded += [(record.folder.with_name(name), None) for name in record.replaces]
        for folder, lock in unneeded:
            try:
                remove_work(folder, lock)
            except StoreError as error:
                logger.warning('old work could not be removed: %s', error)
        if record.lock is not None:
            record.lock.release()

    def _records_below(self, pattern: str) -> list[Path]:
        """Folders of records; unlike `Path.glob`, without an error where another session removes one meanwhile."""
        return sorted(self._folder / name for name in glob.glob(pattern, root_dir=self._folder))  # noqa: PTH207

    def _tidy(self) -> None:
        """Deletes work that is too old; what this version cannot read stays."""
        for folder in self._records_below('*/*/'):
            with suppress(OSError, StoreError):
                is_old = time.time() - folder.stat().st_mtime > self._keep_days * _DAY_S
                lock = lock_abandoned(folder) if is_old else None
                if lock is not None:
                    try:
                        read_work(folder)
                        remove_work(folder, lock)
                    finally:
                        lock.release()


def _work(session: ViewerSession, record: _Record, image: Image, prompts: Any) -> Work:
    """The work of a record as it is now."""
    import pandas as pd

    objects = record.objects() if record.objects is not None else None
    if objects is not None and objects not in session.viewer.layers:
        objects = None
    if objects is not None:
        objects.metadata[_KEPT_IN] = {*objects.metadata.get(_KEPT_IN, ()), str(record.folder)}
    return Work(
        image_name=image.name,
        prompts=prompts,
        polarity=session.controller.polarity,
        position=tuple(session.viewer.dims.point),
        labels=None if objects is None else objects.data,
        features=pd.DataFrame() if objects is None else objects.features.copy(),
        replaces=tuple(record.replaces),
        channels=record.channels if isinstance(record.channels, Channels) else None,
    )


def _is_filled(array: LazyArray) -> bool:
    return any(np.asarray(array[block]).any() for block in blocks(array.shape))
