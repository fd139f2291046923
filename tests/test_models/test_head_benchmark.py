"""The head's benchmark at a tiny size: both sides agree, and both are measured."""

import pytest

from benchmarks import head


@pytest.mark.slow
@pytest.mark.usefixtures('_benchmarks_fork')
@pytest.mark.parametrize('mode', ['predict', 'train'])
def test_both_sides_agree_at_a_tiny_size(mode):
    comparison, note = head.compare(head.Job(mode, size=64, queries=20, masks=5, threads=1), rounds=1)
    assert comparison.equal
    assert set(comparison.ratios) == {'cpu_s', 'wall_s', 'peak_mb'}
    assert note.startswith(f"{mode}: ours over the rival's: cpu_s ")
