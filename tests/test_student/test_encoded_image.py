"""Masks for clicks: they contain the clicked regions and grow with granularity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unsam_mm.errors import UnSAMError
from unsam_mm.student.encoded_image import EncodedImage, RegionPrompt

regions = st.integers(0, 79)


def click(*positive, **parts):
    """A prompt with positive regions; see `RegionPrompt` for the other parts."""
    return RegionPrompt(np.array(positive, np.int64), np.zeros(0, np.int64), **parts)


@pytest.fixture(scope='module')
def image(cup):
    from unsam_mm.student import RegionNet

    torch.manual_seed(0)
    net = RegionNet(width=32, heads=2, encoder_layers=1, decoder_layers=1, prompt_channels=8, feature_channels=3)
    return EncodedImage(net.eval(), cup[0])


@given(positive=st.sets(regions, min_size=1, max_size=4), negative=st.sets(regions, max_size=4))
def test_every_answer_holds_the_positive_regions_and_no_negative_one(image, positive, negative):
    prompt = RegionPrompt(np.array(sorted(positive)), np.array(sorted(negative - positive), np.int64))
    predictions = image.predict(prompt)
    assert len(predictions.masks) == len(predictions.scores) >= 1
    assert predictions.masks[:, prompt.positive].all()
    assert not predictions.masks[:, prompt.negative].any()
    assert ((predictions.scores > 0) & (predictions.scores <= 1)).all()


@pytest.mark.parametrize('seed', range(0, 80, 9))
def test_the_area_never_falls_as_granularity_rises(image, seed):
    answers = [image.predict_at(click(seed), granularity)[0] for granularity in np.linspace(0, 1, 21)]
    areas = [float(mask[0] @ image.tokens.areas_px) for mask in answers]
    assert areas == sorted(areas)
    assert all(mask[0, seed] for mask in answers)


@pytest.mark.parametrize('wanted', np.linspace(0.1, 1, 7))
def test_the_mask_of_the_nearest_size_is_returned(image, wanted):
    predictions = image.predict(click(40))
    areas = predictions.masks[~np.isnan(predictions.granularity)] @ image.tokens.areas_px.astype(float)
    members, _ = image.predict_at(click(40), wanted)
    found, target = members[0] @ image.tokens.areas_px.astype(float), 10 ** (4 * (wanted - 1)) * 200 * 300
    assert abs(np.log(found / target)) == np.abs(np.log(areas / target)).min()


def test_masks_that_fill_the_box_have_the_highest_scores(image):
    around = image.bitmaps(image.predict(click(40)).masks[:1])[0]
    y, x = np.nonzero(around)
    box = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1], float)
    predictions = image.predict(click(40, box_xyxy=box))
    without = image.predict(click(40))
    assert image.predict(click(box_xyxy=box)).masks.any(axis=1).all()
    assert predictions.scores[0] == pytest.approx(without.scores[0], rel=0.5)
    assert predictions.scores[-1] < without.scores[-1]  # the coarsest spills over the box


def test_the_best_mask_is_closer_to_an_earlier_mask(image):
    plain = image.predict(click(40))
    previous = plain.masks[len(plain.masks) // 2].astype(np.float32)
    areas = image.tokens.areas_px
    predictions = image.predict(click(40, previous=previous))
    best, without = predictions.masks[predictions.scores.argmax()], plain.masks[plain.scores.argmax()]

    def iou(mask):
        return areas[mask & (previous > 0)].sum() / areas[mask | (previous > 0)].sum()

    assert iou(best) >= iou(without)


def test_an_empty_prompt_is_refused(image):
    with pytest.raises(UnSAMError, match='positive point or a box'):
        image.predict(RegionPrompt(np.zeros(0, np.int64), np.array([3])))


def test_bitmaps_regions_and_shares_are_consistent(image):
    masks = image.predict(click(12)).masks
    bitmaps = image.bitmaps(masks)
    assert bitmaps.shape == (len(masks), *image.tokens.size_hw)
    assert (bitmaps[0] == masks[0][image.tokens.labels]).all()
    assert image.coverage_of(bitmaps[0]).tolist() == masks[0].tolist()
    assert image.regions_at(np.array([[7, 3]])) == image.tokens.labels[3, 7]


def test_stability_is_an_iou(image):
    masks = image.predict(click(12)).masks
    stability = image.stability(masks)
    assert stability.shape == (len(masks),)
    assert ((stability >= 0) & (stability <= 1)).all()
    assert image.stability(masks[:0]).shape == (0,)
