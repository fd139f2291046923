"""Train loop with exact resuming: random numbers depend only on the seed, the rank and the position in the run.

MMEngine stores weights, optimizer and schedules, but not the states of the random generators, of which each process and
each dataloader worker has several. Here no state is needed. Before each image, the generators are seeded with the run's
seed, the rank and the number of the image in this rank's sequence; before each step of the model, with the run's seed,
the rank and the iteration.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import broadcast_object_list, get_rank
from mmengine.registry import DATA_SAMPLERS, DATASETS, LOOPS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader, Dataset, Sampler

from unsam_mm.errors import UnSAMError

_DATA, _MODEL = 0, 1


@LOOPS.register_module()
class UnSAMTrainLoop(IterBasedTrainLoop):
    """`IterBasedTrainLoop` whose resumed run uses the same images, crops and sampling points as an uninterrupted one.

    Losses are bit-identical if the kernels are deterministic, as on a CPU, and the number of processes and the batch
    size are unchanged. The number of workers may differ.

    Args:
        runner: The runner.
        dataloader: Config of the train dataloader, with an `InfiniteSampler`.
        max_iters: Number of iterations.
        **kwargs: Passed to `IterBasedTrainLoop`: val_interval, val_begin, dynamic_intervals.

    Raises:
        UnSAMError: If `dataloader` is not a config, or has another sampler or a batch sampler.
    """

    def __init__(self, runner: Runner, dataloader: DataLoader | dict, max_iters: int, **kwargs: Any) -> None:
        if not isinstance(dataloader, dict) or dataloader.get('batch_sampler') is not None:
            raise UnSAMError('UnSAMTrainLoop needs the config of a train_dataloader without batch_sampler')
        dataset = DATASETS.build(dataloader['dataset'])
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
        self._settings = {key: value for key, value in dataloader.items() if key != 'dataset'}
        self._seed = _shared_seed(runner)
        super().__init__(runner, self._loader(runner, dataset), max_iters, **kwargs)

    @property
    def dataset(self) -> Dataset:
        """The training images in this process; after a change, `restart_data` passes it to the dataloader workers."""
        return self.dataloader.dataset.dataset

    def run(self) -> torch.nn.Module:
        """Trains and returns the model; a resumed run uses the seed in its checkpoint."""
        self._seed = _shared_seed(self.runner)  # by now, MMEngine has read it from the checkpoint
        self.restart_data(0)  # the base class skips the batches of earlier iterations
        return super().run()

    def run_iter(self, data_batch: Any) -> None:
        """Runs one iteration, with random numbers that do not depend on earlier ones."""
        seed_generators(self._seed, get_rank(), _MODEL, self._iter)
        super().run_iter(data_batch)

    def restart_data(self, iteration: int) -> None:
        """Restarts the dataloader workers with the current state of the data set; prefetched batches are discarded.

        Args:
            iteration: The iteration of the next batch.
        """
        self.dataloader = self._loader(self.runner, self.dataset)
        self.dataloader.sampler.skip(iteration * self.dataloader.batch_size)
        self.dataloader_iterator = type(self.dataloader_iterator)(self.dataloader)

    def _loader(self, runner: Runner, dataset: Dataset) -> DataLoader:
        sampler = self._settings['sampler']
        sampler = DATA_SAMPLERS.build(sampler, default_args=dict(dataset=dataset, seed=self._seed))
        if not isinstance(sampler, InfiniteSampler):
            raise UnSAMError(
                f'UnSAMTrainLoop cannot resume {type(sampler).__name__}; '
                "set train_dataloader.sampler=dict(type='InfiniteSampler', shuffle=True)"
            )
        parts = {'dataset': _SeededDataset(dataset, self._seed), 'sampler': _NumberedSampler(sampler)}
        return runner.build_dataloader({**self._settings, **parts}, seed=self._seed)


def seed_generators(*numbers: int) -> None:
    """Seeds the random generators of Python, NumPy and torch, on all devices, with a sequence of numbers."""
    state = np.random.SeedSequence(numbers).generate_state(4)
    random.seed(state.tobytes())
    np.random.seed(state)  # noqa: NPY002  (the generator that the transforms of MMCV and MMDetection use)
    torch.manual_seed(int(state[:2].view(np.uint64)[0]) >> 1)


def _shared_seed(runner: Runner) -> int:
    """The seed of the first process; with ``randomness.diff_rank_seed`` each process has a different one."""
    seeds = [runner.seed]
    broadcast_object_list(seeds)
    return seeds[0]


class _NumberedSampler(Sampler):
    """Yields (number in this rank's sequence, index of the image)."""

    def __init__(self, sampler: InfiniteSampler) -> None:
        self.sampler = sampler
        self._first = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return itertools.islice(enumerate(self.sampler), self._first, None)

    def __len__(self) -> int:
        return len(self.sampler)

    def skip(self, count: int) -> None:
        """Starts at this number without reading the images before it. MMEngine calls this method on resuming."""
        self._first = count

    def __deepcopy__(self, memo: dict) -> _NumberedSampler:
        return self  # the runner copies the config that contains this, and generators cannot be copied


class _SeededDataset(Dataset):
    """A data set whose random augmentations do not depend on the worker or on earlier images."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset = dataset
        self._numbers = (seed, get_rank(), _DATA)

    def __getitem__(self, numbered: tuple[int, int]) -> Any:
        number, index = numbered
        seed_generators(*self._numbers, number)
        return self.dataset[index]

    def __len__(self) -> int:
        return len(self.dataset)

    def __deepcopy__(self, memo: dict) -> _SeededDataset:
        return self  # the list of images may be large

    @property
    def metainfo(self) -> dict:
        return getattr(self.dataset, 'metainfo', {})
