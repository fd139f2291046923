"""The picture of a training: what its log holds is what is drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import training_curves as curves
from unsam_mm.errors import StoreError

pytest.importorskip('matplotlib')


def log(work_dir: Path, run: str, losses: dict[int, float]) -> None:
    folder = work_dir / run / 'vis_data'
    folder.mkdir(parents=True)
    lines = [json.dumps({'step': step, 'loss': loss, 'lr': 0.1}) for step, loss in losses.items()]
    (folder / 'scalars.json').write_text('\n'.join(lines) + '\n')


def test_a_resumed_run_continues_the_curve_and_replaces_what_it_repeats(tmp_path):
    log(tmp_path, '20260101_000000', {10: 3.0, 20: 2.0, 30: 9.0})
    log(tmp_path, '20260102_000000', {30: 1.5, 40: 1.0})
    assert curves.read_losses(tmp_path) == {'loss': [(10, 3.0), (20, 2.0), (30, 1.5), (40, 1.0)]}


def test_a_folder_without_a_log_is_named(tmp_path):
    with pytest.raises(StoreError, match='vis_data'):
        curves.read_losses(tmp_path)


def test_losses_and_recall_stand_side_by_side(tmp_path):
    from PIL import Image

    log(tmp_path / 'run', '20260101_000000', {10: 3.0, 20: 2.0})
    (tmp_path / '20.json').write_text(json.dumps({'AR@100': 0.1, 'AR@1000': 0.2}))
    alone, both = tmp_path / 'alone.png', tmp_path / 'both.png'
    assert curves.main([str(tmp_path / 'run'), str(alone)]) == 0
    assert curves.main([str(tmp_path / 'run'), str(both), '--recall', f'20={tmp_path / "20.json"}']) == 0
    with Image.open(alone) as one, Image.open(both) as two:
        assert two.width > one.width
