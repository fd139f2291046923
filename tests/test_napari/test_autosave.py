"""Autosave: what is done in one process is there in the next, however the first one ended."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import zlib
from dataclasses import replace
from glob import glob
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import zarr

from napari_unsam.io import autosave as autosave_module
from napari_unsam.io.autosave import Autosave
from napari_unsam.io.records import Work, count_prompts, image_identity, read_work, write_work
from napari_unsam.model.frame import Channels
from napari_unsam.model.prompts import PendingObject, Polarity, Prompts, ShapeKind, ShapePrompt
from napari_unsam.viewer.object_write import ObjectWrite
from napari_unsam.viewer.session import ViewerSession
from tests.test_napari.killing import wait_until, wait_until_saved
from tests.test_napari.saved_work import PROMPTS, Session, work_a_little
from unsam_mm.errors import StoreError


def test_restoring_is_one_action_that_can_be_undone(crash, start, stack):
    crash(work_a_little)
    session, autosave = Session(stack), start()
    autosave.restore(session, autosave.find(session.image))
    assert session.history.undo() == 'restore 2 objects'
    assert not session.objects.data.any()
    assert session.controller.prompts_of(session.image.unique_id) == Prompts()
    session.history.redo()
    assert session.controller.prompts_of(session.image.unique_id) == PROMPTS


def test_objects_prompts_and_rows_come_back_after_a_crash(crash, start, stack):
    before = crash(work_a_little)
    session, autosave = Session(stack), start()
    saved = autosave.find(session.image)
    assert saved.description.startswith('2 objects and 2 prompts on "Cells", saved on ')
    restored = autosave.restore(session, saved)
    assert (restored.objects, restored.prompts, restored.damaged) == (2, 2, 0)
    assert np.array_equal(session.objects.data, before.objects.data)
    assert session.controller.prompts_of(session.image.unique_id) == PROMPTS
    pd.testing.assert_frame_equal(session.objects.features, before.objects.features, check_dtype=False)


def test_objects_of_the_new_session_stay_what_they_are_when_older_ones_come_back(crash, start, stack):
    before = crash(work_a_little)
    session, autosave = Session(stack), start()
    session.commit(1, (slice(2, 3), slice(0, 20), slice(0, 30)), score=0.1)
    own = session.objects.data == 1
    autosave.restore(session, autosave.find(session.image))
    labels = session.objects.data
    assert ((labels == 1) == own).all()
    assert np.unique(labels).tolist() == [0, 1, 2, 3]
    for label in (1, 2):
        assert ((labels == label + 1) == ((before.objects.data == label) & ~own)).all()


def test_the_view_and_the_polarity_come_back(crash, start, stack):
    def look_elsewhere(session):
        session.viewer.dims.set_point(0, 3)
        session.controller.polarity = Polarity.NEGATIVE
        session.prompt(PROMPTS)

    crash(look_elsewhere)
    session, autosave = Session(stack), start()
    autosave.restore(session, autosave.find(session.image))
    assert session.viewer.dims.point[0] == 3
    assert session.controller.polarity is Polarity.NEGATIVE


def test_undone_objects_do_not_come_back(crash, start, stack):
    def undo_one(session):
        work_a_little(session)
        session.history.undo()

    before = crash(undo_one)
    session, autosave = Session(stack), start()
    autosave.restore(session, autosave.find(session.image))
    assert np.unique(session.objects.data).tolist() == [0, 1]
    assert np.array_equal(session.objects.data, before.objects.data)


def test_strokes_of_the_users_own_brush_are_saved(crash, start, stack):
    def paint(session):
        session.ensure_objects()
        session.commit(1, (slice(0, 1), slice(0, 5), slice(0, 5)))
        session.objects.selected_label = 7
        session.objects.paint((0, 50, 60), 7)

    before = crash(paint)
    assert (before.objects.data == 7).any()
    session, autosave = Session(stack), start()
    autosave.restore(session, autosave.find(session.image))
    assert np.array_equal(session.objects.data, before.objects.data)


def test_the_work_on_another_image_is_not_offered(crash, start, stack):
    crash(work_a_little)
    for other in (Session(stack[:, ::-1].copy()), Session(stack[:3]), Session(stack, name='Others')):
        assert start().find(other.image) is None


def test_images_are_saved_side_by_side(start, stack):
    session, autosave = Session(stack), start()
    autosave.watch(session)
    first = session.image
    session.commit(1, (slice(0, 1), slice(0, 5), slice(0, 5)))
    second = session.viewer.add_image(stack[::-1].copy(), name='Others')
    session.choose(second)
    session.commit(5, (slice(0, 1), slice(9, 14), slice(9, 14)))
    autosave.close()
    kept = {image.name: start().find(image).features['index'].tolist() for image in (first, second)}
    assert kept == {'Cells': [1], 'Others': [5]}


def test_the_work_of_a_session_that_still_lives_is_not_offered_to_another(start, stack):
    session, autosave = Session(stack), start()
    autosave.watch(session)
    work_a_little(session)
    assert wait_until_saved(autosave)
    assert start().find(session.image) is None
    autosave.close()
    assert start().find(session.image) is not None


def test_restored_work_is_kept_until_the_new_session_is_closed(crash, start, stack):
    crash(work_a_little)
    session, autosave = Session(stack), start()
    saved = autosave.find(session.image)
    autosave.watch(session)
    autosave.restore(session, saved)
    assert wait_until_saved(autosave)
    assert saved.folder.exists()
    assert autosave.find(session.image) is None
    autosave.close()
    assert not saved.folder.exists()
    assert start().find(session.image).description.startswith('2 objects and 2 prompts')


def test_what_was_erased_since_from_objects_in_view_does_not_come_back_with_the_prompts(start, stack):
    session, autosave = Session(stack), start()
    autosave.watch(session)
    work_a_little(session)
    autosave.close()
    session.objects.data[:, :25] = 0
    left = session.objects.data.copy()
    session.prompt(Prompts())
    autosave = start()
    restored = autosave.restore(session, autosave.find(session.image))
    assert (restored.objects, restored.prompts) == (0, 2)
    assert np.array_equal(session.objects.data, left)
    assert session.controller.prompts_of(session.image.unique_id) == PROMPTS


def test_saved_work_that_another_session_removes_while_it_is_listed_is_not_found(crash, start, stack, monkeypatch):
    crash(work_a_little)
    session, autosave = Session(stack), start()

    def scandir_of_removed(folder):
        monkeypatch.undo()
        shutil.rmtree(folder)
        return os.scandir(folder)

    monkeypatch.setattr(os, 'scandir', scandir_of_removed)
    assert autosave.find(session.image) is None


@pytest.mark.parametrize('is_exported', [False, True])
def test_an_image_that_has_left_the_viewer_is_given_up_once_it_is_saved(start, stack, tmp_path, is_exported):
    session, autosave, other = Session(stack), start(), start()
    autosave.watch(session)
    first = session.image
    session.commit(1, (slice(0, 1), slice(0, 5), slice(0, 5)))
    if is_exported:
        autosave.exported(session)
    session.choose(session.viewer.add_image(stack[::-1].copy(), name='Others'))
    assert wait_until_saved(autosave)
    assert other.find(first) is None
    session.viewer.layers.remove(first)
    assert wait_until(lambda: len(autosave._records) == 1)
    if is_exported:
        assert wait_until(lambda: not glob(f'{tmp_path}/autosave/**/work.json', recursive=True))  # noqa: PTH207 - removed meanwhile
    else:
        assert wait_until(lambda: other.find(first) is not None)
        session.choose(session.viewer.add_layer(first))  # as it is now, without its objects
        assert wait_until_saved(autosave)
        assert autosave.find(first).description.startswith('1 object')


def test_work_outlives_that_its_image_is_closed_and_opened_again_at_once(start, session, viewer, stack):
    autosave = start(delay_s=1000)
    session.set_image(viewer.add_image(stack, name='Cells'))
    autosave.watch(session)
    session.write_objects('write', [ObjectWrite((slice(0, 1),) * 3, np.ones((1, 1, 1), bool), 4)])
    viewer.layers.clear()
    session.set_image(viewer.add_image(stack, name='Cells'))
    autosave.close()
    assert start().find(session.image).description.startswith('1 object')


def test_work_with_channels_comes_back_with_their_choice(start, viewer, make_controller, stack):
    sessions = [ViewerSession(viewer, make_controller()) for _ in range(2)]
    for session, autosave in zip(sessions, (start(), start()), strict=True):
        session.set_image(viewer.add_image(stack, name='Cells'))
        autosave.watch(session)
        if session is sessions[0]:
            session.set_channels(Channels(0, (2, 1)))
            session.write_objects('write', [ObjectWrite((slice(0, 1),) * 3, np.ones((1, 1, 1), bool), 4)])
            autosave.close()
            session.close()
            viewer.layers.clear()
    assert session.objects is None
    autosave.restore(session, autosave.find(session.image))
    assert session.channels == Channels(0, (2, 1))
    assert np.argwhere(session.objects.data).tolist() == [[0, 0, 0]]
    session.history.undo()
    session.history.undo()
    assert session.channels is None
    session.close()


def test_work_that_is_not_wanted_back_is_gone(crash, start, stack):
    crash(work_a_little)
    session, autosave = Session(stack), start()
    autosave.discard(autosave.find(session.image))
    assert autosave.find(session.image) is None


def remove_objects(session):
    session.viewer.layers.remove(session.objects)
    del session._objects[session.image]


@pytest.mark.parametrize(
    ('then', 'is_kept'),
    [
        (lambda session: None, False),
        (lambda session: session.commit(3, (slice(0, 1), slice(0, 5), slice(0, 5))), True),
        (lambda session: session.prompt(PROMPTS), True),
        (lambda session: session.viewer.dims.set_current_step(0, 3), False),
        (lambda session: (session.prompt(PROMPTS), session.prompt(Prompts())), False),
        (lambda session: session.objects.paint((0, 3, 3), 7), True),
        (lambda session: (session.objects.data.fill(5), session.objects.refresh()), True),
        (lambda session: (remove_objects(session), session.commit(1, (slice(0, 1), slice(0, 5), slice(0, 5)))), True),
    ],
    ids=['unchanged', 'object', 'prompts', 'slider', 'prompts taken back', 'brush', 'script', 'new layer'],
)
def test_exported_objects_are_dropped_on_closing_unless_work_went_on(start, stack, then, is_kept):
    session, autosave = Session(stack), start()
    autosave.watch(session)
    session.commit(1, (slice(1, 2), slice(10, 40), slice(20, 70)))
    autosave.exported(session)
    then(session)
    autosave.close()
    assert (start().find(session.image) is not None) == is_kept


def test_what_a_script_writes_into_a_new_layer_is_saved(start, viewer, session, stack):
    session.set_image(viewer.add_image(stack))
    autosave = start()
    autosave.watch(session)
    objects = session.ensure_objects()
    objects.data[1, :9, :9] = 4
    objects.refresh()
    autosave.close()
    assert start().find(session.image).labels()[0].sum() == 4 * 81


def written(label, top):
    return ObjectWrite((slice(0, 1), slice(top, top + 5), slice(0, 5)), np.ones((1, 5, 5), bool), label)


@pytest.fixture
def of_another_image(start, viewer, session, stack):
    """Objects, exported, of an image that another one is chosen after; with their image and the autosave."""
    autosave = start()
    image, other = (viewer.add_image(pixels, name='Cells') for pixels in (stack, stack[::-1].copy() // 2))
    session.set_image(image)
    autosave.watch(session)
    objects = session.ensure_objects()
    for label in (1, 2):
        session.write_objects('write', [written(label, 10 * label)])
    autosave.exported(session)
    session.set_image(other)
    return objects, image, autosave


@pytest.mark.parametrize('is_visible', [True, False])
@pytest.mark.parametrize(
    'act',
    [
        lambda session, objects: session.write_objects('write', [written(3, 40)], objects),
        lambda session, objects: session.write_objects('erase', [written(0, 10)], objects),
        lambda session, objects: objects.data_setitem((np.array([0]), np.array([50]), np.array([60])), 7),
        lambda session, objects: session.controller.undo(),
    ],
    ids=['object', 'erased object', 'brush', 'undo'],
)
def test_what_is_done_to_the_objects_of_another_image_is_saved(of_another_image, session, start, act, is_visible):
    objects, image, autosave = of_another_image
    objects.visible = is_visible
    before = objects.data.copy()
    act(session, objects)
    assert not np.array_equal(objects.data, before)
    autosave.close()
    assert np.array_equal(start().find(image).labels()[0], objects.data)


def test_exported_objects_of_another_image_are_dropped_while_the_chosen_one_is_worked_on(
    of_another_image, session, start
):
    _objects, image, autosave = of_another_image
    session.ensure_objects()
    session.write_objects('write', [written(1, 10)])
    autosave.close()
    assert start().find(image) is None
    assert start().find(session.image).description.startswith('1 object')


def test_an_image_that_looks_like_one_in_view_has_a_record_of_its_own(start, viewer, session, stack):
    autosave = start()
    autosave.watch(session)
    for label in (1, 5):
        session.set_image(viewer.add_image(stack, name='Cells'))
        session.write_objects('write', [written(label, 10)])
        session.image.name = 'My cells'
    autosave.close()
    later, image, found = start(), Session(stack).image, []
    while (saved := later.find(image)) is not None:
        found.append(saved.features['index'].tolist())
        later.discard(saved)
    assert sorted(found) == [[1], [5]]


def test_a_copy_of_a_layer_of_objects_does_not_take_its_place(start, viewer, session, stack):
    session.set_image(viewer.add_image(stack, name='Cells'))
    autosave = start()
    autosave.watch(session)
    session.write_objects('write', [written(1, 10)])
    copy = viewer.add_labels(session.objects.data.copy(), metadata=dict(session.objects.metadata))
    copy.data_setitem(np.nonzero(copy.data), 0)
    autosave.close()
    assert start().find(session.image).features['index'].tolist() == [1]


def test_an_undone_stroke_of_the_eraser_in_a_hidden_layer_is_saved(start, viewer, session, stack):
    session.set_image(viewer.add_image(stack))
    autosave = start()
    autosave.watch(session)
    objects = session.ensure_objects()
    objects.data_setitem(np.nonzero(np.ones((1, 9, 9))), 5)
    objects.data_setitem(np.nonzero(np.ones((1, 4, 4))), 0)
    autosave.exported(session)
    objects.visible = False
    session.controller.undo()
    autosave.close()
    assert (start().find(session.image).labels()[0] == 5).sum() == 81


@pytest.mark.parametrize('is_filled', [True, False])
def test_objects_in_an_array_on_disk_are_saved(start, viewer, session, stack, is_filled):
    session.set_image(viewer.add_image(stack))
    autosave = start(on_problem=pytest.fail)
    autosave.watch(session)
    objects = session.ensure_objects()
    objects.data = zarr.array(np.zeros(stack.shape, np.uint32))
    session.write_objects('write', [written(3 * is_filled, 10)])
    assert wait_until_saved(autosave)
    autosave.close()
    saved = start().find(session.image)
    assert np.array_equal(saved.labels()[0], objects.data[:]) if is_filled else saved is None
    assert autosave.is_in_view(session, saved) if is_filled else True


def test_a_step_of_the_slider_alone_saves_nothing(start, stack, monkeypatch):
    session, autosave = Session(stack), start()
    autosave.watch(session)
    work_a_little(session)
    assert wait_until_saved(autosave)
    noted = []
    monkeypatch.setattr(autosave_module, '_current_work', lambda *args: noted.append(args))
    for step in (1, 2, 3):
        session.viewer.dims.set_current_step(0, step)
    assert not noted


def test_prompts_that_were_there_before_an_export_stay_saved(start, stack):
    session, autosave = Session(stack), start()
    autosave.watch(session)
    work_a_little(session)
    autosave.exported(session)
    autosave.close()
    assert start().find(session.image).prompts == PROMPTS


def test_looking_at_an_image_leaves_nothing_behind(start, stack, tmp_path):
    session, autosave = Session(stack), start()
    autosave.watch(session)
    session.prompt(PROMPTS)
    assert wait_until_saved(autosave)
    session.prompt(Prompts())
    assert wait_until_saved(autosave)
    assert start().find(session.image) is None
    autosave.close()
    assert not list((tmp_path / 'autosave').iterdir())


def test_old_work_is_removed_after_some_days(crash, start, stack):
    crash(work_a_little)
    saved = start().find(Session(stack).image)
    weeks_ago = time.time() - 40 * 86_400
    os.utime(saved.folder, (weeks_ago, weeks_ago))
    autosave = start(keep_days=30)
    autosave.watch(Session(stack))
    assert wait_until(lambda: not saved.folder.exists())


def test_only_blocks_that_changed_are_written_and_old_ones_go(start, stack, tmp_path):
    session, autosave = Session(stack), start()
    autosave.watch(session)
    session.commit(1, (slice(0, 1), slice(0, 50), slice(0, 50)))
    wait_until_saved(autosave)
    blocks = {path: path.stat().st_mtime_ns for path in (tmp_path / 'autosave').rglob('*.npz')}
    session.commit(2, (slice(3, 4), slice(0, 50), slice(0, 50)))
    wait_until_saved(autosave)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / 'autosave').rglob('*.npz')}
    assert len(after) == 2
    assert blocks.items() <= after.items()
    session.commit(3, (slice(0, 1), slice(60, 90), slice(0, 50)))
    wait_until_saved(autosave)
    assert len(list((tmp_path / 'autosave').rglob('*.npz'))) == 2


def test_objects_stay_saved_while_other_channels_of_the_image_are_looked_at(start, stack):
    session, autosave = Session(stack), start()
    autosave.watch(session)
    work_a_little(session)
    objects = session._objects.pop(session.image)
    session.image_changed.emit()
    autosave.close()
    saved = start().find(session.image)
    assert np.array_equal(saved.labels()[0], objects.data)


def test_a_damaged_block_costs_its_objects_only_and_is_told(crash, start, stack):
    crash(work_a_little)
    session, autosave = Session(stack), start()
    saved = autosave.find(session.image)
    first = sorted(saved._blocks)[0]
    (saved.folder / 'blocks' / first[1]).write_bytes(b'PK')
    restored = autosave.restore(session, saved)
    assert (restored.objects, restored.damaged) == (1, 1)
    assert np.unique(session.objects.data).tolist() == [0, 2]


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ('', 'not a JSON file'),
        ('{', 'not a JSON file'),
        ('[]', 'is damaged'),
        ('{"format": 1}', 'is damaged'),
        ('{"format": 99}', 'newer version .* update the plugin'),
    ],
)
def test_a_record_that_cannot_be_read_is_told_once_and_never_removed(crash, start, stack, content, words):
    crash(work_a_little)
    told = []
    session, autosave = Session(stack), start(on_problem=told.append, keep_days=0)
    folder = autosave.find(session.image).folder
    (folder / 'work.json').write_text(content)
    assert autosave.find(session.image) is autosave.find(session.image) is None
    autosave.watch(session)
    autosave.close()
    assert (folder / 'work.json').read_text() == content
    assert len(list((folder / 'blocks').iterdir())) == 3
    assert len(told) == 1
    assert re.match(f'{re.escape(str(folder))}.*{words}', told[0])


def test_objects_of_another_shape_are_refused_and_kept(crash, start, stack):
    crash(work_a_little)
    session, autosave = Session(stack), start()
    saved = autosave.find(session.image)
    other = Session(stack[:2])
    with pytest.raises(StoreError, match=r'shape \(4, 200, 300\)'):
        autosave.restore(other, saved)
    assert autosave.find(session.image) is not None


def test_a_place_that_cannot_be_written_is_told_once_and_does_not_stop_the_work(tmp_path, stack):
    (tmp_path / 'file').write_text('not a folder')
    said = []
    autosave = Autosave(tmp_path / 'file', delay_s=0.01, on_problem=said.append)
    session = Session(stack)
    autosave.watch(session)
    for label in (1, 2):
        session.commit(label, (slice(0, 1), slice(0, 5), slice(0, 5)))
        assert wait_until(lambda: autosave._records[0].failed)
    assert len(said) == 1
    assert 'file' in said[0]
    autosave.close()


def test_noting_fifty_actions_takes_the_users_thread_less_time_than_packing_ten_objects(start):
    """In processor time of this thread, which other programs and the saving thread do not lengthen."""
    session, autosave = Session(np.zeros((40, 512, 512), np.uint8)), start()
    autosave.watch(session)
    session.commit(1, (slice(0, 1), slice(0, 500), slice(0, 500)))
    voxels = np.random.default_rng(0).bytes(250_000)  # as many as the object has
    started_s = time.thread_time()
    for _ in range(10):
        zlib.compress(voxels)
    packed_s = time.thread_time() - started_s
    for _ in range(50):
        session.controller.prompts_changed.emit()
    assert time.thread_time() - started_s - packed_s < packed_s


def as_saved(prompts):
    return Work(
        image_name='Cells',
        prompts=prompts,
        polarity=Polarity.POSITIVE,
        position=(0, 0, 0),
        labels=None,
        features=pd.DataFrame(),
    )


def test_prompts_of_every_kind_come_back_from_a_file(tmp_path):
    outline = ShapePrompt(ShapeKind.OUTLINE, ((0.0, 1.5), (2.0, 3.0)), Polarity.NEGATIVE, 3)
    pending = PendingObject(2, (1, 2), (np.int64(3), 0, 0), (10, 20, 19, 27), 'a1', np.float32(0.5), 0.9)
    prompts = replace(PROMPTS, shapes=(outline,), object_id=3, pending=(pending,))
    write_work(tmp_path, as_saved(prompts), [])
    saved = read_work(tmp_path)
    assert (saved.prompts, saved.lost_prompts) == (prompts, 0)
    assert count_prompts(prompts) == 3


@pytest.mark.parametrize('unknown', [{'command': 'x'}, {'position': [1, 2], 'polarity': 'ODD'}, {}, 'x'])
def test_a_prompt_that_cannot_be_read_is_left_out_and_told(tmp_path, unknown):
    write_work(tmp_path, as_saved(PROMPTS), [])
    content = json.loads((tmp_path / 'work.json').read_text())
    content['prompts']['points'].append(unknown)
    (tmp_path / 'work.json').write_text(json.dumps(content))
    saved = read_work(tmp_path)
    assert (saved.prompts, saved.lost_prompts) == (PROMPTS, 1)


def test_an_image_is_known_again_whatever_its_layer_was_renamed_to_meanwhile(start, stack):
    session, autosave = Session(stack), start()
    autosave.watch(session)
    session.image.name = 'My cells'
    work_a_little(session)
    autosave.close()
    assert start().find(Session(stack).image) is not None


def test_the_identity_does_not_depend_on_how_an_array_lies_in_memory(stack):
    as_columns = Session(np.asfortranarray(stack))
    assert image_identity(as_columns.image) == image_identity(Session(stack).image)


def test_a_lazy_image_is_not_read_for_its_identity():
    class Lazy:
        shape, dtype, ndim = (5, 100, 100), np.dtype(np.uint8), 3

    image = SimpleNamespace(
        data=Lazy(), multiscale=False, name='x', source=SimpleNamespace(path='/a.zarr', sample=None)
    )
    assert image_identity(image) == image_identity(image)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == 'win32', reason='has no SIGKILL')
def test_whatever_was_saved_is_there_after_twenty_kills(tmp_path):
    command = [sys.executable, str(Path(__file__).with_name('killing.py')), str(tmp_path), '20']
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    figures = json.loads(ended.stdout)
    assert figures['kills'] == 20
    assert figures['finished'] > 20
    assert figures['records'] == 1  # it holds all that the records before it held
