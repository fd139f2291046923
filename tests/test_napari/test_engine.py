"""Planes analysed with the engines of `unsam_mm`, on real images."""

import resource
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from napari.components import ViewerModel
from skimage import data

from napari_unsam.engine import planes as _engine
from napari_unsam.engine.inference import InferenceSettings, report_progress, reporting
from napari_unsam.engine.planes import EmbeddedPlane, PlaneEmbedder, make_engine
from napari_unsam.model.plane import Plane
from napari_unsam.model.targets import Target
from napari_unsam.viewer.session import ViewerSession
from unsam_mm import generator as generator_module
from unsam_mm.errors import ImageError, UnSAMError
from unsam_mm.prompting.tree_engine import TreeEngine
from unsam_mm.pseudo_masks.region_trees import GeneratorSettings
from unsam_mm.student import weights as weights_module

COIN_XY, BETWEEN_XY = np.array([[44.0, 55.0]]), np.array([[75.0, 60.0]])
POSITIVE = np.ones(1, int)


def silent(fraction, message):
    pass


def target_of(pixels, source='image'):
    plane = Plane(pixels.shape[:2], (0, 1), (0, 0))
    return Target(source, plane, 'Image', lambda: [pixels])


@pytest.fixture
def looked_at(generator, monkeypatch):
    """Engines are made with the shared generator; gives the shapes of the images that they were shown."""
    shown = []

    def grow(rgb):
        shown.append(rgb.shape)
        return generator(rgb, report_progress)

    grow.signature = 'a stand-in'  # without one, tiles would not be kept
    monkeypatch.setattr(_engine, 'make_engine', lambda name, device, weights: TreeEngine(grow))
    return shown


@pytest.fixture(scope='module')
def coins(coins_tree):
    """The coins, analysed with the tree engine."""
    engine = TreeEngine(lambda rgb: coins_tree)
    engine.set_image(np.dstack([data.coins()] * 3))
    return EmbeddedPlane(engine, engine.hierarchy)


@pytest.mark.parametrize(('value', 'colour'), [(0, 'black'), (255, 'white')])
def test_a_plane_with_nothing_between_the_contrast_limits_names_them(looked_at, value, colour):
    with pytest.raises(ImageError, match=f'"Image" is all {colour} at its contrast limits.*move the limits'):
        PlaneEmbedder(InferenceSettings('tree'))(target_of(np.full((32, 32), value, np.uint8)), silent)


def test_a_click_gives_a_few_masks_that_hold_it(coins):
    masks = coins.answer(COIN_XY, POSITIVE)
    assert 2 <= len(masks) <= 6
    assert [found.score for found in masks] == sorted((found.score for found in masks), reverse=True)
    for found in masks:
        x0, y0, x1, y1 = found.box_xyxy
        assert found.mask.shape == (y1 - y0, x1 - x0)
        assert found.mask[55 - y0, 44 - x0]
        assert found.area_px == found.mask.sum()
        assert 0 <= found.granularity <= 1


def test_masks_of_the_main_tree_are_known_as_its_nodes(coins):
    nodes = [found.node for found in coins.answer(COIN_XY, POSITIVE)]
    assert set(nodes) <= set(coins.hierarchy.path(55, 44).tolist())


def test_a_wanted_area_gives_one_mask_and_larger_ones_are_larger(coins):
    areas = [coins.answer(COIN_XY, POSITIVE, area_px=area_px)[0].area_px for area_px in (1, 1000, data.coins().size)]
    assert areas[0] < areas[1] < areas[2] == data.coins().size


def test_a_box_is_answered_with_something_of_its_extent(coins):
    x0, y0, x1, y1 = coins.answer(box_xyxy=np.array([20, 30, 70, 80]))[0].box_xyxy
    assert abs(x0 - 20) + abs(y0 - 30) + abs(x1 - 70) + abs(y1 - 80) < 60


def test_a_mask_is_answered_with_something_like_it(coins):
    wanted = coins.answer(COIN_XY, POSITIVE)[1]
    given = np.zeros(coins.size_hw, bool)
    x0, y0, x1, y1 = wanted.box_xyxy
    given[y0:y1, x0:x1] = wanted.mask
    found = coins.answer(COIN_XY, POSITIVE, mask=given)[0]
    assert abs(found.area_px - wanted.area_px) < 0.1 * wanted.area_px


def test_the_chain_holds_the_click_from_the_finest_region_to_the_whole_plane(coins):
    chain = coins.chain(COIN_XY, POSITIVE)
    assert (np.diff(coins.hierarchy.area[chain]) > 0).all()
    assert coins.hierarchy.area[chain[-1]] == data.coins().size


def test_a_plane_that_was_stored_is_not_looked_at_again(looked_at, tmp_path):
    settings = InferenceSettings('tree', store=tmp_path)
    first = PlaneEmbedder(settings)(target_of(data.coins()), silent)
    again = PlaneEmbedder(settings)(target_of(data.coins(), 'another session'), silent)
    assert looked_at == [(303, 384, 3)]
    before, after = (plane.answer(COIN_XY, POSITIVE) for plane in (first, again))
    assert [found.area_px for found in before] == [found.area_px for found in after]
    PlaneEmbedder(settings)(target_of(data.coins()[::-1]), silent)
    assert len(looked_at) == 2


def test_a_plane_that_was_stored_with_other_weights_or_settings_is_looked_at_again(looked_at, monkeypatch, tmp_path):
    settings = InferenceSettings('tree', store=tmp_path)
    for number, signature in enumerate('aba', start=1):
        monkeypatch.setattr(TreeEngine, 'signature', signature)
        PlaneEmbedder(settings)(target_of(data.coins()), silent)
        assert len(looked_at) == min(number, 2)


def test_a_stored_plane_that_the_engine_refuses_is_analysed_again(looked_at, monkeypatch, tmp_path):
    settings = InferenceSettings('tree', store=tmp_path)
    monkeypatch.setattr(TreeEngine, 'embedding', lambda engine: {'unknown': np.zeros(1)})
    for _ in range(2):
        assert PlaneEmbedder(settings)(target_of(data.coins()), silent).hierarchy is not None
    assert len(looked_at) == 2


@pytest.mark.parametrize('change', ['ViT', 'settings', 'tokens'])
def test_what_decides_embeddings_is_in_the_signature_of_the_engine(monkeypatch, change):
    trained = {'net': torch.nn.Identity(), 'settings': GeneratorSettings(), 'n_tokens': 768}
    origin = ['one source']
    monkeypatch.setattr(generator_module, 'weights_origin', lambda settings: origin[0])
    monkeypatch.setattr(weights_module, 'load_weights', lambda path: SimpleNamespace(**trained))
    before = _engine.make_engine('model', 'cpu').signature
    assert _engine.make_engine('model', 'cpu').signature == before
    match change:
        case 'ViT':
            origin[0] = 'another source'
        case 'settings':
            trained['settings'] = GeneratorSettings(superpixel_spacing_px=9)
        case 'tokens':
            trained['n_tokens'] = 512
    assert _engine.make_engine('model', 'cpu').signature != before


def test_planes_that_were_made_ahead_are_not_looked_at_again(looked_at, tmp_path):
    embedder, kept = PlaneEmbedder(InferenceSettings('tree', store=tmp_path)), []
    targets = [target_of(data.coins()[:100, z : z + 120], z) for z in (0, 10)]
    report = embedder.stack(targets, silent, kept.append)
    assert (report.analysed, report.stored) == (2, 2)
    assert kept == [0, 1]
    assert embedder.stack(targets, silent, kept.append).analysed == 0
    assert embedder(targets[1], silent).answer(COIN_XY, POSITIVE)
    assert len(looked_at) == 2


def test_planes_do_not_take_each_others_image(looked_at):
    embedder = PlaneEmbedder(InferenceSettings('tree'))
    upright = embedder(target_of(data.coins()), silent)
    before = [found.area_px for found in upright.answer(COIN_XY, POSITIVE)]
    embedder(target_of(data.camera()[:200, :300]), silent)
    assert upright.size_hw == (303, 384)
    assert [found.area_px for found in upright.answer(COIN_XY, POSITIVE)] == before


def test_large_planes_are_looked_at_in_tiles_around_the_prompt(looked_at, monkeypatch):
    monkeypatch.setattr(_engine, 'MAX_WHOLE_PX', 300)
    monkeypatch.setattr(_engine, '_TILE_PX', 256)
    pixels = np.tile(data.coins(), (2, 2))
    plane = PlaneEmbedder(InferenceSettings('tree'))(target_of(pixels), silent)
    assert plane.hierarchy is None
    assert looked_at == []
    [found] = plane.answer(COIN_XY, POSITIVE, max_masks=1)
    assert looked_at == [(256, 256, 3)]
    assert found.area_px < 10_000
    assert len(plane.chain(COIN_XY, POSITIVE)) == 0
    many = plane.answer(COIN_XY, POSITIVE)
    assert len(many) > 1
    by_area = sorted(many, key=lambda mask: mask.area_px)
    assert [mask.granularity for mask in by_area] == sorted(mask.granularity for mask in by_area)
    for mask in many:
        assert mask.granularity == pytest.approx(max(1 + np.log10(mask.area_px / pixels.size) / 4, 0))
    [small] = plane.answer(COIN_XY, POSITIVE, area_px=100)
    assert small.area_px < found.area_px


def test_tiles_of_large_planes_are_kept_on_disk_within_the_room_that_there_is(looked_at, monkeypatch, tmp_path):
    monkeypatch.setattr(_engine, 'MAX_WHOLE_PX', 300)
    monkeypatch.setattr(_engine, '_TILE_PX', 256)
    files = []
    for room_gb in (1, 1e-6):
        plane = PlaneEmbedder(InferenceSettings('tree', store=tmp_path, store_gb=room_gb))(
            target_of(data.coins()), silent
        )
        plane.answer(COIN_XY, POSITIVE, max_masks=1)
        files.append(len(list(tmp_path.rglob('*.npz'))))
    assert len(looked_at) == 1
    assert files == [1, 0]


def test_an_unknown_engine_is_refused_in_one_line():
    with pytest.raises(UnSAMError, match='the engine must be one of'):
        make_engine('best', 'cpu')


@pytest.mark.slow
@pytest.mark.parametrize('name', ['tree', 'model'])
def test_the_engines_of_users_tell_of_their_progress_and_answer(name):
    told = []
    embedder = PlaneEmbedder(InferenceSettings(name, device='cpu'))
    embedder.load()
    plane = embedder(target_of(data.coins()), lambda fraction, message: told.append(message))
    assert len(set(told)) > 2
    assert plane.answer(COIN_XY, POSITIVE)
    assert plane.hierarchy.size_hw == (303, 384)
    with reporting(silent):
        both = plane.answer(np.concatenate([COIN_XY, BETWEEN_XY]), np.array([1, 0]))
    for found in both:
        x0, y0, x1, y1 = found.box_xyxy
        assert not (x0 <= 75 < x1 and y0 <= 60 < y1 and found.mask[60 - y0, 75 - x0])


class Scan:
    """8192 x 8192 px of coins that are made where they are read, in 16 bit."""

    shape, ndim, dtype = (8192, 8192), 2, np.dtype(np.uint16)

    def __init__(self):
        self.read_px = 0

    def __getitem__(self, index):
        rows, columns = (
            np.arange(8192)[part] for part in (index if isinstance(index, tuple) else (index, slice(None)))
        )
        self.read_px += rows.size * columns.size
        coins = data.coins()
        return coins[np.ix_(rows % coins.shape[0], columns % coins.shape[1])].astype(np.uint16) * 16


@pytest.mark.slow
def test_a_plane_of_8192_px_is_segmented_lazily_and_in_bounded_memory(looked_at, make_controller, mailbox):
    da = pytest.importorskip('dask.array')
    scan, viewer = Scan(), ViewerModel()
    pixels = da.from_array(scan, chunks=(512, 512), name=False, asarray=False)
    image = viewer.add_image([pixels, pixels[::8, ::8]], multiscale=True, contrast_limits=(0, 4080))
    controller = make_controller()
    controller.planes.embedder = PlaneEmbedder(InferenceSettings('tree'))
    session = ViewerSession(viewer, controller)
    session.set_image(image)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scan.read_px = 0
    session.click((55 + 303 * 10, 44 + 384 * 8))
    mailbox.open_until(lambda: controller.proposal is not None, timeout_s=180)
    session.commit()
    controller.cancel()
    assert scan.read_px < 8192**2 / 8
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 900_000
    assert session.objects.data[55 + 303 * 10, 44 + 384 * 8] == 1
    assert controller.hierarchy is None
    session.close()


def test_other_weights_answer_later_planes_and_drop_what_was_known(
    looked_at, make_controller, mailbox, monkeypatch, tmp_path
):
    used = []
    make = _engine.make_engine
    monkeypatch.setattr(_engine, 'make_engine', lambda *given: (used.append(given[2]), make(*given))[1])
    controller = make_controller()
    controller.planes.embedder = PlaneEmbedder(InferenceSettings('model'))
    target = target_of(data.coins())
    controller.set_target(target)
    controller.embed()
    mailbox.open_until(lambda: controller.plane is not None)
    controller.use_weights(tmp_path / 'adapted.safetensors')
    mailbox.open_until(lambda: not controller.is_busy)
    assert controller.plane is None
    assert used == [None, tmp_path / 'adapted.safetensors']


def test_weights_that_cannot_be_had_leave_the_model_as_it_was(looked_at, monkeypatch, tmp_path):
    with pytest.raises(UnSAMError, match="for the engine 'model'"):
        PlaneEmbedder(InferenceSettings('tree')).use_weights(tmp_path / 'adapted.safetensors')
    embedder = PlaneEmbedder(InferenceSettings('model'))
    monkeypatch.setattr(_engine, 'make_engine', make_engine)
    with pytest.raises(UnSAMError, match='nothing.safetensors'):
        embedder.use_weights(tmp_path / 'nothing.safetensors')
    assert embedder._engine is None
