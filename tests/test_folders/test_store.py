"""A folder of pseudo-masks: whole files or none, and a clear word about everything that is wrong."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import forbid_reading
from unsam_mm import MaskSet
from unsam_mm.errors import StoreError, TargetError
from unsam_mm.fingerprints import image_stamp
from unsam_mm.folders import store as store_module
from unsam_mm.folders.store import PseudoMaskStore


@pytest.fixture
def masks():
    bitmaps = np.zeros((2, 6, 9), bool)
    bitmaps[0, 1:5, 2:8], bitmaps[1, 2:4, 3:5] = True, True
    return MaskSet.from_bitmaps(bitmaps, scores=np.array([0.9, 0.25]))


@pytest.fixture
def store(tmp_path):
    return PseudoMaskStore(tmp_path / 'masks')


def test_masks_come_back_as_they_were(store, masks):
    store.write('cats/1.jpg', masks)
    read = store.read('cats/1.jpg')
    assert (read.to_bitmaps() == masks.to_bitmaps()).all()
    for name in ('scores', 'granularity', 'parents', 'areas', 'boxes_xyxy'):
        assert getattr(read, name) == pytest.approx(getattr(masks, name), abs=1e-6)
    assert read.size_hw == masks.size_hw


def test_the_granularity_follows_from_the_area_whatever_an_older_file_says(store, masks):
    store.write('1.jpg', masks)
    content = json.loads(store.path_of('1.jpg').read_text())
    for annotation in content['annotations']:
        annotation['granularity'] = 0.123
    store.path_of('1.jpg').write_text(json.dumps(content))
    assert store.read('1.jpg').granularity.tolist() == masks.granularity.tolist()


def test_files_have_the_form_of_sa1b(store, masks):
    store.write('1.jpg', masks)
    content = json.loads(store.path_of('1.jpg').read_text())
    assert content['image'] == {'file_name': '1.jpg', 'height': 6, 'width': 9}
    assert {'id', 'segmentation', 'bbox', 'area', 'predicted_iou'} <= content['annotations'][0].keys()


def test_boxes_and_areas_are_written_as_those_of_the_run_lengths(store, masks):
    """Detectors give boxes of their own; what is written has to be readable."""
    store.write('1.jpg', replace(masks, boxes_xyxy=masks.boxes_xyxy + 0.3, areas=masks.areas + 1))
    assert store.read('1.jpg').boxes_xyxy.tolist() == masks.boxes_xyxy.tolist()


def test_masks_that_could_not_be_read_back_are_not_written(store, masks):
    with pytest.raises(
        StoreError, match=r'1\.jpg\.json: cannot be written: mask 0: the mask is 6 x 9 px, the image 9 x 6'
    ):
        store.write('1.jpg', replace(masks, size_hw=(9, 6)))
    assert not store.path_of('1.jpg').exists()


def test_an_image_without_masks_is_finished_too(store):
    store.write('blank.jpg', MaskSet.from_bitmaps(np.zeros((0, 6, 9), bool)))
    assert store.has('blank.jpg')
    assert len(store.read('blank.jpg')) == 0


def test_names_are_sorted_and_tell_suffixes_apart(store, masks):
    for name in ('b.png', 'a/x.jpg', 'b.jpg'):
        store.write(name, masks)
    store.describe({'preset': 'default'})
    assert store.names() == ['a/x.jpg', 'b.jpg', 'b.png']


def test_other_files_in_the_folder_are_left_alone(store, masks, tmp_path):
    store.write('a.jpg', masks)
    (store.root / 'notes.json').write_text('[1]')
    assert store.merge(store.root / 'pseudo.json') == (1, 2, {})
    assert store.merge(store.root / 'pseudo.json') == (1, 2, {})
    store.clear()
    assert store.names() == []
    assert (store.root / 'notes.json').exists()


def test_merging_gives_a_coco_file_that_pycocotools_reads(store, masks, tmp_path, capsys):
    from pycocotools.coco import COCO

    store.write('b.jpg', masks)
    store.write('a.jpg', masks)
    assert store.merge(tmp_path / 'all.json') == (2, 4, {})
    coco = COCO(tmp_path / 'all.json')
    assert [image['file_name'] for image in coco.dataset['images']] == ['a.jpg', 'b.jpg']
    inner = coco.anns[4]
    assert coco.anns[inner['parent']]['image_id'] == inner['image_id'] == 2
    assert (coco.annToMask(inner) == masks.to_bitmaps()[1]).all()


@pytest.mark.parametrize('length', [0, 30, -20])
def test_merging_leaves_out_an_image_whose_file_was_cut_short_and_says_so(store, masks, tmp_path, length):
    for name in ('a.jpg', 'b.jpg'):
        store.write(name, masks)
    store.path_of('b.jpg').write_bytes(store.path_of('b.jpg').read_bytes()[:length])
    n_images, n_masks, failed = store.merge(tmp_path / 'all.json')
    assert (n_images, n_masks, list(failed)) == (1, 2, ['b.jpg'])
    assert 'b.jpg.json: not a JSON file' in failed['b.jpg']
    store.path_of('a.jpg').write_bytes(b'')
    with pytest.raises(StoreError, match=r'none of 2 files can be read; the first: .*a\.jpg\.json: not a JSON file'):
        store.merge(tmp_path / 'more.json')
    assert not (tmp_path / 'more.json').exists()


def test_masks_that_may_not_be_read_are_listed_and_left_out_of_a_merge(store, masks, tmp_path, monkeypatch):
    for name in ('a.jpg', 'b.jpg'):
        store.write(name, masks)
    forbid_reading(store.path_of('b.jpg'), monkeypatch)
    assert store.names() == ['a.jpg', 'b.jpg']
    assert store.has('b.jpg')
    n_images, _, failed = store.merge(tmp_path / 'all.json')
    assert (n_images, list(failed)) == (1, ['b.jpg'])
    assert 'b.jpg.json: cannot be read (Permission denied)' in failed['b.jpg']
    with pytest.raises(TargetError, match=r'b\.jpg\.json: cannot be read'):
        store.write('b.jpg', masks)


def test_masks_that_are_damaged_in_their_middle_have_to_be_removed_first(store, masks, tmp_path):
    for name in ('a.jpg', 'b.jpg'):
        store.write(name, masks)
    content = store.path_of('b.jpg').read_bytes()
    store.path_of('b.jpg').write_bytes(content.replace(b'"counts":"', b'"counts":', 1))
    assert store.has('b.jpg')
    _, _, failed = store.merge(tmp_path / 'all.json')
    assert 'make it again; remove it first, since "generate" only checks' in failed['b.jpg']


def test_a_folder_that_goes_away_while_the_names_are_listed_is_passed_over(store, masks, monkeypatch):
    store.write('a.jpg', masks)
    (store.root / 'quarantine').mkdir()
    list_folder = os.scandir

    def scandir(folder):
        if Path(folder).name == 'quarantine':
            Path(folder).rmdir()
        return list_folder(folder)

    monkeypatch.setattr(os, 'scandir', scandir)
    assert store.names() == ['a.jpg']
    assert not (store.root / 'quarantine').exists()


def test_merging_nothing_writes_nothing(store, tmp_path):
    store.root.mkdir()
    with pytest.raises(StoreError, match='contains no pseudo-masks'):
        store.merge(tmp_path / 'all.json')
    assert not (tmp_path / 'all.json').exists()


@pytest.mark.parametrize(
    ('content', 'message'),
    [('{"image": {', 'cut short'), ('[]', 'not a pseudo-mask file'), ('{"image": {}}', 'not a pseudo')],
)
def test_a_broken_file_is_named(store, masks, content, message):
    store.write('1.jpg', masks)
    store.path_of('1.jpg').write_text(content)
    with pytest.raises(StoreError, match=rf'1\.jpg\.json.*{message}'):
        store.read('1.jpg')


@pytest.mark.parametrize('parent', [-2, 99])
def test_a_parent_that_is_no_mask_is_named(store, masks, parent):
    store.write('1.jpg', masks)
    content = json.loads(store.path_of('1.jpg').read_text())
    content['annotations'][0]['parent'] = parent
    store.path_of('1.jpg').write_text(json.dumps(content))
    with pytest.raises(StoreError, match=rf'1\.jpg\.json.*parents must lie in \[-1, 1\], got {parent} at mask 0'):
        store.read('1.jpg')


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        ({'segmentation': {'size': [6, 9], 'counts': 'zzzz'}, 'area': 3}, 'mask 0: counts are not COCO run lengths'),
        ({'segmentation': {'size': [9, 6], 'counts': '54'}}, 'the mask is 9 x 6 px, the image 6 x 9'),
        ({'segmentation': {'size': [6, 9], 'counts': [0, 54]}}, 'mask 0 has 54 px, its "area" is 24'),
        (
            {'segmentation': {'size': [6, 9], 'counts': [0, 24, 30]}},
            r'has the box \[0.0, 0.0, 4.0, 6.0\], its "bbox" is',
        ),
        ({'area': 3}, 'mask 0 has 24 px, its "area" is 3'),
        ({'predicted_iou': float('nan')}, r'scores must lie in \[0, 1\], got nan at mask 0'),
        ({'predicted_iou': 9}, r'scores must lie in \[0, 1\], got 9.0 at mask 0'),
        ({'predicted_iou': '0.5'}, '"predicted_iou" is \'0.5\'; expected a number'),
        ({'parent': 0}, 'parents form a cycle'),
        ({'parent': 0.5}, '"parent" is \'0.5\'; expected a number'),
        ({'parent': 2**63}, 'OverflowError: Python int too large'),
    ],
)
def test_a_mask_that_is_not_what_was_written_is_refused(store, masks, change, reason):
    store.write('1.jpg', masks)
    content = json.loads(store.path_of('1.jpg').read_text())
    content['annotations'][0] |= change
    store.path_of('1.jpg').write_text(json.dumps(content))
    with pytest.raises(StoreError, match=rf'1\.jpg\.json.*{reason}') as caught:
        store.read('1.jpg')
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('size', [{'height': '6 px'}, {'height': 6.5}, {'width': 0}, {'width': None}, {'width': True}])
def test_an_image_without_a_size_is_refused(store, masks, size):
    store.write('1.jpg', masks)
    content = json.loads(store.path_of('1.jpg').read_text())
    content['image'] |= size
    store.path_of('1.jpg').write_text(json.dumps(content))
    with pytest.raises(StoreError, match='1.jpg.json: not a pseudo-mask file'):
        store.read('1.jpg')


def test_masks_of_other_settings_are_not_mixed_in(store):
    store.describe({'preset': 'default', 'max_masks': 10})
    store.describe({'preset': 'default', 'max_masks': 10})
    with pytest.raises(StoreError, match='another max_masks'):
        store.describe({'preset': 'default', 'max_masks': 20})


def test_settings_recorded_under_their_first_names_are_those_of_today(store):
    (store.root).mkdir()
    noted = {
        'leaf_spacing_px': 8.0,
        'max_leaves': 9,
        'ranking': {'company': 0.75},
        'signature': 'x',
        'supervised': False,
    }
    manifest = json.dumps(noted)
    (store.root / 'unsam.json').write_text(manifest)
    today = {'superpixel_spacing_px': 8.0, 'max_superpixels': 9, 'ranking': {'cross_tree_consensus': 0.75}}
    store.describe({**today, 'signature': 'x'})
    assert (store.root / 'unsam.json').read_text() == manifest
    with pytest.raises(StoreError, match='another max_superpixels'):
        store.check({**today, 'max_superpixels': 5, 'signature': 'x'})


def test_a_missing_folder_says_how_to_make_one(store):
    with pytest.raises(StoreError, match='python -m unsam_mm generate'):
        store.names()


FOREIGN = {
    'note': b'{"note": "mine"}',
    'SA-1B': b'{"image": {"image_id": 1, "width": 9, "height": 6, "file_name": "a.jpg"}, "annotations": []}',
    'text': b'annotated by hand',
    'a name that is no JSON': rb'{"image":{"file_name":"\x","height":6,"width":9},"annotations":[]}',
}


class TestFilesOfOthers:
    @pytest.mark.parametrize('content', FOREIGN.values(), ids=FOREIGN)
    def test_are_neither_finished_nor_removed_nor_replaced(self, store, masks, content):
        store.write('b.jpg', masks)
        path = store.path_of('a.jpg')
        path.write_bytes(content)
        assert not store.has('a.jpg')
        assert store.names() == ['b.jpg']
        with pytest.raises(TargetError, match=r'a\.jpg\.json: exists and was not written by unsam_mm'):
            store.write('a.jpg', masks)
        store.clear()
        assert path.read_bytes() == content
        assert not store.path_of('b.jpg').exists()

    def test_are_not_replaced_where_they_cannot_be_read(self, store, masks, monkeypatch):
        path, opened = store.path_of('a.jpg'), os.open
        path.parent.mkdir()
        path.write_text('mine')

        def refused(name, flags, *more):
            if Path(name) == path and not flags & os.O_WRONLY:
                raise PermissionError(errno.EACCES, 'Permission denied')
            return opened(name, flags, *more)

        monkeypatch.setattr(os, 'open', refused)
        monkeypatch.setattr(Path, 'read_bytes', lambda path: refused(path, os.O_RDONLY))
        with pytest.raises(TargetError, match=r'a\.jpg\.json'):
            store.write('a.jpg', masks)
        assert path.read_text() == 'mine'

    def test_are_not_removed_where_they_cannot_be_read(self, store, masks, monkeypatch):
        for name in ('a.jpg', 'b.jpg', 'c.jpg'):
            store.write(name, masks)
        forbid_reading(store.path_of('b.jpg'), monkeypatch)
        with pytest.raises(StoreError, match=r'b\.jpg\.json: cannot be read \(Permission denied\)'):
            store.clear()
        assert store.names() == ['a.jpg', 'b.jpg', 'c.jpg']

    def test_may_be_folders_or_pipes(self, store, masks):
        store.path_of('a.jpg').mkdir(parents=True)
        os.mkfifo(store.path_of('b.jpg'))
        for name in ('a.jpg', 'b.jpg'):
            assert not store.has(name)
            with pytest.raises(TargetError):
                store.write(name, masks)
        assert store.names() == []

    @pytest.mark.parametrize('content', ['[1]', '{"theme": "dark"}', 'notes'])
    def test_may_have_the_name_of_the_note(self, store, masks, content):
        store.write('a.jpg', masks)
        (store.root / 'unsam.json').write_text(content)
        for act in (store.clear, partial(store.describe, {'preset': 'default'})):
            with pytest.raises(StoreError, match=r'unsam\.json'):
                act()
        assert store.has('a.jpg')
        assert (store.root / 'unsam.json').read_text() == content


@pytest.mark.parametrize('options', [{}, {'indent': 2}, {'separators': (',', ':')}])
def test_files_that_another_program_has_reformatted_are_ours(store, masks, options):
    """Those of earlier versions are laid out as those of today."""
    store.write('a.jpg', masks)
    content = json.loads(store.path_of('a.jpg').read_text())
    store.path_of('a.jpg').write_text(json.dumps(content, **options))
    assert store.has('a.jpg')
    assert store.names() == ['a.jpg']


def test_a_file_that_was_cut_short_is_not_finished_and_may_be_written_again(store, masks):
    store.write('a.jpg', masks)
    content = store.path_of('a.jpg').read_bytes()
    for length in (0, 1, 20, 35, 50, 60, len(content) // 2, len(content) - 1):
        store.path_of('a.jpg').write_bytes(content[:length])
        assert not store.has('a.jpg')
        store.write('a.jpg', masks)
        assert store.has('a.jpg')


@pytest.mark.parametrize(
    'name',
    [
        pytest.param('cats/' + 'x' * 251 + '.png', id='255 bytes'),
        pytest.param('x' * 242 + '.png', id='246 bytes'),
        pytest.param('細' * 83 + '.png', id='253 bytes in 87 letters'),
        pytest.param('Pr\udcfcfung.png', id='not UTF-8'),
        pytest.param('\udcfc' * 251 + '.png', id='long and not UTF-8'),
        pytest.param('a\nb\t"c\\d.png', id='line break and quotes'),
        pytest.param('x~0123456789abcdef.png', id='looks like a hash'),
    ],
)
def test_every_name_of_an_image_is_kept(store, masks, name, tmp_path):
    store.write(name, masks)
    assert store.has(name)
    assert store.names() == [name]
    assert len(store.read(name)) == 2
    assert store.merge(tmp_path / 'all.json') == (1, 2, {})
    assert json.loads((tmp_path / 'all.json').read_text())['images'][0]['file_name'] == name
    store.clear()
    assert not store.has(name)


@pytest.mark.parametrize('years', [-10, 10])
def test_masks_of_an_image_that_was_exchanged_are_not_current_whatever_its_time(store, masks, tmp_path, years):
    image = tmp_path / 'a.jpg'
    image.write_bytes(b'first')
    store.write('a.jpg', masks, image_stamp(image))
    shifted = (image.stat().st_mtime + years * 365 * 86400,) * 2
    os.utime(image, shifted)
    assert store.is_current('a.jpg', image)
    image.write_bytes(b'other')
    os.utime(image, shifted)
    assert not store.is_current('a.jpg', image)
    store.write('a.jpg', masks)  # without a stamp, as earlier versions did, the time decides
    assert store.is_current('a.jpg', image) == (years < 0)


def test_names_read_no_more_than_the_ends_of_files(store, masks, monkeypatch):
    store.write('a.jpg', masks)
    with store.path_of('a.jpg').open('ab') as file:
        file.write(b' ' * 5_000_000 + b'}')
    read = []
    read_bytes = os.read
    monkeypatch.setattr(os, 'read', lambda descriptor, count: read.append(count) or read_bytes(descriptor, count))
    assert store.names() == ['a.jpg']
    assert store.has('a.jpg')
    assert sum(read) < 5_000


def test_clearing_that_is_killed_leaves_the_note_about_what_is_left(store, masks, monkeypatch):
    store.describe({'preset': 'default'})
    for name in ('a.jpg', 'b.jpg'):
        store.write(name, masks)
    unlink = Path.unlink

    def killed(path, missing_ok=False):
        if len(store.names()) == 1:
            raise SystemExit
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, 'unlink', killed)
    with pytest.raises(SystemExit):
        store.clear()
    monkeypatch.undo()
    assert len(store.names()) == 1
    with pytest.raises(StoreError, match='another preset'):
        store.describe({'preset': 'paper'})


@pytest.mark.parametrize('left', [b'', bytes(40), b'{"preset":"def'])
def test_a_note_that_was_cut_short_says_what_to_do_and_can_be_cleared(store, masks, left):
    store.describe({'preset': 'default'})
    store.write('a.jpg', masks)
    (store.root / 'unsam.json').write_bytes(left)
    with pytest.raises(
        StoreError, match=r'unsam\.json: is empty or was cut short, .* make them again with .*--overwrite'
    ):
        store.check({'preset': 'paper'})
    store.clear()
    assert list(store.root.iterdir()) == []


def test_merging_never_takes_a_file_of_the_store_for_its_target(store):
    store.describe({'preset': 'default'})
    assert store.contains(store.root / 'unsam.json')
    assert not store.contains(store.root / 'pseudo.json')


def test_a_link_to_masks_or_from_their_place_is_never_the_target_of_merging(store, masks, tmp_path):
    for name in ('a.jpg', 'b.jpg'):
        store.write(name, masks)
    (tmp_path / 'to.txt').symlink_to(store.path_of('a.jpg'))
    store.path_of('b.jpg').rename(tmp_path / 'moved.json')
    store.path_of('b.jpg').symlink_to(tmp_path / 'moved.json')
    for target in (tmp_path / 'to.txt', store.path_of('b.jpg')):
        with pytest.raises(StoreError, match='is one of the files that are read'):
            store.merge(target)
    assert len(store.read('a.jpg')) == len(store.read('b.jpg')) == 2


def test_what_is_recorded_already_is_not_written_again(store, monkeypatch):
    """The folder may be one that cannot be written any more."""
    store.describe({'preset': 'default', 'max_masks': 10})
    monkeypatch.setattr(store_module, 'write_json', lambda path, value: pytest.fail('written'))
    store.describe({'preset': 'default', 'max_masks': 10})
