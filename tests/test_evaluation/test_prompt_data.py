"""The layouts of published benchmarks, made small from real images, and the command that measures on them."""

import json

import numpy as np
import pytest
from PIL import Image
from skimage import data

from tests.test_evaluation.prompt_scenes import Answering, Omniscient, save, scene, scenes, write_coco
from unsam_mm.__main__ import main
from unsam_mm.cli import evaluate
from unsam_mm.errors import ImageError, StoreError, UnSAMError
from unsam_mm.evaluation.click_simulation import evaluate_prompts, sampled_segments
from unsam_mm.evaluation.prompt_data import coco_prompts, folder_prompts
from unsam_mm.evaluation.prompt_iou import summarize


@pytest.fixture(scope='module')
def photographs():
    return scenes()


def masks_of(image):
    return np.stack([segment.mask for segment in image.segments()])


def test_a_coco_file_gives_its_segments_and_finds_its_images(photographs, tmp_path):
    images = coco_prompts(*write_coco(tmp_path, photographs))
    assert [image.path.name for image in images] == list(photographs)
    for image, (_, truths) in zip(images, photographs.values(), strict=True):
        assert np.array_equal(masks_of(image), truths)


def test_polygons_are_segments_too(photographs, tmp_path):
    annotations, folder = write_coco(tmp_path, photographs)
    truth = json.loads(annotations.read_text())
    truth['annotations'] = [truth['annotations'][0] | {'segmentation': [[2, 1, 12, 1, 12, 9, 2, 9]]}]
    annotations.write_text(json.dumps(truth))
    (image,) = coco_prompts(annotations, folder)
    (mask,) = masks_of(image)
    assert (mask.sum(), mask[1:9, 2:12].all()) == (80, True)


def test_crowds_are_left_out_and_so_are_images_that_have_nothing_else(photographs, tmp_path):
    annotations, folder = write_coco(tmp_path, photographs)
    truth = json.loads(annotations.read_text())
    for record in truth['annotations'][1:]:
        record['iscrowd'] = int(record['image_id'] == 5 or record['id'] % 2)
    annotations.write_text(json.dumps(truth))
    first, second = coco_prompts(annotations, folder)
    assert len(masks_of(first)) == 1
    assert len(masks_of(second)) == sum(r['image_id'] == 6 and r['id'] % 2 == 0 for r in truth['annotations'])
    truth['annotations'][0]['iscrowd'] = 1
    annotations.write_text(json.dumps(truth))
    assert [image.path.name for image in coco_prompts(annotations, folder)] == ['chelsea.png']


def test_images_are_found_in_another_folder_below_and_a_missing_one_is_named(photographs, tmp_path):
    annotations, folder = write_coco(tmp_path, photographs)
    (folder / 'val').mkdir()
    (folder / 'coffee.png').rename(folder / 'val' / 'coffee.png')
    assert coco_prompts(annotations, folder)[0].path == folder / 'val' / 'coffee.png'
    (folder / 'chelsea.png').unlink()
    with pytest.raises(StoreError, match=r'1 of 2 images of .*gt.json are not there \(chelsea.png\)'):
        coco_prompts(annotations, folder)
    assert len(coco_prompts(annotations, folder, limit=1)) == 1


def write_panoptic(folder, photographs):
    annotations, images = [], []
    for image_id, (name, (image, truths)) in enumerate(photographs.items(), start=1):
        save(folder / 'images' / name, image)
        ids = [3 + 70_001 * i for i in range(len(truths))]
        numbers = np.tensordot(np.array(ids), truths, axes=1)
        save(folder / 'png' / name, np.stack([numbers >> shift & 255 for shift in (0, 8, 16)], -1).astype(np.uint8))
        images.append({'id': image_id, 'file_name': name, 'height': image.shape[0], 'width': image.shape[1]})
        info = [{'id': number, 'iscrowd': int(i == 0)} for i, number in enumerate(ids)]
        annotations.append({'image_id': image_id, 'file_name': name, 'segments_info': info})
    (folder / 'gt.json').write_text(json.dumps({'images': images, 'annotations': annotations}))


def test_the_panoptic_form_gives_things_and_stuff_from_coloured_pngs(photographs, tmp_path):
    write_panoptic(tmp_path, photographs)
    images = coco_prompts(tmp_path / 'gt.json', tmp_path / 'images', tmp_path / 'png')
    for image, (_, truths) in zip(images, photographs.values(), strict=True):
        assert np.array_equal(masks_of(image), truths[1:])  # the first is a crowd


def test_the_panoptic_form_without_its_pngs_says_what_is_needed(photographs, tmp_path):
    write_panoptic(tmp_path, photographs)
    with pytest.raises(StoreError, match='name their folder'):
        coco_prompts(tmp_path / 'gt.json', tmp_path / 'images')
    with pytest.raises(StoreError, match=r'2 PNG files of .* are not there \(coffee.png, chelsea.png\)'):
        coco_prompts(tmp_path / 'gt.json', tmp_path / 'images', tmp_path / 'images' / 'none')


def test_instances_among_panoptic_annotations_are_refused(photographs, tmp_path):
    write_panoptic(tmp_path, photographs)
    truth = json.loads((tmp_path / 'gt.json').read_text())
    del truth['annotations'][1]['segments_info']
    (tmp_path / 'gt.json').write_text(json.dumps(truth))
    with pytest.raises(StoreError, match='image 2, record without id: has no file_name or no segments_info'):
        coco_prompts(tmp_path / 'gt.json', tmp_path / 'images', tmp_path / 'png')


def test_instances_that_cannot_be_read_are_named_with_their_file(photographs, tmp_path):
    annotations, folder = write_coco(tmp_path, photographs)
    truth = json.loads(annotations.read_text())
    truth['annotations'][0]['segmentation'] = {'size': [5, 5], 'counts': 'zz'}
    annotations.write_text(json.dumps(truth))
    with pytest.raises(StoreError, match=r'gt\.json: image 5, record 1: the mask is 5 x 5 px, the image 100 x 150'):
        masks_of(coco_prompts(annotations, folder)[0])
    truth['annotations'][0]['iscrowd'] = 5
    annotations.write_text(json.dumps(truth))
    with pytest.raises(StoreError, match=r'gt\.json: image 5, record 1: the "iscrowd" is 5'):
        coco_prompts(annotations, folder)


def test_grabcut_has_one_object_an_image_and_a_band_that_does_not_count(photographs, tmp_path):
    for name, (image, truths) in photographs.items():
        mask = np.where(truths[0], 255, 0).astype(np.uint8)
        mask[10:20] = 128
        save(tmp_path / 'data_GT' / name.replace('png', 'jpg'), image)
        save(tmp_path / 'boundary_GT' / name.replace('png', 'bmp'), mask)
    images = folder_prompts(tmp_path / 'data_GT', tmp_path / 'boundary_GT', ignored_value=128)
    assert [image.path.name for image in images] == ['chelsea.jpg', 'coffee.jpg']
    (segment,) = images[1].segments()
    expected = photographs['coffee.png'][1][0].copy()
    expected[10:20] = False
    assert np.array_equal(segment.mask, expected)
    assert (segment.ignored.sum(), segment.ignored[10:20].all()) == (10 * expected.shape[1], True)


def test_berkeley_numbers_the_masks_of_an_image(photographs, tmp_path):
    image, truths = photographs['coffee.png']
    save(tmp_path / 'images' / '42049.jpg', image)
    for number, truth in enumerate(truths[:2]):
        save(
            tmp_path / 'masks' / f'42049#{number:03d}.png',
            np.repeat(truth[..., None], 3, axis=-1).astype(np.uint8) * 255,
        )
    (found,) = folder_prompts(tmp_path / 'images', tmp_path / 'masks')
    assert np.array_equal(masks_of(found), truths[:2])


def test_davis_numbers_objects_by_the_indices_of_a_palette(photographs, tmp_path):
    image, truths = photographs['coffee.png']
    save(tmp_path / 'img' / 'cup' / '00000.jpg', image)
    picture = Image.fromarray((truths[0] + 2 * truths[1]).astype(np.uint8)).convert('P')
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    (tmp_path / 'gt').mkdir()
    picture.save(tmp_path / 'gt' / '00000.png')
    (objects,) = folder_prompts(tmp_path / 'img', tmp_path / 'gt', each_value=True)
    assert np.array_equal(masks_of(objects), truths[:2])
    (foreground,) = folder_prompts(tmp_path / 'img', tmp_path / 'gt')
    assert np.array_equal(masks_of(foreground), [truths[0] | truths[1]])


def test_a_mask_without_image_is_named_and_an_image_without_mask_left_out(photographs, tmp_path):
    for name, (image, truths) in photographs.items():
        save(tmp_path / 'img' / name, image)
        save(tmp_path / 'gt' / name, truths[0])
    (tmp_path / 'gt' / 'coffee.png').unlink()
    assert [image.path.name for image in folder_prompts(tmp_path / 'img', tmp_path / 'gt')] == ['chelsea.png']
    (tmp_path / 'img' / 'chelsea.png').unlink()
    with pytest.raises(StoreError, match=r'1 masks have no image in .*img \(chelsea.png\)'):
        folder_prompts(tmp_path / 'img', tmp_path / 'gt')


def test_a_broken_mask_picture_is_named(photographs, tmp_path):
    save(tmp_path / 'img' / 'a.png', photographs['coffee.png'][0])
    (tmp_path / 'gt').mkdir()
    (tmp_path / 'gt' / 'a.png').write_bytes(b'\x89PNG but no more')
    (image,) = folder_prompts(tmp_path / 'img', tmp_path / 'gt')
    with pytest.raises(ImageError, match='a.png: cannot be read as a mask picture'):
        list(image.segments())


def test_who_knows_all_segments_has_an_iou_of_one_and_one_click(photographs, tmp_path):
    images = coco_prompts(*write_coco(tmp_path, photographs))
    figures = summarize(evaluate_prompts(Omniscient(photographs), images, n_clicks=4))
    assert {figures[name] for name in ('max_iou', 'image_oracle_iou', 'IoU@4', 'NoC4@90')} == {1.0}
    assert figures['segments'] == sum(len(truths) for _, truths in photographs.values())


def test_segments_of_another_size_than_their_image_are_refused(photographs, tmp_path):
    annotations, folder = write_coco(tmp_path, photographs)
    save(folder / 'coffee.png', data.coffee()[::5, ::5])
    with pytest.raises(UnSAMError, match=r'coffee.png: the image is 80 x 120 px, a segment 100 x 150 px'):
        evaluate_prompts(Omniscient(photographs), coco_prompts(annotations, folder))


def test_a_draw_of_segments_is_the_same_for_all_and_keeps_no_empty_one(photographs, tmp_path):
    image, truths = scene(data.coffee()[::4, ::4])
    truths[3] = False
    (found,) = coco_prompts(*write_coco(tmp_path, {'coffee.png': (image, truths)}))
    drawn = [[segment.mask for segment in sampled_segments(found, 5, (seed, 0))] for seed in (1, 1, 2)]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    assert len(drawn[0]) == 5
    assert (
        len(list(sampled_segments(found, 1000, (0, 0))))
        == len(list(sampled_segments(found, None, ())))
        == len(truths) - 1
    )


@pytest.mark.parametrize('numbers', [{'n_clicks': 0}, {'max_segments': 0}])
def test_nothing_is_not_a_number_of_clicks_or_segments(numbers):
    with pytest.raises(UnSAMError, match='must be at least 1'):
        evaluate_prompts(Answering(None), [], **numbers)


def test_command_prints_the_figures_and_writes_json_and_curve(photographs, tmp_path, capsys, monkeypatch):
    predictor = Omniscient(photographs)
    monkeypatch.setattr(evaluate, 'make_predictor', lambda engine, weights: predictor)
    annotations, folder = write_coco(tmp_path, photographs)
    outputs = ['--json', str(tmp_path / 'out.json'), '--curve', str(tmp_path / 'curve.png')]
    sizes = ['--clicks', '2', '--limit', '1', '--segments', '3']
    assert main(['evaluate', '--prompts', str(annotations), '--images', str(folder), *sizes, *outputs]) == 0
    figures = json.loads((tmp_path / 'out.json').read_text())
    assert (figures['engine'], figures['clicks'], figures['segments'], figures['images']) == ('tree', 2, 3, 1)
    assert figures['max_iou'] == figures['NoC2@90'] == 1.0
    assert 'oracle_iou' in (printed := capsys.readouterr().out)
    assert '100.0' in printed
    with Image.open(tmp_path / 'curve.png') as picture:
        assert picture.size == (720, 460)


@pytest.mark.parametrize('option', ['--images', '--masks', '--prompts'])
def test_command_never_replaces_a_picture_that_it_reads(tmp_path, capsys, option):
    picture = tmp_path / 'folder' / 'coffee.png'
    save(picture, data.coffee()[::8, ::8])
    before = picture.read_bytes()
    options = {'--images': tmp_path / 'images', '--prompts': tmp_path / 'gt.json', option: picture.parent}
    command = [str(part) for pair in options.items() for part in pair]
    assert main(['evaluate', *command, '--curve', str(picture)]) == 1
    assert f'coffee.png: lies in {picture.parent}, whose files are read' in capsys.readouterr().err
    assert picture.read_bytes() == before


def test_command_reads_folders_of_mask_pictures(photographs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, 'make_predictor', lambda engine, weights: Omniscient(photographs))
    image, truths = photographs['coffee.png']
    save(tmp_path / 'img' / 'coffee.png', image)
    save(tmp_path / 'gt' / 'coffee.png', np.tensordot(np.arange(1, 4), truths[:3], axes=1).astype(np.uint8))
    command = ['evaluate', '--prompts', str(tmp_path / 'gt'), '--images', str(tmp_path / 'img'), '--each-value']
    assert main([*command, '--ignored-value', '2', '--json', str(tmp_path / 'out.json')]) == 0
    figures = json.loads((tmp_path / 'out.json').read_text())
    assert (figures['segments'], figures['max_iou']) == (2, 1.0)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([], 'evaluate needs PREDICTIONS and GROUND_TRUTH'),
        (['masks', 'gt.json', '--engine', 'tree'], '--engine tree answers --prompts'),
        (['--prompts', 'gt.json'], '--prompts needs the folder of the images'),
        (['masks', '--prompts', 'gt.json', '--images', '.'], 'makes its own predictions'),
        (['--prompts', 'gt.json', '--images', '.'], 'gt.json: no such file'),
    ],
)
def test_arguments_that_do_not_fit_are_explained(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(['evaluate', *arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ('engine', 'weights', 'message'),
    [('pycocotools', None, 'not by pycocotools'), ('tree', 'a.pth', "'tree' has none")],
)
def test_engines_that_cannot_answer_are_refused(engine, weights, message):
    with pytest.raises(UnSAMError, match=message):
        evaluate.make_predictor(engine, weights)


def test_the_tree_answers_clicks_on_coins(generator, coins_tree, coins, tmp_path):
    from unsam_mm import UnSAMPredictor

    class Prepared(UnSAMPredictor):
        def set_image(self, image, image_format='RGB'):
            self.set_hierarchy(coins_tree)

    discs = np.zeros((2, *coins.shape), bool)
    rows, columns = np.ogrid[: coins.shape[0], : coins.shape[1]]
    for disc, (x, y) in zip(discs, ((44, 55), (99, 55)), strict=True):
        disc[:] = (columns - x) ** 2 + (rows - y) ** 2 <= 20**2
    images = coco_prompts(*write_coco(tmp_path, {'coins.png': (coins, discs)}))
    figures = summarize(evaluate_prompts(Prepared('tree', generator), images, n_clicks=2))
    assert figures['oracle_iou'] > 0.7
    assert figures['max_iou'] > 0.5
