from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from skimage import data
from skimage.draw import disk
from skimage.measure import label

from napari_unsam.model.mask import EMPTY, BoxMask
from napari_unsam.volumes.matching import appearance_of, colour_bins, deepest_point, match_mask
from napari_unsam.volumes.propagation import Direction, PropagationSettings, SliceState, propagate
from tests.test_napari.stand_ins import NestedPlane, colour_tree

SIZE_HW = (64, 80)
RADII = {3: 9, 4: 11, 5: 13, 6: 13, 7: 12, 8: 10}
"""Of a ball in slices 3 to 8 of ten; its centre moves a pixel to the right from slice to slice."""


def disc(z, radii=RADII, column=30):
    mask = np.zeros(SIZE_HW, bool)
    if z in radii:
        mask[disk((30, column + z), radii[z], shape=SIZE_HW)] = True
    return mask


def picture(*masks):
    """Grey noise with brighter objects."""
    image = np.random.default_rng(0).normal(60, 4, SIZE_HW)
    for brightness, mask in zip((180, 150), masks, strict=False):
        image[mask] += brightness - 60
    return image.clip(0, 255).astype(np.uint8)


class Stack:
    """Slices that are segmented when they are asked for, and how often each was."""

    def __init__(self, images):
        self.images, self.asked = list(images), []
        self._planes = {}

    def plane(self, z):
        self.asked.append(z)
        if z not in self._planes:
            self._planes[z] = NestedPlane(colour_tree(self.images[z], lambda *_: None))
        return self._planes[z]

    def propagate(self, known, z_range=None, **settings):
        known = {label: {z: BoxMask.of(mask) for z, mask in slices.items()} for label, slices in known.items()}
        return propagate(
            self.plane,
            self.images.__getitem__,
            known,
            z_range or (0, len(self.images)),
            PropagationSettings(**settings),
        )


@pytest.fixture(scope='module')
def ball():
    return Stack(picture(disc(z)) for z in range(10))


def iou(one, mask):
    return one.mask.iou(BoxMask.of(mask))


def present(found):
    return [z for z, one in found.items() if one.mask.area_px]


def test_an_object_is_followed_both_ways_from_one_slice_to_its_ends(ball):
    found = ball.propagate({1: {5: disc(5)}})[1]
    assert present(found) == sorted(RADII)
    assert all(iou(found[z], disc(z)) > 0.8 for z in RADII)


def test_the_slice_that_the_user_marked_stays_as_it_is(ball):
    found = ball.propagate({1: {5: disc(5)}})[1]
    assert found[5].state is SliceState.CORRECTED
    assert iou(found[5], disc(5)) == 1


def test_the_slice_where_an_object_ends_is_recorded_and_holds_nothing(ball):
    found = ball.propagate({1: {5: disc(5)}})[1]
    assert [z for z, one in found.items() if one.state is SliceState.STOPPED] == [2, 9]
    assert found[2].mask.area_px == 0


def test_each_slice_tells_its_iou_with_the_one_before_and_its_granularity(ball):
    found = ball.propagate({1: {5: disc(5)}})[1]
    assert found[6].iou == pytest.approx(found[6].mask.iou(found[5].mask))
    assert found[4].iou == pytest.approx(found[4].mask.iou(found[5].mask))
    for z in (5, 6):
        assert found[z].granularity == pytest.approx(1 + np.log10(found[z].mask.area_px / disc(z).size) / 4)


@pytest.mark.parametrize(('direction', 'expected'), [(Direction.FORWARD, [5, 6, 7, 8]), (Direction.BACK, [3, 4, 5])])
def test_one_direction_leaves_the_other_side_alone(ball, direction, expected):
    assert present(ball.propagate({1: {5: disc(5)}}, direction=direction)[1]) == expected


def test_nothing_is_looked_for_outside_the_range(ball):
    ball.asked.clear()
    assert present(ball.propagate({1: {5: disc(5)}}, z_range=(4, 7))[1]) == [4, 5, 6]
    assert set(ball.asked) == {4, 5, 6}


def test_a_strict_threshold_ends_an_object_early(ball):
    assert present(ball.propagate({1: {5: disc(5)}}, min_iou=0.99)[1]) == [5]


def test_an_object_ends_at_a_slice_that_does_not_show_it():
    images = [picture(disc(z)) for z in range(10)]
    images[6] = picture()
    assert max(present(Stack(images).propagate({1: {5: disc(5)}})[1])) == 5


def test_a_correction_starts_the_slices_around_it_over():
    """A second object touches the first; the user says in slice 7 where the first one ends."""
    small = {6: 6, 7: 6, 8: 6}
    stack = Stack(picture(disc(z), disc(z, small, 56)) for z in range(10))
    found = stack.propagate({1: {5: disc(5), 7: disc(7, small, 30)}})[1]
    assert found[7].state is SliceState.CORRECTED
    assert iou(found[7], disc(7, small, 30)) == 1
    assert iou(found[4], disc(4)) > 0.8


def test_between_two_known_slices_both_sides_meet(ball):
    found = ball.propagate({1: {3: disc(3), 8: disc(8)}})[1]
    assert all(iou(found[z], disc(z)) > 0.8 for z in RADII)


def test_an_empty_correction_ends_the_object_there(ball):
    found = ball.propagate({1: {5: disc(5), 7: np.zeros(SIZE_HW, bool)}})[1]
    assert present(found) == [3, 4, 5, 6]
    assert found[7].state is SliceState.CORRECTED


def test_objects_of_one_run_share_the_slices_and_no_pixel():
    other = dict.fromkeys(range(2, 9), 9)
    stack = Stack(picture(disc(z), disc(z, other, 50)) for z in range(10))
    found = stack.propagate({1: {5: disc(5)}, 2: {5: disc(5, other, 50) & ~disc(5)}})
    assert len(stack.asked) == len(set(stack.asked)) + 1  # twice only where both ways begin
    for z in set(present(found[1])) & set(present(found[2])):
        assert found[1][z].mask.intersection(found[2][z].mask) == 0
    assert len(set(present(found[1])) & set(present(found[2]))) >= 4


def test_progress_can_stop_it(ball):
    def stop(fraction, _text):
        if fraction > 0.3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        propagate(ball.plane, ball.images.__getitem__, {1: {5: BoxMask.of(disc(5))}}, (0, 10), progress=stop)


def test_a_coin_is_found_again_in_a_moved_photo():
    image = data.coins()[150:230, 20:120]
    coins = label(ndimage.binary_opening(ndimage.binary_fill_holes(image > 110), iterations=3))
    coin = coins == np.bincount(coins[coins > 0]).argmax()
    moved = np.roll(image, 3, axis=1)
    previous = BoxMask.of(coin)
    match = match_mask(
        NestedPlane(colour_tree(moved, lambda *_: None)),
        previous,
        appearance_of(previous, colour_bins(image)),
        colour_bins(moved),
    )
    assert match.mask.iou(BoxMask.of(np.roll(coin, 3, axis=1))) > 0.8
    assert match.score > 0.5


def test_objects_are_followed_in_colour_too():
    def rgb(z):
        return np.stack([picture(disc(z)), picture(), picture(disc(z))], axis=-1)

    found = Stack(rgb(z) for z in range(10)).propagate({1: {5: disc(5)}})[1]
    assert present(found) == sorted(RADII)


def test_a_slice_without_a_tree_is_answered_by_its_engine(ball):
    class Tiled:
        hierarchy = None

        def answer(self, *prompt, **box):
            return ball.plane(6).answer(*prompt, **box)

    bins = colour_bins(ball.images[5])
    previous = BoxMask.of(disc(5))
    match = match_mask(Tiled(), previous, appearance_of(previous, bins), colour_bins(ball.images[6]))
    assert iou(match, disc(6)) > 0.6
    assert match.granularity == pytest.approx(1 + np.log10(match.mask.area_px / disc(6).size) / 4)


def test_an_engine_that_is_asked_does_no_harm(ball):
    bins = colour_bins(ball.images[5])
    previous = BoxMask.of(disc(5))
    arguments = (ball.plane(6), previous, appearance_of(previous, bins), colour_bins(ball.images[6]))
    assert match_mask(*arguments, ask_engine=True).score >= match_mask(*arguments).score


def test_the_deepest_point_is_farthest_from_the_outline():
    assert deepest_point(BoxMask.of(disc(5))).tolist() == [35, 30]


def test_a_crop_is_tight_and_an_empty_one_overlaps_nothing():
    crop = BoxMask.of(disc(5))
    assert crop.box_xyxy == (23, 18, 48, 43)
    assert crop.area_px == disc(5).sum()
    assert np.array_equal(crop.within((0, 0, 80, 64)), disc(5))
    assert EMPTY.iou(crop) == EMPTY.iou(EMPTY) == 0
    assert BoxMask.of(np.zeros((4, 4), bool)) is EMPTY


def test_settings_are_values():
    assert replace(PropagationSettings(), min_iou=0.2) == PropagationSettings(min_iou=0.2)
