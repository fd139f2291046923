"""Autosave where something goes wrong: nothing of the user's is lost, and the user is told in one line."""

import errno
import gc
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from napari_unsam.io import autosave as autosave_module
from napari_unsam.io.records import (
    LOCK,
    Work,
    image_identity,
    lock_record,
    read_work,
    remove_work,
    write_blocks,
    write_work,
)
from napari_unsam.model import pixel_changes as pixel_changes
from napari_unsam.model.prompts import Polarity, Prompts
from tests.test_napari.killing import begin, clicked, wait_until, wait_until_saved, written
from tests.test_napari.saved_work import PROMPTS, Session, work_a_little

CELL = (slice(0, 1), slice(0, 5), slice(0, 5))


def work_of(labels, features, prompts=Prompts()):  # noqa: B008 - frozen
    return Work(
        image_name='Cells',
        prompts=prompts,
        polarity=Polarity.POSITIVE,
        position=(0, 0, 0),
        labels=labels,
        features=pd.DataFrame(features),
    )


def save(folder, work):
    write_work(folder, work, write_blocks(folder, work.labels))


def damage_a_block(saved):
    _start, name = sorted(saved._blocks)[0]
    (saved.folder / 'blocks' / name).write_bytes(b'PK')


# What cannot be read


def test_work_that_was_not_restored_whole_is_kept_until_it_is_discarded(crash, start, stack):
    crash(work_a_little)
    session, autosave = Session(stack), start()
    saved = autosave.find(session.image)
    damage_a_block(saved)
    autosave.watch(session)
    assert autosave.restore(session, saved).damaged == 1
    autosave.close()
    assert (saved.folder / 'work.json').exists()
    start().discard(saved)
    assert not saved.folder.exists()


def test_what_is_being_restored_is_not_saved_in_part(tmp_path, monkeypatch):
    """Saved with objects and without prompts, it would be the latest work if the process were killed then."""
    before, autosave = begin(tmp_path)
    autosave.watch(before)
    position, polarity = clicked(1)
    before.click(before.image.data_to_world(position), polarity)
    before.write_objects('commit 1', [written(1)])
    autosave.close()
    before.close()

    session, autosave = begin(tmp_path)
    autosave.watch(session)
    saved, noted = autosave.find(session.image), []
    work_now = autosave_module._current_work
    monkeypatch.setattr(autosave_module, '_current_work', lambda *args: noted.append(work_now(*args)))
    autosave.restore(session, saved)
    assert noted
    assert all(work.labels is session.objects.data and work.prompts == saved.prompts for work in noted)
    session.close()


@pytest.mark.parametrize('change', [{'start': [9, 0, 0]}, {'start': [0, 0]}, {'start': [-1, 0, 0]}, {'file': 'gone'}])
def test_a_block_that_lies_nowhere_is_damage_and_no_failure(crash, start, stack, change):
    crash(work_a_little)
    session, autosave = Session(stack), start()
    folder = autosave.find(session.image).folder
    content = json.loads((folder / 'work.json').read_text())
    content['blocks'][0] |= change
    (folder / 'work.json').write_text(json.dumps(content))
    restored = autosave.restore(session, autosave.find(session.image))
    assert (restored.objects, restored.damaged) == (1, 1)


def test_labels_that_a_layer_cannot_hold_come_back_as_objects_of_their_own(start, stack, tmp_path):
    labels = np.zeros(stack.shape, np.int64)
    places = {-1: 10, 65_535: 30, 7: 50, 2**32 + 7: 70}
    for label, row in places.items():
        labels[0, row : row + 5, 10:20] = label
    session, autosave = Session(stack), start()
    features = {'index': list(places), 'score': [0.1, 0.2, 0.3, 0.4]}
    save(tmp_path / 'autosave' / image_identity(session.image) / 'other', work_of(labels, features))
    restored = autosave.restore(session, autosave.find(session.image))
    assert (restored.objects, restored.relabelled) == (4, 2)
    back = session.objects.data[0]
    found = [int(back[row, 10]) for row in places.values()]
    assert len(set(found)) == 4
    assert (found[1], found[2]) == (65_535, 7)
    assert all((back == label).sum() == 50 for label in found)
    assert session.objects.features.set_index('index').loc[found, 'score'].tolist() == [0.1, 0.2, 0.3, 0.4]


@pytest.fixture
def save_labels(start, stack, tmp_path):
    """Saves objects of some labels, one below the other, with a table; then begins a new session, and returns all there is."""

    def begin_with(labels, features):
        array = np.zeros(stack.shape, np.int64)
        for place, label in enumerate(labels):
            array[0, 10 * place : 10 * place + 5, 10:20] = label
        session, autosave = Session(stack), start()
        save(tmp_path / 'autosave' / image_identity(session.image) / 'other', work_of(array, features))
        return session, autosave, autosave.find(session.image)

    return begin_with


def labels_in(session, number):
    return [int(label) for label in session.objects.data[0, : 10 * number : 10, 10]]


def test_parts_of_objects_that_come_back_with_other_labels_stay_parts_of_them(save_labels):
    labels = [2**33, 7, -4]
    session, autosave, saved = save_labels(labels, {'index': labels, 'parent_id': [-4, 2**33, 7]})
    autosave.restore(session, saved)
    large, kept, negative = labels_in(session, 3)
    parents = session.objects.features.set_index('index')['parent_id']
    assert parents.to_dict() == {large: negative, kept: large, negative: kept}


@pytest.mark.parametrize('labels', [[2**32 - 1], [2**32 - 1, -3, 1]])
@pytest.mark.parametrize('is_begun', [False, True])
def test_the_highest_label_that_a_layer_can_hold_comes_back(save_labels, labels, is_begun):
    session, autosave, saved = save_labels(labels, {'index': labels})
    if is_begun:
        session.commit(5, (slice(2, 3), slice(0, 5), slice(0, 5)))
    assert autosave.restore(session, saved).objects == len(labels)
    back = labels_in(session, len(labels))
    assert len({0, *back}) == len(labels) + 1
    assert is_begun or back[0] == 2**32 - 1


def test_rows_without_a_label_are_left_out_of_what_comes_back(save_labels):
    features = {'index': [1, None, float('inf'), 'x', '2'], 'score': [0.1, 0.2, 0.3, 0.4, 0.5]}
    session, autosave, saved = save_labels([1, 2], features)
    autosave.restore(session, saved)
    assert session.objects.features['index'].tolist() == [1, 2]
    assert session.objects.features['score'].tolist() == [0.1, 0.5]


# What is restored, and taken back


def test_work_whose_restoring_was_undone_is_offered_again(crash, start, stack):
    crash(work_a_little)
    session, autosave = Session(stack), start()
    autosave.watch(session)
    autosave.restore(session, autosave.find(session.image))
    session.history.undo()
    assert autosave.find(session.image).description.startswith('2 objects and 2 prompts')
    autosave.close()
    assert start().find(session.image).description.startswith('2 objects and 2 prompts')


def test_after_a_crash_only_the_latest_of_records_that_hold_the_same_is_offered(crash, start, stack):
    crash(work_a_little)
    session, autosave = Session(stack), start()
    autosave.watch(session)
    first = autosave.find(session.image)
    autosave.restore(session, first)
    session.commit(3, CELL)
    assert wait_until_saved(autosave)
    for record in autosave._records:
        record.lock.release()
    later = start()
    second = later.find(session.image)
    assert second.description.startswith('3 objects')
    assert first.folder.exists()
    later.discard(second)
    assert later.find(session.image).folder == first.folder


def test_objects_of_other_channels_of_an_image_are_saved_side_by_side(start, stack):
    session, autosave = Session(stack), start()
    autosave.watch(session)
    session.commit(1, CELL)
    session.prompt(PROMPTS)
    del session._objects[session.image]
    thin = session.make_objects((1, *stack.shape[1:]))
    session.image_changed.emit()
    thin.paint((0, 50, 60), 7)
    autosave.close()
    later, found = start(), []
    while (saved := later.find(session.image)) is not None:
        found.append((saved.shape, np.unique(saved.labels()[0]).tolist(), saved.prompts))
        later.discard(saved)
    assert sorted(found) == [(thin.data.shape, [0, 7], PROMPTS), (stack.shape, [0, 1], Prompts())]


def test_labels_that_are_saved_are_not_kept_in_memory(start, stack):
    session, autosave = Session(stack), start()
    autosave.watch(session)
    session.commit(1, CELL)
    autosave.exported(session)
    assert wait_until_saved(autosave)
    gc.collect()
    # `isinstance` would ask proxies of torch
    assert not [one for one in gc.get_objects() if type(one) is Work and one.labels is session.objects.data]


# What cannot be written


@pytest.fixture
def broken_writes(monkeypatch):
    """Has saving raise what a test puts here; None lets it through."""
    state = {'error': None}
    write = autosave_module.write_work

    def write_or_raise(*args):
        if state['error'] is not None:
            raise state['error']
        return write(*args)

    monkeypatch.setattr(autosave_module, 'write_work', write_or_raise)
    monkeypatch.setattr(autosave_module, '_RETRY_S', 0.01, raising=False)
    return state


@pytest.mark.parametrize(
    ('error', 'words'),
    [
        (OSError(errno.ENOSPC, 'No space left on device'), 'No space left'),
        (PermissionError(errno.EACCES, 'Permission denied'), 'Permission denied'),
        (ValueError('not what was expected'), 'not what was expected'),
        (MemoryError(), 'MemoryError'),
    ],
)
def test_whatever_goes_wrong_is_told_once_and_tried_again_without_another_action(
    start, stack, broken_writes, error, words
):
    told = []
    session, autosave = Session(stack), start(on_problem=told.append)
    broken_writes['error'] = error
    autosave.watch(session)
    work_a_little(session)
    assert wait_until(lambda: told)
    assert len(told) == 1
    assert told[0].startswith('Autosave: ')
    assert words in told[0]
    broken_writes['error'] = None
    assert wait_until_saved(autosave)
    assert len(told) == 1
    autosave.close()
    assert start().find(session.image).description.startswith('2 objects and 2 prompts')


def test_what_failed_is_tried_again_while_another_image_is_worked_on(start, stack, broken_writes, monkeypatch):
    monkeypatch.setattr(autosave_module, '_RETRY_S', 1000.0)
    session, autosave = Session(stack), start()
    first = session.image
    broken_writes['error'] = OSError('gone')
    autosave.watch(session)
    work_a_little(session)
    assert wait_until(lambda: autosave._records[0].failed)
    broken_writes['error'] = None
    session.choose(session.viewer.add_image(stack[::-1].copy(), name='Others'))
    session.prompt(PROMPTS)
    assert wait_until_saved(autosave)
    autosave.close()
    assert start().find(first).description.startswith('2 objects')


@pytest.fixture
def on_windows(monkeypatch):
    """Has locks that are held refuse to be removed, and names that a test puts here."""
    refused, unlink = set(), Path.unlink

    def unlink_as_windows(path, **options):
        if path.parent.name in refused:
            raise PermissionError(errno.EACCES, 'in use', str(path))
        if path.name == LOCK and path.exists():
            lock = lock_record(path.parent)
            if lock is None:
                raise PermissionError(errno.EACCES, 'in use', str(path))
            lock.release()
        unlink(path, **options)

    monkeypatch.setattr(Path, 'unlink', unlink_as_windows)
    return refused


def test_closing_removes_what_is_not_needed_on_windows_too(crash, start, stack, tmp_path, on_windows):
    crash(work_a_little)
    session, autosave = Session(stack), start()
    autosave.watch(session)
    autosave.restore(session, autosave.find(session.image))
    session.prompt(Prompts())
    autosave.exported(session)
    autosave.close()
    assert not list((tmp_path / 'autosave').iterdir())


def test_a_record_that_cannot_be_removed_does_not_keep_the_others(crash, start, stack, tmp_path, on_windows):
    crash(work_a_little)
    crash(work_a_little)
    session, autosave = Session(stack), start()
    autosave.watch(session)
    names = []
    for _ in range(2):
        saved = autosave.find(session.image)
        names.append(saved.folder.name)
        autosave.restore(session, saved)
    on_windows.add(names[0])
    autosave.close()
    left = {path.parent.name for path in (tmp_path / 'autosave').rglob('work.json')}
    assert names[0] in left
    assert names[1] not in left


def test_nobody_can_take_up_a_record_that_is_being_removed(crash, start, stack):
    crash(work_a_little)
    folder, seen = start().find(Session(stack).image).folder, []
    remove_work(folder, SimpleNamespace(release=lambda: seen.append(read_work(folder))))
    assert seen == [None]


def test_closing_tries_for_a_last_time_and_says_if_it_is_in_vain(start, stack, broken_writes):
    session, autosave = Session(stack), start()
    broken_writes['error'] = OSError('gone')
    autosave.watch(session)
    work_a_little(session)
    assert not autosave.close()
    session, autosave = Session(stack), start()
    broken_writes['error'] = OSError('gone')
    autosave.watch(session)
    work_a_little(session)
    assert wait_until(lambda: autosave._records[0].failed)
    broken_writes['error'] = None
    assert autosave.close()


def test_a_last_save_that_takes_long_is_waited_for_by_python_itself(start, stack, monkeypatch):
    write, is_disk_back = autosave_module.write_work, threading.Event()

    def slowly(*args):
        assert is_disk_back.wait(30)
        return write(*args)

    monkeypatch.setattr(autosave_module, 'write_work', slowly)
    session, autosave = Session(stack), start()
    autosave.watch(session)
    work_a_little(session)
    assert not autosave.close(timeout_s=0.05)
    [waiting] = [thread for thread in threading.enumerate() if thread.name == 'unsam-autosave-exit']
    assert not waiting.daemon
    assert start().find(session.image) is None  # it is still at work on it
    is_disk_back.set()
    waiting.join(30)
    assert start().find(session.image).description.startswith('2 objects and 2 prompts')


def test_work_that_changes_while_it_is_read_is_not_taken_for_one_moment_of_it(tmp_path, stack):
    save(tmp_path, work_of(np.zeros(stack.shape, np.uint32), {'index': [1]}, PROMPTS))
    write_blocks(tmp_path, np.ones(stack.shape, np.uint32))
    saved = read_work(tmp_path)
    assert (saved.prompts, saved.labels()[0].any()) == (PROMPTS, False)


def test_an_object_is_never_saved_without_its_row(tmp_path, monkeypatch):
    """A save that reads pixels in the midst of a commit waits for the row, which comes after them."""
    session, autosave = begin(tmp_path)
    autosave.watch(session)
    session.ensure_objects()
    assert wait_until_saved(autosave)
    write_pixels, are_pixels_read, saved = pixel_changes.write, threading.Event(), []

    def write_pixels_and_save(*args):
        change = write_pixels(*args)
        autosave._schedule_save(session)
        assert are_pixels_read.wait(30)
        time.sleep(0.1)
        return change

    def read_pixels(*args):
        blocks = write_blocks(*args)
        are_pixels_read.set()
        return blocks

    def watched(folder, *args):
        write_work(folder, *args)
        found = read_work(folder)
        saved.append((int(found.labels()[0].max()), tuple(found.features.get('score', ()))))

    monkeypatch.setattr(pixel_changes, 'write', write_pixels_and_save)
    monkeypatch.setattr(autosave_module, 'write_blocks', read_pixels)
    monkeypatch.setattr(autosave_module, 'write_work', watched)
    session.write_objects('commit', [written(1)])
    assert wait_until_saved(autosave)
    assert set(saved) == {(1, (written(1).features['score'],))}
    autosave.close()
    session.close()


# What ends in the midst of it


class _Killed(BaseException):
    pass


def killed_at(monkeypatch, number, steps):
    """Has the process end, as far as files are concerned, at one of the steps that change what is on disk."""
    done = []

    def counting(step):
        def call(*args, **named):
            done.append(step)
            if len(done) >= number:
                raise _Killed
            return step(*args, **named)

        return call

    for owner, name in steps:
        monkeypatch.setattr(owner, name, counting(getattr(owner, name)))


STEPS = ((Path, 'replace'), (Path, 'unlink'), (Path, 'rmdir'), (tempfile, 'mkstemp'), (os, 'fdopen'))


def test_whenever_a_save_is_cut_off_the_record_is_whole(tmp_path, stack, monkeypatch):
    first, second = np.zeros((2, *stack.shape), np.uint32)
    first[:, 10:40, 10:40] = 3
    second[1:, 10:60, 10:90] = 5
    fewer = Prompts(points=PROMPTS.points[:1])
    works = {
        prompts: work_of(labels, {'index': [int(labels.max())]}, prompts)
        for labels, prompts in ((first, PROMPTS), (second, fewer))
    }
    number, is_done, ends = 0, False, []
    while not is_done:
        number += 1
        folder = tmp_path / str(number)
        save(folder, works[PROMPTS])
        with monkeypatch.context() as patched:
            killed_at(patched, number, STEPS)
            try:
                save(folder, works[fewer])
                is_done = True
            except _Killed:
                pass
        saved = read_work(folder)
        expected = works[saved.prompts]
        labels, damaged = saved.labels()
        assert damaged == 0
        assert np.array_equal(labels, expected.labels)
        assert saved.features['index'].tolist() == expected.features['index'].tolist()
        ends.append(saved.prompts)
    assert number > 5
    assert ends[0] == PROMPTS
    assert ends[-1] == fewer


@pytest.mark.parametrize('how', ['discarded', 'too old'])
def test_only_files_of_autosave_are_ever_removed(crash, start, stack, tmp_path, how):
    crash(work_a_little)
    session, autosave = Session(stack), start(keep_days=0)
    saved = autosave.find(session.image)
    others = [
        tmp_path / 'autosave' / 'notes' / 'mine' / 'photo.npz',
        saved.folder / 'notes.txt',
        saved.folder / 'blocks' / 'mine.tif',
    ]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('mine')
    if how == 'discarded':
        autosave.discard(saved)
    else:
        autosave.watch(session)
        autosave.close()
    assert not (saved.folder / 'work.json').exists()
    assert [path.read_text() for path in others] == ['mine'] * 3
