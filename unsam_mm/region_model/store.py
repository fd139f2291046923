"""Region tokens on disk: one file an image, made once, by any number of processes, and read in training."""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tqdm import tqdm

from unsam_mm.errors import ImageError, UnSAMError
from unsam_mm.images import read_image
from unsam_mm.pseudo_masks.features import check_device
from unsam_mm.pseudo_masks.folder import threads_each
from unsam_mm.pseudo_masks.generator import GeneratorSettings, settings_signature
from unsam_mm.region_model.tokenizer import ALGORITHM, MAX_TOKENS, RegionTokenizer
from unsam_mm.region_model.tokens import RegionTokens, TokenMasks
from unsam_mm.weights import cache_dir

_MOST_WORKERS = 8  # where nobody said how many: memory may be scarcer than cores


@dataclass(frozen=True)
class ImagePlace:
    """Where an image lies.

    Attributes:
        root: The folder that its name is relative to.
        name: Posix path below that folder.
    """

    root: str
    name: str

    @property
    def path(self) -> Path:
        """The image file."""
        return Path(self.root, self.name)


@dataclass(frozen=True)
class RegionStore:
    """Tokens and token masks by image; files are replaced as a whole, so processes may share a store.

    Below `folder` each image folder and each set of parameters has a folder of its own, so tokens are made again where
    parameters change. An image that was exchanged keeps its old tokens if the new file is not younger than they are.

    Attributes:
        folder: By default the folder ``region_tokens`` in the cache ($UNSAM_CACHE).
        settings: What the generator computes.
        n_tokens: Most regions of an image.
        max_masks: Most pseudo-masks of an image, best first.
        device: Torch device of the ViT.

    Raises:
        UnSAMError: If a number is out of range.
    """

    folder: str | None = None
    settings: GeneratorSettings = field(default_factory=GeneratorSettings)
    n_tokens: int = 768
    max_masks: int = 300
    device: str = 'cpu'

    def __post_init__(self) -> None:
        # Said here: from a worker process, which could not start, no reason would come back.
        if not 1 <= self.n_tokens <= MAX_TOKENS or self.max_masks < 1:
            raise UnSAMError(
                f'n_tokens={self.n_tokens} must lie in 1..{MAX_TOKENS}, and max_masks={self.max_masks} must be positive'
            )

    @cached_property
    def signature(self) -> str:
        """Twelve hexadecimal digits that differ whenever the tokens may differ; fetches the ViT, but does not load it."""
        described = [settings_signature(self.settings), self.n_tokens, self.max_masks, ALGORITHM]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:12]

    def path_of(self, place: ImagePlace) -> Path:
        """Where the tokens of an image are kept."""
        root = Path(place.root).resolve()
        base = Path(self.folder).expanduser() if self.folder else cache_dir() / 'region_tokens'
        digest = hashlib.blake2b(str(root).encode('utf-8', 'surrogateescape'), digest_size=6).hexdigest()
        return base / f'{root.name}-{digest}' / self.signature / f'{place.name}.npz'

    def has(self, place: ImagePlace) -> bool:
        """Whether there are tokens at least as young as the image."""
        try:
            return self.path_of(place).stat().st_mtime >= place.path.stat().st_mtime
        except OSError:
            return False

    def read(self, place: ImagePlace) -> tuple[RegionTokens, TokenMasks]:
        """What an earlier pass has kept.

        Raises:
            StoreError: If there is no such file, or it is broken.
        """
        path = self.path_of(place)
        return RegionTokens.load(path), TokenMasks.load(path)

    def make(self, place: ImagePlace, tokenizer: RegionTokenizer) -> tuple[RegionTokens, TokenMasks]:
        """Makes the tokens of an image and keeps them.

        Raises:
            ImageError: If the image cannot be read.
            StoreError: If the folder cannot be written or the disk is full.
        """
        tokens, masks = tokenizer.with_masks(read_image(place.path), max_masks=self.max_masks)
        tokens.save(self.path_of(place), masks)
        return tokens, masks

    def tokenizer(self) -> RegionTokenizer:
        """Loads the ViT."""
        return RegionTokenizer(self.settings, n_tokens=self.n_tokens, device=self.device)

    def prepare(
        self, places: Sequence[ImagePlace], workers: int | None = None, progress: bool = True
    ) -> dict[ImagePlace, str]:
        """Makes what is missing; interrupted at any point, another call goes on from there.

        Args:
            places: The images.
            workers: Number of processes, about 1 GB each; None: one a core, eight at most. A device other than the CPU
                takes one.
            progress: Whether to show a progress bar.

        Returns:
            Error message by image that cannot be read.

        Raises:
            StoreError: If the store cannot be written.
            WeightsError: If the ViT's weights cannot be had.
        """
        check_device(self.device)
        waiting = [place for place in places if not self.has(place)]
        failed = {}
        if not waiting:
            return failed
        bar = tqdm(
            total=len(places),
            initial=len(places) - len(waiting),
            desc='region tokens',
            unit='image',
            disable=not progress,
        )
        with bar, closing(self._results(waiting, workers or min(_cores(), _MOST_WORKERS))) as results:
            for place, failure in results:
                if failure is not None:
                    failed[place] = failure
                bar.update()
        return failed

    def _results(self, places: list[ImagePlace], workers: int) -> Iterator[tuple[ImagePlace, str | None]]:
        """Each image with its error message, None if all is well, in the order in which they finish."""
        workers = min(workers, len(places)) if self.device == 'cpu' else 1
        if workers == 1:
            make = _Maker(self)
            yield from ((place, make(place)) for place in places)
            return
        # A forked child of a process that has used torch can hang, so workers start afresh.
        context = multiprocessing.get_context('spawn')
        with ProcessPoolExecutor(workers, context, _start_worker, (self, threads_each(workers))) as pool:
            try:
                yield from _in_parallel(pool, places, at_once=2 * workers)
            except BrokenProcessPool as error:
                raise UnSAMError(
                    'a process that makes region tokens ended by itself, perhaps for lack of memory; what is finished '
                    f'is kept: run again with fewer prepare_workers than {workers}'
                ) from error
            except BaseException:
                for process in (pool._processes or {}).values():
                    process.terminate()  # files are atomic, so those in the making can be dropped
                raise


class _Maker:
    """Does one image after another with one ViT."""

    def __init__(self, store: RegionStore) -> None:
        self._store, self._tokenizer = store, store.tokenizer()

    def __call__(self, place: ImagePlace) -> str | None:
        try:
            self._store.make(place, self._tokenizer)
        except ImageError as error:
            return str(error)
        return None


_make: Callable[[ImagePlace], str | None] | None = None  # one a worker process: a ViT cannot be sent with every image


def _start_worker(store: RegionStore, threads: int) -> None:
    import torch

    global _make
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _make = _Maker(store)


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for images for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(place: ImagePlace) -> str | None:
    if _make is None:
        raise UnSAMError('the process was not started by RegionStore.prepare')
    return _make(place)


def _in_parallel(
    pool: ProcessPoolExecutor, places: list[ImagePlace], at_once: int
) -> Iterator[tuple[ImagePlace, str | None]]:
    """Results as they come; no more than `at_once` images wait, since a folder may hold millions."""
    waiting, running = iter(places), {}
    while True:
        for place in itertools.islice(waiting, at_once - len(running)):
            running[pool.submit(_work, place)] = place
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            yield running.pop(future), future.result()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
