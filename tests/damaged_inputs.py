"""Damage of what comes from outside: valid inputs of six kinds, ways to spoil them, and slow checks of what is read."""

from __future__ import annotations

import copy
import faulthandler
import json
import math
import tempfile
import warnings
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask

from tests.trees import drawn, random_tree
from unsam_mm.coco_files.ground_truth import load_ground_truth
from unsam_mm.errors import UnSAMError
from unsam_mm.evaluation.average_recall import evaluate_masks
from unsam_mm.evaluation.matching import read_images
from unsam_mm.evaluation.predictions import load_predictions
from unsam_mm.folders.merge import merge_ground_truth
from unsam_mm.folders.store import PseudoMaskStore
from unsam_mm.masks.hierarchy import MaskHierarchy
from unsam_mm.masks.mask_set import MaskSet
from unsam_mm.masks.rle import areas_and_boxes, decode_crop, encode_bitmaps, rle_to_json, rles_from_json
from unsam_mm.prompting.embedding_file import load_arrays
from unsam_mm.prompting.enlarged import EnlargedEngine
from unsam_mm.prompting.model import RegionEngine
from unsam_mm.prompting.prompt import Prompt
from unsam_mm.prompting.tree_engine import TreeEngine
from unsam_mm.student import RegionInputs, RegionNet, RegionTokens

MAX_SECONDS = 10
ODD_VALUES = [
    None, True, False, -1, 0, 1, 2, 1.0, 0.5, -3, 9, 1e300, math.nan, math.inf, 2**31, 2**32, 2**63, 10**400, '', 'abc',
    '1', 'zzzz', 'PPPPPP1', [], {}, [[]], [1], [None], [[1, 2, 3]], {'size': [1, 1], 'counts': '1'}, [0, 0, 5, 5],
]  # fmt: skip
ODD_NUMBERS = [-1, 0, 1, 2, -3, 9, 255, 65535, 2**31 - 1, -(2**31), 0.5, 1e30, math.nan, math.inf]
ODD_DTYPES = ['i1', 'u2', 'i4', 'i8', 'u8', 'f2', 'f4', 'f8', '>f4', '>i4', 'c8', 'U4', '?']


def is_refused(read: Callable[[], None]) -> bool:
    """Whether an input is refused as it should be, on one line; anything else that goes wrong is raised."""
    try:
        read()
    except UnSAMError as error:
        message = str(error)
    else:
        return False
    assert message
    assert '\n' not in message, message
    return True


# Slow checks


def slow_mask(rle: Any, size_hw: tuple[int, int]) -> np.ndarray | None:
    """(H, W) bool of an encoding from outside, digit by digit; None if it is none of that size."""
    if not isinstance(rle, dict) or not {'size', 'counts'} <= rle.keys():
        return None
    size, counts = rle['size'], rle['counts']
    if not isinstance(size, list) or not all(map(is_whole, size)) or tuple(size) != size_hw:
        return None
    runs: list[int] = []
    if isinstance(counts, list):
        if not all(map(is_whole, counts)):
            return None
        runs = [int(run) for run in counts]
    elif isinstance(counts, str):
        digits: list[int] = []
        for character in counts:
            digits.append(ord(character) - 48)
            if not 0 <= digits[-1] < 64 or len(digits) > 7:
                return None
            if digits[-1] < 32:
                number = sum((digit % 32) * 32**place for place, digit in enumerate(digits))
                if digits[-1] & 16:
                    if len(digits) == 7:
                        return None
                    number -= 32 ** len(digits)
                runs.append(number + (runs[-2] if len(runs) > 2 else 0))
                digits = []
        if digits or not runs:
            return None
    else:
        return None
    if any(run < 0 for run in runs) or sum(runs) != size_hw[0] * size_hw[1]:
        return None
    pixels = [value % 2 == 1 for value, run in enumerate(runs) for _ in range(run)]
    return np.array(pixels, bool).reshape(size_hw[1], size_hw[0]).T


def is_whole(value: Any) -> bool:
    return type(value) in (int, float) and value == value and abs(value) < math.inf and value == int(value)


def is_polygon(part: Any) -> bool:
    """Whether a part of a segmentation encloses something, in exact arithmetic."""
    if not isinstance(part, list) or len(part) < 6 or len(part) % 2 or not all(type(v) in (int, float) for v in part):
        return False
    if not all(v == v and abs(v) < 1e12 for v in part):
        return False
    xs, ys = [Fraction(v) for v in part[::2]], [Fraction(v) for v in part[1::2]]
    return any(
        abs((xs[i] - xs[0]) * (ys[j] - ys[0]) - (xs[j] - xs[0]) * (ys[i] - ys[0])) > 0
        for i in range(len(xs))
        for j in range(i)
    )


def slow_segmentation(record: dict[str, Any], size_hw: tuple[int, int]) -> np.ndarray | None:
    """The mask of an annotation that was read; None if it has none."""
    if isinstance(record.get('segmentation'), dict):
        return slow_mask(record['segmentation'], size_hw)
    polygons = slow_polygons(record)
    return (
        coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *size_hw))).astype(bool) if polygons else None
    )


def slow_polygons(record: dict[str, Any]) -> list[list[float]]:
    segmentation = record.get('segmentation')
    parts = segmentation if isinstance(segmentation, list) else []
    return [part for part in ([parts] if is_polygon(parts) else parts) if is_polygon(part)]


# Damage


def json_places(value: Any, path: tuple = ()) -> list[tuple]:
    """Where each value below a JSON value stands."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, child in inner for place in ((*path, key), *json_places(child, (*path, key)))]


def damaged_json(rng: np.random.Generator, value: Any) -> Any:
    """A copy with one to three values exchanged, lost, doubled or moved."""
    value = copy.deepcopy(value)
    for _ in range(rng.integers(1, 4)):
        places = json_places(value)
        if not places:
            break
        *way, key = places[rng.integers(len(places))]
        parent = value
        for step in way:
            parent = parent[step]
        match rng.integers(6):
            case 0:
                parent[key] = copy.deepcopy(ODD_VALUES[rng.integers(len(ODD_VALUES))])
            case 1:
                del parent[key]
            case 2 if isinstance(parent, list):
                parent.insert(key, copy.deepcopy(parent[key]))
            case 3 if isinstance(parent[key], str) and parent[key]:
                parent[key] = damaged_text(rng, parent[key])
            case 4 if isinstance(parent[key], int | float):
                parent[key] = [-parent[key], parent[key] + 1, float(parent[key]), str(parent[key])][rng.integers(4)]
            case _:
                other = places[rng.integers(len(places))]
                found = value
                try:
                    for step in other:
                        found = found[step]
                except (KeyError, IndexError):
                    continue
                parent[key] = copy.deepcopy(found)
    return value


def damaged_text(rng: np.random.Generator, text: str) -> str:
    """A text with a character exchanged, lost or put in; most are digits of run lengths."""
    at = rng.integers(len(text) + 1)
    new = chr(rng.integers(48, 112)) if rng.random() < 0.9 else chr(rng.integers(1, 1000))
    return [text[:at] + new + text[at + 1 :], text[:at] + text[at + 1 :], text[:at] + new + text[at:]][rng.integers(3)]


def damaged_arrays(rng: np.random.Generator, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A copy with one or two arrays changed in a value, dtype, shape or order, or lost, or exchanged."""
    arrays = {name: values.copy() for name, values in arrays.items()}
    for _ in range(rng.integers(1, 3)):
        names = sorted(arrays)
        name = names[rng.integers(len(names))]
        values = arrays[name]
        with np.errstate(all='ignore'), warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of complex numbers made real
            match rng.integers(8):
                case 0 | 1 | 2 if values.size:
                    number = ODD_NUMBERS[rng.integers(len(ODD_NUMBERS))]
                    values.flat[rng.integers(values.size)] = np.array(number).astype(values.dtype)
                case 3 if values.size:
                    one, other = rng.integers(values.size, size=2)
                    values.flat[one] = values.flat[other]
                case 4:
                    try:
                        arrays[name] = values.astype(ODD_DTYPES[rng.integers(len(ODD_DTYPES))])
                    except (TypeError, ValueError):
                        continue
                case 5:
                    changed = [
                        values[:-1] if values.ndim else values,
                        values[None],
                        values.ravel(),
                        values.T,
                        values[..., :0],
                    ]
                    arrays[name] = changed[rng.integers(len(changed))]
                case 6:
                    arrays[name] = arrays[names[rng.integers(len(names))]]
                case _:
                    del arrays[name]
    return arrays


def damaged_bytes(rng: np.random.Generator, content: bytes) -> bytes:
    """A file with a few bytes exchanged, or cut short."""
    if rng.random() < 0.3:
        return content[: rng.integers(len(content))]
    content = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        content[rng.integers(len(content))] = rng.integers(256)
    return bytes(content)


# Doors: each reads one damaged input, and returns whether it was refused


def read_damaged_rle(rng: np.random.Generator, folder: Path) -> bool:
    """Run lengths."""
    mask = rng.random((rng.integers(1, 13), rng.integers(1, 13))) < rng.random()
    rle = rle_to_json(encode_bitmaps(mask[None])[0])
    if rng.random() < 0.3:
        rle['counts'] = np.diff(np.flatnonzero(np.diff(mask.T.ravel(), prepend=False)), prepend=0).tolist()
        rle['counts'].append(mask.size - sum(rle['counts']))
    elif rng.random() < 0.5:
        rle['counts'] = damaged_text(rng, rle['counts'])
    rle = damaged_json(rng, rle) if rng.random() < 0.5 else rle
    expected = slow_mask(rle, mask.shape)

    def read() -> None:
        checked = rles_from_json([rle], mask.shape)
        assert expected is not None
        assert checked == encode_bitmaps(expected[None])
        areas, boxes = areas_and_boxes(checked)
        assert areas[0] == expected.sum()
        x0, y0, x1, y1 = boxes[0].tolist()
        assert (decode_crop(checked[0], (x0, y0, x1, y1)) == expected[y0:y1, x0:x1]).all()

    refused = is_refused(read)
    assert refused == (expected is None)
    return refused


def read_damaged_tree(rng: np.random.Generator, folder: Path) -> bool:
    """Trees, as merges and as they are kept."""
    tree = random_tree(rng, rng.integers(1, 7), rng.integers(1, 7), rng.integers(1, 12))[1]
    names = ('leaf_labels', 'parent', 'height', 'score')
    arrays = damaged_arrays(rng, {name: getattr(tree, name) for name in names})
    if arrays.keys() != set(names):
        arrays = {name: arrays.get(name) for name in names}
    return is_refused(lambda: check_tree(MaskHierarchy.from_merges(**arrays), arrays))


def check_tree(tree: MaskHierarchy, arrays: dict[str, np.ndarray]) -> None:
    labels, parent = np.asarray(arrays['leaf_labels']), np.asarray(arrays['parent'])
    expected = [drawn(labels, parent, node) for node in range(len(parent))]
    found = {tree.mask(node).tobytes() for node in range(len(tree))}
    assert {mask.tobytes() for mask in expected} == found
    assert sorted(tree.area.tolist()) == sorted(int(mask.sum()) for mask in expected)
    assert ((tree.score >= 0) & (tree.score <= 1)).all()
    assert np.isfinite(tree.height).all()
    assert (tree.height[:-1] <= tree.height[tree.parent[:-1]]).all()
    masks = tree.select()
    assert (masks.to_bitmaps().sum(axis=(1, 2)) == masks.areas).all()
    assert tree.cut_nodes(0.5).size


def read_damaged_store(rng: np.random.Generator, folder: Path) -> bool:
    """A pseudo-mask file, and the mask set in it."""
    store = PseudoMaskStore(folder)
    bitmaps = rng.random((rng.integers(0, 5), 5, 7)) < rng.random()
    store.write('a.png', MaskSet.from_bitmaps(bitmaps, rng.random(len(bitmaps))))
    path = store.path_of('a.png')
    if rng.random() < 0.2:
        path.write_bytes(damaged_bytes(rng, path.read_bytes()))
    else:
        path.write_text(json.dumps(damaged_json(rng, json.loads(path.read_text()))))

    def read() -> None:
        masks = store.read('a.png')
        content = json.loads(path.read_bytes())
        expected = [slow_mask(record['segmentation'], masks.size_hw) for record in content['annotations']]
        for found, mask, area in zip(masks.to_bitmaps(), expected, masks.areas, strict=True):
            assert (found == mask).all()
            assert area == mask.sum()
        assert len(masks[::2]) == (len(masks) + 1) // 2  # walks along the parents
        assert np.isfinite([*masks.scores, *masks.granularity]).all()

    return is_refused(read)


@cache
def tokens_of_a_tree() -> tuple[RegionTokens, MaskHierarchy]:
    """Tokens of the leaves of a random tree over 8 x 10 px, with made-up features."""
    rng = np.random.default_rng(1)
    labels, tree, _ = random_tree(rng, 8, 10, 9)
    n_tokens, labels = tree.n_leaves, tree.leaf_labels
    areas = np.bincount(labels.ravel())
    y, x = (np.bincount(labels.ravel(), axis.ravel()) / areas for axis in np.indices(labels.shape))
    edges = np.array([(i, i + 1) for i in range(n_tokens - 1)])
    tokens = RegionTokens(
        labels.astype(np.uint16),
        areas.astype(np.int32),
        rng.random((n_tokens, 3)).astype(np.float16),
        rng.random((n_tokens, 3)).astype(np.float16),
        rng.random((n_tokens, 3)).astype(np.float16),
        np.stack([y, x], axis=1).astype(np.float32),
        np.stack([rng.permutation(n_tokens) for _ in range(4)]).astype(np.uint16),
        rng.random((4, n_tokens - 1)).astype(np.float32),
        edges.astype(np.uint16),
        np.ones(len(edges), np.float32),
        rng.random(len(edges)).astype(np.float32),
    )
    return tokens, tree


def damaged_npz(rng: np.random.Generator, path: Path, arrays: dict[str, np.ndarray], fixed: dict[str, Any]) -> None:
    """Writes damaged arrays, or arrays as a damaged file."""
    if rng.random() < 0.2:
        np.savez(path, **arrays, **fixed)
        path.write_bytes(damaged_bytes(rng, path.read_bytes()))
    else:
        np.savez(path, **damaged_arrays(rng, arrays), **fixed)


def read_damaged_tokens(rng: np.random.Generator, folder: Path) -> bool:
    """A file of region tokens."""
    path = folder / 'a.npz'
    damaged_npz(rng, path, vars(tokens_of_a_tree()[0]), {'format': np.int64(1)})

    def read() -> None:
        tokens = RegionTokens.load(path)
        inputs = RegionInputs.from_tokens(tokens)
        assert inputs.pairs.isfinite().all()
        assert torch.isfinite(inputs.appearance).all()
        for tree, order in enumerate(tokens.tree_orders.astype(int)):
            for first in range(len(order) - 1):
                for last in range(first + 1, len(order)):
                    gaps = tokens.tree_heights[tree, first:last]
                    if tree == 0:
                        assert inputs.pairs[order[first], order[last], -1] == gaps.max()
                    assert (
                        inputs.pairs[order[first], order[last], tree] == inputs.pairs[order[last], order[first], tree]
                    )
        assert [(tokens.labels == i).sum() for i in range(len(tokens))] == tokens.areas_px.tolist()

    return is_refused(read)


@cache
def engines() -> tuple[EnlargedEngine, RegionEngine]:
    """A tree engine behind an enlarging one, and a region engine with a small random network; neither sees an image."""
    torch.manual_seed(0)
    net = RegionNet(width=8, heads=2, encoder_layers=1, decoder_layers=1, prompt_channels=4, feature_channels=3)
    return EnlargedEngine(TreeEngine(generator=object())), RegionEngine(net, lambda device: None)


def read_damaged_embedding(rng: np.random.Generator, folder: Path) -> bool:
    """An embedding of a predictor."""
    tokens, tree = tokens_of_a_tree()
    engine = engines()[int(rng.random() < 0.3)]
    arrays = tree.to_arrays() | ({'factor': np.array([2])} if engine.name == 'tree' else vars(tokens))
    path = folder / 'a.npz'
    damaged_npz(rng, path, arrays, {'_kind': np.array(engine.name), '_format': np.int64(2)})

    def read() -> None:
        found = load_arrays(path, engine.name)
        engine.set_embedding(found)
        height, width = engine.size_hw
        factor = 2 if engine.name == 'tree' and 'factor' in found and found['factor'].ravel()[0] == 2 else 1
        assert (height * factor, width * factor) == found['leaf_labels_0'].shape
        masks, scores = engine.answer(
            Prompt(np.array([[width // 2, height // 2]]), np.array([True]), None, None), True, None
        )
        assert masks.shape == (len(scores), height, width)
        assert masks[:, height // 2, width // 2].all()
        assert np.isfinite(scores).all()

    return is_refused(read)


SIZE = (30, 40)


def coco_file(rng: np.random.Generator) -> dict[str, Any]:
    """Two images with three annotations each: polygons, compressed and plain run lengths."""
    annotations = []
    for image_id in (1, 2):
        for kind in range(3):
            x, y = (int(value) for value in rng.integers(0, 15, 2))
            mask = np.zeros(SIZE, bool)
            mask[y : y + 10, x : x + 20] = True
            polygon = [x, y, x + 20, y, x + 20, y + 10, x, y + 10]
            plain = [x * 30 + y, *[10, 20] * 19, 10]
            plain.append(1200 - sum(plain))
            segmentation = [
                [polygon],
                rle_to_json(encode_bitmaps(mask[None])[0]),
                {'size': list(SIZE), 'counts': plain},
            ][kind]
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': image_id,
                    'category_id': 1,
                    'segmentation': segmentation,
                    'area': 200,
                    'bbox': [x, y, 20, 10],
                    'iscrowd': 0,
                }
            )
    images = [{'id': i, 'file_name': f'{i}.png', 'height': SIZE[0], 'width': SIZE[1]} for i in (1, 2)]
    return {'images': images, 'annotations': annotations, 'categories': [{'id': 1, 'name': 'thing'}]}


def read_damaged_coco(rng: np.random.Generator, folder: Path) -> bool:
    """A COCO file as ground truth and as predictions of ``evaluate``, and as labels of ``merge --gt``."""
    content = coco_file(rng)
    path = folder / 'gt.json'
    if rng.random() < 0.2:
        path.write_bytes(damaged_bytes(rng, json.dumps(content).encode()))
    else:
        path.write_text(json.dumps(damaged_json(rng, content)))
    warnings.simplefilter('ignore', UserWarning)  # of what is left out

    def evaluate() -> None:
        truth = load_ground_truth(path)
        images = {image_id: truths for image_id, _, truths in read_images([], truth, 100)}
        records = json.loads(path.read_bytes())['annotations']
        for image in truth['images']:
            size_hw = image['height'], image['width']
            if None not in size_hw:
                own = [r for r in records if float_or_text(r['image_id']) == float_or_text(image['id'])]
                if not any(map(is_far, own)):
                    check_masks(images[image['id']].rles, [slow_segmentation(record, size_hw) for record in own])
        predictions = [record | {'score': 0.5} for record in truth['annotations']]
        assert evaluate_masks(predictions, truth)['AR@1'] >= 0
        (folder / 'results.json').write_text(json.dumps(predictions))
        load_predictions(folder / 'results.json', truth)

    def merge() -> None:
        store = PseudoMaskStore(folder / 'masks')
        if not store.root.is_dir():
            store.write('1.png', MaskSet.from_bitmaps(np.zeros((0, *SIZE), bool)))
        report = merge_ground_truth(store.root, folder / 'all.json', path)
        merged = json.loads((folder / 'all.json').read_bytes())
        records = json.loads(path.read_bytes())['annotations']
        found = [record['segmentation'] for record in merged['annotations']]
        kept = [r for r in records if isinstance(r.get('segmentation'), dict) or slow_polygons(r)]
        assert len(found) == len(kept) or (report.failed and len(found) < len(kept))

    refused = is_refused(evaluate)
    is_refused(merge)
    return refused


def is_far(record: dict[str, Any]) -> bool:
    """Whether the slow check would draw an outline of billions of pixels."""
    numbers = [record.get('segmentation')]
    while any(isinstance(value, list) for value in numbers):
        numbers = [v for value in numbers for v in (value if isinstance(value, list) else [value])]
    return any(type(value) in (int, float) and abs(value) > 10_000 for value in numbers)


def float_or_text(value: Any) -> Any:
    return value if isinstance(value, str) else float(value)


def check_masks(rles: list[dict], expected: list[np.ndarray | None]) -> None:
    """That run lengths are those of masks, in any order."""
    found = sorted(coco_mask.decode(rle).astype(bool).tobytes() for rle in rles)
    assert found == sorted(mask.tobytes() for mask in expected if mask is not None)


KINDS = {
    'rle': read_damaged_rle,
    'tree': read_damaged_tree,
    'store': read_damaged_store,
    'tokens': read_damaged_tokens,
    'embedding': read_damaged_embedding,
    'coco': read_damaged_coco,
}


def read_damaged(name: str, number: int, watched: bool = False) -> int:
    """Reads damaged inputs; returns how many were refused.

    Args:
        name: A key of `KINDS`.
        number: How many inputs; each is made from its own number.
        watched: End the process, and show where it is, if one takes longer than `MAX_SECONDS`.

    Raises:
        AssertionError: With the number of the input, if one was read wrongly or raised another error than it should.
    """
    refused = 0
    for seed in range(number):
        with tempfile.TemporaryDirectory() as folder:
            if watched and seed:  # the first may have to compile
                faulthandler.dump_traceback_later(MAX_SECONDS, exit=True)
            try:
                refused += KINDS[name](np.random.default_rng([seed, 2026]), Path(folder))
            except Exception as error:
                raise AssertionError(f'{name}, input {seed}: {type(error).__name__}: {error}') from error
            finally:
                faulthandler.cancel_dump_traceback_later()
    return refused
