"""Prompts on planes that are processed in tiles."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
from skimage import data
from skimage.transform import resize

from unsam_mm import UnSAMAutomaticMaskGenerator, UnSAMPredictor
from unsam_mm.errors import ImageError, UnSAMError
from unsam_mm.masks.granularity import granularity_area
from unsam_mm.masks.hierarchy import MaskHierarchy
from unsam_mm.masks.rle import decode_crop, decode_rles, encode_bitmaps, encode_crop, rle_from_json
from unsam_mm.prompting.embedding_file import load_arrays
from unsam_mm.prompting.engine import Engine
from unsam_mm.prompting.planes import LazyPlane
from unsam_mm.prompting.prompt import Prompt
from unsam_mm.prompting.tile_pyramid import MaskCrop, TilePyramid, extent, upsample_mask
from unsam_mm.prompting.tiled_answers import combine_levels
from unsam_mm.prompting.tiled_engine import TiledEngine

TILE_PX = 256
COIN_XY = (88, 110)  # of the coins at twice their size


@pytest.fixture(scope='module')
def plane():
    """(606, 768) uint8: the coins at twice their size, three tiles high and five wide."""
    return np.rint(resize(data.coins(), (606, 768), order=1, preserve_range=True)).astype(np.uint8)


@pytest.fixture(scope='module')
def tiled(generator, plane):
    """A predictor in tiles, on the coins."""
    predictor = UnSAMPredictor(generator=generator, tile_px=TILE_PX)
    predictor.set_image(plane)
    return predictor


class Reads:
    """An array that records how many values each access reads."""

    def __init__(self, pixels):
        self.pixels, self.shape, self.dtype, self.sizes = pixels, pixels.shape, pixels.dtype, []

    def __getitem__(self, index):
        found = self.pixels[index]
        self.sizes.append(found.size)
        return found


@pytest.mark.parametrize('size_hw', [(606, 768), (256, 256), (257, 255), (2000, 300), (40, 30)])
def test_every_pixel_lies_well_inside_a_tile_of_each_level(size_hw):
    pyramid = TilePyramid(size_hw, TILE_PX)
    for level in range(pyramid.n_levels):
        tiles = set(pyramid.tiles(level))
        for point in np.random.default_rng(0).random((50, 2)) * size_hw[::-1]:
            tile = pyramid.tile_at(level, point)
            assert tile in tiles
            assert tile.contains(np.r_[point, point], TILE_PX / 4 - 1)
    assert len(tiles) == 1
    assert pyramid.area_of(tiles.pop()) == size_hw[0] * size_hw[1]


def test_a_coarse_mask_is_drawn_with_a_smooth_outline_inside_its_box():
    pyramid = TilePyramid((1000, 1000), TILE_PX)
    tile = pyramid.tile_at(2, np.array([500, 500]))
    y, x = np.mgrid[:1000, :1000]
    disc = np.hypot(y - 400, x - 600) < 150
    coarse = disc.reshape(250, 4, 250, 4).mean(axis=(1, 3)) > 0.5
    crop = upsample_mask(coarse, tile, (1000, 1000))
    drawn = np.zeros((1000, 1000), bool)
    crop.paste(drawn)
    blocks = np.kron(coarse, np.ones((4, 4), bool))
    assert (drawn ^ disc).sum() < 0.9 * (blocks ^ disc).sum()
    assert extent(drawn) >= (crop.top, 0, crop.left, 0)


def test_a_mask_of_the_finest_level_is_drawn_as_it_is():
    tile = TilePyramid((606, 768), TILE_PX).tile_at(0, np.array([400, 300]))
    mask = np.random.default_rng(0).random((TILE_PX, TILE_PX)) < 0.3
    drawn = np.zeros((606, 768), bool)
    upsample_mask(mask, tile, (606, 768)).paste(drawn)
    assert (drawn[tile.top : tile.top + TILE_PX, tile.left : tile.left + TILE_PX] == mask).all()
    assert drawn.sum() == mask.sum()


@pytest.mark.parametrize('box', [(3, 5, 40, 30), (0, 0, 50, 60), (10, 0, 11, 60), (0, 20, 50, 21)])
def test_run_lengths_of_a_crop_are_those_of_the_whole_mask(box):
    x0, y0, x1, y1 = box
    mask = np.zeros((60, 50), bool)
    for fill in (True, np.random.default_rng(0).random((y1 - y0, x1 - x0)) < 0.5, False):
        mask[y0:y1, x0:x1] = fill
        rle = encode_crop(mask[y0:y1, x0:x1], y0, x0, mask.shape)
        assert rle == encode_bitmaps(mask[None])[0]
        assert (decode_crop(rle, box) == mask[y0:y1, x0:x1]).all()


def test_the_means_of_a_plane_are_those_of_the_whole_array():
    values = np.random.default_rng(0).integers(0, 60_000, (2100, 1300)).astype(np.uint16)
    plane = LazyPlane(values, limits=(0, 60_000))
    pyramid = TilePyramid(values.shape, 1024)
    (tile,) = pyramid.tiles(2)
    means = values.reshape(525, 4, 325, 4).mean(axis=(1, 3)) * (255 / 60_000)
    assert np.abs(plane.read(tile)[..., 0] - means).max() <= 0.51


def test_a_plane_has_one_contrast_and_is_read_in_bounded_pieces():
    values = (np.arange(3000)[:, None] + np.arange(2000)[None] * 2).astype(np.float32)
    values[0, 0] = np.nan
    reads = Reads(values)
    plane = LazyPlane(reads)
    pyramid = TilePyramid(values.shape, 512)
    low, high = plane.limits
    for level in (0, 1, 2):
        for tile in pyramid.tiles(level):
            rgb = plane.read(tile)
            y, x = (start * tile.scale + (tile.scale - 1) / 2 for start in (tile.top + 20, tile.left + 20))
            assert rgb[20, 20, 0] == pytest.approx(np.clip((y + 2 * x - low) / (high - low) * 255, 0, 255), abs=1)
    assert max(reads.sizes) <= 1024**2
    assert len(reads.sizes) > 6


def test_coarse_tiles_are_read_from_coarse_arrays(plane):
    full, half = Reads(plane), Reads(plane[::2, ::2])
    lazy = LazyPlane([full, half])
    (tile,) = TilePyramid(plane.shape, TILE_PX).tiles(2)
    assert lazy.read(tile).shape == (152, 192, 3)
    assert not full.sizes
    assert half.sizes


@pytest.mark.parametrize(
    ('pixels', 'limits', 'message'),
    [
        ([], None, 'empty list'),
        (np.zeros((4, 100, 100)), None, 'one plane of a stack'),
        (np.zeros((5, 100)), None, 'too small'),
        ([np.zeros((100, 100)), np.zeros((30, 30))], None, 'downsampled by a power of two'),
        (np.zeros((100, 100)), (3, 3), 'two ascending numbers'),
        (np.zeros((100, 100)), (0, 1, 2), 'two ascending numbers'),
        (np.zeros((100, 100)), 3, 'two ascending numbers'),
    ],
)
def test_arrays_of_other_shapes_are_refused(pixels, limits, message):
    with pytest.raises(ImageError, match=message):
        LazyPlane(pixels, limits)


def test_planes_need_tile_px_of_at_least_128(generator, plane):
    with pytest.raises(UnSAMError, match='tile_px=1024'):
        UnSAMPredictor(generator=generator).set_plane(plane)
    with pytest.raises(UnSAMError, match='at least 128'):
        UnSAMPredictor(generator=generator, tile_px=20)


def test_the_first_level_whose_best_mask_fits_leads_and_coarser_levels_add_larger_masks():
    def square(side, level=0):
        return MaskCrop(np.ones((side, side), bool), 0, 0, level)

    levels = [
        ([square(10), None], np.array([0.2, 0.8], np.float32)),  # the best may extend beyond its tile
        ([square(5, 1), square(50, 1), None], np.array([0.1, 0.6, 0.3], np.float32)),
        ([square(51, 2), square(200, 2)], np.array([0.9, 0.45], np.float32)),
    ]
    unread = iter(levels)
    (best,), _ = combine_levels(unread, 1)
    assert best.area == 50**2
    assert len(list(unread)) == 1
    crops, scores = combine_levels(levels, 6)
    assert [crop.area for crop in crops] == [50**2, 10**2, 200**2]
    assert scores.tolist() == pytest.approx([0.6, 0.15, 0.15])


@pytest.mark.slow
def test_an_image_of_one_tile_has_the_masks_of_an_engine_without_tiles(generator, coffee):
    tiled, whole = UnSAMPredictor(generator=generator, tile_px=512), UnSAMPredictor(generator=generator)
    tiled.set_image(coffee)
    whole.set_image(coffee)
    for prompt in ({'point_coords': [[150, 100]]}, {'box': [60, 40, 240, 160]}):
        masks, scores, _ = tiled.predict(**prompt)
        expected, expected_scores, _ = whole.predict(**prompt)
        order = np.argsort(-expected_scores, kind='stable')
        assert (masks == expected[order]).all()
        assert scores == pytest.approx(expected_scores[order])


@pytest.mark.slow
def test_a_click_far_from_every_rim_has_the_mask_of_its_tile_alone(tiled, generator, plane):
    alone = UnSAMPredictor(generator=generator)
    tile = TilePyramid(plane.shape, TILE_PX).tile_at(0, np.array(COIN_XY))
    rows, columns = slice(tile.top, tile.top + TILE_PX), slice(tile.left, tile.left + TILE_PX)
    alone.set_image(plane[rows, columns])
    expected, expected_scores, _ = alone.predict([np.subtract(COIN_XY, (tile.left, tile.top))])
    masks, scores, logits = tiled.predict([COIN_XY])
    assert (masks[0, rows, columns] == expected[expected_scores.argmax()]).all()
    assert masks[0].sum() == expected[expected_scores.argmax()].sum()
    assert scores[0] == scores.max() == expected_scores.max()
    assert logits.shape[1:] == (256, 256)


@pytest.mark.slow
def test_masks_agree_with_clicks_and_never_reach_the_rim_of_their_tile(tiled, plane):
    pyramid = TilePyramid(plane.shape, TILE_PX)
    for x, y in np.random.default_rng(0).integers(0, (768, 606), (4, 2)):
        crops, scores = tiled.predict_crops([(x, y), (300, 300)], [1, 0])
        assert (np.diff(scores) <= 0).all()
        for crop in crops:
            mask = np.zeros(plane.shape, bool)
            crop.paste(mask)
            assert mask[y, x]
            assert not mask[300, 300]
            tile = pyramid.tile_at(crop.level, np.array([x, y]))
            assert tile.contains(np.array(crop.box_xyxy), tile.rim_px)


def test_the_area_never_falls_as_granularity_rises_over_all_levels(tiled):
    for click in ([COIN_XY], [(420, 300)]):
        found = [tiled.predict_crops(click, granularity=g)[0][0] for g in np.linspace(0, 1, 17)]
        areas = [crop.area for crop in found]
        assert areas == sorted(areas)
        assert areas[-1] == 606 * 768
        assert len({crop.level for crop in found}) > 1


class Squares(Engine):
    """An engine that finds a square of any size around a click."""

    name, device, size_hw = 'tree', 'cpu', None

    def set_image(self, rgb):
        self.size_hw = rgb.shape[:2]

    def reset_image(self):
        self.size_hw = None

    def answer(self, prompt, multimask_output, granularity):
        (x, y), half = (
            prompt.points_xy[0],
            round(max(granularity_area(granularity, np.prod(self.size_hw)), 4) ** 0.5 / 2),
        )
        mask = np.zeros((1, *self.size_hw), bool)
        mask[0, max(y - half, 0) : y + half, max(x - half, 0) : x + half] = True
        return mask, np.ones(1, np.float32)


@pytest.mark.parametrize('area_px', [16, 60, 200, 419, 3000, 20_000, 1e5, 1e6])
def test_the_mask_nearest_to_an_area_is_found_below_a_ten_thousandth_of_the_plane_too(area_px):
    pixels = np.random.default_rng(0).integers(0, 256, (2048, 2048), np.uint8)
    engine = TiledEngine(Squares(), TILE_PX)
    engine.set_plane(LazyPlane(pixels, (0, 255)))
    (found,), _ = engine.crop_of_area(Prompt.checked(pixels.shape, [(1000, 900)], [1]), area_px)
    assert 1 / 1.5 < found.area / area_px < 1.5
    (finest,), _ = engine.crop_of_area(Prompt.checked(pixels.shape, [(1000, 900)], [1]), 0)
    assert finest.area == 4


def test_the_mask_of_a_box_comes_from_the_finest_tile_that_contains_it(tiled):
    (small,), _ = tiled.predict_crops(box=[30, 60, 150, 170], multimask_output=False)
    (large,), _ = tiled.predict_crops(box=[30, 60, 700, 500], multimask_output=False)
    assert small.level == 0
    assert large.level > 0


def test_a_mask_like_the_mask_input_is_preferred(tiled):
    crops, _ = tiled.predict_crops([COIN_XY])
    masks, _, logits = tiled.predict([COIN_XY])
    for number in range(1, len(masks)):
        if crops[number].level == 0 and crops[number].area > 2000:
            again, _ = tiled.predict_crops([COIN_XY], mask_input=logits[number][None], multimask_output=False)
            assert again[0].iou(crops[number]) > 0.7


@pytest.mark.slow
def test_the_cached_tiles_can_be_saved(generator, plane, tmp_path):
    predictor = UnSAMPredictor(TiledEngine(UnSAMPredictor(generator=generator).engine, TILE_PX, max_windows=2))
    predictor.set_plane(plane, store=tmp_path / 'tiles')
    for click in ((30, 30), (700, 30), (30, 550), COIN_XY):
        crops, _ = predictor.predict_crops([click], multimask_output=False)
    stored = len(list((tmp_path / 'tiles').glob('*.npz')))
    assert stored >= 3
    predictor.save_embedding(tmp_path / 'plane.npz')
    other = UnSAMPredictor(generator=generator, tile_px=TILE_PX)
    other.load_embedding(tmp_path / 'plane.npz')
    again, _ = other.predict_crops([COIN_XY], multimask_output=False)
    assert again[0].iou(crops[0]) == 1
    with pytest.raises(UnSAMError, match='no tile at the position'):
        other.predict_crops([(700, 30)], multimask_output=False)
    other.set_plane(plane, store=tmp_path / 'tiles')
    other.predict_crops([(700, 30)], multimask_output=False)
    assert len(list((tmp_path / 'tiles').glob('*.npz'))) == stored


class Blocks:
    """Stands in for a generator: squares below one root. Counts its calls."""

    def __init__(self, side_px):
        self.side_px, self.signature, self.calls = side_px, f'blocks of {side_px} px', 0

    def __call__(self, rgb):
        self.calls += 1
        rows, columns = (np.arange(length) // self.side_px for length in rgb.shape[:2])
        labels = rows[:, None] * (columns[-1] + 1) + columns
        count = int(labels.max()) + 1
        parents = np.r_[np.full(count, count), -1]
        return MaskHierarchy.from_merges(labels, parents, np.r_[np.zeros(count), 1.0], np.full(count + 1, 0.5))


def test_tiles_of_other_settings_are_not_used(plane, tmp_path):
    """One folder for two settings: each gives its own masks, and finds its own tiles again."""
    fine, coarse = Blocks(16), Blocks(32)
    areas = []
    for maker in (fine, coarse, fine):
        predictor = UnSAMPredictor(generator=maker, tile_px=TILE_PX)
        predictor.set_plane(plane, store=tmp_path)
        areas.append(predictor.predict_crops([COIN_XY], multimask_output=False)[0][0].area)
    assert areas == [16**2, 32**2, 16**2]
    assert (fine.calls, coarse.calls) == (1, 1)


def test_tiles_of_an_engine_without_a_signature_are_not_cached(plane, tmp_path, caplog):
    blocks = Blocks(16)
    predictor = UnSAMPredictor(generator=lambda rgb: blocks(rgb), tile_px=TILE_PX)
    predictor.set_plane(plane, store=tmp_path / 'tiles')
    assert predictor.predict_crops([COIN_XY], multimask_output=False)[0]
    assert not (tmp_path / 'tiles').exists()
    assert 'tiles are not cached' in caplog.text


def test_a_damaged_tile_is_computed_again_and_prompts_work_without_a_writable_cache(
    generator, plane, tmp_path, caplog, monkeypatch
):
    def answer(store):
        predictor = UnSAMPredictor(generator=generator, tile_px=TILE_PX)
        predictor.set_plane(plane, store=store)
        return predictor.predict_crops([COIN_XY], multimask_output=False)[0][0]

    folder = tmp_path / 'tiles'
    before = answer(folder)
    [kept] = folder.glob('*.npz')
    whole = kept.read_bytes()
    kept.write_bytes(whole[: len(whole) // 2])
    assert answer(folder).iou(before) == 1
    assert caplog.messages[-1].startswith(f'a cached tile is computed again: {kept}: not a whole .npz file (')
    assert len(load_arrays(kept, 'tree')) > 0
    kept.unlink()
    kept.mkdir()
    assert answer(folder).iou(before) == 1
    assert 'cannot be read (Is a directory)' in caplog.text or 'is a folder' in caplog.text
    kept.rmdir()
    kept.write_bytes(b'junk')
    with monkeypatch.context() as patch:
        unlink = Path.unlink

        def refused(path, **named):
            if path == kept:
                raise PermissionError(errno.EACCES, 'Permission denied')
            unlink(path, **named)

        patch.setattr(Path, 'unlink', refused)
        assert answer(folder).iou(before) == 1
    assert kept.read_bytes() == b'junk'
    (tmp_path / 'a file').touch()
    assert answer(tmp_path / 'a file' / 'tiles').iou(before) == 1
    assert 'no longer cached' in caplog.text


def test_tiles_of_one_colour_have_no_masks(generator, plane):
    empty = np.zeros((700, 700), np.uint8)
    empty[450:, 450:] = plane[:250, :250]
    predictor = UnSAMPredictor(generator=generator, tile_px=TILE_PX)
    predictor.set_image(empty)
    crops, _ = predictor.predict_crops([(100, 100)], multimask_output=False)
    assert crops[0].level > 0


def test_changing_the_array_does_not_change_the_image(tiled, generator, plane):
    frame = np.stack([plane] * 3, axis=2)
    predictor = UnSAMPredictor(generator=generator, tile_px=TILE_PX)
    predictor.set_image(frame)
    frame[:] = frame[::-1, ::-1].copy()
    found, expected = (each.predict([COIN_XY], multimask_output=False)[0] for each in (predictor, tiled))
    assert np.array_equal(found, expected)


@pytest.mark.parametrize('numbers', [[TILE_PX], [606, 768, TILE_PX + 1], [-3, 768, TILE_PX], ['a', 'b', 'c']])
def test_embeddings_of_no_plane_are_refused(tiled, generator, numbers):
    other = UnSAMPredictor(generator=generator, tile_px=TILE_PX)
    with pytest.raises(UnSAMError, match='belong to no plane in tiles'):
        other.engine.set_embedding({**tiled.engine.embedding(), 'plane': np.array(numbers)})


def test_contradictory_clicks_have_no_mask(tiled):
    prompt = {'point_coords': [COIN_XY, COIN_XY], 'point_labels': [1, 0]}
    assert tiled.predict_crops(**prompt)[0] == []
    assert tiled.predict_crops(**prompt, granularity=0.5)[0] == []
    assert not tiled.predict(**prompt)[0].any()


def test_prompts_are_refused_as_without_tiles(tiled):
    with pytest.raises(UnSAMError, match='outside the image'):
        tiled.predict_crops([(768, 3)])
    tiled_prompt = Prompt.checked((606, 768), [(5, 5)])
    assert tiled.engine.answer(tiled_prompt, False, None)[0].shape == (1, 606, 768)


@pytest.mark.slow
def test_all_masks_of_a_plane_are_records_without_seams_or_repetition(generator, plane):
    plane = plane[:400, :400]  # nine tiles and the one that holds them
    predictor = UnSAMPredictor(generator=generator, tile_px=TILE_PX)
    records = UnSAMAutomaticMaskGenerator(predictor, output_mode='coco_rle', max_masks=100).generate_plane(plane)
    assert len(records) == 100
    masks = decode_rles([rle_from_json(record['segmentation']) for record in records], plane.shape)
    flat = masks.reshape(len(masks), -1).astype(np.float32)
    shared, areas = flat @ flat.T, flat.sum(axis=1)
    iou = shared / (areas[:, None] + areas[None] - shared)
    for i, record in enumerate(records):
        x, y = (int(at) for at in record['point_coords'][0])
        left, top, width, height = (int(side) for side in record['bbox'])
        assert masks[i, y, x]
        assert record['area'] == areas[i] == masks[i, top : top + height, left : left + width].sum()
        if record['parent'] >= 0:
            assert shared[i, record['parent']] >= 0.95 * areas[i]
            assert areas[record['parent']] > areas[i]
    assert iou[~np.eye(len(iou), dtype=bool)].max() <= 0.95
    coin = masks[:, COIN_XY[1], COIN_XY[0]]
    assert (areas[coin] > 5000).any()
