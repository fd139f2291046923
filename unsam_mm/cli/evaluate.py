"""``evaluate``: class-agnostic average recall and precision of masks against a COCO file."""

from __future__ import annotations

import argparse
from pathlib import Path

from unsam_mm.evaluation.annotations import load_ground_truth, load_predictions
from unsam_mm.evaluation.average_recall import ENGINES, evaluate_masks, format_table
from unsam_mm.files import write_json


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the command to the command line."""
    parser = subparsers.add_parser('evaluate', help='measure masks against ground truth, all classes as one')
    parser.add_argument(
        'predictions', type=Path, help='folder of pseudo-masks, merged COCO file, or list of COCO results'
    )
    parser.add_argument('ground_truth', type=Path, help='COCO annotation file')
    parser.add_argument('--json', type=Path, metavar='FILE', help='also write the numbers, unrounded, to this file')
    parser.add_argument(
        '--skip-unmatched', action='store_true', help='leave out predictions for images that the ground truth lacks'
    )
    parser.add_argument(
        '--engine',
        choices=ENGINES,
        default='unsam',
        help='who computes: this package (default), or another toolbox as a check of its figures',
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the table."""
    ground_truth = load_ground_truth(options.ground_truth)
    predictions = load_predictions(options.predictions, ground_truth, options.skip_unmatched)
    metrics = evaluate_masks(predictions, ground_truth, engine=options.engine)
    print(format_table(metrics))
    if options.json:
        write_json(options.json, metrics)
    return 0
