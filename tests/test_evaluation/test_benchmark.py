"""The side-by-side measurement of the engines at a tiny size."""

import json

import pytest

from benchmarks import metric


@pytest.mark.slow
def test_all_toolboxes_find_the_same_figures_and_the_table_says_so(capsys):
    pytest.importorskip('faster_coco_eval')
    assert metric.main(['--count', '2']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split('|')[2].strip() for line in lines[2:4]] == ['pycocotools', 'faster-coco-eval']
    assert '2 images, 2000 predictions, 160 ground-truth masks: 10 figures differ by ' in lines[2]


def test_drawn_masks_are_nested_tied_crowded_and_of_any_size():
    predictions, truth = metric.nested_scene(2, 200)
    areas = [annotation['area'] for annotation in truth['annotations']]
    assert min(areas) < 32**2 < 96**2 < max(areas)
    assert any(annotation['iscrowd'] for annotation in truth['annotations'])
    assert len({record['score'] for record in predictions}) < len(predictions)


def test_files_with_fewer_images_than_asked_for_come_again(tmp_path):
    predictions, truth = metric.nested_scene(2, 30)
    (tmp_path / 'gt.json').write_text(json.dumps(truth))
    (tmp_path / 'found.json').write_text(json.dumps(predictions))
    found, again = metric.real_scene(tmp_path / 'found.json', tmp_path / 'gt.json', 5)
    assert [image['id'] for image in again['images']] == [1, 2, 3, 4, 5]
    assert [sum(r['image_id'] == i for r in found) for i in range(1, 6)] == [30] * 5
