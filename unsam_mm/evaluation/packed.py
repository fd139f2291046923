"""The predictions of a whole data set in memory and on disk: text of run lengths, and nothing for each mask beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unsam_mm.evaluation.records import Record
from unsam_mm.files import atomic_writer
from unsam_mm.masks.rle import rles_from_json

_SEPARATOR = b'\n'
"""No character of COCO's run lengths."""


def pack_masks(records: Sequence[Record]) -> dict[str, Any]:
    """The RLEs and scores of one image, without the dictionaries that take several times their room.

    Args:
        records: ``segmentation`` (RLE) and ``score`` of each of N masks.

    Returns:
        ``counts``, bytes of all masks, and ``scores``, (N,) float64.
    """
    counts = _SEPARATOR.join(rle['counts'] for rle in rles_from_json([record['segmentation'] for record in records]))
    return {'counts': counts, 'scores': np.array([record['score'] for record in records], np.float64)}


def unpack_masks(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """COCO result records of one image.

    Args:
        result: ``image_id``, ``size_hw`` and, under ``masks``, what `pack_masks` returned.
    """
    scores = result['masks']['scores'].tolist()
    counts = result['masks']['counts'].split(_SEPARATOR) if scores else []
    for text, score in zip(counts, scores, strict=True):
        rle = {'size': list(result['size_hw']), 'counts': text.decode('ascii')}
        yield {'image_id': result['image_id'], 'category_id': 1, 'segmentation': rle, 'score': score}


def write_results(path: str | Path, results: Sequence[Mapping[str, Any]]) -> int:
    """Writes a list of COCO result records, one image at a time.

    Args:
        path: The file, whole or absent.
        results: See `unpack_masks`.

    Returns:
        The number of records.

    Raises:
        StoreError: If the file cannot be written.
    """
    n_records = 0
    with atomic_writer(path) as file:
        file.write('[')
        for result in results:
            for record in unpack_masks(result):
                file.write(',\n' if n_records else '\n')
                json.dump(record, file, separators=(',', ':'))
                n_records += 1
        file.write('\n]\n')
    return n_records
