"""A mask set keeps its masks, their order and who holds whom, whatever is taken out of it."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import unsam_mm
from tests.trees import random_masks, random_trees
from unsam_mm.errors import UnSAMError
from unsam_mm.masks.hierarchy import MaskSet as MaskSetOfHierarchy
from unsam_mm.masks.mask_set import MaskSet


@pytest.fixture
def nested():
    """A corner in the left half of a whole image of 4 x 6 pixels, in no order."""
    whole, left, corner = np.ones((4, 6), bool), np.zeros((4, 6), bool), np.zeros((4, 6), bool)
    left[:, :3], corner[:2, :2] = True, True
    return MaskSet.from_bitmaps(np.stack([corner, whole, left]), scores=np.array([0.3, 0.9, 0.5]))


def test_it_has_one_home():
    assert MaskSetOfHierarchy is unsam_mm.MaskSet is MaskSet


def test_masks_without_a_tree_find_their_parents_by_containment(nested):
    assert nested.parents.tolist() == [2, -1, 1]
    assert nested.boxes_xyxy[0].tolist() == [0, 0, 2, 2]
    assert nested.granularity.tolist() == pytest.approx([1 + np.log10(4 / 24) / 4, 1, 1 + np.log10(0.5) / 4])


def test_equal_masks_are_not_each_others_parents():
    assert MaskSet.from_bitmaps(np.ones((2, 3, 3), bool)).parents.tolist() == [-1, -1]


@given(random_masks())
def test_bitmaps_come_back_with_their_areas_and_boxes(bitmaps):
    masks = MaskSet.from_bitmaps(bitmaps)
    assert (masks.to_bitmaps() == bitmaps).all()
    assert masks.areas.tolist() == bitmaps.sum(axis=(1, 2)).tolist()
    for bitmap, (x0, y0, x1, y1) in zip(bitmaps, masks.boxes_xyxy.astype(int), strict=True):
        assert bitmap[y0:y1, x0:x1].sum() == bitmap.sum()
        assert bitmap.any() == ((x1 - x0) * (y1 - y0) > 0)


@given(random_trees(), st.data())
def test_what_is_left_of_a_set_keeps_the_nearest_parent_that_is_left(case, data):
    masks = case[1].select()
    kept = data.draw(st.lists(st.sampled_from(range(len(masks))), unique=True))
    part = masks[np.array(kept, int)]
    assert [rle['counts'] for rle in part.rles] == [masks.rles[i]['counts'] for i in kept]
    for position, i in enumerate(kept):
        up = masks.parents[i]
        while up >= 0 and up not in kept:
            up = masks.parents[up]
        assert part.parents[position] == (kept.index(up) if up >= 0 else -1)


@pytest.mark.parametrize('index', [1, -2, slice(1, 2), [1], np.array([False, True, False])])
def test_all_usual_ways_to_take_one_mask_are_understood(nested, index):
    assert nested[index].areas.tolist() == [24]


def test_a_mask_that_is_not_there_cannot_be_taken(nested):
    with pytest.raises(IndexError):
        nested[3]


def test_masks_can_be_walked_through(nested):
    assert [mask.areas[0] for mask in nested] == [4, 24, 12]
    assert [len(mask) for mask in nested] == [1, 1, 1]


@pytest.mark.parametrize('shape', [(0,), (5, 5), (1, 2, 5, 5)])
def test_bitmaps_of_another_shape_are_refused(shape):
    with pytest.raises(UnSAMError, match=r'masks must have the shape \(N, H, W\)'):
        MaskSet.from_bitmaps(np.ones(shape, bool))


def test_coco_records_have_boxes_with_sides_and_scores_as_plain_numbers(nested):
    record = nested.to_coco(image_id=3)[0]
    assert (record['image_id'], record['bbox'], record['area'], record['parent']) == (3, [0, 0, 2, 2], 4, 2)
    assert record['score'] == 0.3
    assert type(record['score']) is type(record['granularity']) is float


def test_fields_of_unequal_length_are_refused(nested):
    with pytest.raises(UnSAMError, match="one length.*'scores': 1"):
        MaskSet(nested.rles, nested.scores[:1], nested.parents, nested.areas, nested.boxes_xyxy, (4, 6))


@pytest.mark.parametrize(
    ('fields', 'reason'),
    [
        ({'scores': np.array([0.3, np.nan, 0.5])}, r'scores must lie in \[0, 1\], got nan at mask 1'),
        ({'scores': np.array([0.3, 0.9, 9.0])}, r'scores must lie in \[0, 1\], got 9.0 at mask 2'),
        ({'parents': np.array([2, -1, 3])}, r'parents must lie in \[-1, 2\], got 3 at mask 2'),
        ({'parents': np.array([2.0, -1.0, 1.0])}, 'parents must be numbers'),
        ({'parents': np.array([0, -1, 1])}, 'parents form a cycle at mask 0'),
        ({'parents': np.array([2, 0, 1])}, 'parents form a cycle at mask 0'),
        ({'parents': np.array([-1, 2, 1])}, 'parents form a cycle at mask 1'),
        ({'areas': np.array([4, 24, 25])}, r'areas must lie in \[0, 24\], got 25 at mask 2'),
        ({'boxes_xyxy': np.full((3, 4), np.inf)}, 'boxes_xyxy must be finite'),
        ({'boxes_xyxy': np.zeros((3, 2))}, 'boxes_xyxy must be numbers of shape'),
        ({'size_hw': (4, 0)}, 'size_hw must be height and width'),
        ({'size_hw': (4.0, 6.0)}, 'size_hw must be height and width'),
    ],
)
def test_what_masks_cannot_have_is_refused(nested, fields, reason):
    """Parents in a circle would be walked along for ever."""
    with pytest.raises(UnSAMError, match=reason):
        replace(nested, **fields)


def test_a_long_chain_of_parents_is_no_circle():
    chain = MaskSet.from_bitmaps(np.tri(50, dtype=bool)[:, None])
    assert chain.parents.tolist() == [*range(1, 50), -1]
    assert chain[[0, 49]].parents.tolist() == [1, -1]


def test_an_empty_set_is_a_set():
    empty = MaskSet.from_bitmaps(np.zeros((0, 4, 6), bool))
    assert len(replace(empty, scores=np.zeros(0))) == len(empty[[]]) == 0


def test_run_lengths_make_the_set_that_their_bitmaps_make(nested):
    again = MaskSet.from_rles([{**rle, 'counts': rle['counts'].decode()} for rle in nested.rles], nested.scores)
    assert again.rles == nested.rles
    assert again.parents.tolist() == [2, -1, 1]
    assert (again.boxes_xyxy == nested.boxes_xyxy).all()


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        ({'rles': []}, 'the size of the image is unknown'),
        ({'rles': [{'size': [4, 6], 'counts': 'zzzz'}]}, 'mask 0: .*the file is damaged'),
        ({'size_hw': (6, 4)}, 'the mask is 4 x 6 px, the image 6 x 4'),
        ({'scores': [0.5]}, 'fields must have one length'),
        ({'scores': ['a', 'b', 'c']}, 'scores and parents must be numbers'),
        ({'parents': [0, -1, 1]}, 'parents form a cycle'),
    ],
)
def test_run_lengths_from_outside_are_checked(nested, change, reason):
    with pytest.raises(UnSAMError, match=reason):
        MaskSet.from_rles(**{'rles': nested.rles, **change})


def test_coco_records_become_the_set_that_they_were_written_from(nested):
    again = MaskSet.from_coco(nested.to_coco(image_id=3))
    assert again.to_coco(image_id=3) == nested.to_coco(image_id=3)


def test_records_of_annotators_have_score_1_and_parents_by_containment(nested):
    records = [{'segmentation': record['segmentation']} for record in nested.to_coco(image_id=3)]
    masks = MaskSet.from_coco(records)
    assert (masks.scores.tolist(), masks.parents.tolist()) == ([1, 1, 1], [2, -1, 1])


def test_polygons_are_referred_to_their_reader():
    with pytest.raises(UnSAMError, match='record 0: expected a segmentation as run lengths; convert polygons with'):
        MaskSet.from_coco([{'segmentation': [[0, 0, 4, 0, 4, 4]]}], (8, 8))


def test_detections_carry_masks_scores_granularity_and_parents(nested, monkeypatch):
    monkeypatch.setitem(sys.modules, 'supervision', SimpleNamespace(Detections=SimpleNamespace))
    found = nested.to_detections()
    assert (found.mask == nested.to_bitmaps()).all()
    assert (found.xyxy.shape, found.confidence.tolist(), found.class_id.tolist()) == (
        (3, 4),
        nested.scores.tolist(),
        [0] * 3,
    )
    assert found.data['parent'].tolist() == [2, -1, 1]


@pytest.mark.parametrize(
    ('export', 'package', 'remedy'),
    [
        (MaskSet.to_detections, 'supervision', 'pip install supervision'),
        (MaskSet.to_instance_data, 'mmengine.structures', r"pip install 'unsam_mm\[mm\]'"),
    ],
)
def test_an_export_without_its_package_names_the_remedy(nested, monkeypatch, export, package, remedy):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UnSAMError, match=f'is not installed: {remedy}'):
        export(nested)


def test_instance_data_has_the_fields_of_detectors(nested):
    pytest.importorskip('mmengine')
    found = nested.to_instance_data()
    assert len(found) == 3
    assert (found.masks.numpy() == nested.to_bitmaps()).all()
    assert found.bboxes.numpy().tolist() == nested.boxes_xyxy.tolist()
    assert found[found.scores > 0.4].parents.tolist() == [-1, 1]
