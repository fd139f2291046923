"""A training that is killed at the worst moments ends as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.test_engine.runs import Training, equal, losses, weights
from unsam_mm.engine import find_resumable
from unsam_mm.folders.store import PseudoMaskStore

N_IMAGES = 5

ROUNDS = """
_base_ = './tiny.py'
custom_hooks = [*_base_.custom_hooks, dict(type='UnSAMSelfTrainingHook', at_iters=[3, 5], min_score=0.2)]
"""


def round_files(work_dir: Path, number: int) -> dict[str, tuple[bytes, int]]:
    """Content and time of writing of the labels of a round."""
    folder = work_dir / 'self_training' / f'round_{number}'
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob('*.png.json')}


@pytest.mark.slow
def test_killed_training_has_the_losses_and_the_weights_of_one_that_was_not(tiny_data: Path, training: Training):
    whole, killed = tiny_data / 'whole', tiny_data / 'killed'
    training.run(whole)
    training.run_until((killed / 'iter_2.pth').exists, killed)  # while it is being written, or soon after
    assert not (killed / 'iter_6.pth').exists()
    training.run_until((killed / 'iter_4.pth').exists, killed, '--resume')
    training.run(killed, '--resume')
    assert list(losses(killed)) == [1, 2, 3, 4, 5, 6]
    assert losses(killed) == losses(whole)
    assert equal(weights(killed / 'iter_6.pth'), weights(whole / 'iter_6.pth'))


@pytest.fixture(scope='module')
def rounds(tiny_data: Path, training: Training) -> Path:
    """Work dir of a training with two rounds of self-training that nobody killed."""
    (tiny_data / 'rounds.py').write_text(ROUNDS, encoding='utf-8')
    training.run(tiny_data / 'rounds', config='rounds.py')
    return tiny_data / 'rounds'


@pytest.mark.slow
class TestSelfTraining:
    def test_labels_every_image_in_every_round(self, rounds: Path):
        assert [len(round_files(rounds, number)) for number in (1, 2)] == [N_IMAGES, N_IMAGES]

    def test_first_labels_hold_sure_predictions_before_old_labels_apart_from_them(self, rounds: Path, tiny_data: Path):
        old, new = (PseudoMaskStore(folder) for folder in (tiny_data / 'labels', rounds / 'self_training' / 'round_1'))
        added = kept = 0
        for name in old.names():
            is_sure = new.read(name).scores > 0.2
            added += is_sure.sum()
            kept += (~is_sure).sum()
            assert not is_sure[is_sure.argmin() :].any() or is_sure.all()
        assert added > 0
        assert 0 < kept <= sum(len(old.read(name)) for name in old.names())

    def test_training_goes_on_with_the_new_labels(self, rounds: Path, tiny_data: Path):
        without = losses(tiny_data / 'whole')
        assert [losses(rounds)[step] == without[step] for step in (1, 2, 3)] == [True] * 3
        assert [losses(rounds)[step] == without[step] for step in (4, 5, 6)] == [False] * 3

    def test_kills_lose_no_round_and_repeat_none(self, rounds: Path, tiny_data: Path, training: Training):
        killed = tiny_data / 'rounds_killed'

        def labelled(number: int, count: int) -> Callable[[], bool]:
            return lambda: len(round_files(killed, number)) >= count

        how = {'config': 'rounds.py'}
        training.run_until((killed / 'self_training_1.pth').exists, killed, **how)  # while it is being written
        training.run_until(labelled(1, 2), killed, '--resume', **how)
        first = round_files(killed, 1)
        assert 2 <= len(first) < N_IMAGES
        training.run_until(labelled(2, 1), killed, '--resume', **how)
        assert len(round_files(killed, 2)) < N_IMAGES
        assert round_files(killed, 1).items() >= first.items()  # what was done before the kill stays as it was
        first, second = round_files(killed, 1), round_files(killed, 2)
        printed = training.run(killed, '--resume', **how)
        assert round_files(killed, 1) == first
        assert round_files(killed, 2).items() >= second.items()
        assert printed.count('Self-training round 1: 5 images are labelled') == 1
        assert printed.count('Self-training round 2: 5 images are labelled') == 1
        for number in (1, 2):
            contents = [{name: file[0] for name, file in round_files(run, number).items()} for run in (killed, rounds)]
            assert contents[0] == contents[1]
        assert losses(killed) == losses(rounds)
        assert equal(weights(killed / 'iter_6.pth'), weights(rounds / 'iter_6.pth'))


class TestFindResumable:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """Two whole checkpoints, the note naming the second, which was written in another folder."""
        import torch

        for number in (2, 4):
            torch.save({'iter': number}, tmp_path / f'iter_{number}.pth')
        (tmp_path / 'last_checkpoint').write_text('/elsewhere/iter_4.pth')
        return tmp_path

    def test_is_the_one_recorded_wherever_the_folder_was(self, folder: Path):
        assert find_resumable(folder) == folder / 'iter_4.pth'

    def test_passes_over_one_that_was_cut_short(self, folder: Path):
        path = folder / 'iter_4.pth'
        path.write_bytes(path.read_bytes()[:-30])
        assert find_resumable(folder) == folder / 'iter_2.pth'

    def test_needs_no_note(self, folder: Path):
        (folder / 'last_checkpoint').write_text('')
        assert find_resumable(folder) == folder / 'iter_4.pth'

    def test_is_none_where_nothing_was_written(self, tmp_path: Path):
        assert find_resumable(tmp_path) is None
