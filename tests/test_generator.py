"""The whole generator on a real image."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from skimage import data

from tests.conftest import skip_without_weights
from unsam_mm import PseudoMaskGenerator
from unsam_mm import generator as generator_module
from unsam_mm.errors import UnSAMError
from unsam_mm.generator import PRESETS, settings_signature
from unsam_mm.pseudo_masks.ranking import RankingSettings
from unsam_mm.pseudo_masks.region_trees import GeneratorSettings


@pytest.fixture(scope='module')
def generator():
    """The default generator as it is."""
    skip_without_weights()
    return PseudoMaskGenerator.from_preset('default')


def test_most_coins_are_found_among_the_first_fifty_masks(coins_tree, coins):
    """24 coins; a bright pixel well inside each decides which mask is meant."""
    masks = coins_tree.select(50)
    coin_sized = (masks.areas > 400) & (masks.areas < 4000)
    solid = masks.areas / np.prod(masks.boxes_xyxy[:, 2:] - masks.boxes_xyxy[:, :2], axis=1) > 0.65
    apart = masks[np.flatnonzero(coin_sized & solid)].to_bitmaps()
    centres = {tuple(int(c.mean()) // 30 for c in np.nonzero(mask)) for mask in apart}
    assert len(centres) >= 15


def test_the_same_image_gives_the_same_tree(generator, coins, coins_tree):
    again = generator(coins)
    assert (again.leaf_labels == coins_tree.leaf_labels).all()
    assert (again.parent == coins_tree.parent).all()
    assert (again.score == coins_tree.score).all()
    masks, expected = again.select(), coins_tree.select()
    assert [rle['counts'] for rle in masks.rles] == [rle['counts'] for rle in expected.rles]


def test_grey_and_rgb_forms_of_an_image_give_the_same_tree(generator, coins, coins_tree):
    rgba = np.dstack([coins] * 3 + [np.full_like(coins, 255)])
    assert (generator(rgba).leaf_labels == coins_tree.leaf_labels).all()


def test_progress_ends_at_one_and_can_stop_the_work(generator, coins):
    seen = []
    generator(coins, progress=lambda done, message: seen.append(done))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0

    def stop(done, message):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generator(coins, progress=stop)


@pytest.mark.parametrize('image', [np.zeros((32, 32), np.uint8), np.full((64, 64), np.nan), np.zeros((4, 64, 64))])
def test_images_without_content_are_refused(generator, image):
    with pytest.raises(UnSAMError, match='^image: '):
        generator(image)


def test_the_signature_changes_with_any_setting(generator):
    assert generator.signature == settings_signature(GeneratorSettings())
    for changed in (
        GeneratorSettings(merge_weights=((0.2, 0.6),)),
        GeneratorSettings(lightness_levels=0),
        GeneratorSettings(ranking=RankingSettings(max_decay=0.4)),
    ):
        assert generator.signature != settings_signature(changed)


@pytest.mark.parametrize('preset', ['default', 'paper'])
def test_the_signature_changes_with_the_weights_in_a_folder(tmp_path, preset):
    (tmp_path / 'config.json').write_text('{"model_type": "dinov2"}')
    settings, signatures = replace(PRESETS[preset], vit=str(tmp_path)), []
    for value in (1, 2, 1):
        save_file({'weight': np.full(4, value, np.float32)}, tmp_path / 'new')
        (tmp_path / 'new').replace(tmp_path / 'model.safetensors')
        os.utime(tmp_path / 'model.safetensors', (0, 0))  # as of a copy that keeps times
        signatures.append(settings_signature(settings))
    assert signatures[0] != signatures[1]
    assert signatures[0] == signatures[2]


def test_signatures_are_those_of_earlier_versions(monkeypatch):
    """Settings have new names since; stored masks stay current."""
    monkeypatch.setattr(generator_module, 'weights_origin', lambda settings: 'constant')
    assert {preset: settings_signature(settings) for preset, settings in PRESETS.items()} == {
        'default': 'd19ff829f6fc',
        'paper': '2e3431a4b7bb',
        'release': '658c240212c3',
    }
    changed = GeneratorSettings(superpixel_spacing_px=6.0, max_superpixels=500)
    assert settings_signature(changed) == '7f7e9a1b4369'


def test_every_preset_has_a_signature_of_its_own():
    skip_without_weights()
    assert set(PRESETS) == {'default', 'paper', 'release'}
    signatures = {settings_signature(settings) for settings in PRESETS.values()}
    assert len(signatures) == len(PRESETS)
    assert all(len(signature) == 12 and int(signature, 16) >= 0 for signature in signatures)


@pytest.mark.parametrize('preset', ['paper', 'release'])
@pytest.mark.slow
def test_the_published_procedures_give_a_hierarchy_too(preset):
    """Masks of a cat's face: several, each once, from the whole animal to parts, and the superpixels tile the image."""
    skip_without_weights()
    image = np.ascontiguousarray(data.chelsea()[::2, ::2])
    hierarchy = PseudoMaskGenerator.from_preset(preset, maskcut_patches=30, crop_patches=16)(image)
    masks = hierarchy.select()
    assert len(masks) >= 5
    assert len({rle['counts'] for rle in masks.rles}) == len(masks)
    assert hierarchy.cut(0.0).min() == 1
    assert masks.areas.max() > 10 * masks.areas.min()
    assert (masks.parents >= 0).any()
    held = masks.parents >= 0
    assert (masks.granularity[held] <= masks.granularity[masks.parents[held]]).all()


def test_other_trees_add_masks_that_cross_those_of_the_first(coins_tree):
    """Four merge trees and two trees of level sets, of which each gives some of the best masks."""
    assert len(coins_tree.alternatives) == 5
    best = coins_tree.select(500)
    assert all((tree.score >= best.scores.min()).any() for tree in (coins_tree, *coins_tree.alternatives))
    first = {coins_tree.rle(node)['counts'] for node in range(len(coins_tree))}
    assert 0.1 < np.mean([rle['counts'] in first for rle in best.rles]) < 0.9
    held = best.parents >= 0
    assert (best.granularity[held] <= best.granularity[best.parents[held]]).all()


def test_a_single_growth_without_level_sets_gives_a_single_tree(coffee):
    skip_without_weights()
    settings = GeneratorSettings(long_side_px=112, merge_weights=((0.2, 0.6),), lightness_levels=0)
    hierarchy = PseudoMaskGenerator(settings)(coffee)
    assert hierarchy.alternatives == ()
    assert len(hierarchy.select(10_000)) == len(hierarchy)


@pytest.mark.slow
def test_the_number_of_threads_does_not_matter(generator, coins, coins_tree):
    expected = coins_tree.select()
    before = torch.get_num_threads()
    try:
        for threads in {1, 2} - {before}:  # the expected masks were found with so many
            torch.set_num_threads(threads)
            masks = generator(coins).select()
            assert [rle['counts'] for rle in masks.rles] == [rle['counts'] for rle in expected.rles]
            assert (masks.scores == expected.scores).all()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ('preset', 'changes', 'message'),
    [
        ('best', {}, "preset 'best' is unknown; choose from default, paper, release"),
        ('default', {'x': 1}, "preset 'default' has no setting x; known are vit, facet"),
        ('paper', {'merge_weights': ((0.2, 0.5),)}, "preset 'paper' has no setting merge_weights; known are"),
        ('default', {'thetas': (0.5,), 'divide': 'cutler'}, 'has no setting divide, thetas'),
    ],
)
def test_unknown_presets_and_settings_are_refused(preset, changes, message):
    with pytest.raises(UnSAMError, match=message):
        PseudoMaskGenerator.from_preset(preset, **changes)


@pytest.mark.parametrize(
    'wrong',
    [
        {'merge_weights': ()},
        {'merge_weights': ((0.2, 1.0),)},
        {'merge_weights': ((0.2, 0.5), (-0.1, 0.5))},
        {'merge_weights': ((0.2, 0.5), (np.inf, 0.5))},
        {'merge_weights': ((0.2, np.nan),)},
        {'merge_weights': ((0.2,),)},
        {'merge_weights': ((0.2, 0.5, 0.5),)},
        {'lightness_levels': -1},
        {'lightness_levels': np.inf},
        {'long_side_px': 0},
        {'superpixel_spacing_px': np.nan},
        {'max_superpixels': -5},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(UnSAMError, match=f'^{name}=.* is out of range; it must'):
        GeneratorSettings(**wrong)
