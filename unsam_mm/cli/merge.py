"""``merge``: writes a folder of pseudo-masks as one COCO file, alone or together with other labels."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from unsam_mm.errors import UnSAMError, one_line
from unsam_mm.files import check_result_file
from unsam_mm.folders.merge import (
    GROUND_TRUTH_IOU,
    SELF_TRAINING_IOU,
    SELF_TRAINING_SCORE,
    MergeReport,
    merge_ground_truth,
    merge_predictions,
)
from unsam_mm.folders.store import PseudoMaskStore


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the command to the command line."""
    parser = subparsers.add_parser(
        'merge',
        help='write a folder of pseudo-masks as one COCO file, alone or together with other labels',
        epilog='Exit status: 0 if all images are in the file; 1 if some were left out because their masks or labels are '
        'damaged, or if the file could not be written.',
    )
    parser.add_argument('masks', type=Path, help='folder that "generate" made')
    parser.add_argument('target', type=Path, help='COCO file to write, for example pseudo.json')
    added = parser.add_mutually_exclusive_group()
    added.add_argument(
        '--gt',
        type=Path,
        metavar='LABELS',
        help='add these human labels (COCO file or folder of SA-1B files) and drop the pseudo-masks that overlap them',
    )
    added.add_argument(
        '--predictions',
        type=Path,
        metavar='LABELS',
        help='add these predictions (folder, COCO file or list of COCO results) if their score is high, and drop the '
        'pseudo-masks that overlap them: the labels of the next round of self-training',
    )
    parser.add_argument(
        '--iou',
        type=float,
        help='drop pseudo-masks with a larger IoU with an added label '
        f'(default: {GROUND_TRUTH_IOU} with --gt, {SELF_TRAINING_IOU} with --predictions)',
    )
    parser.add_argument(
        '--score', type=float, help=f'add predictions with a larger score (default: {SELF_TRAINING_SCORE})'
    )
    parser.add_argument(
        '--images',
        type=Path,
        metavar='COCO',
        help='COCO file with the images whose ids a list of results uses '
        '(default: ids as in the file that "merge" writes from the same folder)',
    )
    parser.add_argument(
        '--supervised',
        action='store_true',
        help='record in the file that the model of the predictions was trained with human labels',
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Writes the file, completely or not at all. Exit status 1 if images were left out."""
    _check_options(options)
    if options.gt:
        max_iou = GROUND_TRUTH_IOU if options.iou is None else options.iou
        report = merge_ground_truth(options.masks, options.target, options.gt, max_iou)
        failed = _summarize(report, 'human labels', options.target)
    elif options.predictions:
        report = merge_predictions(
            options.masks,
            options.target,
            options.predictions,
            min_score=SELF_TRAINING_SCORE if options.score is None else options.score,
            max_iou=SELF_TRAINING_IOU if options.iou is None else options.iou,
            images=options.images,
            supervised=options.supervised,
        )
        failed = _summarize(report, 'predictions', options.target)
    else:
        n_images, n_masks, messages = PseudoMaskStore(options.masks).merge(options.target)
        print(f'{n_masks} masks of {n_images} images in {options.target}')
        failed = list(messages.values())
    for message in failed:
        print(f'left out: {one_line(message)}', file=sys.stderr)
    if failed:
        print(f'{len(failed)} images are not in {one_line(options.target)}', file=sys.stderr)
    return 1 if failed else 0


def _check_options(options: argparse.Namespace) -> None:
    """Raises `UnSAMError` for options without effect, and for a target that is a file other than a result."""
    check_result_file(options.target, options.gt, options.predictions, options.images, folders=[options.gt])
    for folder in filter(None, (options.masks, options.predictions)):
        PseudoMaskStore(folder).check_result(options.target)
    if options.iou is not None and not (options.gt or options.predictions):
        raise UnSAMError('--iou needs labels to compare with: add --gt or --predictions')
    for name in ('score', 'images', 'supervised'):
        if getattr(options, name) not in (None, False) and not options.predictions:
            raise UnSAMError(f'--{name} applies to predictions only: add --predictions')


def _summarize(report: MergeReport, added: str, target: Path) -> list[str]:
    """Prints what was merged; returns the error messages of images that were left out."""
    print(
        f'{report.added} {added} and {report.kept} pseudo-masks in {target}; {report.dropped} pseudo-masks overlapped '
        f'{added} and were left out'
    )
    print(
        f'{report.matched} images with both, {report.only_pseudo} with pseudo-masks only, {report.only_added} with '
        f'{added} only'
    )
    return report.failed
