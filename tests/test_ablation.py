"""The tables of docs/pseudo_masks.md: what they count, and where they are written."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import ablation, ablation_variants
from tests.conftest import skip_without_weights
from unsam_mm import PseudoMaskGenerator
from unsam_mm.errors import UnSAMError
from unsam_mm.evaluation.average_recall import evaluate_masks
from unsam_mm.masks.hierarchy import MaskSet

MARKED = '# Title\n\n<!-- ablation: cups -->\nold\n<!-- end of ablation: cups -->\n\n<!-- ablation: nuclei -->\nkept\n'


@pytest.fixture
def document(tmp_path):
    path = tmp_path / 'document.md'
    path.write_text(MARKED, encoding='utf-8')
    return path


def test_only_what_stands_between_the_markers_is_replaced(document):
    ablation.write_between_markers(document, 'cups', 'new')
    assert document.read_text(encoding='utf-8') == MARKED.replace('\nold\n', '\nnew\n')


@pytest.mark.parametrize('data', ['nuclei', 'photographs'])
def test_missing_markers_are_named_and_the_document_stays(document, data):
    with pytest.raises(UnSAMError, match=f'end of ablation: {data}'):
        ablation.write_between_markers(document, data, 'new')
    assert document.read_text(encoding='utf-8') == MARKED


def test_an_unknown_variant_is_named_with_those_that_exist(tmp_path, capsys):
    arguments = ['table', str(tmp_path), 'GT.json', '--data', 'cups', '--variants', 'default,bigger']
    assert ablation.main(arguments) == 1
    message = capsys.readouterr().err
    assert message.startswith('unknown variant bigger; choose from base, ')
    assert 'no_borders' in message


def test_every_variant_of_the_region_trees_changes_one_setting_of_the_base():
    base, default = (ablation.VARIANTS[name].settings for name in ('base', 'default'))
    for name, variant in ablation.VARIANTS.items():
        if isinstance(variant.settings, type(base)) and name not in ('base', 'default', 'plain_tree'):
            changed = [key for key, value in vars(variant.settings).items() if value != getattr(base, key)]
            assert len(changed) == (variant.how == 'generator'), name
    assert default == type(base)()


def test_images_are_chosen_evenly_and_hold_both_ends():
    assert ablation.evenly(range(100), 4) == [0, 33, 66, 99]
    assert ablation.evenly(range(3), None) == ablation.evenly(range(3), 7) == [0, 1, 2]


def test_pooled_recall_equals_that_of_all_images_at_once():
    rng = np.random.default_rng(0)
    images = [{'id': i, 'file_name': f'{i}.png', 'height': 120, 'width': 150} for i in range(3)]
    annotations, records, results = [], [], []
    for image, n_truths in zip(images, (5, 0, 12), strict=True):
        truths = MaskSet.from_bitmaps(boxes(rng, n_truths)).to_coco(image['id'])
        masks = MaskSet.from_bitmaps(boxes(rng, 40), np.linspace(1, 0.1, 40))
        results.append(ablation.measure(masks, 1.0, image, truths))
        annotations += truths
        records += masks.to_coco(image['id'])
    at_once = evaluate_masks(records, {'images': images, 'annotations': annotations}, (10, 100, 1000))
    row = ablation.pooled(results)
    assert row['AR@1000'] > 0.05
    for column, name in (('AR@10', 'AR@10'), ('AR@1000', 'AR@1000'), ('S', 'AR_s@1000'), ('M', 'AR_m@1000')):
        assert row[column] == pytest.approx(at_once[name], abs=1e-12)


def boxes(rng, count):
    """(count, 120, 150) bool: boxes of all sizes in a few places, so that some match."""
    masks = np.zeros((count, 120, 150), bool)
    for mask in masks:
        y, x = rng.integers(0, 3, 2) * 30
        height, width = rng.integers(10, 60, 2)
        mask[y : y + height, x : x + width] = True
    return masks


@pytest.mark.parametrize('partition', [False, True])
def test_every_patch_is_a_leaf_of_the_patch_tree(coffee, partition):
    rng = np.random.default_rng(0)
    features = rng.standard_normal((17, 25, 8)).astype(np.float32)
    tree = ablation_variants.patch_tree(coffee, features, partition)
    assert tree.n_leaves == 17 * 25
    assert len(tree) == 2 * 17 * 25 - 1


@pytest.mark.slow
def test_masks_found_again_are_all_recalled_and_kept(coffee, document, tmp_path, monkeypatch):
    skip_without_weights()
    (tmp_path / 'images').mkdir()
    Image.fromarray(coffee).save(tmp_path / 'images' / 'cup.png')
    height, width = coffee.shape[:2]
    truth = {
        'images': [{'id': 7, 'file_name': 'cup.png', 'height': height, 'width': width}],
        'annotations': PseudoMaskGenerator.from_preset('default')(coffee).select(10).to_coco(7),
    }
    (tmp_path / 'truth.json').write_text(json.dumps(truth), encoding='utf-8')
    options = {'--data': 'cups', '--variants': 'default', '--cache': tmp_path / 'cache', '--document': document}
    arguments = ['table', str(tmp_path / 'images'), str(tmp_path / 'truth.json')]
    arguments += [str(part) for option in options.items() for part in option]
    assert ablation.main(arguments) == 0
    table = document.read_text(encoding='utf-8')
    assert '| **default**: superpixel spacing 8 px, long side 518 px | 1.000 | 1.000 | 1.000 |' in table

    monkeypatch.setattr(ablation.MaskFinder, '__call__', lambda *_: pytest.fail('measured again'))
    assert ablation.main(arguments) == 0
    assert document.read_text(encoding='utf-8') == table
