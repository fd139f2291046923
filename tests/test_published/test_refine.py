"""Masks found on a grid of patches get the boundaries of the image, without labels."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest
from scipy import ndimage
from skimage import data

from unsam_mm.errors import ImageError, UnSAMError
from unsam_mm.published.cascadepsp import CascadePSPRefiner
from unsam_mm.published.permutohedral import PermutohedralFilter
from unsam_mm.published.refine import MaskCRF, mask_crf, partition_labels

GRID = (6, 9)


def iou(left, right):
    return (left & right).sum() / (left | right).sum()


@pytest.fixture(scope='module')
def red_disc():
    """(72, 108, 3) uint8 image and (72, 108) bool mask: a red disc off centre on green, with a little noise."""
    ys, xs = np.mgrid[:72, :108]
    disc = (ys - 30) ** 2 + (xs - 62) ** 2 < 21**2
    image = np.where(disc[..., None], (200, 40, 40), (40, 160, 60))
    noise = np.random.default_rng(0).normal(0, 4, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), disc


def patches_of(mask):
    """The patches that lie in the mask by more than half, and the same as squares of pixels."""
    height, width = (side // cells for side, cells in zip(mask.shape, GRID, strict=True))
    on = mask.reshape(GRID[0], height, GRID[1], width).mean(axis=(1, 3)) > 0.5
    return on, on.repeat(height, axis=0).repeat(width, axis=1)


def test_a_union_of_patches_becomes_exact_to_the_pixel(red_disc):
    image, disc = red_disc
    on, squares = patches_of(disc)
    refined = on.ravel()[partition_labels(image, GRID)]
    assert iou(squares, disc) < 0.85
    assert iou(refined, disc) > 0.99


@pytest.mark.parametrize(
    ('inside', 'outside', 'noise', 'blur_px', 'least'),
    [((120, 100, 80), (80, 100, 120), 15, 0, 0.96), ((200, 40, 40), (40, 160, 60), 2, 2, 0.94)],
    ids=['faint and noisy: neighbours help', 'blurred: colours help'],
)
def test_hard_edges_are_followed_too(red_disc, inside, outside, noise, blur_px, least):
    disc = red_disc[1]
    share = ndimage.gaussian_filter(disc.astype(float), blur_px)[..., None]
    image = share * inside + (1 - share) * outside + np.random.default_rng(0).normal(0, noise, (*disc.shape, 3))
    on, _ = patches_of(disc)
    assert iou(on.ravel()[partition_labels(np.clip(image, 0, 255).astype(np.uint8), GRID)], disc) > least


def test_a_pixel_goes_to_one_of_the_nine_patches_around_it(coffee):
    rows, columns = 14, 21
    labels = partition_labels(coffee, (rows, columns))
    assert labels.shape == (200, 300)
    assert labels.dtype == np.int32
    own_row = ((np.arange(200) + 0.5) * rows / 200).astype(int)[:, None]
    own_column = ((np.arange(300) + 0.5) * columns / 300).astype(int)[None]
    assert np.abs(labels // columns - own_row).max() <= 1
    assert np.abs(labels % columns - own_column).max() <= 1
    assert (labels == partition_labels(coffee, (rows, columns))).all()


def test_without_edges_patches_stay_near_their_squares():
    labels = partition_labels(np.full((72, 108, 3), 90, np.uint8), GRID)
    squares = np.arange(54).reshape(GRID).repeat(12, axis=0).repeat(12, axis=1)
    assert (labels == squares).mean() > 0.95


@pytest.mark.parametrize('grid', [(1, 1), (1, 7), (40, 60)])
def test_any_grid_up_to_one_patch_a_pixel_will_do(grid):
    image = data.coffee()[:40, :60]
    labels = partition_labels(image, grid)
    assert labels.min() >= 0
    assert labels.max() < grid[0] * grid[1]


@pytest.mark.parametrize('grid', [(0, 3), (3, 0), (41, 3), (3, 61)])
def test_grids_that_do_not_fit_are_refused(grid):
    with pytest.raises(UnSAMError, match='does not fit 40 x 60 pixels'):
        partition_labels(np.zeros((40, 60, 3), np.uint8), grid)


@pytest.mark.parametrize('image', [np.zeros((40, 60), np.uint8), np.zeros((40, 60, 3)), np.zeros((0, 60, 3), np.uint8)])
def test_refiners_take_rgb_images_only(image):
    for refine in (lambda: partition_labels(image, (1, 1)), lambda: MaskCRF(image)):
        with pytest.raises(ImageError, match='uint8 RGB image, got shape'):
            refine()


def test_the_lattice_filter_is_a_gaussian_in_five_dimensions(coffee):
    image = coffee[60:84, 100:132].reshape(-1, 3) / 20
    ys, xs = np.indices((24, 32)).reshape(2, -1) / 8
    points = np.column_stack([ys, xs, image])
    values = np.random.default_rng(0).normal(size=(len(points)))
    values += points @ [1, -1, 0.5, 0, 0.5]
    kernel = np.exp(-0.5 * ((points[:, None] - points[None]) ** 2).sum(axis=2))

    filtered = PermutohedralFilter(points)
    smooth = filtered(values) / filtered(np.ones(len(points)))
    exact = kernel @ values / kernel.sum(axis=1)
    assert np.corrcoef(smooth, exact)[0, 1] > 0.999
    assert np.abs(smooth - exact).mean() < 0.03 * exact.std()


def test_the_crf_is_the_fully_connected_one(coffee):
    """The same mean field with every pair of pixels written out, on the rim of the cup."""
    image = coffee[60:96, 100:140]
    brightness = image.mean(axis=2)
    before = np.roll(brightness > brightness.mean(), 4, axis=1)
    ys, xs = np.indices(before.shape).reshape(2, -1)
    near = np.exp(-((ys[:, None] - ys) ** 2 + (xs[:, None] - xs) ** 2) / (2 * 3.0**2))
    colours = image.reshape(-1, 3).astype(float)
    contrast = ((colours[:, None] - colours) ** 2).sum(axis=2)
    far = np.exp(-((ys[:, None] - ys) ** 2 + (xs[:, None] - xs) ** 2) / (2 * 50.0**2) - contrast / (2 * 5.0**2))
    near, far = (kernel / np.sqrt(np.outer(kernel.sum(1), kernel.sum(1))) for kernel in (near, far))
    odds = unary = 2.0 * before.ravel() - 1.0
    for _ in range(10):
        margin = np.tanh(odds / 2)
        odds = unary + 7 * near @ margin + 10 * far @ margin
    exact = ndimage.binary_fill_holes((odds > 0).reshape(before.shape))
    assert iou(before, exact) < 0.8
    assert iou(mask_crf(image, before), exact) > 0.99


def test_the_crf_moves_a_mask_to_the_edge(red_disc):
    image, disc = red_disc
    shifted = np.roll(disc, (3, -4), axis=(0, 1))
    refined = mask_crf(image, shifted)
    assert iou(shifted, disc) < 0.8
    assert iou(refined, disc) > 0.97


def test_the_crf_fills_holes(red_disc):
    image, disc = red_disc
    image = image.copy()
    image[26:34, 58:66] = (40, 160, 60)
    assert mask_crf(image, disc)[disc].all()


def test_a_mask_that_the_crf_makes_over_is_dropped(red_disc):
    image, disc = red_disc
    speck = np.zeros_like(disc)
    speck[60:63, 10:12] = True
    assert mask_crf(image, speck) is None
    assert mask_crf(image, np.zeros_like(disc)) is None


def test_a_mask_of_another_size_is_refused(red_disc):
    with pytest.raises(UnSAMError, match='its image'):
        mask_crf(red_disc[0], red_disc[1].T)


class StandInNetwork:
    """Has the interface of the authors' network; notes its input and answers with a function of the mask."""

    answer = staticmethod(lambda mask: mask)

    def __init__(self, device):
        self.calls = []

    def refine(self, image, mask, fast=False, L=900):
        assert mask.dtype == np.uint8
        assert set(np.unique(mask)) <= {0, 255}
        self.calls.append((image, mask, fast, L))
        return self.answer(mask)


@pytest.fixture
def network(monkeypatch):
    """The refiner with the stand-in, and a way to choose its answer."""
    module = ModuleType('segmentation_refinement')
    module.Refiner = type('Refiner', (StandInNetwork,), {})
    monkeypatch.setitem(sys.modules, 'segmentation_refinement', module)
    return module.Refiner


def rectangle(shape, rows, columns):
    mask = np.zeros(shape, bool)
    mask[rows, columns] = True
    return mask


def test_cascadepsp_sees_a_crop_of_twice_the_longer_side_in_bgr(network):
    image = np.zeros((300, 400, 3), np.uint8)
    image[..., 0], image[..., 2] = 10, np.arange(400) % 256
    refiner = CascadePSPRefiner()
    mask = rectangle((300, 400), slice(140, 160), slice(100, 180))
    assert (refiner(image, mask) == mask).all()
    (crop, crop_mask, fast, long_side) = refiner._network.calls[0]
    assert crop.shape == (160, 160, 3)
    assert (crop[..., 2] == 10).all()
    assert (crop[0, :, 0] == image[0, 60:220, 2]).all()
    assert (crop_mask[70:90, 40:120] == 255).all()
    assert (fast, long_side) == (True, 160)


@pytest.mark.parametrize(
    ('rows', 'columns', 'shape', 'long_side'),
    [
        (slice(10, 20), slice(10, 20), (20, 20), 100),
        (slice(0, 30), slice(0, 100), (115, 150), 150),
        (slice(500, 1000), slice(500, 1500), (1600, 2000), 900),
    ],
    ids=['small crops are enlarged', 'the image ends the crop', 'large crops are reduced'],
)
def test_the_size_that_cascadepsp_works_at(network, rows, columns, shape, long_side):
    image = np.zeros((1600, 2200, 3), np.uint8)
    refiner = CascadePSPRefiner()
    refiner(image, rectangle(image.shape[:2], rows, columns))
    assert refiner._network.calls[0][0].shape[:2] == shape
    assert refiner._network.calls[0][3] == long_side


def test_answers_above_128_belong_to_the_mask(network):
    network.answer = staticmethod(lambda mask: np.where(np.arange(mask.shape[1]) < 30, 129, 128) * (mask > 0))
    refined = CascadePSPRefiner()(np.zeros((80, 80, 3), np.uint8), rectangle((80, 80), slice(20, 60), slice(10, 45)))
    assert (refined == rectangle((80, 80), slice(20, 60), slice(10, 30))).all()


@pytest.mark.parametrize(
    ('answer', 'mask'),
    [
        (lambda mask: mask * 0, rectangle((50, 80), slice(10, 30), slice(10, 40))),
        (lambda mask: mask, np.zeros((50, 80), bool)),
        (lambda mask: mask | 255, rectangle((50, 80), slice(3, 50), slice(0, 76))),
        (lambda mask: np.roll(mask, 12, axis=1), rectangle((50, 80), slice(10, 30), slice(10, 40))),
    ],
    ids=['nothing is left', 'nothing was there', 'all but the whole image', 'moved by a third'],
)
def test_masks_that_cascadepsp_loses_are_dropped(network, answer, mask):
    network.answer = staticmethod(answer)
    assert CascadePSPRefiner()(np.zeros((50, 80, 3), np.uint8), mask) is None


def test_without_the_package_the_message_says_what_to_install_and_what_it_means(monkeypatch):
    monkeypatch.setitem(sys.modules, 'segmentation_refinement', None)
    with pytest.raises(UnSAMError, match='pip install segmentation-refinement.*supervised'):
        CascadePSPRefiner()
