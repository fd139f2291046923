"""Region tokens: their computation from a cut of the region tree, and their files."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.color import rgb2lab

from tests.conftest import skip_without_weights
from unsam_mm.errors import StoreError, UnSAMError
from unsam_mm.pseudo_masks.region_trees import GeneratorSettings
from unsam_mm.student import RegionInputs, RegionTokenizer, RegionTokens, TokenMasks
from unsam_mm.student.tokenizer import tokens_signature


def test_tokens_partition_the_image_into_the_wanted_number(cup, coffee):
    tokens, _ = cup
    assert tokens.size_hw == coffee.shape[:2]
    assert len(tokens) == 80
    assert (np.bincount(tokens.labels.ravel()) == tokens.areas_px).all()


def test_tokens_are_the_regions_of_one_level_of_the_generators_tree(cup, coffee, colour_generator):
    tree = colour_generator(coffee)
    level = tree.cut(float(tree.level[len(tree) - 80]))
    assert (tokens_in_order(level) == tokens_in_order(cup[0].labels)).all()


def tokens_in_order(labels):
    """The labels numbered by their first pixel."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].reshape(labels.shape)


def test_token_masks_are_the_generators_best_masks_as_shares(cup, coffee, colour_generator):
    tokens, masks = cup
    best = colour_generator(coffee).select(max_masks=60)
    assert (masks.scores == best.scores).all()
    assert (masks.areas_px == best.areas).all()
    for shares, bitmap in zip(masks.shares, best.to_bitmaps(), strict=True):
        inside = np.bincount(tokens.labels.ravel(), bitmap.ravel(), minlength=len(tokens))
        assert (shares == np.round(255 * inside / tokens.areas_px)).all()


def test_a_token_has_the_colour_and_place_of_its_pixels(cup, coffee):
    tokens, _ = cup
    lab = rgb2lab(coffee)
    for token in (0, 17, 79):
        inside = tokens.labels == token
        assert np.allclose(tokens.lab_mean[token], lab[inside].mean(0), atol=0.1)
        assert np.allclose(tokens.lab_std[token], lab[inside].std(0), atol=0.1)
        assert np.allclose(tokens.centres_yx[token], np.argwhere(inside).mean(0), atol=0.01)


def test_edges_join_tokens_that_touch_and_count_the_pixel_sides(cup):
    tokens, _ = cup
    labels = tokens.labels.astype(int)
    sides = np.concatenate(
        [
            np.stack([labels[1:], labels[:-1]], -1).reshape(-1, 2),
            np.stack([labels[:, 1:], labels[:, :-1]], -1).reshape(-1, 2),
        ]
    )
    sides = np.sort(sides[sides[:, 0] != sides[:, 1]], axis=1)
    edges, lengths = np.unique(sides, axis=0, return_counts=True)
    assert (edges == tokens.edges).all()
    assert (lengths == tokens.edge_lengths_px).all()
    assert (tokens.edge_strengths > 0).all()


def test_the_same_image_gives_the_same_tokens_with_masks_and_with_trees(cup, coffee, colour_tokenizer):
    again, hierarchy = colour_tokenizer(80).with_trees(coffee, lambda tokens: tokens)
    assert hierarchy.size_hw == again.size_hw
    for name, values in vars(cup[0]).items():
        assert (values == getattr(again, name)).all(), name


def test_an_image_with_fewer_superpixels_than_tokens_has_a_token_for_each(colour_tokenizer, coffee):
    tokens, masks = colour_tokenizer(500).with_masks(coffee[:48, :48])
    assert 1 < len(tokens) < 500
    assert masks.shares.shape == (len(masks), len(tokens))


def test_an_image_may_be_a_single_region(colour_tokenizer, coffee):
    tokens, masks = colour_tokenizer(1).with_masks(coffee)
    assert len(tokens) == 1
    assert tokens.edges.shape == (0, 2)
    assert tokens.tree_heights.shape == (4, 0)
    assert np.allclose(masks.shares[:, 0] / 255 * coffee[..., 0].size, masks.areas_px, atol=coffee[..., 0].size / 500)
    assert RegionInputs.from_tokens(tokens).pairs.isfinite().all()


def test_small_images_have_smaller_superpixels(colour_tokenizer, coffee):
    """Superpixels of 8 px would merge cells that are 8 px apart."""
    small = coffee[60:124, 60:124]
    assert len(colour_tokenizer(768).with_masks(small)[0]) > (64 / 8) ** 2 * 2


def test_progress_never_goes_back_and_ends_at_one(colour_tokenizer, coffee):
    seen = []
    colour_tokenizer(20).with_trees(coffee, lambda tokens: None, lambda done, message: seen.append(done))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


@pytest.mark.parametrize('n_tokens', [0, -3, 5000])
def test_a_number_of_tokens_out_of_range_is_refused(n_tokens):
    with pytest.raises(UnSAMError, match=f'^n_tokens={n_tokens} is out of range; it must lie in 1..4096'):
        RegionTokenizer(n_tokens=n_tokens)


def test_the_signature_tells_numbers_of_tokens_apart():
    skip_without_weights()
    assert len({tokens_signature(GeneratorSettings(), n) for n in (40, 80)}) == 2


def test_a_file_gives_back_what_was_saved_and_nothing_else_is_left(cup, tmp_path):
    path = tmp_path / 'new' / 'cup.npz'
    cup[0].save(path, cup[1])
    for saved, loaded in ((cup[0], RegionTokens.load(path)), (cup[1], TokenMasks.load(path))):
        for name, values in vars(saved).items():
            assert values.dtype == getattr(loaded, name).dtype
            assert (values == getattr(loaded, name)).all()
    assert list(path.parent.iterdir()) == [path]


def test_a_file_without_masks_has_tokens_but_no_masks(cup, tmp_path):
    cup[0].save(tmp_path / 'cup.npz')
    assert len(RegionTokens.load(tmp_path / 'cup.npz')) == 80
    with pytest.raises(StoreError, match='cup.npz: contains no mask_areas_px'):
        TokenMasks.load(tmp_path / 'cup.npz')


def _truncated(path):
    path.write_bytes(path.read_bytes()[:5000])


def _folder(path):
    path.unlink()
    path.mkdir()


def _one_array(path):
    with path.open('wb') as file:
        np.save(file, np.arange(3))


def _bytes_changed(path):
    content = bytearray(path.read_bytes())
    content[3000:3400] = bytes(400)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda path: path.unlink(), 'no such file; make it with RegionTokenizer'),
        (_truncated, 'not a whole .npz file .*; remove it and make it again'),
        (_bytes_changed, 'not a whole .npz file .*; remove it and make it again'),
        (lambda path: path.write_bytes(b''), 'not a .npz file; remove it and make it again'),
        (lambda path: path.write_bytes(b'PK junk'), 'not a .npz file; remove it and make it again'),
        (_one_array, 'not a .npz file; remove it and make it again'),
        (_folder, r'cannot be read \(Is a directory\)'),
        (lambda path: np.savez(path, labels=np.zeros((2, 2))), 'contains no format'),
        (lambda path: np.savez(path, **{**dict(np.load(path)), 'format': 99}), 'has format 99, expected 1'),
        (
            lambda path: np.savez(path, **{**dict(np.load(path)), 'labels': np.array([{}])}),
            'not a whole .npz file',
        ),
        (
            lambda path: np.savez(path, **{**dict(np.load(path)), 'areas_px': np.ones(3)}),
            'areas_px must be int32 with 1 axes, found float64',
        ),
    ],
)
def test_a_damaged_or_foreign_file_is_named_with_the_remedy(cup, tmp_path, damage, message):
    path = tmp_path / 'cup.npz'
    cup[0].save(path)
    damage(path)
    with pytest.raises(StoreError, match=f'cup.npz: {message}'):
        RegionTokens.load(path)


def changed(values, at, value):
    values = values.copy()
    values[at] = value
    return values


@pytest.mark.parametrize(
    ('name', 'change', 'reason'),
    [
        ('tree_orders', lambda v: changed(v, (0, 0), 65535), 'tree_orders must contain each of the 80 regions once'),
        ('tree_orders', lambda v: changed(v, (0, 0), v[0, 1]), 'tree_orders must contain each of the 80 regions once'),
        ('tree_orders', lambda v: v.astype(np.int64), 'tree_orders must be uint16 with 2 axes'),
        ('tree_orders', lambda v: v[:0], 'does not match the other fields'),
        ('tree_heights', lambda v: v[:, :-1], 'tree_heights .* does not match the other fields'),
        ('tree_heights', lambda v: changed(v, (1, 2), np.nan), 'tree_heights must be finite'),
        ('tree_heights', lambda v: changed(v, (1, 2), -3), r'tree_heights must lie in \[0, 1\]'),
        ('tree_heights', lambda v: changed(v, (1, 2), 9), r'tree_heights must lie in \[0, 1\]'),
        ('labels', lambda v: changed(v, (0, 0), 80), 'areas_px differ from the areas of the labels'),
        (
            'labels',
            lambda v: changed(v, (0, 0), (int(v[0, 0]) + 1) % 80),
            'areas_px differ from the areas of the labels',
        ),
        ('labels', lambda v: v.astype(np.float32), 'labels must be uint16 with 2 axes'),
        ('labels', lambda v: v.ravel(), 'labels must be uint16 with 2 axes'),
        ('areas_px', lambda v: changed(v, 3, -1), 'areas_px differ from the areas of the labels'),
        ('features', lambda v: changed(v, (0, 0), np.inf), 'features must be finite'),
        ('features', lambda v: v[:-1], 'features .* does not match the other fields'),
        ('lab_mean', lambda v: v[:, :2], 'lab_mean .* does not match the other fields'),
        ('lab_std', lambda v: changed(v, (0, 0), -1), 'lab_std must not be negative'),
        ('centres_yx', lambda v: changed(v, (0, 0), 1e6), 'centres_yx must lie in the image of 200 x 300 px'),
        ('centres_yx', lambda v: v.astype('>f4'), 'centres_yx must be float32'),
        ('edges', lambda v: changed(v, (0, 1), 65535), 'edges must be pairs of regions'),
        ('edges', lambda v: v[::-1].copy(), 'edges must be pairs of regions'),
        ('edge_lengths_px', lambda v: changed(v, 0, 0), 'edge_lengths_px must be positive'),
        ('edge_strengths', lambda v: v[:-1], 'edge_strengths .* does not match the other fields'),
    ],
)
def test_inconsistent_tokens_are_refused(cup, tmp_path, name, change, reason):
    """Compiled loops do not check indices: one out of range ends the process."""
    path = tmp_path / 'cup.npz'
    cup[0].save(path)
    arrays = dict(np.load(path))
    np.savez(path, **{**arrays, name: change(arrays[name])})
    with pytest.raises(StoreError, match=reason) as caught:
        RegionTokens.load(path)
    assert str(caught.value).startswith(f'{path}: ')
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('name', 'change', 'reason'),
    [
        ('mask_scores', lambda v: changed(v, 0, np.nan), r'scores of masks must lie in \[0, 1\]'),
        ('mask_areas_px', lambda v: changed(v, 0, -5), 'areas must not be negative'),
        ('mask_shares', lambda v: v.astype(np.int32), 'shares of masks must be uint8'),
        ('mask_shares', lambda v: v[:-1], 'the length of scores'),
    ],
)
def test_inconsistent_masks_are_refused(cup, tmp_path, name, change, reason):
    path = tmp_path / 'cup.npz'
    cup[0].save(path, cup[1])
    arrays = dict(np.load(path))
    np.savez(path, **{**arrays, name: change(arrays[name])})
    with pytest.raises(StoreError, match=reason):
        TokenMasks.load(path)


def test_an_unwritable_path_is_named(cup, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(StoreError, match='a file is where a folder is needed'):
        cup[0].save(tmp_path / 'file' / 'cup.npz')
