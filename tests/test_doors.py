"""Whatever is damaged in a file from outside, it is refused on one line, or read as a slow check reads it.

``UNSAM_DAMAGED_INPUTS=10000 pytest -s tests/test_doors.py`` tries so many at each door, and ends where one crashes or takes
longer than ten seconds.
"""

from __future__ import annotations

import os

import pytest

from tests.doors import DOORS, run_door

NUMBER = {'rle': 300, 'tree': 200, 'store': 200, 'tokens': 150, 'embedding': 60, 'coco': 60}


@pytest.mark.parametrize('door', DOORS)
def test_damage_is_refused_or_read_as_it_should_be(door):
    wanted = os.environ.get('UNSAM_DAMAGED_INPUTS')
    number = int(wanted or NUMBER[door])
    refused = run_door(door, number, watched=wanted is not None)
    print(f'{door}: {number} damaged inputs, {refused} refused, {number - refused} read as they should be')  # noqa: T201
    assert 0 < refused < number
