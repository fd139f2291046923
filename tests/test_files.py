"""Files are whole or absent, whatever interrupts the writing."""

from __future__ import annotations

import codecs
import errno
import json
import os
import stat
import time
from functools import partial
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from unsam_mm import files
from unsam_mm.errors import StoreError, TargetError, one_line
from unsam_mm.files import (
    atomic_writer,
    check_result_file,
    fitting_name,
    is_fitted,
    read_json,
    readable_folder,
    remove_leftovers,
    replace_folder,
    restore_folder,
    write_json,
)


def _raise(error, *arguments, **named):
    raise error


def test_what_is_written_is_read(tmp_path):
    write_json(tmp_path / 'deep' / 'a.json', {'é': [1, 2]})
    assert read_json(tmp_path / 'deep' / 'a.json') == {'é': [1, 2]}


def test_an_error_while_writing_keeps_the_old_file(tmp_path):
    write_json(tmp_path / 'a.json', 'old')
    with pytest.raises(TypeError):
        write_json(tmp_path / 'a.json', object())
    assert [path.name for path in tmp_path.iterdir()] == ['a.json']
    assert json.loads((tmp_path / 'a.json').read_text()) == 'old'


def test_others_may_read_the_file(tmp_path):
    write_json(tmp_path / 'a.json', 1)
    (tmp_path / 'plain').touch()
    assert (tmp_path / 'a.json').stat().st_mode == (tmp_path / 'plain').stat().st_mode


@pytest.mark.parametrize('binary', [False, True])
def test_a_full_disk_is_explained(binary):
    """/dev/full takes nothing, whoever writes; numpy would like to write to the file behind Python's back."""
    with pytest.raises(StoreError, match='/dev/full: the disk is full'), atomic_writer('/dev/full', binary) as file:
        np.save(file, np.zeros(100_000)) if binary else file.write('a' * 100_000)


@pytest.mark.parametrize(
    ('code', 'message'),
    [(errno.ENOSPC, 'disk is full'), (errno.EROFS, 'cannot be written'), (errno.EIO, 'cannot be written')],
)
def test_a_disk_that_fails_at_last_keeps_the_old_file(tmp_path, monkeypatch, code, message):
    write_json(tmp_path / 'a.json', 'old')
    monkeypatch.setattr(files.os, 'fsync', partial(_raise, OSError(code, 'reason')))
    with pytest.raises(StoreError, match=rf'a\.json.*{message}'):
        write_json(tmp_path / 'a.json', 'new')
    assert [path.name for path in tmp_path.iterdir()] == ['a.json']
    assert read_json(tmp_path / 'a.json') == 'old'


def test_errors_of_other_files_are_not_blamed_on_the_one_that_is_written(tmp_path):
    with pytest.raises(FileNotFoundError, match='other'), atomic_writer(tmp_path / 'a.json'):
        (tmp_path / 'other').read_text()
    with pytest.raises(ConnectionResetError), atomic_writer(tmp_path / 'a.json'):
        raise ConnectionResetError(errno.ECONNRESET, 'reset by peer')
    assert not list(tmp_path.iterdir())


def test_the_process_s_mask_is_never_changed(tmp_path, monkeypatch):
    """It belongs to all threads: a file that another one makes in between would be open to everybody."""
    monkeypatch.setattr(os, 'umask', partial(_raise, AssertionError('umask')))
    write_json(tmp_path / 'a.json', 1)


def test_a_link_leads_to_the_new_file_too(tmp_path):
    write_json(tmp_path / 'there' / 'a.json', 'old')
    (tmp_path / 'link.json').symlink_to(tmp_path / 'there' / 'a.json')
    write_json(tmp_path / 'link.json', 'new')
    assert (tmp_path / 'link.json').is_symlink()
    assert read_json(tmp_path / 'there' / 'a.json') == 'new'


def test_a_device_is_written_to_and_not_replaced():
    write_json('/dev/null', 1)
    assert stat.S_ISCHR(Path('/dev/null').stat().st_mode)


def test_a_pipe_behind_a_link_is_written_to(tmp_path):
    link, (reading, writing) = tmp_path / 'out.json', os.pipe()
    link.symlink_to(f'/dev/fd/{writing}')
    write_json(link, [1, 2])
    os.close(writing)
    with os.fdopen(reading, 'rb') as pipe:
        assert json.load(pipe) == [1, 2]
    assert list(tmp_path.iterdir()) == [link]


def test_a_folder_in_the_place_of_a_file_is_explained_before_anything_is_computed(tmp_path):
    (tmp_path / 'a.json').mkdir()
    with pytest.raises(TargetError, match='a.json: is a folder'), atomic_writer(tmp_path / 'a.json'):
        pytest.fail('the block began')


def test_a_file_in_the_place_of_a_folder_is_explained(tmp_path):
    (tmp_path / 'out').touch()
    with pytest.raises(StoreError, match='a file is where a folder is needed'):
        write_json(tmp_path / 'out' / 'a.json', 1)


def test_leftovers_of_killed_processes_are_removed_but_not_those_of_living_ones(tmp_path):
    for name, age_s in (('.unsam-old.part', 7200), ('.unsam-new.part', 1), ('.unsam-notes', 7200)):
        (tmp_path / 'sub' / name).parent.mkdir(exist_ok=True)
        (tmp_path / 'sub' / name).touch()
        (tmp_path / f'{name}.part' if age_s < 7200 else tmp_path / name).mkdir()
    for path in (tmp_path / 'sub' / '.unsam-old.part', tmp_path / '.unsam-old.part', tmp_path / 'sub' / '.unsam-notes'):
        os.utime(path, (time.time() - 7200,) * 2)
    write_json(tmp_path / 'sub' / 'a.json', 1)
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in (tmp_path / 'sub').iterdir()) == ['.unsam-new.part', '.unsam-notes', 'a.json']
    assert sorted(path.name for path in tmp_path.iterdir()) == ['.unsam-new.part.part', '.unsam-notes', 'sub']


def test_leftovers_that_another_user_owns_stay(tmp_path, monkeypatch):
    for path in (tmp_path / '.unsam-file.part', tmp_path / '.unsam-folder.part'):
        path.mkdir() if 'folder' in path.name else path.touch()
        os.utime(path, (0, 0))
    monkeypatch.setattr(Path, 'unlink', partial(_raise, PermissionError(errno.EPERM, 'reason')))
    monkeypatch.setattr(files.shutil, 'rmtree', partial(_raise, PermissionError(errno.EPERM, 'reason')))
    remove_leftovers(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_another_process_removes_while_it_is_empty_is_made_again(tmp_path, monkeypatch):
    path, create = tmp_path / 'quarantine' / 'a.json', os.open

    def removed(name, *arguments):
        monkeypatch.setattr(files.os, 'open', create)
        path.parent.rmdir()
        return create(name, *arguments)

    monkeypatch.setattr(files.os, 'open', removed)
    write_json(path, 1)
    assert read_json(path) == 1


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(StoreError, match='a.json: no such file'):
        read_json(tmp_path / 'a.json')


@pytest.mark.parametrize(
    'start',
    [b'', codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE],
    ids=['UTF-8', 'UTF-8 of Notepad', 'Unicode of Notepad', 'UTF-16 BE', 'UTF-32'],
)
def test_json_is_read_as_editors_save_it(tmp_path, start):
    encoding = {codecs.BOM_UTF16_LE: 'utf-16-le', codecs.BOM_UTF16_BE: 'utf-16-be', codecs.BOM_UTF32_LE: 'utf-32-le'}
    text = '{"name": "Zelle ä", "name": "細胞", "score": NaN}'
    (tmp_path / 'a.json').write_bytes(start + text.encode(encoding.get(start, 'utf-8')))
    found = read_json(tmp_path / 'a.json')
    assert found['name'] == '細胞'
    assert np.isnan(found['score'])


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        pytest.param(b'', 'cut short', id='empty'),
        pytest.param(b'{"a": ', 'cut short', id='cut'),
        pytest.param('{"ä": 1}'.encode('cp1252'), 'save it as UTF-8', id='cp1252'),
        pytest.param(b'\x80\x04\x95', 'save it as UTF-8', id='pickle'),
        pytest.param(b'[' * 200_000, 'nested too deeply', id='deep'),
        pytest.param(b'9' * 9_000, 'not a JSON file', id='long number'),
    ],
)
def test_what_is_no_json_is_named_in_one_line(tmp_path, content, message):
    (tmp_path / 'a.json').write_bytes(content)
    with pytest.raises(StoreError, match=rf'a\.json: .*{message}') as caught:
        read_json(tmp_path / 'a.json')
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    'name',
    [
        pytest.param('a.png', id='short'),
        pytest.param('b/' + 'x' * 250, id='just fits'),
        pytest.param('b/' + 'x' * 251, id='one too many'),
        pytest.param('ä' * 127, id='two bytes a letter'),
        pytest.param('細' * 83 + '.png', id='three bytes a letter'),
        pytest.param('\udcfc' * 255, id='not UTF-8'),
    ],
)
def test_every_name_that_a_disk_takes_can_have_a_suffix(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    fitted = fitting_name(name, '.json')
    (tmp_path / fitted).touch()
    assert is_fitted(fitted) == (fitted != f'{name}.json') == (len(os.fsencode(Path(name).name)) > 250)
    assert (Path(fitted).parent, Path(fitted).suffix) == (Path(name).parent, '.json')


def test_names_that_differ_in_their_last_letter_stay_apart():
    names = ['x' * 250 + end for end in ('a.png', 'b.png')]
    assert len({fitting_name(name, '.json') for name in names}) == 2


def test_results_never_replace_what_is_read_or_what_is_no_json(tmp_path):
    write_json(tmp_path / 'truth.json', {})
    (tmp_path / 'photo.jpg').write_bytes(b'\xff\xd8\xff\xe0')
    check_result_file(tmp_path / 'new.json', tmp_path / 'truth.json', None)
    check_result_file(tmp_path / 'truth.json')
    with pytest.raises(StoreError, match='would overwrite an input'):
        check_result_file(tmp_path / 'sub' / '..' / 'truth.json', tmp_path / 'truth.json')
    with pytest.raises(StoreError, match='photo.jpg: exists and is not a JSON file'):
        check_result_file(tmp_path / 'photo.jpg')


@pytest.mark.parametrize('name', ['sub/a.json', 'sub/new.json', 'link.json', 'sub/../sub/a.json', 'photo.jpg'])
def test_results_never_come_between_files_of_a_folder_that_is_read(tmp_path, name):
    folder = tmp_path / 'labels'
    write_json(folder / 'sub' / 'a.json', {})
    write_json(tmp_path / 'elsewhere.json', {})
    (folder / 'link.json').symlink_to(tmp_path / 'elsewhere.json')
    (folder / 'photo.jpg').write_bytes(b'\xff\xd8\xff\xe0')
    with pytest.raises(StoreError, match='lies in .*labels, whose files are read'):
        check_result_file(folder / name, folders=[None, folder], starts=(b'\xff\xd8', b'{'))
    check_result_file(folder / 'new.jpg', folders=[folder])
    check_result_file(tmp_path / 'elsewhere.json', folders=[folder])


def test_a_link_to_itself_is_no_input_and_no_result(tmp_path):
    (tmp_path / 'loop.json').symlink_to('loop.json')
    check_result_file(tmp_path / 'loop.json', tmp_path / 'truth.json', folders=[tmp_path / 'images'])
    with pytest.raises(StoreError, match='loop.json: would overwrite an input'):
        check_result_file(tmp_path / 'loop.json', tmp_path / 'loop.json')


class TestReplaceFolder:
    @pytest.fixture
    def folders(self, tmp_path: Path) -> tuple[Path, Path]:
        """A new folder, and an old one whose name it shall have."""
        for name in ('new', 'kept'):
            (tmp_path / name).mkdir()
            (tmp_path / name / 'what').write_text(name)
        return tmp_path / 'new', tmp_path / 'kept'

    def test_leaves_the_new_one_alone(self, folders, tmp_path):
        replace_folder(*folders)
        assert [path.name for path in tmp_path.iterdir()] == ['kept']
        assert (folders[1] / 'what').read_text() == 'new'

    @pytest.mark.parametrize('step', range(3))
    def test_brings_the_old_one_back_where_a_folder_cannot_be_renamed(self, folders, monkeypatch, step):
        new, kept = folders
        steps, rename = [], Path.rename

        def refused(*arguments):
            steps.append(arguments)
            if len(steps) == step + 1:
                raise PermissionError(errno.EACCES, 'open elsewhere')
            return rename(*arguments)

        monkeypatch.setattr(Path, 'rename', refused)
        with pytest.raises(PermissionError):
            replace_folder(new, kept)
        assert (kept / 'what').read_text() == 'kept'
        assert {path.name for path in kept.parent.iterdir()} <= {'new', 'kept'}

    @pytest.mark.parametrize('step', range(3))
    def test_waits_for_another_that_is_at_work_on_the_same_name(self, folders, tmp_path, monkeypatch, step):
        """What the other one has put beside is not what a killed one has left."""
        new, kept = folders
        (tmp_path / 'second').mkdir()
        (tmp_path / 'second' / 'what').write_text('second')
        second, steps, rename = Thread(target=replace_folder, args=(tmp_path / 'second', kept)), [], Path.rename

        def interrupted(*arguments):
            if len(steps) == step:
                second.start()
                second.join(0.3)  # in which it has time to do harm
            steps.append(arguments)
            return rename(*arguments)

        monkeypatch.setattr(Path, 'rename', interrupted)
        replace_folder(new, kept)
        second.join()
        assert (kept / 'what').read_text() == 'second'
        assert [path.name for path in tmp_path.iterdir()] == ['kept']

    @pytest.mark.parametrize('step', range(4))
    def test_killed_at_any_step_loses_nothing(self, folders, monkeypatch, step):
        """The steps are: the new one beside, the old one aside, the new one in place, the old one removed."""
        new, kept = folders
        steps, rename = [], Path.rename

        def killed(*arguments):
            steps.append(arguments)
            if len(steps) > step:
                raise SystemExit  # nothing more is done, as little as after a kill
            return rename(*arguments) if len(arguments) > 1 else None

        with monkeypatch.context() as patch:
            patch.setattr(Path, 'rename', killed)
            patch.setattr(files.shutil, 'rmtree', lambda path, ignore_errors: path.exists() and killed(path))
            with pytest.raises(SystemExit):
                replace_folder(new, kept)
        expected = 'new' if step == 3 else 'kept'
        assert (readable_folder(kept) / 'what').read_text() == expected
        restore_folder(kept)
        assert (kept / 'what').read_text() == expected
        assert {path.name for path in kept.parent.iterdir()} <= {'new', 'kept'}


def test_messages_about_names_with_line_breaks_have_one_line():
    assert one_line('a\nb\u2028\x1b[31m.png: 細胞 é\u00a0ok') == r'a\nb\u2028\x1b[31m.png: 細胞 é' + '\u00a0ok'
