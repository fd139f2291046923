import numpy as np
import pytest
from skimage import data
from skimage.draw import disk
from skimage.measure import label

from napari_unsam.levels.candidate_table import CandidateTable
from napari_unsam.levels.cuts import RegionFilter
from napari_unsam.levels.region_properties import Brightness
from napari_unsam.volumes.linking import LinkSettings, link, overlap_ious
from tests.test_napari.stand_ins import colour_tree

BLOBS = label(data.binary_blobs(96, blob_size_fraction=0.15, volume_fraction=0.3, rng=3))


def frame(**discs):
    """A label map of discs, by label: row, column, radius."""
    labels = np.zeros((60, 60), np.int32)
    for name, (row, column, radius) in discs.items():
        labels[disk((row, column), radius, shape=labels.shape)] = int(name[1:])
    return labels


def parts(objects):
    return [[(one.z, one.region) for one in regions] for regions in objects]


def test_overlaps_are_counted_for_all_pairs_at_once():
    shifted = np.roll(BLOBS, 2, axis=0)
    pairs, ious = overlap_ious(BLOBS, shifted)
    for (one, other), iou in zip(pairs, ious, strict=True):
        a, b = one == BLOBS, shifted == other
        assert iou == pytest.approx((a & b).sum() / (a | b).sum())
    assert len(pairs) == len({tuple(pair) for pair in pairs.tolist()})


def test_regions_that_overlap_from_slice_to_slice_are_one_object():
    maps = [np.where(BLOBS > 0, (BLOBS + z) % (BLOBS.max() + 1), 0) for z in range(3)]
    maps[0] = BLOBS
    objects = link([BLOBS, BLOBS, BLOBS], LinkSettings(min_extent=3))
    assert parts(objects) == [[(0, i), (1, i), (2, i)] for i in range(1, BLOBS.max() + 1)]


def test_labels_may_change_from_slice_to_slice():
    maps = [frame(_1=(20, 20, 8), _2=(40, 40, 8)), frame(_7=(41, 40, 8), _9=(20, 21, 8))]
    assert parts(link(maps)) == [[(0, 1), (1, 9)], [(0, 2), (1, 7)]]


def test_all_pairs_together_overlap_most():
    """Region 1 overlaps both most, but then 2 would have no partner."""
    maps = [frame(_1=(20, 20, 8), _2=(20, 32, 8)), frame(_1=(20, 16, 8), _2=(20, 26, 8))]
    assert parts(link(maps, LinkSettings(min_iou=0.1))) == [[(0, 1), (1, 1)], [(0, 2), (1, 2)]]


@pytest.mark.parametrize(('max_gap', 'expected'), [(0, [[(0, 1), (1, 1)], [(3, 1), (4, 1)]]), (1, 1), (2, 1)])
def test_a_gap_that_is_small_enough_is_closed(max_gap, expected):
    here, nothing = frame(_1=(20, 20, 8)), frame()
    objects = parts(link([here, here, nothing, here, here], LinkSettings(max_gap=max_gap)))
    assert objects == (expected if expected != 1 else [[(0, 1), (1, 1), (3, 1), (4, 1)]])


def test_objects_of_few_slices_are_left_out():
    maps = [frame(_1=(20, 20, 8), _2=(45, 45, 5)), frame(_1=(20, 20, 8)), frame(_1=(20, 20, 8))]
    assert parts(link(maps, LinkSettings(min_extent=2))) == [[(0, 1), (1, 1), (2, 1)]]
    assert len(link(maps, LinkSettings(min_extent=1))) == 2


def test_regions_that_overlap_too_little_are_two_objects():
    maps = [frame(_1=(20, 20, 8)), frame(_1=(20, 32, 8))]
    assert len(link(maps, LinkSettings(min_iou=0.3, min_extent=1))) == 2


def test_every_link_tells_its_iou():
    maps = [frame(_1=(20, 20, 8)), frame(_1=(20, 22, 8))]
    (regions,) = link(maps)
    assert regions[0].iou == 1
    assert regions[1].iou == pytest.approx(overlap_ious(*maps)[1][0])


def test_no_slices_hold_no_objects():
    assert link([]) == []


def test_the_coins_of_a_photo_are_linked_to_themselves_in_a_moved_one():
    maps = []
    for z in range(2):
        image = np.roll(data.coins()[:120, :160], z, axis=1)
        table = CandidateTable(colour_tree(image, lambda *_: None), image)
        chosen = table.best(RegionFilter(min_area_px=200, max_share=0.2, min_score=0.0, brightness=Brightness.ANY))
        maps.append(table.object_class('coins', chosen).labels)
    linked = link(maps)
    assert len(linked) >= 0.5 * maps[0].max()
