"""Automatic objects for a folder: complete, resumable, and without a screen."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image
from skimage import data
from skimage.filters import threshold_otsu
from skimage.measure import label

from napari_unsam.__main__ import main
from napari_unsam.folders import batch
from napari_unsam.folders.automatic import AutomaticObjects, AutomaticSettings, draw_disjoint
from napari_unsam.folders.batch import BatchJob
from napari_unsam.folders.results import ImageList, Results
from napari_unsam.io.formats import FORMATS
from tests.test_image_io.image_writers import write_png
from tests.test_napari.stand_ins import colour_tree
from unsam_mm.errors import ImageError, StoreError, UnSAMError, WeightsError
from unsam_mm.image_io.reader import ImagePixels
from unsam_mm.masks.mask_set import MaskSet

COINS = data.coins()[:150, :190]


def threshold_objects(self, rgb):
    """Stands in for the models: what is bright."""
    labels = label(rgb[..., 0] > threshold_otsu(rgb[..., 0])).astype(np.uint32)
    index = np.arange(1, labels.max() + 1)
    return labels, pd.DataFrame({'index': index, 'granularity': 0.5, 'score': 1.0, 'stability': 0.25})


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(AutomaticObjects, '_in_plane', threshold_objects)


@pytest.fixture
def folder(tmp_path):
    """Two good images, one of them deeper, and one that is cut short."""
    images = tmp_path / 'images'
    (images / 'plate').mkdir(parents=True)
    Image.fromarray(COINS).save(images / 'a.png')
    Image.fromarray(np.stack([COINS] * 3, axis=-1)).save(images / 'plate' / 'b.png')
    (images / 'broken.png').write_bytes((images / 'a.png').read_bytes()[:2000])
    return images


def test_intensities_are_the_numbers_of_the_file_and_sizes_are_finite(tmp_path, quick):
    (tmp_path / 'images').mkdir()
    deep = np.stack([COINS.astype(np.uint16) * factor for factor in (15, 100, 250)], axis=-1)
    write_png(tmp_path / 'images' / 'deep.png', deep, 2)
    metadata = {'axes': 'YX', 'PhysicalSizeX': 1e300, 'PhysicalSizeY': 1e300}
    tifffile.imwrite(tmp_path / 'images' / 'odd.ome.tif', COINS, metadata=metadata)
    assert BatchJob(tmp_path / 'images', tmp_path / 'out').run().done == 2
    table = pd.read_csv(tmp_path / 'out' / 'deep.png.objects.csv')
    brightest = [table[f'max_intensity_{colour}'].max() for colour in ('red', 'green', 'blue')]
    assert brightest == [int(COINS.max()) * factor for factor in (15, 100, 250)]
    sizes = pd.read_csv(tmp_path / 'out' / 'odd.ome.tif.objects.csv')
    assert [name for name in sizes if name.startswith('area')] == ['area_px']


def test_a_plane_that_is_too_large_fails_before_it_is_read(folder, tmp_path, quick, monkeypatch):
    monkeypatch.setattr(batch, 'MAX_PIXELS', COINS.size - 1)
    failed = BatchJob(folder, tmp_path / 'out').run().failed
    assert '190 x 150 px are more than' in failed['a.png']


def test_each_image_has_its_results_and_a_broken_one_is_listed(folder, tmp_path, quick, capsys):
    out = tmp_path / 'out'
    assert main(['batch', str(folder), str(out), '--format', *FORMATS]) == 0
    for name in ('a.png', 'plate/b.png'):
        for form in FORMATS.values():
            assert (out / f'{name}.objects{form.ending}').exists()
    assert (out / 'failed.txt').read_text().startswith('broken.png\t')
    assert '2 images done now' in capsys.readouterr().out


def test_labels_and_table_belong_together(folder, tmp_path, quick):
    main(['batch', str(folder), str(tmp_path / 'out')])
    labels = tifffile.imread(tmp_path / 'out' / 'a.png.objects.tif')
    table = pd.read_csv(tmp_path / 'out' / 'a.png.objects.csv')
    assert table['index'].tolist() == np.unique(labels)[1:].tolist()
    assert table['area_px'].tolist() == np.bincount(labels.ravel())[1:].tolist()
    assert {'mean_intensity', 'eccentricity', 'granularity', 'stability'} <= set(table)


def test_resuming_does_what_is_left_and_tries_failed_images_again(folder, tmp_path, quick, capsys):
    out = tmp_path / 'out'
    main(['batch', str(folder), str(out)])
    times = {path: path.stat().st_mtime_ns for path in out.rglob('*.objects.*')}
    (out / 'plate' / 'b.png.objects.csv').unlink()
    (folder / 'broken.png').write_bytes((folder / 'a.png').read_bytes())
    capsys.readouterr()
    assert main(['batch', str(folder), str(out), '--resume']) == 0
    assert '2 images done now' in capsys.readouterr().out
    kept = [out / 'a.png.objects.tif', out / 'a.png.objects.csv']
    assert all(path.stat().st_mtime_ns == times[path] for path in kept)
    assert not (out / 'failed.txt').exists()


def test_results_are_never_redone_or_mixed_unasked(folder, tmp_path, quick, capsys):
    arguments = ['batch', str(folder), str(tmp_path / 'out')]
    main(arguments)
    assert main(arguments) == 1
    assert '--resume' in capsys.readouterr().err
    assert main([*arguments, '--resume', '--min-area', '30']) == 1
    assert 'min_area_px=16' in capsys.readouterr().err


def test_results_may_lie_beside_the_images(folder, quick, capsys):
    (folder / 'broken.png').unlink()
    main(['batch', str(folder), str(folder), '--format', 'tiff'])
    assert main(['batch', str(folder), str(folder), '--format', 'tiff', '--resume']) == 0
    assert '0 images done now with 0 objects, 2 before, 0 failed, of 2' in capsys.readouterr().out


def test_an_interrupted_run_says_how_to_go_on(folder, tmp_path, quick, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Results, 'write', interrupted)
    assert main(['batch', str(folder), str(tmp_path / 'out')]) == 130
    assert '--resume' in capsys.readouterr().err


def test_a_list_of_files_is_followed_in_its_order(folder, tmp_path, quick):
    (tmp_path / 'some.txt').write_text('# good ones\nimages/plate/b.png\nimages/a.png\n')
    assert ImageList.of(tmp_path / 'some.txt').names == ('plate/b.png', 'a.png')
    report = BatchJob(tmp_path / 'some.txt', tmp_path / 'out').run()
    assert (report.found, report.done) == (2, 2)


LISTS = {
    'Notepad': 'a.png\r\nplate/b.png\r\n'.encode('utf-8-sig'),
    'Notepad, Unicode': 'a.png\r\nplate/b.png\r\n'.encode('utf-16'),
    'PowerShell, big endian': b'\xfe\xff' + 'a.png\r\nplate/b.png'.encode('utf-16-be'),
    'Copy as path': b'"a.png"\n"plate/b.png"\n',
    'single quotes and spaces': b" 'a.png' \n\n  plate/b.png\t\n",
    'old Mac': b'a.png\rplate/b.png\r',
}


@pytest.mark.parametrize('content', LISTS.values(), ids=LISTS)
def test_a_list_is_read_as_editors_save_it(folder, content):
    (folder / 'some.txt').write_bytes(content)
    assert ImageList.of(folder / 'some.txt').names == ('a.png', 'plate/b.png')


@pytest.mark.parametrize(
    ('line', 'name'),
    [
        ('Zelle ä.png'.encode(), 'Zelle ä.png'),
        ('Zelle ä.png'.encode('cp1252'), 'Zelle ä.png'),
        (b'Zelle \xe4.png', 'Zelle \udce4.png'),
        (b'"quoted".png', '"quoted".png'),
        (b'"\'twice\'.png"', "'twice'.png"),
        (b'# 1.png', '# 1.png'),
        (b' leading.png', ' leading.png'),
        ('a\u2028b\x0b.png'.encode(), 'a\u2028b\x0b.png'),
    ],
)
def test_what_is_there_decides_how_a_line_is_meant(tmp_path, line, name):
    (tmp_path / name).touch()
    (tmp_path / 'some.txt').write_bytes(b'# images\n' + line + b'\n')
    assert ImageList.of(tmp_path / 'some.txt').names == (name,)


def test_a_name_of_a_list_that_is_not_there_is_shown_as_its_editor_showed_it(tmp_path):
    (tmp_path / 'some.txt').write_bytes('Zelle ä.png\n'.encode('cp1252'))
    assert ImageList.of(tmp_path / 'some.txt').names == ('Zelle ä.png',)


def test_a_list_that_is_no_text_is_refused(tmp_path):
    (tmp_path / 'some.txt').write_bytes(b'\x89PNG\0\0a.png')
    with pytest.raises(ImageError, match='some.txt: is not a text file'):
        ImageList.of(tmp_path / 'some.txt')


AWKWARD = ['Pr\udcfcfung.png', 'a\nb\tc.png', '"d".png', 'x' * 251 + '.png', '細胞.png']


def test_names_of_any_kind_get_results_and_stand_in_the_list_of_failed_images(tmp_path, quick, capsys):
    for name in AWKWARD:
        Image.fromarray(COINS).save(tmp_path / 'image.png')
        (tmp_path / 'images').mkdir(exist_ok=True)
        (tmp_path / 'image.png').rename(tmp_path / 'images' / name)
        (tmp_path / 'broken').mkdir(exist_ok=True)
        (tmp_path / 'broken' / name).write_bytes(b'no image')
    assert main(['batch', str(tmp_path / 'images'), str(tmp_path / 'out'), '--format', *FORMATS]) == 0
    results = Results(tmp_path / 'out')
    assert all(results.has(name, FORMATS) for name in AWKWARD)
    assert main(['batch', str(tmp_path / 'broken'), str(tmp_path / 'out2')]) == 1
    assert len(capsys.readouterr().err.splitlines()) == len(AWKWARD) + 1
    listed = (tmp_path / 'out2' / 'failed.txt').read_text(errors='surrogateescape').splitlines()
    names = [line.split('\t')[0] for line in listed]
    assert {json.loads(name) if name.startswith('"') else name for name in names} == set(AWKWARD)


@pytest.mark.parametrize('failure', [RuntimeError('no convergence\nat all'), MemoryError(), RecursionError('deep')])
def test_whatever_fails_at_one_image_is_listed_and_the_others_are_done(folder, tmp_path, monkeypatch, failure):
    def find(self, rgb):
        if rgb.shape[0] < 100:
            raise failure
        return threshold_objects(self, rgb)

    monkeypatch.setattr(AutomaticObjects, '_in_plane', find)
    Image.fromarray(COINS[:90]).save(folder / 'short.png')
    report = BatchJob(folder, tmp_path / 'out').run()
    assert report.done == 2
    assert type(failure).__name__ in report.failed['short.png']
    assert len((tmp_path / 'out' / 'failed.txt').read_text().splitlines()) == 2


def test_a_run_that_is_killed_leaves_a_list_of_failed_images_which_is_sorted_once(tmp_path, monkeypatch):
    for name in 'cab':
        (tmp_path / f'{name}.png').write_bytes(b'no image')
    (tmp_path / 'list.txt').write_text('c.png\na.png\nb.png')
    job, listed, writer = BatchJob(tmp_path / 'list.txt', tmp_path / 'out'), [], batch.atomic_writer
    monkeypatch.setattr(batch, 'atomic_writer', lambda path: listed.append('sorted') or writer(path))

    def names():
        path = tmp_path / 'out' / 'failed.txt'
        return [line.split('.')[0] for line in path.read_text().splitlines()] if path.exists() else []

    for _ in range(2):
        listed.clear()
        job.run(lambda report: listed.append(names()))
        assert listed[1:] == [['c'], ['c', 'a'], ['c', 'a', 'b'], 'sorted']
        assert names() == ['a', 'b', 'c']
        job = BatchJob(tmp_path / 'list.txt', tmp_path / 'out', resume=True)


def test_missing_weights_end_the_run(folder, tmp_path, monkeypatch):
    def find(self, rgb):
        raise WeightsError('no source gave the file')

    monkeypatch.setattr(AutomaticObjects, '_in_plane', find)
    with pytest.raises(WeightsError):
        BatchJob(folder, tmp_path / 'out').run()


@pytest.mark.parametrize(
    ('name', 'content', 'resume'),
    [('failed.txt', 'plates to be stained again', True), ('batch.json', '[1]', True), ('batch.json', '{"a": 1}', True)],
)
def test_files_of_the_user_s_are_not_taken_for_ours(folder, tmp_path, quick, name, content, resume):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / name).write_text(content)
    with pytest.raises(StoreError, match=name):
        BatchJob(folder, tmp_path / 'out', resume=resume).run()
    assert (tmp_path / 'out' / name).read_text() == content


def test_objects_that_another_command_left_are_not_taken_for_this_one_s(folder, tmp_path, quick):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'a.png.objects.csv').write_text('index\n1\n')
    with pytest.raises(StoreError, match=r'holds objects of a\.png already; add --resume'):
        BatchJob(folder, tmp_path / 'out').run()
    assert BatchJob(folder, tmp_path / 'out', formats=('csv',), resume=True).run().skipped == 1


@pytest.mark.parametrize(
    ('lines', 'words'), [('', 'names no images'), ('a.png\na.png', 'twice'), ('a.doc', 'does not end')]
)
def test_lists_that_cannot_be_meant_are_refused(tmp_path, lines, words):
    (tmp_path / 'some.txt').write_text(lines)
    with pytest.raises(ImageError, match=words):
        ImageList.of(tmp_path / 'some.txt')


def test_a_folder_of_results_alone_is_told(tmp_path):
    tifffile.imwrite(tmp_path / 'a.png.objects.tif', COINS)
    with pytest.raises(ImageError, match='no images found but results of earlier runs'):
        ImageList.of(tmp_path)


def test_stacks_are_done_plane_by_plane_and_blank_planes_are_empty(quick):
    stack = np.stack([COINS, np.full_like(COINS, 7), COINS])
    pixels = ImagePixels({'': stack}, False, (2.0, 1.0, 1.0), ('micrometer',) * 3, 'zyx')
    labels, table = AutomaticObjects(AutomaticSettings())(pixels)
    assert not labels[1].any()
    assert np.array_equal(labels[2] > 0, labels[0] > 0)
    assert labels[2].max() == len(table) == 2 * labels[0].max()
    assert table['index'].tolist() == list(range(1, len(table) + 1))


def test_objects_of_neighbouring_planes_are_one_if_they_are_linked(quick):
    shifted = [np.roll(COINS, shift, axis=1) for shift in (0, 1, 2)]
    pixels = ImagePixels({'': np.stack(shifted)}, False, (2.0, 1.0, 1.0), ('micrometer',) * 3, 'zyx')
    apart, _ = AutomaticObjects(AutomaticSettings())(pixels)
    labels, table = AutomaticObjects(AutomaticSettings(link=True))(pixels)
    assert table['index'].tolist() == np.unique(labels)[1:].tolist()
    assert len(table) < apart.max() / 2
    assert table['stability'].tolist() == [0.25] * len(table)
    largest = np.bincount(labels.ravel())[1:].argmax() + 1
    assert (labels == largest).any(axis=(1, 2)).all()


def test_nothing_to_link_is_no_objects(quick):
    stack = np.stack([COINS, np.full_like(COINS, 7)])
    pixels = ImagePixels({'': stack}, False, (2.0, 1.0, 1.0), ('micrometer',) * 3, 'zyx')
    labels, table = AutomaticObjects(AutomaticSettings(link=True))(pixels)
    assert not labels.any()
    assert len(table) == 0


def test_a_full_disk_ends_the_run(folder, tmp_path, quick, monkeypatch):
    def full(*_):
        raise StoreError('the disk is full')

    monkeypatch.setattr(Results, 'write', full)
    with pytest.raises(StoreError, match='full'):
        BatchJob(folder, tmp_path / 'out').run()


@pytest.mark.parametrize(
    'given',
    [
        {'engine': 'sam'},
        {'side': 'left'},
        {'level': 1.5},
        {'min_area_px': 0},
        {'channel': -1},
        {'granularity': -0.1, 'engine': 'model'},
        {'level': 0.5, 'engine': 'model'},
        {'granularity': 0.5},
    ],
)
def test_settings_out_of_range_are_refused(given):
    with pytest.raises(UnSAMError, match=next(iter(given))):
        AutomaticSettings(**given)


@pytest.mark.parametrize(
    'option', [['--level', '2'], ['--level', 'x'], ['--granularity', '2'], ['--min-area', '0'], ['--format', 'doc']]
)
def test_options_out_of_range_are_refused(option, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(['batch', str(tmp_path), str(tmp_path), *option])
    assert option[0] in capsys.readouterr().err


def test_a_mask_that_better_ones_have_taken_is_left_out():
    masks = np.zeros((3, 8, 9), bool)
    masks[0, 2:6, 2:6] = True
    masks[1, 2:6, 3:7] = True  # three quarters of it are taken
    masks[2, 4:8, 5:9] = True  # an eighth of it is
    labels, drawn = draw_disjoint(MaskSet.from_bitmaps(masks))
    assert drawn == [0, 2]
    assert np.array_equal(labels == 1, masks[0])
    assert np.array_equal(labels == 2, masks[2] & ~masks[0])


class TreeStandIn:
    """In place of the engine 'tree': superpixels merged by colour."""

    def set_image(self, rgb):
        self.hierarchy = colour_tree(rgb, lambda *_: None)


class ModelStandIn:
    """In place of the engine 'model': half of the plane, a thirty-second, and a sixteenth that holds it."""

    def set_image(self, rgb):
        self.masks = np.zeros((3, *rgb.shape[:2]), bool)
        for mask, share in zip(self.masks, (2, 16, 8), strict=True):
            mask[: rgb.shape[0] // share, : rgb.shape[1] // (1 + (share > 2))] = True

    def all_masks(self, max_masks, min_area_px, points_per_side, max_iou):
        masks = MaskSet.from_bitmaps(self.masks, np.array([0.9, 0.8, 0.5]))
        return masks, np.array([0.1, 0.2, 0.3])


@pytest.mark.parametrize('level', [None, 0.6])
def test_regions_of_the_tree_become_objects_within_the_limits(monkeypatch, level):
    monkeypatch.setattr(AutomaticObjects, '_engine', TreeStandIn())
    pixels = ImagePixels({'': COINS}, False, (1.0, 1.0), ('pixel',) * 2, 'yx')
    labels, table = AutomaticObjects(AutomaticSettings(level=level, min_area_px=60))(pixels)
    assert table['index'].tolist() == np.unique(labels)[1:].tolist()
    assert len(table) >= 3
    assert np.bincount(labels.ravel())[1:].min() >= 60
    assert table[['granularity', 'score', 'stability']].notna().all(axis=None)


@pytest.mark.parametrize(
    ('granularity', 'drawn'), [pytest.param(None, 0.8, id='best first'), pytest.param(1.0, 0.5, id='coarsest first')]
)
def test_masks_of_the_model_are_drawn_in_their_order_and_none_is_half_the_plane(monkeypatch, granularity, drawn):
    monkeypatch.setattr(AutomaticObjects, '_engine', ModelStandIn())
    pixels = ImagePixels({'': COINS}, False, (1.0, 1.0), ('pixel',) * 2, 'yx')
    labels, table = AutomaticObjects(AutomaticSettings(engine='model', granularity=granularity))(pixels)
    assert table['score'].tolist()[0] == pytest.approx(drawn)
    assert (labels > 0).mean() < 0.25
    shares = np.bincount(labels.ravel())[1:] / labels.size
    assert table['granularity'].tolist() == pytest.approx((1 + np.log10(shares) / 4).tolist())


@pytest.mark.slow
@pytest.mark.parametrize(
    ('engine', 'coins'),
    [(['tree'], data.coins()), (['tree', '--level', '0.6'], data.coins()), (['model'], data.coins()[:200, :260])],
    ids=['tree', 'level of the tree', 'model'],
)
def test_coins_are_found_by_both_engines(tmp_path, engine, coins):
    Image.fromarray(coins).save(tmp_path / 'coins.png')
    assert (
        main(['batch', str(tmp_path / 'coins.png'), str(tmp_path / 'out'), '--min-area', '200', '--engine', *engine])
        == 0
    )
    labels = tifffile.imread(tmp_path / 'out' / 'coins.png.objects.tif')
    assert labels.max() >= 5
    assert np.bincount(labels.ravel())[1:].min() > 100


@pytest.mark.slow
def test_a_run_in_processes_that_is_interrupted_goes_on_from_there(tmp_path):
    images = tmp_path / 'images'
    images.mkdir()
    for i in range(6):
        Image.fromarray(np.roll(COINS, 20 * i, axis=1)).save(images / f'{i}.png')
    command = [sys.executable, '-m', 'napari_unsam', 'batch', str(images), str(tmp_path / 'out')]
    command += ['--workers', '2', '--engine', 'tree', '--format', 'tiff']
    # Where the tests run in the background, an interrupt would otherwise be ignored by what they start.
    running = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    )
    first_s = time.monotonic()
    while not list((tmp_path / 'out').glob('*.objects.tif')):
        assert running.poll() is None, running.stderr.read()
        assert time.monotonic() - first_s < 120
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=300)
    assert running.returncode == 130
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').glob('*.objects.tif')}
    assert len(done) < 6
    again = subprocess.run([*command, '--resume'], capture_output=True, text=True, check=True, timeout=300)
    assert f'{6 - len(done)} images done now' in again.stdout
    assert all(path.stat().st_mtime_ns == before for path, before in done.items())


@pytest.mark.slow
def test_the_command_line_needs_neither_qt_nor_napari():
    code = (
        'import sys; from napari_unsam.__main__ import build_parser; build_parser(); '
        "print([name for name in ('napari', 'qtpy', 'PyQt6', 'vispy', 'torch') if name in sys.modules])"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ('DISPLAY', 'WAYLAND_DISPLAY')}
    done = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == '[]'
