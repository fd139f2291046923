"""What the README and the first page after it show is what happens; `tests/test_docs.py` has their links and commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import skip_without_weights

ROOT = Path(__file__).parents[1]
README, FIRST_MASKS = ((ROOT / page).read_text(encoding='utf-8') for page in ('README.md', 'docs/first_masks.md'))


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf'```{language}\n(.*?)```', page, flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize(
    'code', blocks(README, 'python') + blocks(FIRST_MASKS, 'python'), ids=['README', 'first masks']
)
def test_python_examples_run(code, capsys):
    skip_without_weights()
    exec(compile(code, 'README.md', 'exec'), {})
    printed = capsys.readouterr().out
    assert 'regions' in printed
    assert 'masks under the click' in printed


def test_begins_with_two_make_targets():
    targets = {
        line.split()[1] for block in blocks(README, 'sh') for line in block.splitlines() if line.startswith('make ')
    }
    assert targets == {'demo', 'test'}
