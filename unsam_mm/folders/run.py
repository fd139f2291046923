"""Runs the generator on a folder of images: resumable, in one or several processes, or on a cluster."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from unsam_mm.errors import ImageError, TargetError, UnSAMError, image_errors, one_line
from unsam_mm.files import atomic_writer, check_writable, fitting_name, remove_leftovers
from unsam_mm.fingerprints import image_stamp
from unsam_mm.folders.store import PseudoMaskStore
from unsam_mm.generator import PseudoMaskGenerator, Settings, settings_signature, weights_origin
from unsam_mm.images import IMAGE_SUFFIXES, list_images, read_image
from unsam_mm.processes import in_processes
from unsam_mm.pseudo_masks.vit import check_device

_log = logging.getLogger(__name__)

_SUFFIX = '.txt'
_INTERRUPTED = 'the run ended during this image; it is tried again after the others'
_LOST = (
    '{}: the worker process ended twice while processing it, perhaps for lack of memory; make the image smaller, or run '
    'again with fewer --workers'
)


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


class Quarantine:
    """Images that failed, with the reason: a text file each, there until the image is done.

    A note is one line: the name as JSON, a tab, the reason. Other files in the folder stay as they are.

    Args:
        root: Folder of the store; the files lie in its subfolder ``quarantine``.
    """

    def __init__(self, root: Path) -> None:
        self._folder = root / 'quarantine'

    def names(self) -> set[str]:
        """All images in quarantine."""
        paths = (Path(folder, file) for folder, _, files in os.walk(self._folder) for file in files)
        return {name for path in paths if path.suffix == _SUFFIX and (name := self._name_in(path)) is not None}

    def add(self, name: str, reason: str) -> None:
        """Notes why an image failed. An image whose note the disk does not take has none.

        Raises:
            StoreError: If the folder cannot be written.
        """
        path = self._path_of(name)
        with suppress(TargetError, OSError):  # the latter of the question alone; a disk that is full is a StoreError
            if path.exists() and self._name_in(path) is None:
                return
            with atomic_writer(path, sync=False) as file:
                file.write(f'{json.dumps(name)}\t{one_line(reason)}\n')

    def release(self, name: str) -> None:
        """Forgets an image."""
        path = self._path_of(name)
        with suppress(OSError):  # a name that the disk does not take
            if path.exists() and self._name_in(path) is not None:
                path.unlink(missing_ok=True)

    def remove_empty_folders(self) -> None:
        """Removes the folders, this one included, that no note is left in."""
        for folder, _, _ in os.walk(self._folder, topdown=False):
            with suppress(OSError):  # it is not empty
                Path(folder).rmdir()

    def _path_of(self, name: str) -> Path:
        return self._folder / fitting_name(name, _SUFFIX)

    def _name_in(self, path: Path) -> str | None:
        """The image that a note is about, None for what is no note; those of earlier versions hold the reason alone."""
        placed = path.relative_to(self._folder).as_posix().removesuffix(_SUFFIX)
        try:
            with path.open(encoding='utf-8', errors='surrogateescape') as file:
                line = file.readline(1 << 16)
            if line.startswith('"'):
                name = json.loads(line.partition('\t')[0])
                return name if isinstance(name, str) and self._path_of(name) == path else None
        except (OSError, ValueError):
            return None
        is_of_image = placed.lower().endswith(IMAGE_SUFFIXES)
        return placed if is_of_image and placed.rpartition('/')[2] in line else None


@dataclass(frozen=True)
class FolderJob:
    """Pseudo-masks for all images below a folder.

    Attributes:
        images: Folder of images, at any depth, or one image file.
        out: Folder of the store.
        settings: What the generator computes.
        max_masks: The most masks kept for an image, best first.
        device: Torch device.
        workers: Number of processes; each takes about 1 GB, and 3 GB for images of 24 megapixels, and an equal share of
            the cores.
        overwrite: Whether the masks in the store are removed first, so that all images are done again.
        dask: Address of a Dask scheduler, or ``local:N``, whose workers take the place of `workers`; see
            `unsam_mm.folders.dask`.
    """

    images: Path
    out: Path
    settings: Settings
    max_masks: int = 1000
    device: str = 'cpu'
    workers: int = 1
    overwrite: bool = False
    dask: str | None = None

    def run(self, on_image: Callable[[FolderReport], None] = lambda report: None) -> FolderReport:
        """Does what is left to do. Interrupted at any point, another run goes on from there.

        Args:
            on_image: Called at the start and after each image with the report so far.

        Raises:
            ImageError: If the folder holds no images.
            StoreError: If the output cannot be written or holds masks of other settings.
            WeightsError: If the ViT's weights cannot be had.
        """
        names = self.image_names()
        store, quarantine = PseudoMaskStore(self.out), Quarantine(self.out)
        description = self.description()
        if not self.overwrite:
            store.check(description)
        waiting = (
            names if self.overwrite else [name for name in names if not store.is_current(name, self.path_of(name))]
        )
        report = FolderReport(found=len(names), skipped=len(names) - len(waiting))
        # Entered before masks are removed: settings, weights, device and scheduler are known to work by then.
        with self._workers(len(waiting), description) as work:
            if self.overwrite:
                store.clear()
            store.describe(description)
            remove_leftovers(store.root)
            quarantined, finished = quarantine.names(), set(names) - set(waiting)
            for name in quarantined & finished:  # a run that was killed may have had no time for it
                quarantine.release(name)
            waiting.sort(key=quarantined.__contains__)  # what failed before comes last
            on_image(report)
            with closing(work(waiting)) as results:
                for name, failure in results:
                    if failure is not None:
                        report.failed[name] = failure
                        quarantine.add(name, failure)
                    else:
                        report.done += 1
                    on_image(report)
        quarantine.remove_empty_folders()
        return report

    def image_names(self) -> list[str]:
        """Paths of the images relative to the folder, with forward slashes, sorted."""
        root = self.path_of('')
        return [path.relative_to(root).as_posix() for path in list_images(self.images)]

    def path_of(self, name: str) -> Path:
        """Where an image lies."""
        return (self.images.parent if self.images.is_file() else self.images) / name

    def description(self) -> dict:
        """What the masks depend on, in the form of the store; fetches the weights."""
        signature = settings_signature(self.settings)
        noted = {
            **asdict(self.settings),
            'weights': weights_origin(self.settings),
            'signature': signature,
            'max_masks': self.max_masks,
        }
        return json.loads(json.dumps(noted))  # a tuple is a list there

    def make_worker(self) -> ImageWorker:
        """Loads the model."""
        return ImageWorker(self)

    @contextmanager
    def _workers(
        self, n_images: int, description: dict
    ) -> Iterator[Callable[[list[str]], Iterator[tuple[str, str | None]]]]:
        """A function that processes images and gives results in the order in which they finish."""
        if not n_images:
            yield lambda names: (result for result in ())
            return
        check_writable(self.out)
        if self.dask is not None:
            with _cluster(self, description, n_images) as work:
                yield work
            return
        check_device(self.device)
        workers = min(self.workers, n_images)
        if workers <= 1:
            worker = self.make_worker()
            yield lambda names: ((name, worker(name)) for name in names)
            return
        if self.overwrite:
            self.make_worker()  # the files of the weights may be broken
        advice = f'what is finished is kept: run again with fewer --workers than {workers}'
        yield lambda names: in_processes(
            self.make_worker, names, workers, advice, lost=lambda name: _LOST.format(self.path_of(name))
        )


def _cluster(
    job: FolderJob, description: dict, n_images: int
) -> AbstractContextManager[Callable[[list[str]], Iterator[tuple[str, str | None]]]]:
    try:
        from unsam_mm.folders.dask import cluster_work
    except ModuleNotFoundError as error:
        raise UnSAMError(
            f'--dask needs the package {error.name}; run: pip install "unsam_mm[dask]", or use --workers'
        ) from error
    return cluster_work(job, job.dask, description, n_images)


class ImageWorker:
    """Does one image after another with one model.

    Args:
        job: What to do.
    """

    def __init__(self, job: FolderJob) -> None:
        self._path_of = job.path_of
        self._store, self._quarantine = PseudoMaskStore(job.out), Quarantine(job.out)
        self._max_masks = job.max_masks
        self._generator = PseudoMaskGenerator(job.settings, job.device)

    def __call__(self, name: str) -> str | None:
        """Does one image; an image that cannot be done is reported, a bad disk ends the run.

        Raises:
            StoreError: If the output cannot be written.
            WeightsError: If weights cannot be had.
        """
        path = self._path_of(name)
        self._quarantine.add(name, f'{path}: {_INTERRUPTED}')  # stays where the process is killed over it
        try:
            failure = self._failure(path, name)
        except BaseException:
            self._quarantine.release(name)
            raise
        if failure is None:
            self._quarantine.release(name)
        return failure

    def _failure(self, path: Path, name: str) -> str | None:
        try:
            with image_errors(path):
                stamp = image_stamp(path)
                masks = self._generator(read_image(path)).select(self._max_masks)
            self._store.write(name, masks, stamp)
        except (ImageError, TargetError) as error:  # the others can be done
            _log.debug('%s', path, exc_info=True)
            return str(error)
        return None
