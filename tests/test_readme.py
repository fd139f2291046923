"""What the README shows is what happens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import skip_without_weights
from unsam_mm.__main__ import build_parser

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text(encoding='utf-8')


def blocks(language: str) -> list[str]:
    return re.findall(rf'```{language}\n(.*?)```', README, flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize('code', blocks('python'))
def test_python_examples_run(code, capsys):
    skip_without_weights()
    exec(compile(code, 'README.md', 'exec'), {})
    printed = capsys.readouterr().out
    assert 'regions' in printed
    assert 'nested masks under the click' in printed


@pytest.mark.parametrize(
    'command', [line for block in blocks('sh') for line in block.splitlines() if line.startswith('python -m unsam_mm')]
)
def test_commands_are_understood(command):
    arguments = command.split('#')[0].split()[3:]
    build_parser().parse_args(arguments)


def test_every_linked_file_exists():
    links = re.findall(r'\]\((?!https?:)([^)#]+)\)', README)
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


def test_make_targets_exist():
    makefile = (ROOT / 'Makefile').read_text(encoding='utf-8')
    targets = {line.split()[1] for block in blocks('sh') for line in block.splitlines() if line.startswith('make ')}
    assert targets == {'demo', 'test'}
    assert all(re.search(rf'^{target}:', makefile, flags=re.MULTILINE) for target in targets)
