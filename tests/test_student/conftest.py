"""Tokens of real images without a ViT: colours of small squares stand in for its features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.transform import resize

from unsam_mm import PseudoMaskGenerator
from unsam_mm.pseudo_masks import region_trees
from unsam_mm.pseudo_masks.region_trees import GeneratorSettings
from unsam_mm.student import RegionInputs, RegionNet, RegionTokenizer

CHANNELS = 3


class _Colours:
    """Replaces `PatchFeatureExtractor`."""

    def __init__(self, *options):
        pass

    def __call__(self, image, progress=None):
        grid = resize(image, (max(1, image.shape[0] // 14), max(1, image.shape[1] // 14)), anti_aliasing=True)
        return grid.astype(np.float32)


@pytest.fixture(scope='session')
def colour_tokenizer():
    """Makes a tokenizer, given a number of tokens."""

    def make(n_tokens: int, settings=None) -> RegionTokenizer:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(region_trees, 'PatchFeatureExtractor', _Colours)
            return RegionTokenizer(settings, n_tokens)

    return make


@pytest.fixture(scope='session')
def colour_generator():
    """A generator with the superpixel spacing that the tokenizer uses for the cup, which is small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(region_trees, 'PatchFeatureExtractor', _Colours)
        return PseudoMaskGenerator(GeneratorSettings(superpixel_spacing_px=5.0))


@pytest.fixture(scope='session')
def cup(colour_tokenizer, coffee):
    """80 tokens of the cup and its best 60 pseudo-masks."""
    return colour_tokenizer(80).with_masks(coffee, max_masks=60)


@pytest.fixture(scope='session')
def inputs(cup):
    """The network inputs for the cup."""
    return RegionInputs.from_tokens(cup[0])


@pytest.fixture
def net():
    """A small network with fixed random weights."""
    torch.manual_seed(0)
    return RegionNet(
        width=32, heads=2, encoder_layers=1, decoder_layers=1, prompt_channels=8, feature_channels=CHANNELS
    )
