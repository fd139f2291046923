"""Automatic objects for all images of a folder: resumable, in one process or several, without a screen."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from napari_unsam.files.automatic import AutomaticObjects, AutomaticSettings
from napari_unsam.files.pixels import read_pixels
from napari_unsam.files.results import ImageList, Results
from napari_unsam.output.formats import FORMATS
from napari_unsam.output.measurements import measure, merged
from napari_unsam.output.objects import LabelledObjects
from unsam_mm.errors import ImageError, StoreError, UnSAMError
from unsam_mm.files import atomic_writer, read_json, remove_leftovers, write_json
from unsam_mm.image_files import MAX_PIXELS
from unsam_mm.processes import in_processes

DESCRIPTION = 'batch.json'
FAILED = 'failed.txt'

_LEFTOVER_AGE_S = 3600.0


@dataclass
class BatchReport:
    """What a run did.

    Attributes:
        found: How many images there are.
        skipped: How many had been done before.
        done: How many were done now.
        n_objects: How many objects were found now.
        failed: Why, by the name of the image.
    """

    found: int = 0
    skipped: int = 0
    done: int = 0
    n_objects: int = 0
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BatchJob:
    """Objects and their measurements for many images.

    Attributes:
        images: Folder, at any depth, one image, or a ``.txt`` file with one path a line.
        out: Folder of the results; see `Results` for their names.
        settings: How objects are found.
        formats: Names of `FORMATS` to write.
        workers: Number of processes; each takes about 1 GB and an equal share of the cores.
        resume: Go on with what is in `out`, and keep it.
        device: Torch device, or 'auto'.
    """

    images: Path
    out: Path
    settings: AutomaticSettings = field(default_factory=AutomaticSettings)
    formats: tuple[str, ...] = ('tiff', 'csv')
    workers: int = 1
    resume: bool = False
    device: str = 'auto'

    def __post_init__(self) -> None:
        if not self.formats or not set(self.formats) <= set(FORMATS):
            raise UnSAMError(f'formats must be some of {", ".join(FORMATS)}, got {self.formats}')

    def run(self, on_image: Callable[[BatchReport], None] = lambda report: None) -> BatchReport:
        """Does what is left to do. Interrupted at any point, another run with `resume` goes on from there.

        Why images failed stands in ``failed.txt`` of `out`; they are tried again by the next run.

        Args:
            on_image: Called at the start and after each image with the report so far.

        Raises:
            ImageError: If there are no images.
            StoreError: If `out` cannot be written, or holds results that were not asked to be kept or were made otherwise.
            WeightsError: If weights cannot be had.
        """
        images, results = ImageList.of(self.images), Results(self.out)
        self._describe()
        waiting = [name for name in images.names if not results.has(name, self.formats)]
        report = BatchReport(found=len(images.names), skipped=len(images.names) - len(waiting))
        on_image(report)
        with closing(self._outcomes(images, waiting)) as outcomes:
            for name, (n_objects, failure) in outcomes:
                if failure is None:
                    report.done += 1
                    report.n_objects += n_objects
                else:
                    report.failed[name] = failure
                    self._note(report.failed)
                on_image(report)
        self._note(report.failed)
        return report

    def _outcomes(self, images: ImageList, names: list[str]) -> Iterator[tuple[str, tuple[int, str | None]]]:
        if self.workers <= 1 or len(names) <= 1:
            worker = BatchWorker(self, images)
            yield from ((name, worker(name)) for name in names)
            return
        workers = min(self.workers, len(names))
        advice = f'what is finished is kept: run again with --resume and fewer --workers than {workers}'
        yield from in_processes(partial(BatchWorker, self, images), names, workers, advice)

    def _describe(self) -> None:
        """Notes the settings in `out`, before the first image, so that a wrong folder costs nothing."""
        path, settings = self.out / DESCRIPTION, asdict(self.settings)
        if path.exists():
            if not self.resume:
                raise StoreError(f'{self.out}: holds results already; add --resume to go on, or choose another folder')
            noted = _as_now(read_json(path))
            if noted != settings:
                differ = ', '.join(f'{key}={noted.get(key)!r}' for key in settings if noted.get(key) != settings[key])
                raise StoreError(
                    f'{self.out}: its results were made with {differ}; say the same, or choose another folder'
                )
        write_json(path, settings)
        _remove_leftovers(self.out)

    def _note(self, failed: dict[str, str]) -> None:
        path = self.out / FAILED
        if not failed:
            path.unlink(missing_ok=True)
            return
        with atomic_writer(path) as file:
            file.writelines(f'{name}\t{reason}\n' for name, reason in sorted(failed.items()))


class BatchWorker:
    """Does one image after another with one model.

    Args:
        job: What to do.
        images: Where the images lie.
    """

    def __init__(self, job: BatchJob, images: ImageList) -> None:
        self._images, self._results, self._formats = images, Results(job.out), job.formats
        self._find = AutomaticObjects(job.settings, job.device)

    def __call__(self, name: str) -> tuple[int, str | None]:
        """The number of objects, and why the image failed; a bad image is reported, a bad disk ends the run."""
        path = self._images.path(name)
        try:
            pixels = read_pixels(path, MAX_PIXELS)
            labels, table = self._find(pixels, str(path))
        except ImageError as error:
            return 0, str(error)
        objects = LabelledObjects(labels, table, Path(name).name, pixels.scale, pixels.units, pixels.axes)
        measured = LabelledObjects(
            labels,
            merged(table, measure(objects, pixels.channels)),
            objects.name,
            pixels.scale,
            pixels.units,
            pixels.axes,
        )
        self._results.write(name, measured, self._formats)
        return len(table), None


def _as_now(noted: dict[str, Any]) -> dict[str, Any]:
    """Settings that an earlier version noted: the granularity of the model was called its level."""
    if 'granularity' in noted:
        return noted
    is_model = noted.get('engine') == 'model'
    return {
        **noted,
        'level': None if is_model else noted.get('level'),
        'granularity': noted.get('level') if is_model else None,
    }


def _remove_leftovers(folder: Path) -> None:
    """Removes what killed runs left; what is recent may belong to one that lives."""
    remove_leftovers(folder)
    for path in folder.rglob('.unsam-*.part'):
        if path.exists() and time.time() - path.stat().st_mtime > _LEFTOVER_AGE_S:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
