"""Ablation of the pseudo-mask generator: average recall without each of its parts, on images with ground truth.

    python -m benchmarks.ablation table IMAGES GT.json --data 'BSDS500 val' [--limit 25] [--few 6] [--variants a,b]
    python -m benchmarks.ablation pictures

`table` measures variants and writes their tables into a document, between the two comments that name the data. Results
are stored after each image, so a run can be stopped and repeated, and a longer one adds only the missing results. Variants
with the same input of the ViT share its features. `pictures` draws the images of the same document.

Recall is that of COCO, with all classes as one. Seconds are CPU time, including the time of the ViT even if its
features were stored; the table shows the median, because the time of the first image includes compilation.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.ablation_variants import VARIANTS, MaskFinder
from unsam_mm import PseudoMaskGenerator, sample_images, weights
from unsam_mm.coco_files.ground_truth import load_ground_truth, match_images
from unsam_mm.coco_files.segmentations import read_rles
from unsam_mm.errors import StoreError, UnSAMError
from unsam_mm.evaluation.average_recall import AREA_RANGES, evaluate_masks
from unsam_mm.files import atomic_writer, read_json, write_json
from unsam_mm.generator import settings_signature
from unsam_mm.images import list_images, read_image
from unsam_mm.masks.drawing import draw_labels, draw_masks, side_by_side
from unsam_mm.masks.hierarchy import MaskSet
from unsam_mm.pseudo_masks.region_trees import GeneratorSettings
from unsam_mm.pseudo_masks.vit import VITS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / 'docs' / 'pseudo_masks.md'

_MAX_DETS = (10, 100, 1000)
_COLUMNS = {'AR@10': 'AR@10', 'AR@100': 'AR@100', 'AR@1000': 'AR@1000', 'S': 'AR_s@1000', 'M': 'AR_m@1000'} | {
    'L': 'AR_l@1000'
}
_COMPARED_WITH_FEW = ('base', 'patches', 'patches_partition')


def measure(masks: MaskSet, seconds: float, image: Mapping[str, Any], truths: Sequence[Mapping[str, Any]]) -> dict:
    """The result of one image, to be stored: recalls, and the number of ground-truth masks for each of them.

    Args:
        masks: The predicted masks, best first.
        seconds: CPU time in which the masks were found.
        image: Entry of the image in the ground truth.
        truths: Annotations of the image.
    """
    annotations = [{'iscrowd': 0, **truth} for truth in truths]
    for truth, rle in zip(annotations, read_rles(annotations, (image['height'], image['width'])), strict=True):
        truth.setdefault('area', float(_area(rle)))
    areas = np.array([truth['area'] for truth in annotations if not truth['iscrowd']])
    counts = {f'AR@{k}': len(areas) for k in _MAX_DETS}
    counts |= {
        f'AR_{name}@{_MAX_DETS[-1]}': int(((low <= areas) & (areas <= high)).sum())
        for name, (low, high) in AREA_RANGES.items()
    }
    recalls = dict.fromkeys(counts, -1.0)
    if len(areas):
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='.*have no prediction')
            found = evaluate_masks(
                masks.to_coco(image['id']), {'images': [image], 'annotations': annotations}, _MAX_DETS
            )
        recalls = {name: found[name] for name in counts}
    return {'recalls': recalls, 'truths': counts, 'seconds': seconds, 'masks': len(masks)}


def _area(rle: dict) -> int:
    from pycocotools import mask as coco_mask

    return coco_mask.area(rle)


def pooled(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The figures of one row of the table; recalls equal those that `evaluate_masks` returns for all images at once.

    Masks are matched within each image, so recall on all images is the mean of the images' recalls, weighted by the
    images' numbers of ground-truth masks. A recall without ground-truth masks is -1.
    """
    row = {}
    for column, name in _COLUMNS.items():
        counts = np.array([result['truths'][name] for result in results], float)
        recalls = np.array([result['recalls'][name] for result in results])
        row[column] = float((counts * recalls).sum() / counts.sum()) if counts.sum() else -1.0
    row['seconds'] = float(np.median([result['seconds'] for result in results]))
    row['masks'] = float(np.mean([result['masks'] for result in results]))
    return row


@dataclass(frozen=True)
class Task:
    """One image to be measured: its path, its entry in the ground truth and its annotations."""

    path: Path
    image: Mapping[str, Any]
    truths: Sequence[Mapping[str, Any]]


def evenly(items: Sequence, count: int | None) -> list:
    """`count` evenly spaced items, including the first and the last; all if `count` is None or larger."""
    if count is None or count >= len(items):
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)]


def read_tasks(folder: Path, ground_truth: Path) -> list[Task]:
    """All images of the ground truth that are in the folder, sorted by file name.

    Raises:
        StoreError: If the ground truth is not a COCO file, or none of its images is in the folder.
    """
    truth = load_ground_truth(ground_truth)
    paths = {path.relative_to(folder).as_posix(): path for path in list_images(folder)}
    ids = match_images(paths, truth, skip_unmatched=True)
    if not ids:
        raise StoreError(f'{folder}: none of its {len(paths)} images is named in {ground_truth}; check both paths')
    images = {image['id']: image for image in truth['images']}
    annotations: dict[Any, list] = {image_id: [] for image_id in images}
    for annotation in truth['annotations']:
        annotations[annotation['image_id']].append(annotation)
    return [Task(paths[name], images[ids[name]], annotations[ids[name]]) for name in sorted(ids)]


class Results:
    """Results of each variant and image, in a folder with one JSON file for each variant.

    Args:
        folder: Folder for the results of one data set.
        ground_truth: COCO file. Stored results for another ground truth, or for other settings, are ignored.
    """

    def __init__(self, folder: Path, ground_truth: Path) -> None:
        self._folder = folder
        self._truth = hashlib.sha256(ground_truth.read_bytes()).hexdigest()[:12]
        self._of: dict[str, dict[str, dict]] = {}

    def of(self, name: str) -> dict[str, dict]:
        """The results of a variant: file name of the image to result."""
        if name not in self._of:
            path = self._folder / f'{name}.json'
            stored = read_json(path) if path.is_file() else {}
            self._of[name] = stored['images'] if stored.get('signature') == self._signature(name) else {}
        return self._of[name]

    def add(self, name: str, image: str, result: dict) -> None:
        """Adds a result, and writes it to the disk."""
        self.of(name)[image] = result
        write_json(self._folder / f'{name}.json', {'signature': self._signature(name), 'images': self._of[name]})

    def complete(self, name: str, tasks: Sequence[Task]) -> list[dict] | None:
        """The results of all tasks, or None if one is missing."""
        if _is_missing(name):
            return None
        found = self.of(name)
        names = [task.image['file_name'] for task in tasks]
        return [found[image] for image in names] if all(image in found for image in names) else None

    def _signature(self, name: str) -> str:
        return f'{settings_signature(VARIANTS[name].settings)} {VARIANTS[name].how} {self._truth}'


def _is_missing(name: str) -> bool:
    vit = VARIANTS[name].settings.vit
    return vit in VITS and weights.cached_path(vit) is None


def chosen_variants(names: str | None) -> list[str]:
    """The variants of a comma-separated list; if it is None, all variants whose weights are in the cache.

    The weights of variants in a list, or else those of the default ViT, are downloaded if needed.

    Raises:
        UnSAMError: If a variant is unknown.
    """
    if names is None:
        weights.fetch(GeneratorSettings().vit)
        return [name for name in VARIANTS if not _is_missing(name)]
    chosen = [name.strip() for name in names.split(',') if name.strip()]
    unknown = [name for name in chosen if name not in VARIANTS]
    if unknown or not chosen:
        raise UnSAMError(f'unknown variant {", ".join(unknown) or "(none)"}; choose from {", ".join(VARIANTS)}')
    for name in chosen:
        vit = VARIANTS[name].settings.vit
        if vit in VITS:
            weights.fetch(vit)
    return chosen


def run(names: Sequence[str], tasks: Sequence[Task], few: Sequence[Task], results: Results, finder: MaskFinder) -> None:
    """Measures missing results, image by image, so that variants share the features of an image.

    Args:
        names: Names of variants.
        tasks: All images.
        few: Images for variants with the attribute `few`.
        results: Finished results are skipped, new ones added.
        finder: Finds the masks.
    """
    few_names = {task.image['file_name'] for task in few}
    for done, task in enumerate(tasks):
        file_name = task.image['file_name']
        missing = [
            name
            for name in names
            if file_name not in results.of(name) and (not VARIANTS[name].few or file_name in few_names)
        ]
        if not missing:
            continue
        image = read_image(task.path)
        for name in missing:
            masks, seconds = finder(name, image)
            results.add(name, file_name, measure(masks, seconds, task.image, task.truths))
        sys.stderr.write(f'{done + 1} of {len(tasks)} images\n')


def format_table(results: Results, names: Sequence[str], tasks: Sequence[Task]) -> str:
    """A Markdown table with a row for each of these variants that was measured on all these images."""
    header = ['variant', *_COLUMNS, 's an image', 'masks']
    lines = ['| ' + ' | '.join(header) + ' |', '|---|' + '---:|' * (len(header) - 1)]
    for name in names:
        found = results.complete(name, tasks)
        if found is None:
            continue
        row = pooled(found)
        recalls = ['-' if row[column] < 0 else f'{row[column]:.3f}' for column in _COLUMNS]
        cells = [VARIANTS[name].label, *recalls, f'{row["seconds"]:.2f}', f'{row["masks"]:.0f}']
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def report(results: Results, tasks: Sequence[Task], few: Sequence[Task], n_images: int, command: str) -> str:
    """Both tables of one data set with their captions.

    Args:
        results: Results of the variants.
        tasks: Images of the first table.
        few: Images of the second table.
        n_images: Number of images in the folder.
        command: The command that made the tables.
    """
    all_names = [name for name, variant in VARIANTS.items() if not variant.few]
    few_names = [*_COMPARED_WITH_FEW, *(name for name, variant in VARIANTS.items() if variant.few)]
    absent = [VARIANTS[name].settings.vit for name in VARIANTS if _is_missing(name)]
    lines = [
        f'{len(tasks)} of {n_images} images, evenly spaced; `{command}`',
        '',
        format_table(results, all_names, tasks),
        '',
        f'Variants that are slow or run the ViT once more, on {len(few)} of these images:',
        '',
        format_table(results, few_names, few),
    ]
    if absent:
        lines += ['', f'Not run, since their weights could not be fetched: {", ".join(absent)}.']
    return '\n'.join(lines)


def write_between_markers(document: Path, data: str, text: str) -> None:
    """Replaces the text between the two comments that name the data.

    Raises:
        StoreError: If the document does not contain each comment once, and in the right order.
    """
    begin, end = f'<!-- ablation: {data} -->', f'<!-- end of ablation: {data} -->'
    old = document.read_text(encoding='utf-8') if document.is_file() else ''
    if old.count(begin) != 1 or old.count(end) != 1 or old.index(begin) > old.index(end):
        raise StoreError(f'{document}: expected the lines\n{begin}\n{end}\nonce each; put them where the table belongs')
    before, rest = old.split(begin)
    with atomic_writer(document) as file:
        file.write(f'{before}{begin}\n{text}\n{end}{rest.split(end)[1]}')


GOOD = ('astronaut.png', 'coffee.png', 'chelsea.png', 'ihc.png')
HARD = ('retina.jpg', 'gravel.png', 'cell.png')
_LEVELS = (0.3, 0.5, 0.7)
_PANEL_PX = 208
_LONG_SIDE_PX = 512


def draw_pictures(folder: Path) -> None:
    """Draws each of scikit-image's images beside three cuts and the 40 best masks; a second picture shows failures."""
    generator = PseudoMaskGenerator.from_preset('default')
    for name, files in (('samples', GOOD), ('failures', HARD)):
        rows = [_row(generator, _at_most(_LONG_SIDE_PX, sample_images.folder() / file)) for file in files]
        picture = Image.fromarray(side_by_side(rows, vertical=True))
        folder.mkdir(parents=True, exist_ok=True)
        # With a palette, and without dithering, the file has a third of the size.
        picture.quantize(dither=Image.Dither.NONE).save(folder / f'pseudo_masks_{name}.png', optimize=True)


def _at_most(long_side_px: int, path: Path) -> np.ndarray:
    image = read_image(path)
    scale = min(long_side_px / max(image.shape[:2]), 1)
    size = [round(side * scale) for side in image.shape[1::-1]]
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def _row(generator: PseudoMaskGenerator, image: np.ndarray) -> np.ndarray:
    hierarchy = generator(image)
    cuts = [draw_labels(image, hierarchy.cut(level)) for level in _LEVELS]
    panels = [image, *cuts, draw_masks(image, hierarchy.select(40), 40)]
    size = (_PANEL_PX, round(_PANEL_PX * image.shape[0] / image.shape[1]))
    return side_by_side([np.asarray(Image.fromarray(panel).resize(size, Image.Resampling.BOX)) for panel in panels])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    table = commands.add_parser('table', help='measure variants and write their tables')
    table.add_argument('images', type=Path, help='folder of images')
    table.add_argument('ground_truth', type=Path, help='COCO annotation file')
    table.add_argument('--data', required=True, help='name of the data, as in the comments of the document')
    table.add_argument('--limit', type=int, help='number of images, evenly spaced (default: all)')
    table.add_argument('--few', type=int, default=6, help='images for slow variants (default: %(default)s)')
    table.add_argument('--variants', help=f'comma-separated; default: all. {", ".join(VARIANTS)}')
    table.add_argument('--cache', type=Path, default=Path('work_dirs/ablation'), help='folder for results and features')
    table.add_argument(
        '--document', type=Path, default=DOCUMENT, help='file with the tables (default: docs/pseudo_masks.md)'
    )
    pictures = commands.add_parser('pictures', help='draw the pictures of the document')
    pictures.add_argument('--out', type=Path, default=DOCUMENT.parent / 'images', help='folder (default: docs/images)')
    options = parser.parse_args(arguments)
    try:
        if options.command == 'pictures':
            draw_pictures(options.out)
        else:
            _write_tables(options)
    except UnSAMError as error:
        sys.stderr.write(f'{error}\n')
        return 1
    return 0


def _write_tables(options: argparse.Namespace) -> None:
    names = chosen_variants(options.variants)
    every = read_tasks(options.images, options.ground_truth)
    tasks = evenly(every, options.limit)
    few = evenly(tasks, options.few)
    results = Results(options.cache / options.data.replace(' ', '_'), options.ground_truth)
    run(names, tasks, few, results, MaskFinder(options.cache / 'features'))
    limit = f' --limit {options.limit}' if options.limit else ''
    command = f"python -m benchmarks.ablation table IMAGES GT.json --data '{options.data}'{limit} --few {options.few}"
    write_between_markers(options.document, options.data, report(results, tasks, few, len(every), command))


if __name__ == '__main__':
    sys.exit(main())
