"""What is kept of a run over benchmarks, and when it holds for another run."""

import pytest

from unsam_mm.errors import StoreError
from unsam_mm.evaluation.benchmark_runs import fingerprint, run_benchmarks

MODEL = {'type': 'UnSAM', 'test_cfg': {'max_per_image': 1000}}
METRIC = {'type': 'UnSAMCocoMetric'}


@pytest.mark.parametrize('content', ['[1]', '{"measurements": [{"benchmark": "coco"}]}', '{"measurements": [3]}'])
def test_another_file_of_that_name_is_named_and_left_alone(tmp_path, content):
    path = tmp_path / 'benchmarks.json'
    path.write_text(content)
    with pytest.raises(StoreError, match=r'benchmarks.json: not a file of measurements .* move it away'):
        run_benchmarks(None, {}, path, None)
    assert path.read_text() == content


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
