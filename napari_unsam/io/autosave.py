"""Autosave of prompts, objects and their rows, moments after every action.

::

    autosave = Autosave(folder)
    autosave.watch(session)
    saved = autosave.find(session.image)   # when an image is chosen
    autosave.restore(session, saved)       # if the user wants it back
    autosave.exported(session)             # after an export: the saved copy is deleted on closing
    autosave.close()                       # when the dock closes

Each image has a folder. Each session has a record in it for each layer of objects; a record is a folder, too. It is
locked while its session is open, so that the work of an open window is not offered as that of a crashed one. A restored
record is removed when the session that restored it leaves the image; if it could not be read completely, it stays until
it is discarded.
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
from typing import TYPE_CHECKING
from weakref import ref

import numpy as np
from filelock import FileLock

from napari_unsam.io.records import (
    SavedObjects,
    SavedSession,
    Work,
    count_prompts,
    image_identity,
    lock_record,
    read_work,
    remove_work,
    write_blocks,
    write_work,
)
from napari_unsam.model.frame import Channels, Frame, LayerChannels
from napari_unsam.model.history import ActionGroup, Change
from napari_unsam.model.label_boxes import LazyArray, blocks
from napari_unsam.model.prompts import Prompts
from napari_unsam.model.text import counted
from napari_unsam.viewer.changes import SessionWatch
from napari_unsam.viewer.layers import belongs_to
from napari_unsam.viewer.object_write import limited_to_free, renumbered
from unsam_mm.errors import StoreError, describe_error

if TYPE_CHECKING:
    from napari.layers import Image, Labels

    from napari_unsam.viewer.session import ViewerSession

_LOCK_S = 5.0  # another window that tests whether a record is abandoned holds its lock for a moment
_MAX_TIME_SHARE = 0.1  # largest share of the time spent on saving; long stacks are saved less often
_MAX_READS = 3  # of labels that change while they are read
_ACTION_S = 10.0  # longest wait for an action to end
_POLL_S = 0.01
_RETRY_S = 10.0  # between tries of a failed save
_EXIT_S = 120.0  # longest wait for the last save when Python ends
_DAY_S = 86_400.0
_RECORDS_KEY = 'unsam_saved_in'  # key in a layer's metadata; the value contains the folders of the layer's records

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Restored:
    """The result of `Autosave.restore`.

    Attributes:
        objects: Number of restored objects.
        prompts: Number of restored prompts.
        damaged: Number of prompts and blocks of labels that could not be read. If there are any, the saved work is not
            deleted.
        relabelled: Number of objects with a new label, since the saved one was negative or needs more than 32 bits.
    """

    objects: int
    prompts: int
    damaged: int
    relabelled: int


@dataclass(eq=False)
class _Record:
    """The record of an image with one of its layers of objects.

    Attributes:
        folder: Folder of the record, in the folder of the image.
        image: Returns the image layer; None if it no longer exists. A second layer of the same image has its own
            record.
        objects: Returns the layer of objects; None if there is none or it no longer exists.
        shape: Shape of the layer of objects; None if there has never been one.
        channels: The channels of the image that the objects belong to.
        prompts: The latest prompts. Only one record of an image has prompts.
        replaces: Folder names of the records that were restored into this one.
        work: The latest state; None once it is saved, since its labels may occupy gigabytes.
        failed: The state that could not be saved, until a save succeeds.
        is_empty: True if neither objects nor prompts are saved on disk.
        is_exported: True if the objects have been exported and not changed since.
        has_left: True if the image has left the viewer. If it comes back, it gets another record.
        lock: The lock of the folder; None before the first save.
    """

    folder: Path
    image: ref[Image]
    objects: Callable[[], Labels | None] = lambda: None
    shape: tuple[int, ...] | None = None
    channels: Channels | LayerChannels | None = None
    prompts: Prompts = field(default_factory=Prompts)
    replaces: list[str] = field(default_factory=list)
    work: Work | None = None
    failed: Work | None = None
    is_empty: bool = True
    is_exported: bool = False
    has_left: bool = False
    lock: FileLock | None = None

    @property
    def is_waiting(self) -> bool:
        """True if there is a state that no save has been tried for yet."""
        return self.work is not None and self.work is not self.failed

    @property
    def is_finished(self) -> bool:
        """True if everything is saved and the image has left the viewer."""
        return self.has_left and self.work is None


class Autosave:
    """Saves the work of a session in a background thread, and finds the saved work of earlier sessions.

    Args:
        folder: Folder of all saved work.
        delay_s: Delay between an action and its save, in seconds; several actions in that time are saved at once.
        keep_days: Days after which saved work is deleted.
        on_problem: Called with one line when saving begins to fail, and for work that cannot be read. It may be called
            in any thread.
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
        self._session: ViewerSession | None = None
        self._watch: SessionWatch | None = None
        self._unreadable: set[Path] = set()  # folders that were reported to `on_problem`
        self._condition = threading.Condition()  # held to read or change the records
        self._is_closed = self._is_restoring = False
        self._thread: threading.Thread | None = None

    def watch(self, session: ViewerSession) -> None:
        """Saves the work of a session from now on."""
        self._session = session
        self._watch = SessionWatch(session, self._schedule_save, self._end_removed)
        self._schedule_save(session)

    def find(self, image: Image) -> SavedSession | None:
        """The latest saved work on an image; None if there is none.

        Work that was restored or belongs to an open session is left out. Work that cannot be read is reported to
        `on_problem` once.
        """
        found = []
        with self._condition:
            identity = self._record(image, None).folder.parent.name
            known = [record for record in self._records if record.folder.parent.name == identity]
            own, restored = {record.folder for record in known}, {name for record in known for name in record.replaces}
        for folder in self._folders(f'{identity}/*/'):
            lock = None if folder in own else lock_record(folder)
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
                restored.update(saved.replaces)
        left = [saved for saved in found if saved.folder.name not in restored]
        return max(left, key=lambda saved: saved.saved_at, default=None)

    def restore(self, session: ViewerSession, saved: SavedSession, read: SavedObjects | None = None) -> Restored:
        """Restores the channels, then objects and prompts as one action.

        Objects that are still in the viewer are not changed. The saved work is deleted when this session leaves the
        image, unless it could not be read completely.

        Args:
            session: A session on the same image.
            saved: The saved work.
            read: The objects of the saved work; by default they are read from disk.

        Raises:
            StoreError: If the objects have another shape than the image, or do not fit into memory.
            UnSAMError: If no layer can be made for the objects.
        """
        self._is_restoring = True  # a save in between would contain only a part of the work
        try:
            restored = self._restore(session, saved, saved.objects() if read is None else read)
        finally:
            self._is_restoring = False
        self._schedule_save(session, session.objects if restored.objects else None)
        return restored

    def is_in_view(self, session: ViewerSession, saved: SavedSession) -> bool:
        """True if the saved objects are still in the viewer, for example after the dock was closed and opened again."""
        objects = session.objects
        if objects is None or str(saved.folder) not in objects.metadata.get(_RECORDS_KEY, ()):
            return False
        return _is_filled(objects.data)

    def adopt(self, session: ViewerSession, saved: SavedSession) -> None:
        """Continues saved work whose objects are still in the viewer."""
        self._make_replace_action(session, saved).do()
        self._schedule_save(session)

    def discard(self, saved: SavedSession) -> None:
        """Deletes saved work.

        Raises:
            StoreError: If the saved work cannot be removed.
        """
        remove_work(saved.folder)

    def exported(self, session: ViewerSession) -> None:
        """Notes that the objects of the session's image are exported as they are now."""
        if session.image is not None:
            with self._condition:
                self._record(session.image, session.objects).is_exported = True

    def close(self, timeout_s: float = 10.0) -> bool:
        """Saves the latest work and ends; returns True if all was saved within the timeout.

        Saved objects are deleted if they have been exported and not changed since, and the image has no prompts; all
        other work can be restored. A save that takes longer than the timeout continues, and Python waits for it at
        exit.
        """
        if self._watch is not None:
            self._watch.end()
        with self._condition:
            self._session = self._watch = None
            self._is_closed = True
            self._condition.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                # Python does not wait for the daemon itself.
                threading.Thread(target=self._thread.join, args=(_EXIT_S,), name='unsam-autosave-exit').start()
                return False
        return all(record.work is None for record in self._records)

    def _restore(self, session: ViewerSession, saved: SavedSession, read: SavedObjects) -> Restored:
        self._choose_channels(session, saved, saved.shape if read.writes else None)
        if self.is_in_view(session, saved):  # objects that were erased since must not come back
            read = SavedObjects([])
        writes = read.writes
        if writes:
            objects = session.ensure_objects()
            if highest := session.next_label() - 1:  # objects were added before the restore
                writes = limited_to_free(renumbered(writes, highest), objects.data)
        if len(saved.position) == session.viewer.dims.ndim:
            session.viewer.dims.point = saved.position
        name = f'restore {counted(len(writes), "object")}' if writes else 'restore prompts'
        actions = [session.write_action(name, writes)] if writes else []
        actions.append(session.controller.restore_action(session.image.unique_id, saved.prompts, saved.polarity))
        damaged = read.damaged + saved.lost_prompts
        if not damaged:
            actions.append(self._make_replace_action(session, saved))
        session.history.do(ActionGroup(name, actions))
        return Restored(len(writes), count_prompts(saved.prompts), damaged, read.relabelled)

    @staticmethod
    def _choose_channels(session: ViewerSession, saved: SavedSession, shape: tuple[int, ...] | None) -> None:
        """Chooses the saved channels; raises `StoreError` if objects of that shape belong to others."""
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

    def _make_replace_action(self, session: ViewerSession, saved: SavedSession) -> Change[bool]:
        """The action that marks saved work as restored; undo removes the mark."""
        with self._condition:
            record = self._record(session.image, session.objects)
        names = [name for name in (saved.folder.name, *saved.replaces) if name not in record.replaces]

        def put(is_restored: bool) -> None:
            with self._condition:
                others = [name for name in record.replaces if name not in names]
                record.replaces = [*others, *names] if is_restored else others

        return Change('restore', put, before=False, after=True)

    def _schedule_save(self, session: ViewerSession, changed: Labels | None = None) -> None:
        """Schedules a save of a session; called in the GUI thread after each change, so it has to be quick.

        Args:
            session: The session.
            changed: The layer of objects that was changed, if one was; it may belong to another image.
        """
        image, objects = session.image, session.objects
        if changed is not None and changed is not objects:
            image, objects = next((one for one in session.viewer.layers if belongs_to(changed, one)), None), changed
        if image not in session.viewer.layers or self._is_closed or self._is_restoring:
            return
        with self._condition:
            record = self._record(image, objects)
            updated = [record]
            if objects is not None:  # otherwise the objects of other channels may still be in the viewer
                record.objects, record.shape = ref(objects), objects.data.shape
            if changed is not None:
                record.is_exported = False
            if objects is session.objects:
                record.prompts = session.controller.prompts_of(image.unique_id)
                if objects is not None or record.objects() is None:
                    record.channels = session.channels
                for other in self._records:
                    if other is not record and other.image() is image and other.prompts and not other.has_left:
                        other.prompts = Prompts()
                        updated.append(other)
            for one in updated:
                one.work = _current_work(session, one)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name='unsam-autosave', daemon=True)
                self._thread.start()
            self._condition.notify_all()

    def _end_removed(self) -> None:
        """Ends the records of images that have left the viewer."""
        with self._condition:
            for record in self._records:
                record.has_left |= record.image() not in self._session.viewer.layers
            self._condition.notify_all()

    def _record(self, image: Image, objects: Labels | None) -> _Record:
        """The record of a layer of objects, or the latest record of the image if `objects` is None.

        The caller holds `_condition`.

        For a layer without a record, this is a record that no layer in the viewer uses and whose objects, if any, have
        the shape of the layer; if there is none, a new record.
        """
        known = [record for record in self._records if record.image() is image and not record.has_left]
        if objects is not None:
            layers = () if self._session is None else self._session.viewer.layers
            in_use = {layer for layer in layers if layer is not objects}
            known = [record for record in known if record.shape in (None, objects.data.shape)]
            known = [record for record in known if record.objects() not in in_use]
            known.sort(key=lambda record: record.objects() is objects)
        if not known:
            folder = self._folder / image_identity(image) / f'{self._name}-{next(self._numbers)}'
            known = [_Record(folder, ref(image))]
            self._records += known
        return known[-1]

    def _run(self) -> None:
        try:
            self._remove_old()
        except Exception:  # the work of this session must be saved, whatever other programs have put there
            logger.exception('saved work of earlier sessions could not be read')
        pause_s, is_last = self._delay_s, False
        while not is_last:
            with self._condition:
                has_failed = any(record.failed is not None for record in self._records)
                self._condition.wait_for(
                    lambda: self._is_closed or any(record.is_waiting or record.is_finished for record in self._records),
                    _RETRY_S if has_failed else None,
                )
                if any(record.is_waiting for record in self._records):
                    # The delay begins with the first action, so that continuous work is saved too.
                    self._condition.wait_for(lambda: self._is_closed, pause_s)
                is_last = self._is_closed
                # Prompts that have moved to the record of other channels are saved there first, then removed here.
                unsaved = [record for record in self._records if record.work is not None]
                unsaved.sort(key=lambda record: not record.prompts)
            started_s = time.monotonic()
            for record in unsaved:
                self._save(record)
            pause_s = max(self._delay_s, (time.monotonic() - started_s) / _MAX_TIME_SHARE)
            with self._condition:
                ended = [record for record in self._records if record.is_finished]
                self._records = [record for record in self._records if record not in ended]
            for record in [*ended, *self._records] if is_last else ended:
                self._end(record)

    def _save(self, record: _Record) -> None:
        """Saves the work of a record, or notes that this failed; never raises, so that the thread continues."""
        work = record.work
        try:
            work = self._write(record)
        except Exception as error:
            logger.warning('the work could not be saved', exc_info=error)
            is_first = record.failed is None
            record.failed = work
            if is_first:
                reason = str(error) if isinstance(error, StoreError) else describe_error(error)
                with suppress(RuntimeError):  # the dock may be gone
                    self._on_problem(f'Autosave: {reason}; it is tried again every {_RETRY_S:.0f} s')
        else:
            with self._condition:
                record.failed = None
                if record.work is work:  # otherwise there is a newer state
                    record.work = None

    def _write(self, record: _Record) -> Work:
        """Writes the latest work of a record, and returns it.

        Labels that were changed while they were read are read again. If they change in every try, the labels of the
        last try are saved with the latest rows.
        """
        for _ in range(_MAX_READS):
            work = record.work
            is_empty = not work.prompts and (work.labels is None or not _is_filled(work.labels))
            if is_empty and record.is_empty:
                return work
            if record.lock is None:
                record.lock = lock_record(record.folder, _LOCK_S)
            if record.lock is None:
                raise StoreError(
                    f'{record.folder}: cannot be made or locked; set XDG_CACHE_HOME to a folder that can be written'
                )
            written = write_blocks(record.folder, work.labels)
            self._wait_for_action()
            latest = record.work
            if latest is work:
                break
        write_work(record.folder, latest if latest.labels is work.labels else work, written)
        record.is_empty = is_empty
        return work

    def _wait_for_action(self) -> None:
        """Waits while an action has changed pixels but not yet the rows of their objects; at most `_ACTION_S`."""
        session, end_s = self._session, time.monotonic() + _ACTION_S
        while self._is_restoring or (session is not None and session.history.is_busy):
            if time.monotonic() > end_s:
                return
            time.sleep(_POLL_S)

    def _end(self, record: _Record) -> None:
        """Unlocks a record; once saved, removes the records that it replaces, and itself if empty or exported."""
        unneeded: list[tuple[Path, FileLock | None]] = []
        if record.work is None:
            is_needed = not record.is_empty and (not record.is_exported or bool(record.prompts))
            unneeded += [] if is_needed else [(record.folder, record.lock)]
            unneeded += [(record.folder.with_name(name), None) for name in record.replaces]
        for folder, lock in unneeded:
            try:
                remove_work(folder, lock)
            except StoreError as error:
                logger.warning('old work could not be removed: %s', error)
        if record.lock is not None:
            record.lock.release()

    def _folders(self, pattern: str) -> list[Path]:
        """Folders of records; unlike `Path.glob`, it does not raise if another session removes one meanwhile."""
        return sorted(self._folder / name for name in glob.glob(pattern, root_dir=self._folder))  # noqa: PTH207

    def _remove_old(self) -> None:
        """Deletes work that is too old, unless this version cannot read it."""
        for folder in self._folders('*/*/'):
            with suppress(OSError, StoreError):
                is_old = time.time() - folder.stat().st_mtime > self._keep_days * _DAY_S
                lock = lock_record(folder) if is_old else None
                if lock is not None:
                    try:
                        read_work(folder)
                        remove_work(folder, lock)
                    finally:
                        lock.release()


def _current_work(session: ViewerSession, record: _Record) -> Work:
    """The work of a record as it is now."""
    import pandas as pd

    objects = record.objects()
    if objects not in session.viewer.layers:
        objects = None
    if objects is not None:
        objects.metadata[_RECORDS_KEY] = {*objects.metadata.get(_RECORDS_KEY, ()), str(record.folder)}
    return Work(
        image_name=record.image().name,
        prompts=record.prompts,
        polarity=session.controller.polarity,
        position=tuple(session.viewer.dims.point),
        labels=None if objects is None else objects.data,
        features=pd.DataFrame() if objects is None else objects.features.copy(),
        replaces=tuple(record.replaces),
        channels=record.channels if isinstance(record.channels, Channels) else None,
    )


def _is_filled(array: LazyArray) -> bool:
    return any(np.asarray(array[block]).any() for block in blocks(array.shape))
