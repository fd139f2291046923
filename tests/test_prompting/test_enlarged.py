"""Small images, which are upsampled for the region model."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage import data

from unsam_mm import UnSAMAutomaticMaskGenerator, UnSAMPredictor
from unsam_mm.errors import UnSAMError
from unsam_mm.masks.mask_set import MaskSet
from unsam_mm.prompting import TiledEngine
from unsam_mm.prompting.engine import Engine
from unsam_mm.prompting.enlarged import EnlargedEngine, enlarged
from unsam_mm.prompting.model import RegionEngine
from unsam_mm.prompting.prompt import Prompt
from unsam_mm.student.weights import packaged_weights

COIN, GROUND = (110, 120), (140, 95)  # x, y in the patch
SIDE = 8


@pytest.fixture(scope='module')
def patch():
    """(160, 150) uint8: six coins of the picture, with an irregular gap between them."""
    return np.ascontiguousarray(data.coins()[:160, 20:170])


@pytest.fixture(scope='module')
def predictor(generator, patch):
    """The packaged region model, on the patch; skipped without the weights of the ViT."""
    predictor = UnSAMPredictor.from_pretrained()
    predictor.set_image(patch)
    return predictor


class Answering(Engine):
    """An engine with given masks, which records the image and the prompt."""

    name, device = 'model', 'cpu'

    def __init__(self, masks=()):
        self.masks, self.size_hw = np.array(masks, bool), None

    def set_image(self, rgb):
        self.rgb, self.size_hw = rgb, rgb.shape[:2]

    def answer(self, prompt, multimask_output, granularity):
        self.prompt = prompt
        masks = self.masks if granularity is None else self.masks[[int(granularity * (len(self.masks) - 1))]]
        return masks, np.linspace(1, 0, len(masks), dtype=np.float32)

    def all_masks(self, max_masks, min_area_px, points_per_side, max_iou):
        self.min_area_px = min_area_px
        return MaskSet.from_bitmaps(self.masks), np.linspace(1, 0, len(self.masks), dtype=np.float32)


def answering(masks) -> EnlargedEngine:
    """An engine with given masks of an upsampled image of 8 x 8 px."""
    engine = EnlargedEngine(Answering(masks))
    engine.set_image(np.zeros((SIDE, SIDE, 3), np.uint8))
    return engine


def larger(masks: np.ndarray) -> np.ndarray:
    """(N, H, W) masks at twice their size."""
    return masks.repeat(2, axis=1).repeat(2, axis=2)


@st.composite
def random_masks(draw, side: int):
    """(4, side, side) bool blobs, speckled."""
    lot = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return lot.random((4, side, side)) < lot.random((4, 1, 1))


def test_the_image_is_shown_at_twice_its_size_with_its_pixels_in_place(patch):
    rgb = np.repeat(patch[..., None], 3, axis=2)
    large = enlarged(rgb[:, ::-1])[:, ::-1]  # any memory order
    assert (large.shape, large.dtype) == ((320, 300, 3), np.uint8)
    means = large.reshape(160, 2, 150, 2, 3).mean(axis=(1, 3))
    assert np.abs(means - rgb).mean() < 1.5
    assert (enlarged(np.full((9, 7, 3), 200, np.uint8)) == 200).all()


@given(random_masks(SIDE))
def test_masks_of_whole_blocks_come_back_as_they_are(masks):
    masks[:, 2, 3] = True
    expected = masks[np.sort(np.unique(masks.reshape(len(masks), -1), axis=0, return_index=True)[1])]
    found, scores = answering(larger(masks)).answer(Prompt.checked((SIDE, SIDE), [(3, 2)]), True, None)
    assert (found == expected).all()
    assert (np.diff(scores) < 0).all()


def test_clicks_and_boxes_are_scaled_to_the_upsampled_image():
    engine = answering(np.ones((1, 2 * SIDE, 2 * SIDE)))
    logits = np.linspace(-1, 1, 256 * 256, dtype=np.float32).reshape(256, 256)
    engine.answer(Prompt.checked((SIDE, SIDE), [(3, 2), (7, 0)], [1, 0], (1, 2, 5.5, 8), logits), True, None)
    asked = engine._engine.prompt
    assert asked.points_xy.tolist() == [[7, 5], [15, 1]]
    assert asked.positive.tolist() == [True, False]
    assert asked.box_xyxy.tolist() == [2, 4, 11, 16]
    assert (asked.mask_input == logits).all()


@given(random_masks(2 * SIDE), st.sampled_from([None, 0.0, 0.4, 1.0]))
def test_every_mask_agrees_with_clicks_on_adjacent_pixels(masks, granularity):
    points, labels = [(3, 2), (4, 2), (0, 7)], [1, 0, 1]
    found, _ = answering(masks).answer(Prompt.checked((SIDE, SIDE), points, labels), True, granularity)
    assert len(found) >= 1
    assert found[:, [2, 2, 7], [3, 4, 0]].tolist() == [[True, False, True]] * len(found)


@given(random_masks(2 * SIDE))
def test_the_area_never_falls_as_granularity_rises_though_masks_are_not_nested(masks):
    masks = masks[np.argsort(masks.sum(axis=(1, 2)), kind='stable')]
    engine, prompt = answering(masks), Prompt.checked((SIDE, SIDE), [(3, 2), (5, 5)], [1, 0])
    areas = [int(engine.answer(prompt, True, granularity)[0].sum()) for granularity in (0, 0.34, 0.67, 1)]
    assert all(finer <= coarser for finer, coarser in itertools.pairwise(areas))
    assert abs(areas[-1] - masks[-1].sum() / 4) <= 1.5


def test_a_box_around_less_than_half_a_block_has_an_answer():
    mask = np.zeros((1, 2 * SIDE, 2 * SIDE), bool)
    mask[0, 4, 6] = True
    found, _ = answering(mask).answer(Prompt.checked((SIDE, SIDE), box_xyxy=(3, 2, 3.5, 2.5)), True, None)
    assert np.argwhere(found).tolist() == [[0, 2, 3]]


def test_of_equal_masks_the_best_is_kept_and_becomes_the_parent():
    cell, speck, whole = np.zeros((3, 2 * SIDE, 2 * SIDE), bool)
    whole[:] = True
    cell[4:8, 4:8] = True
    wider = cell.copy()
    wider[3, 4] = True  # one pixel of a block
    inner = cell.copy()
    inner[6:] = False
    speck[0, 0] = True
    engine = answering([cell, wider, inner, speck, whole])
    masks, stability = engine.all_masks(10, 1, 8, 0.9)
    assert engine._engine.min_area_px == 4
    assert masks.areas.tolist() == [4, 2, 64]
    assert masks.boxes_xyxy.tolist() == [[2, 2, 4, 4], [2, 2, 4, 3], [0, 0, 8, 8]]
    assert masks.parents.tolist() == [2, 0, -1]
    assert stability.tolist() == [1, 0.5, 0]
    assert masks.to_bitmaps().sum(axis=(1, 2)).tolist() == [4, 2, 64]
    assert engine.all_masks(10, 3, 8, 0.9)[0].areas.tolist() == [4, 64]


@pytest.mark.parametrize(('sides', 'shown'), [((400, 30), (800, 60)), ((401, 30), (401, 30))])
def test_images_of_up_to_400_px_are_enlarged(sides, shown):
    engine = EnlargedEngine(Answering())
    engine.set_image(np.zeros((*sides, 3), np.uint8))
    assert (engine.size_hw, engine._engine.size_hw) == (sides, shown)


def test_the_model_finds_a_coin_of_a_small_image(predictor, patch):
    assert predictor.engine.size_hw == patch.shape
    masks, scores, logits = predictor.predict([COIN, GROUND], [1, 0])
    assert masks.shape[1:] == patch.shape
    assert len(masks) == len(scores) == len(logits)
    assert masks[:, COIN[1], COIN[0]].all()
    assert not masks[:, GROUND[1], GROUND[0]].any()
    areas = [predictor.predict([COIN], granularity=level)[0].sum() for level in np.linspace(0, 1, 6)]
    assert areas == sorted(areas)


def test_contradictory_clicks_give_an_empty_mask_at_a_granularity(predictor):
    masks, scores, logits = predictor.predict([COIN, COIN], [1, 0], granularity=0.5)
    assert (len(masks), len(scores), len(logits)) == (1, 1, 1)
    assert not masks.any()


def test_larger_images_are_not_upsampled(predictor, patch):
    bare = RegionEngine.from_file(packaged_weights('unsam_s'))
    wrapped = EnlargedEngine(bare, max_side_px=159)
    wrapped.set_image(np.repeat(patch[..., None], 3, axis=2))
    prompt = Prompt.checked(patch.shape, [COIN, GROUND], [1, 0])
    for granularity in (None, 0.5):
        for found, expected in zip(
            wrapped.answer(prompt, True, granularity), bare.answer(prompt, True, granularity), strict=True
        ):
            assert (found == expected).all()
    assert wrapped.all_masks(20, 9, 4, 0.9)[0].rles == bare.all_masks(20, 9, 4, 0.9)[0].rles

    before = EnlargedEngine(copy.copy(predictor.engine._engine))  # embeddings without a factor
    before.set_embedding(bare.embedding())
    assert before.size_hw == patch.shape
    assert (before.answer(prompt, True, None)[0] == bare.answer(prompt, True, None)[0]).all()


def test_a_saved_embedding_answers_the_same(predictor, tmp_path):
    predictor.save_embedding(tmp_path / 'coins.npz')
    other = UnSAMPredictor(copy.copy(predictor.engine))
    other.reset_image()
    assert predictor.is_image_set
    assert not other.is_image_set
    other.load_embedding(tmp_path / 'coins.npz')
    for found, expected in zip(other.predict([COIN]), predictor.predict([COIN]), strict=True):
        assert (found == expected).all()


def test_embeddings_with_an_impossible_factor_are_refused(predictor):
    arrays = predictor.engine.embedding()
    with pytest.raises(UnSAMError, match=r'with the factor \[3\]'):
        predictor.engine.set_embedding({**arrays, 'factor': np.array([3])})
    assert predictor.is_image_set
    with pytest.raises(UnSAMError, match='no image is set'):
        EnlargedEngine(Answering()).embedding()


def test_automatic_masks_have_the_size_of_the_image(predictor, patch):
    automatic = UnSAMAutomaticMaskGenerator(
        UnSAMPredictor(copy.copy(predictor.engine)), points_per_side=6, min_mask_region_area=30, max_masks=20
    )
    records = automatic.generate(patch)
    assert 1 <= len(records) <= 20
    for record in records:
        assert record['segmentation'].shape == patch.shape
        assert record['segmentation'].sum() == record['area'] >= 30
        x, y, width, height = record['bbox']
        rows, columns = (np.flatnonzero(record['segmentation'].any(axis=axis)) for axis in (1, 0))
        assert [x, y, x + width, y + height] == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def test_each_tile_of_a_plane_is_upsampled(predictor, patch):
    tiled = UnSAMPredictor(TiledEngine(copy.copy(predictor.engine), tile_px=128))
    tiled.set_image(patch)
    clicks = [COIN, (40, 40)]
    for _ in range(2):  # in turn, so that each has its tile back
        for x, y in clicks:
            masks, _, _ = tiled.predict([(x, y)])
            assert masks.shape[1:] == patch.shape
            assert masks[:, y, x].all()
