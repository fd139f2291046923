"""What is kept of a run over benchmarks, and when it holds for another run."""

import json

import pytest

from unsam_mm.errors import StoreError, UnSAMError
from unsam_mm.evaluation.benchmark_options import move_paths, read_benchmarks
from unsam_mm.evaluation.measurements import Measurement, Measurements, fingerprint
from unsam_mm.evaluation.published import BENCHMARKS
from unsam_mm.fingerprints import file_sha256

MODEL = {'type': 'UnSAM', 'test_cfg': {'max_per_image': 1000}}
METRIC = {'type': 'UnSAMCocoMetric'}


def measured(**changes):
    fields = {
        'benchmark': 'coco',
        'checkpoint': 'latest.pth',
        'checkpoint_sha256': 'ab',
        'settings_sha256': 'cd',
        'metrics': {'unsam/AR@1000': 0.1 + 0.2},
    }
    return Measurement(**fields | changes)


def test_a_measurement_is_found_by_another_process_to_the_last_digit(tmp_path):
    path = tmp_path / 'work' / 'benchmarks.json'
    Measurements(path).add(measured())
    assert Measurements(path).get(('coco', 'ab', 'cd')) == measured()


@pytest.mark.parametrize('key', [('lvis', 'ab', 'cd'), ('coco', 'other', 'cd'), ('coco', 'ab', 'other')])
def test_it_holds_for_the_same_benchmark_weights_and_settings_only(tmp_path, key):
    measurements = Measurements(tmp_path / 'benchmarks.json')
    measurements.add(measured())
    assert measurements.get(key) is None


def test_a_newer_measurement_and_row_replace_the_older_ones_and_keep_the_others(tmp_path):
    path = tmp_path / 'benchmarks.json'
    Measurements(path).add(measured(benchmark='lvis'))
    Measurements(path).add(measured())
    Measurements(path).set_row({'average': 0.4})
    Measurements(path).add(measured(metrics={'unsam/AR@1000': 0.5}))
    content = json.loads(path.read_text())
    assert [entry['benchmark'] for entry in content['measurements']] == ['lvis', 'coco']
    assert content['measurements'][1]['metrics'] == {'unsam/AR@1000': 0.5}
    assert content['row'] == {'average': 0.4}


@pytest.mark.parametrize('content', ['[1]', '{"measurements": [{"benchmark": "coco"}]}', '{"measurements": [3]}'])
def test_another_file_of_that_name_is_named_and_left_alone(tmp_path, content):
    path = tmp_path / 'benchmarks.json'
    path.write_text(content)
    with pytest.raises(StoreError, match=r'benchmarks.json: not a file of measurements .* move it away'):
        Measurements(path)
    assert path.read_text() == content


def test_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / 'x.pth').write_bytes(b'abc')
    assert file_sha256(tmp_path / 'x.pth').startswith('ba7816bf8f01cfea')


def test_settings_that_change_no_figure_change_no_fingerprint():
    same = METRIC | {'outfile_prefix': 'out', 'collect_dir': '/shared', 'engine': 'pycocotools'}
    assert fingerprint(MODEL, {'data_root': 'a'}, METRIC) == fingerprint(MODEL, {'data_root': 'a'}, same)


@pytest.mark.parametrize(
    'changed',
    [
        (MODEL | {'test_cfg': {'max_per_image': 100}}, {'data_root': 'a'}, METRIC),
        (MODEL, {'data_root': 'b'}, METRIC),
        (MODEL, {'data_root': 'a', 'pipeline': [{'type': 'Resize', 'scale': (640, 640)}]}, METRIC),
        (MODEL, {'data_root': 'a'}, [METRIC | {'max_dets': (1, 100)}]),
    ],
)
def test_settings_that_change_figures_change_the_fingerprint(changed):
    assert fingerprint(MODEL, {'data_root': 'a'}, METRIC) != fingerprint(*changed)


@pytest.mark.parametrize('content', ['{"images": []}', '[]'], ids=['longer', 'as long'])
@pytest.mark.parametrize('place', ['evaluator', 'dataset'])
def test_an_annotation_file_of_another_content_changes_the_fingerprint(tmp_path, content, place):
    path = tmp_path / 'gt.json'

    def of_file(text):
        (tmp_path / 'new').write_text(text)
        (tmp_path / 'new').replace(path)
        if place == 'evaluator':
            return fingerprint(MODEL, {}, METRIC | {'ann_file': str(path)})
        return fingerprint(MODEL, {'dataset': {'data_root': str(tmp_path), 'ann_file': 'gt.json'}}, METRIC)

    assert of_file('{}') == of_file('{}') != of_file(content)


def test_options_go_to_the_benchmark_that_they_name_to_all_or_to_the_model(tmp_path):
    sorted_out = read_benchmarks(
        ['lvis,coco'],
        [f'coco={tmp_path}'],
        ['lvis.test_dataloader.dataset.indices=5', 'test_dataloader.batch_size=2', 'model.test_cfg.max_per_image=10'],
    )
    assert sorted_out.options == {
        'lvis': ['test_dataloader.dataset.indices=5', 'test_dataloader.batch_size=2'],
        'coco': ['test_dataloader.batch_size=2', f'data_root={tmp_path}'],
    }
    assert sorted_out.model_options == ['model.test_cfg.max_per_image=10']


def test_without_benchmarks_all_options_are_for_the_config():
    options = ['data_root=/images', 'test_dataloader.batch_size=2']
    assert read_benchmarks(None, [], options).model_options == options


def test_all_means_the_seven_in_the_order_of_the_table():
    assert list(read_benchmarks(['paco', 'all'], [], []).options) == list(BENCHMARKS)


def test_a_name_that_is_no_benchmark_is_refused():
    with pytest.raises(UnSAMError, match='--benchmarks ade: no such benchmark; choose from coco, lvis, ade20k'):
        read_benchmarks(['ade'], [], [])


def test_paths_below_the_old_root_move_and_others_stay():
    config = {
        'test_dataloader': {'dataset': {'data_root': 'data/coco', 'pipeline': [{'mean': 'data/coco_mean.npy'}]}},
        'test_evaluator': [{'ann_file': 'data/coco/annotations/val.json'}],
        'work_dir': 'data/coco',
    }
    move_paths(config, 'data/coco/', '/my/coco')
    assert config == {
        'test_dataloader': {'dataset': {'data_root': '/my/coco', 'pipeline': [{'mean': 'data/coco_mean.npy'}]}},
        'test_evaluator': [{'ann_file': '/my/coco/annotations/val.json'}],
        'work_dir': 'data/coco',
    }
