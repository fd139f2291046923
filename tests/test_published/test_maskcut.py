"""MaskCut: the fast eigenvector is the dense solver's, and the rules are those that its docstring gives."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import eigh
from scipy.sparse.linalg import ArpackNoConvergence
from skimage import data

from tests.conftest import skip_without_weights
from unsam_mm.pseudo_masks.vit import PatchFeatureExtractor
from unsam_mm.published import maskcut as divide
from unsam_mm.published.maskcut import (
    MaskCutDivider,
    centred,
    maskcut,
    resize_to_square,
    second_eigenvector,
    similar_patches,
)


@pytest.fixture(scope='module')
def extractor():
    skip_without_weights()
    return PatchFeatureExtractor('dinov2_vits14', 'key', 24 * 14)


@pytest.fixture(scope='module')
def cup(extractor, coffee):
    """(24, 24, 384) keys of the cup of coffee."""
    return extractor(resize_to_square(coffee, 24 * 14))


def two_squares(rows=20, columns=24):
    """Two squares, 36 and 25 patches, on a ground: three kinds of features, at right angles."""
    kind = np.zeros((rows, columns), int)
    kind[3:9, 4:10], kind[12:17, 15:20] = 1, 2
    return kind, np.eye(3, dtype=np.float32)[kind]


@pytest.fixture
def lanczos_fails(monkeypatch):
    """ARPACK ends as it does where it does not converge."""

    def fail(*_, **__):
        raise ArpackNoConvergence('No convergence (1001 iterations, 0/1 eigenvectors converged)', [], [])

    monkeypatch.setattr(divide, 'eigsh', fail)


@pytest.mark.parametrize('solver', ['Lanczos', 'LOBPCG'])
@pytest.mark.parametrize('image', ['coffee', 'astronaut', 'rocket'])
def test_no_patch_changes_sides_between_an_iterative_solver_and_the_dense_one(extractor, image, solver, request):
    if solver == 'LOBPCG':
        request.getfixturevalue('lanczos_fails')
    keys = centred(extractor(resize_to_square(getattr(data, image)(), 24 * 14))).reshape(-1, 384)
    similar = similar_patches(keys, 0.15)
    weights = np.where(similar, 1.0, 1e-5)
    degrees = np.diag(weights.sum(axis=1))
    _, vectors = eigh(degrees - weights, degrees, subset_by_index=[1, 2])
    expected = vectors[:, 0] > vectors[:, 0].mean()
    values = second_eigenvector(similar)
    found = values > values.mean()
    assert (found == expected).all() or (found == ~expected).all()
    assert values[np.abs(values).argmax()] > 0


def test_lanczos_gives_the_same_bits_every_time(cup):
    similar = similar_patches(centred(cup).reshape(-1, 384), 0.15)
    assert second_eigenvector(similar).tobytes() == second_eigenvector(similar).tobytes()


@pytest.mark.usefixtures('lanczos_fails')
@pytest.mark.parametrize('similar', [0, 1], ids=['no two alike', 'all alike'])
@pytest.mark.parametrize('n_patches', [4, 5, 30])
def test_without_convergence_there_is_an_answer_for_any_graph(n_patches, similar):
    values = second_eigenvector(np.full((n_patches, n_patches), similar, np.uint8))
    assert values.shape == (n_patches,)
    assert np.isfinite(values).all()


@pytest.mark.usefixtures('lanczos_fails')
def test_without_convergence_the_objects_are_found_all_the_same():
    kind, features = two_squares()
    masks = maskcut(features, found_patches='remove')
    assert {mask.tobytes() for mask in masks} >= {(kind == 1).tobytes(), (kind == 2).tobytes()}


def test_similar_patches_are_those_above_the_threshold():
    features = np.random.default_rng(0).standard_normal((700, 5)).astype(np.float32)
    directions = features / np.linalg.norm(features, axis=1, keepdims=True)
    assert np.array_equal(similar_patches(features, 0.3), directions @ directions.T > 0.3)


def test_each_object_of_its_own_features_is_one_mask():
    kind, features = two_squares()
    masks = maskcut(features, found_patches='remove')
    assert {mask.tobytes() for mask in masks} >= {(kind == 1).tobytes(), (kind == 2).tobytes()}


def test_the_release_accepts_a_rejected_mask_in_the_next_round(cup):
    """The first object is half of this image; the second cut finds it again, which is too much overlap."""
    released = maskcut(centred(cup), overlap_with='last', repeat_rejected=True)
    assert len(released) == 2
    assert np.array_equal(released[0], released[1])


def test_here_a_rejection_ends_the_search(cup):
    assert len(maskcut(centred(cup))) == 1


def test_overlap_with_all_masks_is_stricter_even_where_the_search_goes_on(cup):
    assert len(maskcut(centred(cup), overlap_with='all', repeat_rejected=True)) == 1


def test_without_the_found_patches_the_next_cut_is_one_of_the_rest(cup):
    masks = maskcut(centred(cup), found_patches='remove')
    assert len(masks) > 1
    assert (masks.sum(axis=0) <= 1).all()


def test_small_objects_are_not_accepted_after_the_first():
    _, features = two_squares()
    areas = [int(mask.sum()) for mask in maskcut(features, found_patches='remove', min_area=30 / 480)]
    assert all(area > 30 for area in areas[1:])


@pytest.mark.parametrize(('max_corners', 'foreground'), [(2, 'top'), (1, 'bottom')])
def test_a_part_with_two_corners_is_an_object_in_the_release_and_ground_in_the_paper(max_corners, foreground):
    """The smaller part of a two-part graph has the larger values, so the top is the foreground at first."""
    kind = np.zeros((12, 10), int)
    kind[:4] = 1
    mask = maskcut(np.eye(2, dtype=np.float32)[kind], 1, max_corners=max_corners)[0]
    assert np.array_equal(mask, kind == (1 if foreground == 'top' else 0))


def test_dinov2_keys_are_all_alike_until_their_mean_is_taken_off(cup):
    raw = similar_patches(cup.reshape(-1, 384), 0.15)
    apart = similar_patches(centred(cup).reshape(-1, 384), 0.15)
    assert raw.mean() > 0.99
    assert 0.2 < apart.mean() < 0.6


def test_patches_without_any_difference_give_no_error():
    masks = maskcut(np.ones((6, 7, 4), np.float32))
    assert masks.shape[1:] == (6, 7)


def test_the_divider_gives_masks_of_the_image_without_common_pixels(extractor, coffee):
    divide = MaskCutDivider(extractor, found_patches='remove')
    masks, scores = divide(coffee)
    assert masks.dtype == bool
    assert masks.shape == (len(scores), *coffee.shape[:2])
    assert masks.sum(axis=0).max() == 1
    assert scores.tolist() == pytest.approx([1, 1 / 2, 1 / 3][: len(scores)])
    assert np.array_equal(divide(coffee)[0], masks)


def test_the_cup_is_the_first_object(extractor, coffee):
    """The middle of the cup, and the table at the left and right ends of the photograph."""
    masks, _ = MaskCutDivider(extractor)(coffee)
    assert masks[0][80:120, 130:170].all()
    assert not masks[0][150:, :20].any()
