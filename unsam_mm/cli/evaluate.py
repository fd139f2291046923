"""``evaluate``: class-agnostic recall and precision of masks, or IoU after clicks, against ground truth."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from tqdm import tqdm

from unsam_mm.cli import positive_int
from unsam_mm.coco_files.ground_truth import load_ground_truth
from unsam_mm.errors import UnSAMError, error_context
from unsam_mm.evaluation.average_recall import ENGINES, evaluate_masks, format_table
from unsam_mm.evaluation.click_simulation import Predictor, evaluate_prompts
from unsam_mm.evaluation.predictions import load_predictions
from unsam_mm.evaluation.prompt_data import PromptImage, coco_prompts, folder_prompts
from unsam_mm.evaluation.prompt_iou import NOC_LIMIT, format_prompt_table, iou_curve, save_click_curves, summarize
from unsam_mm.files import check_result_file, write_json
from unsam_mm.folders.store import PseudoMaskStore
from unsam_mm.prompting import ENGINES as PROMPT_ENGINES
from unsam_mm.prompting import UnSAMPredictor


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the command to the command line."""
    parser = subparsers.add_parser(
        'evaluate', help='measure masks, or the masks after clicks, against ground truth, all classes as one'
    )
    parser.add_argument(
        'predictions', type=Path, nargs='?', help='folder of pseudo-masks, merged COCO file, or list of COCO results'
    )
    parser.add_argument('ground_truth', type=Path, nargs='?', help='COCO annotation file')
    parser.add_argument('--json', type=Path, metavar='FILE', help='also write the numbers, unrounded, to this file')
    parser.add_argument(
        '--skip-unmatched', action='store_true', help='leave out predictions for images that the ground truth lacks'
    )
    parser.add_argument(
        '--engine',
        choices=(*ENGINES, *PROMPT_ENGINES),
        help='for masks: what computes the figures, this package (unsam, default), or another toolbox as a check; '
        'with --prompts: what predicts the masks, the region tree (tree, default), or a trained model (model)',
    )
    _add_prompt_arguments(parser.add_argument_group('clicks instead of predictions'))
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Evaluates masks or clicks, and prints the table.

    Raises:
        UnSAMError: If the arguments do not fit together, or a file cannot be read or evaluated.
    """
    check_results(options)
    if options.prompts is not None:
        return _run_prompts(options)
    if options.ground_truth is None:
        raise UnSAMError('evaluate needs PREDICTIONS and GROUND_TRUTH, or --prompts with --images')
    if options.engine in PROMPT_ENGINES:
        raise UnSAMError(f'--engine {options.engine} answers --prompts; for masks choose one of {", ".join(ENGINES)}')
    ground_truth = load_ground_truth(options.ground_truth)
    predictions = load_predictions(options.predictions, ground_truth, options.skip_unmatched)
    with error_context(f'{options.predictions} against {options.ground_truth}', UnSAMError):
        metrics = evaluate_masks(predictions, ground_truth, engine=options.engine or ENGINES[0])
    if options.json:
        write_json(options.json, metrics)
    print(format_table(metrics))
    return 0


def check_results(options: argparse.Namespace) -> None:
    """Checks, before anything is evaluated, that only earlier results would be overwritten.

    Raises:
        StoreError: If an output is an input, or is a file that is not a result.
    """
    inputs = (options.predictions, options.ground_truth, options.prompts, options.weights)
    if options.json:
        check_result_file(options.json, *inputs)
        if options.predictions:
            PseudoMaskStore(options.predictions).check_result(options.json)
    if options.curve:
        folders = options.images, options.masks, options.prompts
        check_result_file(options.curve, *inputs, folders=folders, starts=(b'\x89PNG',), kind='PNG')


def prompt_images(options: argparse.Namespace) -> list[PromptImage]:
    """The images and segments that the options of `_add_prompt_arguments` select."""
    if options.prompts.is_dir():
        return folder_prompts(
            options.images, options.prompts, options.each_value, options.ignored_value, limit=options.limit
        )
    return coco_prompts(options.prompts, options.images, options.masks, options.limit)


def make_predictor(engine: str, weights: Path | None) -> Predictor:
    """The predictor that answers the clicks.

    Args:
        engine: 'tree' or 'model'.
        weights: Weights file of the model; None for the weights in the package.

    Raises:
        UnSAMError: If the engine is unknown, or weights are given for the tree.
        WeightsError: If the weights are not available.
    """
    if engine not in PROMPT_ENGINES:
        raise UnSAMError(f'--prompts are answered by --engine {" or ".join(PROMPT_ENGINES)}, not by {engine}')
    return UnSAMPredictor(engine, weights=weights)


def _add_prompt_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        '--prompts',
        type=Path,
        metavar='GT',
        help='COCO file (instances or panoptic), or folder of mask images, whose segments are clicked on',
    )
    group.add_argument('--images', type=Path, metavar='FOLDER', help='their images')
    group.add_argument('--masks', type=Path, metavar='FOLDER', help='PNG files of a panoptic COCO file')
    group.add_argument('--each-value', action='store_true', help='each value of a mask image is a separate object')
    group.add_argument('--ignored-value', type=int, metavar='V', help='value of pixels to ignore: 128 in GrabCut')
    group.add_argument('--weights', type=Path, metavar='FILE', help='of the model (default: those of the package)')
    group.add_argument(
        '--clicks',
        type=positive_int,
        default=1,
        metavar='K',
        help=f'clicks on each segment (default: %(default)s; for the number of clicks, NoC, usually {NOC_LIMIT})',
    )
    group.add_argument('--limit', type=positive_int, metavar='N', help='only the first N images')
    group.add_argument('--segments', type=positive_int, metavar='N', help='a random sample of N segments of each image')
    group.add_argument('--seed', type=int, default=0, help='seed of that sample (default: %(default)s)')
    group.add_argument('--curve', type=Path, metavar='PNG', help='plot of IoU against the number of clicks')


def _run_prompts(options: argparse.Namespace) -> int:
    if options.images is None:
        raise UnSAMError('--prompts needs the folder of the images: --images FOLDER')
    if options.predictions is not None:
        raise UnSAMError(f'{options.predictions}: --prompts makes its own predictions; leave this argument out')
    engine = options.engine or PROMPT_ENGINES[0]
    images = prompt_images(options)
    predictor = make_predictor(engine, options.weights)
    ious = evaluate_prompts(
        predictor,
        images,
        options.clicks,
        max_segments=options.segments,
        seed=options.seed,
        progress=partial(tqdm, unit='image', disable=None),
    )
    figures = summarize(ious)
    if options.json:
        write_json(options.json, {'engine': engine, 'clicks': options.clicks, **figures})
    if options.curve:
        curves = {f'{engine}, best-scored mask': iou_curve(figures), 'best mask': iou_curve(figures, 'oracle')}
        save_click_curves(options.curve, curves)
    print(format_prompt_table({engine: figures}))
    return 0
