"""``demo``: pseudo-masks of real images, a model trained on them, and its recall before and after training."""

from __future__ import annotations

import argparse
import filecmp
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import unsam_mm
from unsam_mm import sample_images
from unsam_mm.errors import UnSAMError
from unsam_mm.files import check_result_file, write_json
from unsam_mm.folders.run import FolderJob
from unsam_mm.generator import PseudoMaskGenerator, preset_settings
from unsam_mm.images import read_image
from unsam_mm.masks.drawing import draw_hierarchy, save_picture

_PICTURED = ('astronaut.png', 'coffee.png', 'coins.png', 'chelsea.png')
_LEVELS = (0.3, 0.5, 0.7)
_RECALL = 'unsam/AR@1000'


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the command to the command line."""
    parser = subparsers.add_parser('demo', help='pseudo-masks of real images, then a trained model and its recall')
    parser.add_argument('--out', type=Path, default=Path('demo'), help='folder for results (default: %(default)s)')
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Makes the results that are missing, and prints the figures.

    Raises:
        UnSAMError: If a file cannot be read or written, or training fails or does not improve the model.
    """
    started_s = time.perf_counter()
    out: Path = options.out
    check_result_file(out / 'results.json')
    images = _copy_images(out / 'images')
    report = FolderJob(images, out / 'masks', preset_settings('default')).run()
    _say(f'pseudo-masks: {report.done} images now, {report.skipped} before, in {out / "masks"}')
    _draw_pictures(images, out / 'pictures')
    results = _train(out)
    write_json(out / 'results.json', results)
    _draw_curve(results, out / 'pictures' / 'training.png')
    _say(f'pictures: {out / "pictures"}, checkpoint: {out / "training" / "latest.pth"}')
    _say(f'training loss: {results["loss_first"]:.2f} at the start, {results["loss_last"]:.2f} at the end')
    _say(f'AR@1000 on held-out images: {results["recall_before"]:.3f} untrained, {results["recall_after"]:.3f} trained')
    _say(f'finished in {(time.perf_counter() - started_s) / 60:.1f} minutes')
    if results['loss_last'] >= results['loss_first'] or results['recall_after'] <= results['recall_before']:
        raise UnSAMError(f'training did not improve the model; see the log in {out / "training"}')
    return 0


def _copy_images(target: Path) -> Path:
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnSAMError(f'{target}: the folder cannot be made ({error.strerror}); choose another --out') from error
    for name in sample_images.TRAIN + sample_images.HELD_OUT:
        image = sample_images.folder() / name
        if not (target / name).exists():
            shutil.copy2(image, target)
        elif not filecmp.cmp(image, target / name, shallow=False):
            raise UnSAMError(f'{target / name}: is another image than that of the demo; choose another --out')
    return target


def _draw_pictures(images: Path, target: Path) -> None:
    missing = [name for name in _PICTURED if not (target / name).exists()]
    if not missing:
        return
    generator = PseudoMaskGenerator.from_preset('default')
    for name in missing:
        image = read_image(images / name)
        save_picture(target / name, draw_hierarchy(image, generator(image), _LEVELS))


def _train(out: Path) -> dict[str, Any]:
    """Trains in a separate process, as a user would, and reads the log."""
    work_dir = out / 'training'
    if not (work_dir / 'latest.pth').exists():
        home = _mim_home()
        command = [sys.executable, str(home / 'tools' / 'train.py'), str(home / 'configs' / 'unsam.py')]
        _say('training configs/unsam.py, which takes some minutes on two cores')
        finished = subprocess.run([*command, '--work-dir', str(work_dir)], check=False)
        if finished.returncode != 0:
            raise UnSAMError(f'training ended with status {finished.returncode}; the messages above say why')
    return _read_log(work_dir)


def _mim_home() -> Path:
    """The folder that contains configs/ and tools/: the checkout, or the package's ``.mim`` folder."""
    package = Path(unsam_mm.__file__).parent
    return next(home for home in (package.parent, package / '.mim') if (home / 'configs' / 'unsam.py').exists())


def _read_log(work_dir: Path) -> dict[str, Any]:
    logs = sorted(work_dir.glob('*/vis_data/scalars.json'))
    if not logs:
        raise UnSAMError(f'{work_dir}: contains no training log; remove the folder and run again')
    rows = [json.loads(line) for line in logs[-1].read_text().splitlines()]
    losses = [(row['step'], row['loss']) for row in rows if 'loss' in row]
    recalls = [row[_RECALL] for row in rows if _RECALL in row]
    return {
        'steps': [step for step, _ in losses],
        'losses': [loss for _, loss in losses],
        'loss_first': losses[0][1],
        'loss_last': losses[-1][1],
        'recall_before': recalls[0],
        'recall_after': recalls[-1],
    }


def _draw_curve(results: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure  # installed with the MM packages, which training needs anyway

    figure = Figure(figsize=(6, 3.2), layout='constrained')
    axes = figure.add_subplot()
    axes.plot(results['steps'], results['losses'])
    axes.set(xlabel='training step', ylabel='loss (mean of 10 steps)')
    axes.set_title(
        f'AR@1000 on held-out images: {results["recall_before"]:.3f} before, {results["recall_after"]:.3f} after'
    )
    figure.savefig(path, dpi=120)


def _say(text: str) -> None:
    print(text, flush=True)
