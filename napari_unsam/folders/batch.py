"""Automatic objects for all images of a folder: resumable, in one process or several, without a display."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from napari_unsam.folders.automatic import AutomaticObjects, AutomaticSettings
from napari_unsam.folders.results import ImageList, Results
from napari_unsam.io.formats import FORMATS
from napari_unsam.io.measurements import measure, merged
from napari_unsam.io.objects import LabelledObjects
from unsam_mm.errors import ImageError, StoreError, TargetError, UnSAMError, image_errors, one_line
from unsam_mm.files import atomic_writer, read_json, remove_leftovers, write_json
from unsam_mm.image_io.reader import MAX_PIXELS, read_pixels
from unsam_mm.images import IMAGE_SUFFIXES
from unsam_mm.processes import in_processes
from unsam_mm.pseudo_masks.vit import check_device

_log = logging.getLogger(__name__)

DESCRIPTION = 'batch.json'
FAILED = 'failed.txt'
_LOST = (
    '{}: the worker process ended twice while processing it, perhaps for lack of memory; make the image smaller, or run '
    'again with --resume and fewer --workers'
)


@dataclass
class BatchReport:
    """The result of a run up to now.

    Attributes:
        found: Number of images.
        skipped: Number of images that were done by earlier runs.
        done: Number of images done by this run.
        n_objects: Number of objects that this run has found.
        failed: The reason of each failure, by the name of the image.
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
        images: A folder, searched at any depth; one image; or a ``.txt`` file with one path per line.
        out: Folder of the results; see `Results` for their names.
        settings: How objects are found.
        formats: Names of `FORMATS` to write.
        workers: Number of processes; each needs about 1 GB of memory and uses an equal share of the cores.
        resume: True to keep the results in `out` and process the remaining images.
        device: Torch device, or 'auto'; see `AutomaticObjects`.

    Raises:
        UnSAMError: If there is no format or an unknown one.
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
        """Processes the images that are not done yet. After an interruption, a run with `resume` processes the rest.

        The file ``failed.txt`` in `out` lists the images that failed and why; the next run tries them again.

        Args:
            on_image: Called with the report at the start and after each image.

        Raises:
            ImageError: If there are no images.
            StoreError: If `out` cannot be written, contains results but `resume` is False, or contains results of other
                settings.
            UnSAMError: If the device cannot be used.
            WeightsError: If the weights are not available.
        """
        images, results = ImageList.of(self.images), Results(self.out)
        if self.device != 'auto':
            check_device(self.device)
        self._describe(images, results)
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
                    self._add_failure(name, failure, is_first=len(report.failed) == 1)
                on_image(report)
        self._list_failures(report.failed)
        return report

    def _outcomes(self, images: ImageList, names: list[str]) -> Iterator[tuple[str, tuple[int, str | None]]]:
        if self.workers <= 1 or len(names) <= 1:
            worker = BatchWorker(self, images)
            yield from ((name, worker(name)) for name in names)
            return
        workers = min(self.workers, len(names))
        advice = f'what is finished is kept: run again with --resume and fewer --workers than {workers}'
        make, lost = partial(BatchWorker, self, images), lambda name: (0, _LOST.format(images.path(name)))
        yield from in_processes(make, names, workers, advice, lost)

    def _describe(self, images: ImageList, results: Results) -> None:
        """Checks `out` and writes the settings there, before the first image, so that a wrong folder costs no time."""
        path, settings = self.out / DESCRIPTION, asdict(self.settings)
        _check_list(self.out / FAILED)
        if not self.resume and (there := next((name for name in images.names if results.has_any(name)), None)):
            raise StoreError(
                f'{self.out}: holds objects of {there} already; add --resume to keep them, or choose another folder'
            )
        if path.exists():
            if not self.resume:
                raise StoreError(f'{self.out}: holds results already; add --resume to go on, or choose another folder')
            noted = read_json(path)
            if not isinstance(noted, dict) or not noted.keys() & settings.keys():
                raise StoreError(f'{path}: was not written by this command; move it, or choose another folder')
            if noted != settings:
                differ = ', '.join(f'{key}={noted.get(key)!r}' for key in settings if noted.get(key) != settings[key])
                raise StoreError(
                    f'{self.out}: its results were made with {differ}; use the same settings, or choose another folder'
                )
        write_json(path, settings)
        remove_leftovers(self.out)

    def _add_failure(self, name: str, reason: str, is_first: bool) -> None:
        """Adds a line to the list of failed images at once, in case the run is killed; the first replaces the file."""
        path = self.out / FAILED
        try:
            with path.open('w' if is_first else 'a', encoding='utf-8', errors='surrogateescape') as file:
                file.write(_line(name, reason))
        except OSError as error:
            raise StoreError(f'{path}: cannot be written ({error.strerror}); what is finished is kept') from error

    def _list_failures(self, failed: dict[str, str]) -> None:
        path = self.out / FAILED
        if not failed:
            path.unlink(missing_ok=True)
            return
        with atomic_writer(path) as file:
            file.writelines(_line(name, reason) for name, reason in sorted(failed.items()))


class BatchWorker:
    """Processes images one by one with one model.

    Args:
        job: The job.
        images: All images of the job.
    """

    def __init__(self, job: BatchJob, images: ImageList) -> None:
        self._images, self._results, self._formats = images, Results(job.out), job.formats
        self._find = AutomaticObjects(job.settings, job.device)

    def __call__(self, name: str) -> tuple[int, str | None]:
        """Returns the number of objects, and the reason if the image failed. A full disk raises, which ends the run."""
        path = self._images.path(name)
        try:
            with image_errors(path):
                pixels = read_pixels(path, MAX_PIXELS)
                labels, table = self._find(pixels, str(path))
                objects = LabelledObjects(labels, table, Path(name).name, pixels.scale, pixels.units, pixels.axes)
                measured = replace(objects, features=merged(table, measure(objects, pixels.channels)))
            self._results.write(name, measured, self._formats)
        except (ImageError, TargetError) as error:  # other images can be processed
            _log.debug('%s', path, exc_info=True)
            return 0, str(error)
        return len(table), None


def _line(name: str, reason: str) -> str:
    """The line of a failed image; its name is written as JSON if it has line breaks, tabs or quotes."""
    listed = name if one_line(name) == name and not name.startswith('"') else json.dumps(name)
    return f'{listed}\t{one_line(reason)}\n'


def _check_list(path: Path) -> None:
    """Raises `StoreError` if another file has the name of the list of failed images: it would be replaced."""
    if not path.exists():
        return
    try:
        with path.open(encoding='utf-8', errors='surrogateescape') as file:
            name, tab, _ = file.readline(1 << 16).partition('\t')
    except OSError as error:
        raise StoreError(f'{path}: cannot be read ({error.strerror}); move it, or choose another folder') from error
    if not (tab and name.removesuffix('"').lower().endswith(IMAGE_SUFFIXES)):
        raise StoreError(f'{path}: is not the list of failed images; move it, or choose another folder')
