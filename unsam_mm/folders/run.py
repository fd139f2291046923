"""Runs the generator on a folder of images, in one or several processes or on a cluster; runs can be resumed."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from unsam_mm.errors import ImageError, TargetError, UnSAMError, image_errors, one_line
from unsam_mm.files import atomic_writer, check_writable, fitting_name, remove_leftovers
from unsam_mm.fingerprints import image_stamp
from unsam_mm.folders.store import PseudoMaskStore
from unsam_mm.generator import PseudoMaskGenerator, Settings, settings_signature, weights_origin
from unsam_mm.images import list_images, read_image
from unsam_mm.processes import in_processes
from unsam_mm.pseudo_masks.vit import check_device

_log = logging.getLogger(__name__)

_SUFFIX = '.txt'
_INTERRUPTED = 'the run ended during this image; the next run processes it last'
_LOST = (
    '{}: the worker process ended twice while processing it, perhaps for lack of memory; make the image smaller, or run '
    'again with fewer --workers'
)


@dataclass
class FolderReport:
    """Results of a run over a folder.

    Attributes:
        found: Number of images in the folder.
        skipped: Number of images that an earlier run has finished.
        done: Number of images that this run has finished.
        failed: Error messages by image name; the next run tries these images again.
    """

    found: int = 0
    skipped: int = 0
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)


class Quarantine:
    """Text files of failed or unfinished images, with the reason; a file is removed when the masks are written.

    Each file has one line: the image name as JSON, a tab, and the reason. Other files in the folder are not changed.

    Args:
        root: Folder of the store; the files are in its subfolder ``quarantine``.
    """

    def __init__(self, root: Path) -> None:
        self._folder = root / 'quarantine'

    def names(self) -> set[str]:
        """Names of all images in quarantine."""
        paths = (Path(folder, file) for folder, _, files in os.walk(self._folder) for file in files)
        return {name for path in paths if path.suffix == _SUFFIX and (name := self._name_in(path)) is not None}

    def add(self, name: str, reason: str) -> None:
        """Writes the file of an image, unless its name is too long for the file system or another file has this name.

        Raises:
            StoreError: If the folder cannot be written.
        """
        path = self._path_of(name)
        with suppress(TargetError, OSError):  # OSError only of path.exists(): a full disk is a StoreError
            if path.exists() and self._name_in(path) is None:
                return
            with atomic_writer(path, sync=False) as file:
                file.write(f'{json.dumps(name)}\t{one_line(reason)}\n')

    def release(self, name: str) -> None:
        """Removes the file of an image."""
        path = self._path_of(name)
        with suppress(OSError):  # the name is too long for the file system
            if path.exists() and self._name_in(path) is not None:
                path.unlink(missing_ok=True)

    def remove_empty_folders(self) -> None:
        """Removes empty folders, including the quarantine itself."""
        for folder, _, _ in os.walk(self._folder, topdown=False):
            with suppress(OSError):  # not empty
                Path(folder).rmdir()

    def _path_of(self, name: str) -> Path:
        return self._folder / fitting_name(name, _SUFFIX)

    def _name_in(self, path: Path) -> str | None:
        """The image that a file is about; None for other files."""
        try:
            with path.open(encoding='utf-8', errors='surrogateescape') as file:
                name = json.loads(file.readline(1 << 16).partition('\t')[0])
            return name if isinstance(name, str) and self._path_of(name) == path else None
        except (OSError, RecursionError, ValueError):
            return None


@dataclass(frozen=True)
class FolderJob:
    """Pseudo-masks for all images below a folder.

    Attributes:
        images: Folder of images, at any depth, or one image file.
        out: Folder of the store.
        settings: Settings of the generator.
        max_masks: Maximum number of masks of an image, best first.
        device: Torch device.
        workers: Number of processes; each needs about 1 GB of memory, for images of 24 megapixels 3 GB. The cores are
            divided among them.
        overwrite: True to remove all masks in the store first, so that all images are processed again.
        dask: Address of a Dask scheduler, or ``local:N``; its workers are used instead of `workers`. See
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
        """Processes the images without up-to-date masks. An interrupted run is continued by the next.

        Args:
            on_image: Called at the start and after each image with the report so far.

        Raises:
            ImageError: If there are no images.
            StoreError: If the output cannot be written or has masks of other settings.
            WeightsError: If the weights of the ViT are not available.
            UnSAMError: If the device or the Dask cluster cannot be used.
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
        # Masks are removed only after settings, weights, device and scheduler have been checked.
        with self._workers(len(waiting), description) as work:
            if self.overwrite:
                store.clear()
            store.describe(description)
            remove_leftovers(store.root)
            quarantined, finished = quarantine.names(), set(names) - set(waiting)
            for name in quarantined & finished:  # an earlier run was killed before it removed the file
                quarantine.release(name)
            waiting.sort(key=quarantined.__contains__)  # images that failed before come last
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
        """The path of an image."""
        return (self.images.parent if self.images.is_file() else self.images) / name

    def description(self) -> dict:
        """Metadata for the store: everything that the masks depend on. Downloads the weights if needed."""
        signature = settings_signature(self.settings)
        metadata = {
            **asdict(self.settings),
            'weights': weights_origin(self.settings),
            'signature': signature,
            'max_masks': self.max_masks,
        }
        return json.loads(json.dumps(metadata))  # tuples become lists, as in the stored metadata

    def make_worker(self) -> ImageWorker:
        """Loads the model, and returns a function that processes one image."""
        return ImageWorker(self)

    @contextmanager
    def _workers(
        self, n_images: int, description: dict
    ) -> Iterator[Callable[[list[str]], Iterator[tuple[str, str | None]]]]:
        """A function that processes images and yields their names and error messages in the order of completion."""
        if not n_images:
            yield lambda names: (result for result in ())
            return
        check_writable(self.out)
        if self.dask is not None:
            try:
                from unsam_mm.folders.dask import cluster_work
            except ModuleNotFoundError as error:
                raise UnSAMError(
                    f'--dask needs the package {error.name}; run: pip install "unsam_mm[dask]", or use --workers'
                ) from error
            with cluster_work(self, self.dask, description, n_images) as work:
                yield work
            return
        check_device(self.device)
        workers = min(self.workers, n_images)
        if workers <= 1:
            worker = self.make_worker()
            yield lambda names: ((name, worker(name)) for name in names)
            return
        if self.overwrite:
            self.make_worker()  # raises an error for damaged weights before masks are removed
        advice = f'finished images are kept: run again with fewer --workers than {workers}'
        yield lambda names: in_processes(
            self.make_worker, names, workers, advice, lost=lambda name: _LOST.format(self.path_of(name))
        )


class ImageWorker:
    """Processes images, one after the other, with one model.

    Args:
        job: The run that the images belong to.
    """

    def __init__(self, job: FolderJob) -> None:
        self._path_of = job.path_of
        self._store, self._quarantine = PseudoMaskStore(job.out), Quarantine(job.out)
        self._max_masks = job.max_masks
        self._generator = PseudoMaskGenerator(job.settings, job.device)

    def __call__(self, name: str) -> str | None:
        """Processes one image, and returns the error message if that fails.

        Raises:
            StoreError: If the output cannot be written.
            WeightsError: If weights are not available.
        """
        path, failure = self._path_of(name), None
        self._quarantine.add(name, f'{path}: {_INTERRUPTED}')  # remains if the process is killed
        try:
            with image_errors(path):
                stamp = image_stamp(path)
                masks = self._generator(read_image(path)).select(self._max_masks)
            self._store.write(name, masks, stamp)
        except (ImageError, TargetError) as error:  # affects this image only
            _log.debug('%s', path, exc_info=True)
            failure = str(error)
        finally:
            if failure is None:
                self._quarantine.release(name)
        return failure
