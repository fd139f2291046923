"""The generator over a folder of images: resumable, in one process or several."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path

from unsam_mm import weights
from unsam_mm.errors import ImageError, UnSAMError
from unsam_mm.files import remove_leftovers
from unsam_mm.images import list_images, read_image
from unsam_mm.pseudo_masks.features import check_device
from unsam_mm.pseudo_masks.generator import GeneratorSettings, PseudoMaskGenerator, settings_signature
from unsam_mm.pseudo_masks.store import PseudoMaskStore


@dataclass
class FolderReport:
    """What a run over a folder did.

    Attributes:
        found: Images in the folder.
        skipped: Images that had been finished by an earlier run.
        done: Images finished now.
        failed: Error message by image name; these can be run again once they are mended.
    """

    found: int = 0
    skipped: int = 0
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FolderJob:
    """Pseudo-masks for all images below a folder.

    Attributes:
        images: Folder of images, at any depth, or one image file.
        out: Folder of the store.
        settings: What the generator computes.
        max_masks: The most masks kept for an image, best first.
        device: Torch device.
        workers: Number of processes; each takes about 1 GB, and 3 GB for images of 24 megapixels, and an equal share of the cores.
        overwrite: Whether the masks in the store are removed first, so that all images are done again.
    """

    images: Path
    out: Path
    settings: GeneratorSettings
    max_masks: int = 1000
    device: str = 'cpu'
    workers: int = 1
    overwrite: bool = False

    def run(self, on_image: Callable[[FolderReport], None] | None = None) -> FolderReport:
        """Does what is left to do. Interrupted at any point, another run goes on from there.

        Args:
            on_image: Called at the start and after each image with the report so far.

        Raises:
            ImageError: If the folder holds no images.
            StoreError: If the output cannot be written or holds masks of other settings.
            WeightsError: If the ViT's weights cannot be had.
        """
        names = self.image_names()
        store = PseudoMaskStore(self.out)
        # Before the first image, so that a wrong folder or missing weights cost nothing.
        if self.overwrite:
            store.clear()
        store.describe(self._description())
        remove_leftovers(store.root)
        waiting = [name for name in names if not store.has(name)]
        report = FolderReport(found=len(names), skipped=len(names) - len(waiting))
        tell = on_image or (lambda report: None)
        tell(report)
        for name, failure in self._results(waiting):
            if failure is None:
                report.done += 1
            else:
                report.failed[name] = failure
            tell(report)
        return report

    def image_names(self) -> list[str]:
        """Paths of the images relative to the folder, with forward slashes, sorted."""
        root = self._image_root()
        return [path.relative_to(root).as_posix() for path in list_images(self.images)]

    def _image_root(self) -> Path:
        return self.images.parent if self.images.is_file() else self.images

    def _description(self) -> dict:
        origin = weights.origin(weights.fetch(self.settings.vit))
        signature = settings_signature(self.settings)
        return {**asdict(self.settings), 'weights': origin, 'signature': signature, 'max_masks': self.max_masks}

    def _results(self, names: list[str]) -> Iterator[tuple[str, str | None]]:
        """Name and error message (None if all is well) of each image, in the order in which they finish."""
        if not names:
            return
        check_device(self.device)
        if self.workers <= 1 or len(names) <= 1:
            worker = _Worker(self)
            yield from ((name, worker(name)) for name in names)
            return
        workers = min(self.workers, len(names))
        # A forked child of a process that has used torch can hang, so workers start afresh.
        context = multiprocessing.get_context('spawn')
        with ProcessPoolExecutor(workers, context, _start_worker, (self, _threads_each(workers))) as pool:
            try:
                yield from _in_parallel(pool, names, at_once=2 * workers)
            except BrokenProcessPool as error:
                raise UnSAMError(
                    'a worker process ended by itself, perhaps for lack of memory; what is finished is kept: '
                    f'run again with fewer --workers than {workers}'
                ) from error
            except BaseException:
                # Files are atomic, so images in the making can be dropped at once.
                for process in (pool._processes or {}).values():
                    process.terminate()
                raise


def _in_parallel(pool: ProcessPoolExecutor, names: list[str], at_once: int) -> Iterator[tuple[str, str | None]]:
    """Results as they come; no more than `at_once` images wait, since a folder may hold millions."""
    waiting, running = iter(names), {}
    while True:
        for name in itertools.islice(waiting, at_once - len(running)):
            running[pool.submit(_work, name)] = name
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            yield running.pop(future), future.result()


class _Worker:
    def __init__(self, job: FolderJob) -> None:
        self._root = job._image_root()
        self._store = PseudoMaskStore(job.out)
        self._max_masks = job.max_masks
        self._generator = PseudoMaskGenerator(job.settings, job.device)

    def __call__(self, name: str) -> str | None:
        """Does one image; a bad image is reported, a bad disk ends the run."""
        try:
            hierarchy = self._generator(read_image(self._root / name))
        except ImageError as error:
            return str(error)
        self._store.write(name, hierarchy.select(self._max_masks))
        return None


_worker: _Worker | None = None  # one for each worker process, since a ViT cannot be sent along with every image


def _start_worker(job: FolderJob, threads: int) -> None:
    import torch

    global _worker
    torch.set_num_threads(threads)
    _worker = _Worker(job)


def _work(name: str) -> str | None:
    if _worker is None:
        raise UnSAMError('the worker process was not started by FolderJob')
    return _worker(name)


def _threads_each(workers: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    return max(1, cores // workers)
