"""The whole generator on a real image."""

from __future__ import annotations

import numpy as np
import pytest

from unsam_mm import PseudoMaskGenerator
from unsam_mm.errors import UnSAMError
from unsam_mm.pseudo_masks.generator import GeneratorSettings, settings_signature


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
    assert generator.signature != settings_signature(GeneratorSettings(colour_weight=0.3))


@pytest.mark.parametrize(
    ('arguments', 'message'), [(('best',), 'no preset'), (('default', 'cpu', 'x'), 'unknown setting')]
)
def test_unknown_presets_and_settings_are_refused(arguments, message):
    preset, *rest = arguments
    changes = {rest[1]: 1} if len(rest) > 1 else {}
    with pytest.raises(UnSAMError, match=message):
        PseudoMaskGenerator.from_preset(preset, **changes)
