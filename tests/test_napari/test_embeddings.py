"""The store of embeddings: the same planes are never looked at twice, whatever happens to the files."""

import inspect
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from skimage import data

from napari_unsam.engine.embeddings import EmbeddingStore, embed_stack, plane_key
from napari_unsam.engine.inference import JobCancelled
from unsam_mm.errors import StoreError

PLENTY = 100_000_000
NEW, OLD = 'c' * 32, 'd' * 32  # as windows are called, by their content


@pytest.fixture
def store(tmp_path):
    return EmbeddingStore(tmp_path / 'embeddings', PLENTY)


def noise(seed=0, side=200):
    """Arrays as an engine gives them, which do not get smaller by compression."""
    random = np.random.default_rng(seed)
    return {
        'labels': random.integers(0, 2**31, (side, side + 20), np.int32),
        'features': random.random((30, 384)).astype(np.float16),
        'none': np.empty((0, 4), np.float32),
    }


def same(found, expected):
    return found.keys() == expected.keys() and all(
        np.array_equal(found[name], expected[name]) and found[name].dtype == expected[name].dtype for name in expected
    )


def photo_planes(count):
    """Planes of a real photo, each another part of it."""
    grey = data.coins()
    return [grey[10 * z : 10 * z + 128, 5 * z : 5 * z + 160] for z in range(count)]


def brightness(pixels, progress):
    """A quick embedding that reports progress."""
    progress(0.5, 'measuring')
    return {'rows': pixels.mean(axis=1), 'pixels': pixels.astype(np.int32)}


@pytest.mark.parametrize(
    'other',
    [
        pytest.param(lambda plane: plane.T.reshape(plane.shape), id='other values'),
        pytest.param(lambda plane: plane.reshape(plane.shape[0] // 2, -1), id='other shape'),
        pytest.param(lambda plane: plane.view(np.int8), id='other dtype'),
    ],
)
def test_planes_that_differ_have_different_keys(other):
    plane = data.coins()[:300]
    assert plane_key(plane, 'model') == plane_key(plane.copy(), 'model')
    assert plane_key(other(plane), 'model') != plane_key(plane, 'model')


def test_other_settings_give_another_key():
    assert plane_key(data.coins(), 'unsam_s 1') != plane_key(data.coins(), 'unsam_s 2')


def test_the_key_of_a_large_plane_is_read_in_blocks():
    blocks = []

    class Lazy:
        shape, dtype = (10_000, 3_000), np.dtype(np.uint16)

        def __getitem__(self, rows):
            blocks.append(rows.stop - rows.start)
            return np.broadcast_to(np.arange(rows.start, rows.stop, dtype=np.uint16)[:, None], (blocks[-1], 3_000))

    key = plane_key(Lazy(), '')
    assert max(blocks) * 6_000 <= 4_000_000
    whole = np.broadcast_to(np.arange(10_000, dtype=np.uint16)[:, None], (10_000, 3_000))
    assert key == plane_key(whole, '')


def test_what_is_saved_comes_back_exactly(store):
    store.save('a', noise())
    assert same(store.load('a'), noise())
    assert 'a' in store
    assert store.load('b') is None


def test_an_entry_is_seen_by_another_session(store):
    store.save('a', noise())
    assert same(EmbeddingStore(store.folder, PLENTY).load('a'), noise())


@pytest.mark.parametrize('how', ['lost', 'cut short', 'altered'])
def test_a_damaged_entry_is_dropped_and_made_again(store, how):
    store.save('a', noise())
    path = store.folder / 'a.plane.npz'
    content = path.read_bytes()
    match how:
        case 'lost':
            path.unlink()
        case 'cut short':
            path.write_bytes(content[: len(content) // 2])
        case 'altered':
            path.write_bytes(content[:-9] + bytes(byte ^ 255 for byte in content[-9:]))
    assert store.load('a') is None
    assert 'a' not in store
    store.save('a', noise())
    assert same(store.load('a'), noise())


def test_the_longest_unused_entry_goes_when_room_is_short(tmp_path):
    store = EmbeddingStore(tmp_path, PLENTY)
    for seed, key in enumerate('abc'):
        store.save(key, noise(seed))
    one = store.size_bytes // 3
    store.load('a')
    small = EmbeddingStore(tmp_path, 3 * one + one // 2)
    small.save('d', noise(3))
    assert small.size_bytes <= small.max_bytes
    assert [key for key in 'abcd' if key in small] == ['a', 'c', 'd']


def test_an_entry_larger_than_the_store_is_not_kept(tmp_path):
    store = EmbeddingStore(tmp_path, 1000)
    store.save('a', noise())
    assert store.size_bytes == 0


@pytest.fixture
def with_windows(tmp_path):
    """A store with two entries, and two windows of an engine and its settings beside it; 'a' and OLD were not used for long."""
    windows = tmp_path / 'windows'
    store = EmbeddingStore(tmp_path / 'planes', PLENTY, windows)
    for key in 'ab':
        store.save(key, noise())
    for name in (OLD, NEW):
        path = windows / 'model-1' / f'{name}.npz'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(100_000))
    os.utime(windows / 'model-1' / f'{OLD}.npz', (1e9, 1e9))
    os.utime(tmp_path / 'planes' / 'a.plane.npz', (1e9 + 1, 1e9 + 1))
    return store


def left(store):
    return sorted(path.name.split('.')[0] for path in [*store.folder.glob('*.npz'), *store.windows.rglob('*.npz')])


def test_windows_of_large_planes_share_the_room_and_the_longest_unused_go_first(with_windows):
    sizes = with_windows.size_bytes
    assert sizes > 200_000
    for room, expected in (
        (sizes, ['a', 'b', NEW, OLD]),
        (sizes - 1, ['a', 'b', NEW]),
        (sizes - 100_001, ['b', NEW]),
    ):
        EmbeddingStore(with_windows.folder, room, with_windows.windows).trim()
        assert left(with_windows) == expected


def test_what_users_put_beside_entries_and_windows_stays(with_windows):
    others = [
        with_windows.folder / 'slide.zarr' / 'zarr.json',
        with_windows.folder / 'mine.npz',
        with_windows.windows / 'model-1' / 'mine.npz',
        with_windows.windows / 'mine' / 'deep' / f'{NEW}.npz',
        with_windows.folder / '.unsam-mine.txt',
    ]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text('mine')
        os.utime(path, (1e9, 1e9))
    before = [path.read_bytes() for path in others]
    EmbeddingStore(with_windows.folder, 0, with_windows.windows).trim()
    assert [path.read_bytes() for path in others] == before
    assert not (with_windows.folder / 'a.plane.npz').exists()
    assert not (with_windows.windows / 'model-1' / f'{NEW}.npz').exists()


def test_what_was_left_of_windows_by_a_process_that_was_killed_is_removed(with_windows):
    parts = [with_windows.windows / 'model-1' / f'.unsam-{age}.part' for age in ('old', 'new')]
    for path in parts:
        path.write_bytes(bytes(9))
    os.utime(parts[0], (1e9, 1e9))
    with_windows.trim()
    assert [path.exists() for path in parts] == [False, True]


def test_a_window_that_is_read_again_outlives_those_that_are_not(with_windows):
    store = EmbeddingStore(with_windows.folder, with_windows.size_bytes - 1, with_windows.windows)
    store.mark_used(store.windows / 'model-1' / f'{OLD}.npz')
    assert left(store) == ['b', NEW, OLD]


def test_a_new_window_makes_the_store_look_at_its_size_and_a_known_one_does_not(with_windows, monkeypatch):
    trims = []
    trim = with_windows.trim
    monkeypatch.setattr(with_windows, 'trim', lambda: (trims.append(1), trim()))
    for _ in range(3):
        with_windows.mark_used(with_windows.windows / 'model-1' / f'{NEW}.npz')
    assert len(trims) == 1


def test_a_failed_save_leaves_nothing_and_names_the_folder(tmp_path):
    (tmp_path / 'file').write_text('not a folder')
    store = EmbeddingStore(tmp_path / 'file', PLENTY)
    with pytest.raises(StoreError, match='file'):
        store.save('a', noise())
    assert store.load('a') is None


HEAD = """
import sys
from pathlib import Path
import numpy as np
from napari_unsam.engine.embeddings import EmbeddingStore
"""
WRITER = textwrap.dedent("""
    store = EmbeddingStore(Path(sys.argv[1]), int(sys.argv[2]))
    found = 0
    for turn in range(3):
        for seed in range(6):
            arrays = store.load(f'key{seed}')
            assert arrays is None or same(arrays, noise(seed)), 'half an entry was read'
            found += arrays is not None
            store.save(f'key{seed}', noise(seed))
    assert store.size_bytes <= store.max_bytes + 200_000
    print(found)
""")


@pytest.mark.slow
@pytest.mark.parametrize(
    'max_bytes', [pytest.param(PLENTY, id='room for all'), pytest.param(700_000, id='short of room')]
)
def test_two_sessions_share_a_folder_without_harm(tmp_path, max_bytes):
    script = '\n'.join([HEAD, inspect.getsource(noise), inspect.getsource(same), WRITER])
    command = [sys.executable, '-c', script, str(tmp_path / 'shared'), str(max_bytes)]
    sessions = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [session.communicate(timeout=120) for session in sessions]
    assert [session.returncode for session in sessions] == [0, 0], answers
    if max_bytes == PLENTY:
        store = EmbeddingStore(tmp_path / 'shared', max_bytes)
        assert all(same(store.load(f'key{seed}'), noise(seed)) for seed in range(6))


class Cancelling:
    """Progress that the user ends in the midst of one plane."""

    def __init__(self, at):
        self.at, self.texts = at, []

    def __call__(self, fraction, text):
        self.texts.append(text)
        if fraction >= self.at:
            raise JobCancelled


def test_a_stack_cancelled_at_half_goes_on_from_there_and_ends_the_same(store, tmp_path):
    planes = photo_planes(6)
    reads = [lambda plane=plane: plane for plane in planes]
    made = []

    def embed(pixels, progress):
        arrays = brightness(pixels, progress)
        made.append(plane_key(pixels, ''))
        return arrays

    cancelling = Cancelling(at=3.5 / 6)
    with pytest.raises(JobCancelled):
        embed_stack(reads, embed, 'v1', store, cancelling)
    assert len(made) == 3
    assert cancelling.texts[-1] == 'slice 4 of 6: measuring'
    report = embed_stack(reads, embed, 'v1', store)
    assert (report.analysed, report.stored) == (3, 6)
    assert len(set(made)) == len(made) == 6
    at_once = EmbeddingStore(tmp_path / 'at once', PLENTY)
    assert embed_stack(reads, brightness, 'v1', at_once).keys == report.keys
    assert all(same(store.load(key), at_once.load(key)) for key in report.keys)


def test_a_stack_is_made_again_for_other_settings_only(store):
    reads = [lambda plane=plane: plane for plane in photo_planes(2)]
    assert embed_stack(reads, brightness, 'v1', store).analysed == 2
    assert embed_stack(reads, brightness, 'v1', store).analysed == 0
    assert embed_stack(reads, brightness, 'v2', store).analysed == 2


def test_equal_planes_of_a_stack_are_embedded_once(store):
    plane = photo_planes(1)[0]
    report = embed_stack([lambda: plane] * 4, brightness, 'v1', store)
    assert report.analysed == 1


def test_a_damaged_plane_of_a_stack_is_made_again(store):
    reads = [lambda plane=plane: plane for plane in photo_planes(3)]
    keys = embed_stack(reads, brightness, 'v1', store).keys
    (store.folder / f'{keys[1]}.plane.npz').write_bytes(b'PK')
    report = embed_stack(reads, brightness, 'v1', store)
    assert report.analysed == 1


def test_a_store_too_small_for_a_stack_ends_the_run_and_says_how_many_planes_it_kept(tmp_path):
    store = EmbeddingStore(tmp_path, 250_000)
    arrays = [noise(seed) for seed in range(4)]
    planes = photo_planes(4)
    report = embed_stack(
        [lambda plane=plane: plane for plane in planes], lambda pixels, progress: arrays.pop(), 'v1', store
    )
    assert report.analysed == 2
    assert report.stored == 1


@pytest.mark.slow
def test_the_trees_of_a_real_stack_come_back_from_the_store_as_they_were(store, generator):
    from unsam_mm.prompting import UnSAMPredictor

    predictor = UnSAMPredictor(generator=generator)

    def embed(pixels, progress):
        predictor.set_image(pixels)
        return predictor.engine.embedding()

    planes = photo_planes(4)
    reads = [lambda plane=plane: plane for plane in planes]
    with pytest.raises(JobCancelled):
        embed_stack(reads, embed, 'tree', store, Cancelling(at=0.5))
    report = embed_stack(reads, embed, 'tree', store)
    assert report.analysed == 2
    for plane, key in list(zip(planes, report.keys, strict=True))[::3]:  # of the first run and of the second
        predictor.engine.set_embedding(store.load(key))
        kept = predictor.predict(np.array([[60, 60]]), np.array([1]))[0]
        predictor.set_image(plane)
        assert np.array_equal(kept, predictor.predict(np.array([[60, 60]]), np.array([1]))[0])
