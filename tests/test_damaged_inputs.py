"""Whatever is damaged in a file from outside, it is refused on one line, or read as a slow check reads it.

``UNSAM_DAMAGED_INPUTS=10000 pytest -s tests/test_damaged_inputs.py`` tries so many of each kind, and ends where one
crashes or takes longer than ten seconds.
"""

from __future__ import annotations

import os

import pytest

from tests.damaged_inputs import KINDS, read_damaged

NUMBER = {'rle': 300, 'tree': 200, 'store': 200, 'tokens': 150, 'embedding': 60, 'coco': 60}


@pytest.mark.parametrize('kind', KINDS)
def test_damage_is_refused_or_read_as_it_should_be(kind):
    wanted = os.environ.get('UNSAM_DAMAGED_INPUTS')
    number = int(wanted or NUMBER[kind])
    refused = read_damaged(kind, number, watched=wanted is not None)
    print(f'{kind}: {number} damaged inputs, {refused} refused, {number - refused} read as they should be')  # noqa: T201
    assert 0 < refused < number
