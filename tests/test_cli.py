"""The commands as a shell calls them: status, one line for errors, files where they belong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import skip_without_weights
from unsam_mm import MaskSet
from unsam_mm.__main__ import build_parser, main
from unsam_mm.folders.store import PseudoMaskStore


@pytest.fixture(scope='module')
def folders(tmp_path_factory, coins, coffee):
    """Two images and their pseudo-masks."""
    skip_without_weights()
    root = tmp_path_factory.mktemp('cli')
    (root / 'images').mkdir()
    Image.fromarray(coins).save(root / 'images' / 'coins.png')
    Image.fromarray(coffee).save(root / 'images' / 'coffee.png')
    assert main(['generate', str(root / 'images'), str(root / 'masks'), '--max-masks', '300']) == 0
    return root


def test_generate_says_what_it_did(folders, capsys):
    assert main(['generate', str(folders / 'images'), str(folders / 'masks'), '--max-masks', '300']) == 0
    assert '0 images done now, 2 before, 0 failed, of 2' in capsys.readouterr().out


def test_the_way_from_images_to_recall(folders, capsys):
    """The largest masks of each image, taken as truth, are all found again."""
    assert main(['merge', str(folders / 'masks'), str(folders / 'pseudo.json')]) == 0
    merged = json.loads((folders / 'pseudo.json').read_text())
    merged['annotations'] = [record for record in merged['annotations'] if record['area'] > 3000]
    (folders / 'truth.json').write_text(json.dumps(merged))
    for predictions in ('masks', 'pseudo.json'):
        command = ['evaluate', str(folders / predictions), str(folders / 'truth.json')]
        assert main([*command, '--json', str(folders / 'result.json')]) == 0
        assert json.loads((folders / 'result.json').read_text())['AR@1000'] == 1.0
        assert 'AR@1000' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['generate', '{}/none', '{}/out'], 'none: no such folder'),
        (['generate', '{}/truth', '{}/out'], 'truth: no images found'),
        (['generate', '{}/images', '{}/images/coins.png'], 'a file is where a folder is needed'),
        (['generate', '{}/images', '{}/masks', '--max-masks', '7'], 'made with another max_masks'),
        (['merge', '{}/none', '{}/a.json'], 'none: no such folder'),
        (['merge', '{}/truth', '{}/a.json'], 'contains no pseudo-masks'),
        (['evaluate', '{}/none', '{}/none.json'], 'none.json: no such file'),
        (['weights', 'fetch', 'resnet'], "no weights are called 'resnet'"),
    ],
)
def test_errors_are_one_line_and_a_status(folders, capsys, arguments, message):
    (folders / 'truth').mkdir(exist_ok=True)
    assert main([argument.format(folders) for argument in arguments]) == 1
    printed = capsys.readouterr().err.strip()
    assert printed.startswith('error: ')
    assert message in printed
    assert '\n' not in printed


def test_nothing_but_broken_images_is_a_failure(tmp_path, capsys):
    skip_without_weights()
    (tmp_path / 'broken.png').touch()
    Image.fromarray(np.zeros((30, 30), np.uint8)).save(tmp_path / 'black.png')
    assert main(['generate', str(tmp_path), str(tmp_path / 'out')]) == 1
    printed = capsys.readouterr()
    assert 'broken.png: the file is empty' in printed.err
    assert 'black.png: every pixel has the value 0' in printed.err
    assert PseudoMaskStore(tmp_path / 'out').names() == []


def test_weights_are_listed_with_their_licences(capsys):
    assert main(['weights', 'list']) == 0
    printed = capsys.readouterr().out
    assert 'dinov2_vits14' in printed
    assert 'CC-BY-NC-4.0' in printed


def test_no_command_imports_torch_before_it_has_work_to_do():
    script = (
        'import sys, unsam_mm.__main__ as m; m.build_parser(); print("torch" in sys.modules, "mmdet" in sys.modules)'
    )
    finished = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True)
    assert finished.stdout.split() == ['False', 'False']


@pytest.mark.parametrize('count', ['0', '-1', 'two', '1.5'])
def test_counts_must_be_positive(capsys, count):
    with pytest.raises(SystemExit):
        build_parser().parse_args(['generate', 'a', 'b', f'--workers={count}'])
    assert f"'{count}' is not a whole number above 0" in capsys.readouterr().err


NARROW = """
import sys
from unsam_mm.cli import generate, weights
from unsam_mm.__main__ import main
weights.run = lambda options: print('in', {name!r}) or 0
print('first line')
sys.exit(main(['weights', 'list']))
"""


@pytest.mark.parametrize(
    ('encoding', 'name'),
    [('cp1252', '細胞/a.png'), ('cp1252', 'Pr\udcfcfung.png'), ('utf-8', 'Pr\udcfcfung.png')],
    ids=['Japanese', 'not UTF-8', 'not UTF-8 in UTF-8'],
)
def test_a_name_that_the_output_cannot_encode_costs_neither_line_nor_status(encoding, name):
    environment = os.environ | {'PYTHONIOENCODING': encoding, 'PYTHONUTF8': '0'}
    command = [sys.executable, '-c', NARROW.format(name=name)]
    finished = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == b''
    assert finished.stdout.decode(encoding).split() == ['first', 'line', 'in', name_in(encoding, name)]


def name_in(encoding: str, name: str) -> str:
    return name.encode(encoding, 'backslashreplace').decode(encoding)


@pytest.mark.parametrize('target', ['truth.json', 'photo.jpg', 'masks/unsam.json', 'masks'])
@pytest.mark.parametrize('command', [['merge', 'masks', '{}'], ['evaluate', 'masks', 'truth.json', '--json', '{}']])
def test_results_never_replace_what_is_no_result(tmp_path, monkeypatch, capsys, command, target):
    monkeypatch.chdir(tmp_path)
    store = PseudoMaskStore('masks')
    store.describe({'preset': 'default'})
    store.write('a.png', MaskSet.from_bitmaps(np.ones((1, 8, 9), bool)))
    store.merge('truth.json')
    (tmp_path / 'photo.jpg').write_bytes(b'\xff\xd8\xff')
    before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
    status = main([argument.format(target) for argument in command])
    if command[0] == 'merge' and target == 'truth.json':
        assert status == 0  # it is an older result
        return
    assert status == 1
    assert f'error: {target}: ' in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()} == before


@pytest.mark.parametrize(
    ('error', 'line'),
    [
        (OSError(5, 'Input/output error', 'a\nb.png'), r"error: OSError: [Errno 5] Input/output error: 'a\nb.png'"),
        (BrokenPipeError(32, 'Broken pipe'), 'error: BrokenPipeError: [Errno 32] Broken pipe'),  # of a socket, say
    ],
)
def test_an_error_of_the_system_is_one_line_too(monkeypatch, capsys, error, line):
    def fail(options):
        raise error

    monkeypatch.setattr('unsam_mm.cli.weights.run', fail)
    assert main(['weights', 'list']) == 1
    assert capsys.readouterr().err.splitlines() == [line]


def test_figures_that_cannot_be_printed_are_written(tmp_path, monkeypatch):
    mask = {'image_id': 1, 'category_id': 1, 'segmentation': [[0, 0, 4, 0, 4, 4]], 'score': 0.5}
    image = {'id': 1, 'file_name': 'a.png', 'height': 10, 'width': 10}
    truth = {'images': [image], 'annotations': [{'id': 7, **mask}]}
    (tmp_path / 'truth.json').write_text(json.dumps(truth))
    (tmp_path / 'found.json').write_text(json.dumps([mask]))
    with Path('/dev/full').open('w', buffering=1) as full:
        monkeypatch.setattr(sys, 'stdout', full)
        command = ['evaluate', 'found.json', 'truth.json', '--json', 'out.json']
        assert main([str(tmp_path / part) if part.endswith('.json') else part for part in command]) == 1
    assert 'AR@1000' in json.loads((tmp_path / 'out.json').read_text())


TALKING = """
import sys
import {module}

def run(options):
    for _ in range(2):
        sys.stdout.write('a line ' * 2000)
    return 1

{module}.{function} = run
from {package}.__main__ import main
sys.exit(main({arguments}))
"""


@pytest.mark.parametrize(
    'talking',
    [
        {'module': 'unsam_mm.cli.weights', 'function': 'run', 'package': 'unsam_mm', 'arguments': ['weights', 'list']},
        {
            'module': 'napari_unsam.__main__',
            'function': 'run_batch',
            'package': 'napari_unsam',
            'arguments': ['batch', 'a', 'b'],
        },
    ],
    ids=['unsam_mm', 'napari_unsam'],
)
@pytest.mark.parametrize('unbuffered', ['', '1'])
@pytest.mark.parametrize(
    ('output', 'message'),
    [('>&-', b''), ('| true', b''), ('>/dev/full', b'error: OSError: [Errno 28] No space left on device\n')],
)
def test_a_closed_or_full_output_ends_a_command_in_one_line_at_most(talking, output, message, unbuffered):
    environment = os.environ | {'PYTHONUNBUFFERED': unbuffered}  # what is held back is written last
    shell = f'{{ "$0" -c "$1"; echo status $? >&2; }} {output}'.replace('| true', '| sh -c "exec <&-; sleep 0.1"')
    command = ['sh', '-c', shell, sys.executable, TALKING.format(**talking)]
    stderr = subprocess.run(command, env=environment, stderr=subprocess.PIPE, check=False).stderr
    assert stderr == message + b'status 1\n'


def test_the_demo_leaves_pictures_of_the_user_s_alone(tmp_path, capsys):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images' / 'coffee.png').write_bytes(b'mine')
    assert main(['demo', '--out', str(tmp_path)]) == 1
    assert 'coffee.png: is another image' in capsys.readouterr().err
    assert (tmp_path / 'images' / 'coffee.png').read_bytes() == b'mine'
