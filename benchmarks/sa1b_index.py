"""How the start of the SA-1B data set grows with the number of images, compared with MMEngine's list of entries.

The folders are synthetic shards of a thousand label files: a few, which are read, contain labels; all others are empty.
Each start is a separate process, so that its memory can be measured. For folders of up to 100,000 images, the first
listing is also measured; for larger folders, the index is written without the empty files.

    python -m benchmarks.sa1b_index                     # 1000, 100,000 and 1,000,000 images
    python -m benchmarks.sa1b_index 1000 20000
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.inputs import Inputs
from benchmarks.timing import ONE_THREAD, Comparison, Cost, Row, format_table, in_new_process, peak_memory, timed

_SIZES = (1_000, 100_000, 1_000_000)
_LISTED = 100_000
_SHARD = 1_000  # images a shard; SA-1B has about 11,000
_READ = 20  # label files that are read after the start
_LONG_AGO_S = 1_600_000_000  # modification time: folders that have just changed would be listed again


def run(inputs: Inputs, sizes: Sequence[int] = _SIZES) -> Row:
    """Measures every size once.

    Args:
        inputs: Unused.
        sizes: Increasing numbers of images.
    """
    figures = [_measured(size) for size in sizes]
    notes = []
    for size, found in zip(sizes, figures, strict=True):
        listing = found.get('listing')
        first = f'; listed once in {listing["wall_s"]:.2f} s, {listing["peak_mb"]:.1f} MB' if listing else ''
        notes.append(
            f'{size} images: start {found["start"]["wall_s"] * 1e3:.1f} ms, {found["start"]["peak_mb"]:.1f} MB beyond '
            f'imports, process {found["start"]["rss_mb"]:.0f} MB{first}; '
            f"MMEngine's list {found['stock']['wall_s']:.2f} s, {found['stock']['peak_mb']:.1f} MB"
        )
    last = figures[-1]
    comparison = Comparison(
        f"MMEngine's serialized list of {sizes[-1]} entries, from names in memory",
        _cost(last['start']),
        _cost(last['stock']),
        f'{_READ} entries read; memory beyond the imports',
        equal=last['start']['names'] == last['stock']['names'],
    )
    return Row('sa1b_index', [comparison], notes, dict(zip(map(str, sizes), figures, strict=True)))


def _measured(size: int) -> dict[str, dict]:
    with tempfile.TemporaryDirectory() as folder:
        root, index = Path(folder, 'sa1b'), Path(folder, 'names.index')
        _make_shards(root, size, with_files=size <= _LISTED)
        found = {}
        if size <= _LISTED:
            found['listing'] = in_new_process('sa1b_index', 'listing', root, index, size, **ONE_THREAD)
        else:
            _write_index(root, index, size)
        for mode in ('start', 'stock'):
            found[mode] = in_new_process('sa1b_index', mode, root, index, size, **ONE_THREAD)
        return found


def _make_shards(root: Path, size: int, with_files: bool) -> None:
    label = {
        'image': {'image_id': 1, 'width': 1500, 'height': 2250, 'file_name': 'sa_1.jpg'},
        'annotations': [{'bbox': [0, 0, 1, 1], 'segmentation': {'size': [2250, 1500], 'counts': 'hloV3'}}]
        * 100,  # empty
    }
    read = set(_positions(size))
    for first in range(0, size, _SHARD):
        shard = root / _name(first).rsplit('/', 1)[0]
        shard.mkdir(parents=True)
        for number in range(first, min(first + _SHARD, size)):
            if number in read:
                (root / f'{_name(number)}.json').write_text(json.dumps(label))
            elif with_files:
                (root / f'{_name(number)}.json').touch()
        os.utime(shard, (_LONG_AGO_S, _LONG_AGO_S))
    os.utime(root, (_LONG_AGO_S, _LONG_AGO_S))


def _write_index(root: Path, index: Path, size: int) -> None:
    """Writes the index of a folder in which most files are missing."""
    from unsam_mm.datasets.sa1b import write_index

    names = np.sort([_name(number).encode() for number in range(size)])
    folders = ['', *(f'{folder.name}/' for folder in root.iterdir())]
    write_index(index, root, names, {folder: (root / folder).stat().st_mtime_ns for folder in folders})


def _name(number: int) -> str:
    return f'sa_{number // _SHARD:06}/sa_{number:07}'


def _positions(size: int) -> list[int]:
    return np.random.default_rng(0).choice(size, min(_READ, size), replace=False).tolist()


def _child(mode: str, root: str, index: str, size: str) -> dict:
    """Figures of one start, in this process."""
    from mmdet.datasets import BaseDetDataset

    from unsam_mm.datasets import UnSAMSA1B
    from unsam_mm.datasets.image_folder import name_hash

    class Stock(BaseDetDataset):
        """MMEngine's list of entries: one dictionary for each image, all of them serialized."""

        def load_data_list(self) -> list[dict]:
            names = (f'{_name(number).rsplit("/", 1)[0]}/sa_1.jpg' for number in range(int(size)))
            return [{'img_path': name, 'img_name': name, 'img_id': name_hash(name)} for name in names]

    def start() -> list[str]:
        dataset = Stock() if mode == 'stock' else UnSAMSA1B(data_root=root, index_file=index)
        return [dataset.get_data_info(position)['img_name'] for position in _positions(int(size))]

    before = peak_memory()
    cost, names = timed(start)
    peak = peak_memory()
    return {
        'cpu_s': cost.cpu_s,
        'wall_s': cost.wall_s,
        'peak_mb': (peak - before) / 1e6,
        'rss_mb': peak / 1e6,
        'names': names,
    }


def _cost(figures: dict) -> Cost:
    return Cost(figures['cpu_s'], figures['wall_s'], figures['peak_mb'])


if __name__ == '__main__':
    if sys.argv[1:] and not sys.argv[1].isdigit():
        print(json.dumps(_child(*sys.argv[1:])))
    else:
        row = run(None, [int(size) for size in sys.argv[1:]] or _SIZES)
        print(format_table([row]))
