"""What a user has without weights: each rival answers clicks on a real image, with the interface of a predictor."""

import json

import numpy as np
import pytest
from skimage import data

from benchmarks import rival_clicks
from tests.test_evaluation.prompt_scenes import Omniscient, scene, write_coco

pytest.importorskip('cv2')

COIN_XY, GROUND_XY = (44, 55), (70, 25)  # of skimage.data.coins()


@pytest.fixture(scope='module')
def coin():
    """A quarter of the coins in colour, and a disc about as large as the one that is clicked at."""
    image = np.repeat(data.coins()[:150, :200, None], 3, axis=-1)
    rows, columns = np.ogrid[:150, :200]
    return image, (columns - COIN_XY[0]) ** 2 + (rows - COIN_XY[1]) ** 2 <= 20**2


def answer(name, image, points, labels):
    predictor = rival_clicks.RIVALS[name]()
    predictor.set_image(image)
    masks, scores, _ = predictor.predict(np.array(points, float), np.array(labels))
    assert masks.shape == (1, *image.shape[:2])
    assert (masks.dtype, scores.tolist()) == (bool, [1.0])
    return masks[0]


@pytest.mark.parametrize('name', rival_clicks.RIVALS)
def test_one_click_on_a_coin_gives_something_of_it(name, coin):
    image, disc = coin
    mask = answer(name, image, [COIN_XY], [1])
    assert mask[COIN_XY[::-1]]
    assert np.count_nonzero(mask & disc) / np.count_nonzero(mask) > 0.3
    assert np.count_nonzero(mask) < mask.size / 2


@pytest.mark.parametrize('name', rival_clicks.RIVALS)
def test_a_negative_click_is_outside(name, coin):
    image, _ = coin
    mask = answer(name, image, [COIN_XY, GROUND_XY], [1, 0])
    assert not mask[GROUND_XY[::-1]]


@pytest.mark.parametrize('name', rival_clicks.RIVALS)
def test_the_same_clicks_have_the_same_answer(name, coin):
    first, second = (answer(name, coin[0], [COIN_XY], [1]) for _ in range(2))
    assert np.array_equal(first, second)


def test_a_shrunk_image_is_clicked_at_the_same_place_and_the_mask_has_its_size(coin):
    clicked = []

    def rival(image, points, positive):
        clicked.append((image.shape, points.tolist()))
        mask = np.zeros(image.shape[:2], bool)
        mask[:10] = True
        return mask

    predictor = rival_clicks.SingleMask(rival, longest_px=100)
    predictor.set_image(coin[0])
    masks, _, _ = predictor.predict(np.array([[199, 149]]), np.array([1]))
    assert clicked == [((75, 100, 3), [[99, 74]])]
    assert np.flatnonzero(masks[0].all(axis=1)).tolist() == list(range(20))


def test_the_benchmark_puts_all_beside_each_other(coin, tmp_path, monkeypatch, capsys):
    photographs = {'coffee.png': scene(data.coffee()[::5, ::5])}
    monkeypatch.setattr(rival_clicks, 'make_predictor', lambda engine, weights: Omniscient(photographs))
    annotations, folder = write_coco(tmp_path, photographs)
    outputs = ['--json', str(tmp_path / 'out.json'), '--curve', str(tmp_path / 'curve.png')]
    command = [str(folder), str(annotations), '--segments', '2', '--clicks', '2', *outputs]
    assert rival_clicks.main([*command, '--weights', 'model.pth']) == 0
    figures = json.loads((tmp_path / 'out.json').read_text())
    assert list(figures) == [*rival_clicks.RIVALS, 'UnSAM tree', 'UnSAM model']
    for name in rival_clicks.RIVALS:
        assert 0 <= figures[name]['max_iou'] == figures[name]['oracle_iou'] < 1
        assert figures[name]['segments'] == 2
    assert figures['UnSAM tree']['max_iou'] == 1
    assert (tmp_path / 'curve.png').stat().st_size > 1000
    assert 'GrabCut' in capsys.readouterr().out
