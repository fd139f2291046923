"""The generator over a folder of images: resumable, in one process, in several, or on a cluster."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from unsam_mm.errors import ImageError, UnSAMError
from unsam_mm.files import atomic_writer, remove_leftovers
from unsam_mm.fingerprints import image_stamp
from unsam_mm.images import IMAGE_SUFFIXES, list_images, read_image
from unsam_mm.processes import in_processes
from unsam_mm.pseudo_masks.features import check_device
from unsam_mm.pseudo_masks.generator import PseudoMaskGenerator, Settings, settings_signature, weights_origin
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


class Quarantine:
    """Images that failed, with the reason: a text file each, there until the image is done.

    Args:
        root: Folder of the store; the files lie in its subfolder ``quarantine``.
    """

    def __init__(self, root: Path) -> None:
        self._folder = root / 'quarantine'

    def names(self) -> set[str]:
        """All images in quarantine."""
        paths = self._folder.rglob('*.txt')
        names = (path.relative_to(self._folder).as_posix().removesuffix('.txt') for path in paths)
        return {name for name in names if name.lower().endswith(IMAGE_SUFFIXES)}

    def add(self, name: str, reason: str) -> None:
        """Notes why an image failed.

        Raises:
            StoreError: If the folder cannot be written.
        """
        with atomic_writer(self._path_of(name)) as file:
            file.write(f'{reason}\n')

    def release(self, name: str) -> None:
        """Forgets an image."""
        self._path_of(name).unlink(missing_ok=True)

    def _path_of(self, name: str) -> Path:
        return self._folder / f'{name}.txt'


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
        dask: Address of a Dask scheduler, or ``local:N``, whose workers take the place of `workers`; see `scale`.
    """

    images: Path
    out: Path
    settings: Settings
    max_masks: int = 1000
    device: str = 'cpu'
    workers: int = 1
    overwrite: bool = False
    dask: str | None = None

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
        store, quarantine = PseudoMaskStore(self.out), Quarantine(self.out)
        # Before the first image, so that a wrong folder or missing weights cost nothing.
        if self.overwrite:
            store.clear()
        store.describe(self.description())
        remove_leftovers(store.root)
        waiting = [name for name in names if not store.is_current(name, self.path_of(name))]
        quarantined = quarantine.names()
        for name in filter(store.has, quarantined):  # a run that was killed may have had no time for it
            quarantine.release(name)
        waiting.sort(key=quarantined.__contains__)  # what failed before comes last
        report = FolderReport(found=len(names), skipped=len(names) - len(waiting))
        tell = on_image or (lambda report: None)
        tell(report)
        with closing(self._results(waiting)) as results:
            for name, failure in results:
                if failure is not None:
                    report.failed[name] = failure
                    quarantine.add(name, failure)
                else:
                    report.done += 1
                    if name in quarantined:
                        quarantine.release(name)
                tell(report)
        return report

    def image_names(self) -> list[str]:
        """Paths of the images relative to the folder, with forward slashes, sorted."""
        root = self.path_of('')
        return [path.relative_to(root).as_posix() for path in list_images(self.images)]

    def path_of(self, name: str) -> Path:
        """Where an image lies."""
        return (self.images.parent if self.images.is_file() else self.images) / name

    def description(self) -> dict:
        """What decides about the masks, as it is read from the store; fetches the weights."""
        signature = settings_signature(self.settings)
        noted = {
            **asdict(self.settings),
            'weights': weights_origin(self.settings),
            'signature': signature,
            'max_masks': self.max_masks,
        }
        return json.loads(json.dumps(noted))  # a tuple is a list there

    def _results(self, names: list[str]) -> Iterator[tuple[str, str | None]]:
        """Name and error message (None if all is well) of each image, in the order in which they finish."""
        if not names:
            return
        if self.dask is not None:
            yield from _cluster_results(self, names)
            return
        check_device(self.device)
        if self.workers <= 1 or len(names) <= 1:
            worker = ImageWorker(self)
            yield from ((name, worker(name)) for name in names)
            return
        workers = min(self.workers, len(names))
        advice = f'what is finished is kept: run again with fewer --workers than {workers}'
        yield from in_processes(partial(ImageWorker, self), names, workers, advice)


def _cluster_results(job: FolderJob, names: list[str]) -> Iterator[tuple[str, str | None]]:
    try:
        from unsam_mm.pseudo_masks.scale import cluster_results
    except ModuleNotFoundError as error:
        raise UnSAMError(
            f'--dask needs the package {error.name}; run: pip install "unsam_mm[dask]", or use --workers'
        ) from error
    return cluster_results(job, job.dask, names)


class ImageWorker:
    """Does one image after another with one model.

    Args:
        job: What to do.
    """

    def __init__(self, job: FolderJob) -> None:
        self._path_of = job.path_of
        self._store = PseudoMaskStore(job.out)
        self._max_masks = job.max_masks
        self._generator = PseudoMaskGenerator(job.settings, job.device)

    def __call__(self, name: str) -> str | None:
        """Does one image; a bad image is reported, a bad disk ends the run."""
        path = self._path_of(name)
        try:
            stamp = image_stamp(path)
            hierarchy = self._generator(read_image(path))
        except ImageError as error:
            return str(error)
        self._store.write(name, hierarchy.select(self._max_masks), stamp)
        return None
