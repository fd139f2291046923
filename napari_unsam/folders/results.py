"""The files with the objects of each image of a folder."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from napari_unsam.engine.inference import ProgressCallback
from napari_unsam.io.formats import FORMATS, export
from napari_unsam.io.images import read_label_tiff
from napari_unsam.io.objects import LabelledObjects
from unsam_mm.errors import ImageError, StoreError
from unsam_mm.files import fitting_name
from unsam_mm.images import IMAGE_SUFFIXES, list_images

_MARK = '.objects'


@dataclass(frozen=True)
class ImageList:
    """A list of images.

    Attributes:
        root: The folder that the names are relative to.
        names: Relative paths of the images, with forward slashes; each is unique.
    """

    root: Path
    names: tuple[str, ...]

    @classmethod
    def of(cls, images: str | Path) -> ImageList:
        """Lists the images below a folder, except files of results; or one image; or the images that a text file names.

        Args:
            images: The folder, the image, or a ``.txt`` file with one path per line, absolute or relative to the folder
                of the file. Lines that begin with ``#`` are comments, unless there is such a file.

        Raises:
            ImageError: If there is no image, an image is named twice, the images lie on several drives, or the file is
                not a list of images.
        """
        images = Path(images)
        if images.suffix.lower() == '.txt' and images.is_file():
            # Symbolic links to images keep their own names.
            paths = [Path(os.path.realpath(path.parent), path.name) for path in _listed(images)]
            if not paths or len(set(paths)) < len(paths):
                what = 'names an image twice' if paths else 'names no images'
                raise ImageError(f'{images}: {what}; it should hold one path per line')
            try:
                root = Path(os.path.commonpath([path.parent for path in paths]))
            except ValueError as error:
                raise ImageError(f'{images}: the images lie on several drives; make a list for each') from error
        else:
            root = images.parent if images.is_file() else images
            paths = list_images(images)
        return cls(root, tuple(path.relative_to(root).as_posix() for path in paths))

    def path(self, name: str) -> Path:
        """Path of an image, by its name in `names`."""
        return self.root / name


class Results:
    """A folder with the files of the objects of images.

    The files of ``plate/a.png`` are ``plate/a.png.objects.tif`` and so on; the full name distinguishes ``a.png`` from
    ``a.tif``.

    Args:
        folder: The folder; it may be the folder of the images.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, name: str, kind: str) -> Path:
        """Path of the file of an image in one of `FORMATS`; see `fitting_name` for names that are too long."""
        return self.folder / fitting_name(name, f'{_MARK}{FORMATS[kind].ending}')

    def has(self, name: str, kinds: Iterable[str] = ('tiff',)) -> bool:
        """True if an image has files in all given formats."""
        return all(_exists(self.path(name, kind)) for kind in kinds)

    def has_any(self, name: str) -> bool:
        """True if an image has a file in any format."""
        return any(self.has(name, (kind,)) for kind in FORMATS)

    def write(
        self,
        name: str,
        objects: LabelledObjects,
        kinds: Iterable[str] = ('tiff', 'csv'),
        progress: ProgressCallback = lambda fraction, text: None,
    ) -> None:
        """Writes the objects of an image in some of `FORMATS`.

        Args:
            name: Name of the image.
            objects: The objects.
            kinds: Names of the formats.
            progress: Called with the fraction done of the current file; may raise to stop.

        Raises:
            StoreError: If a file cannot be written.
            UnSAMError: If a label is negative or needs more than 32 bits.
        """
        for kind in kinds:
            export(self.path(name, kind), objects, kind, progress)

    def read(self, name: str) -> LabelledObjects:
        """The objects of an image from its label TIFF, with its table if there is one.

        Raises:
            StoreError: If a file is missing or broken.
        """
        objects = read_label_tiff(self.path(name, 'tiff'))
        table = self.path(name, 'csv')
        if not table.exists():
            return objects
        try:
            features = pd.read_csv(table, encoding_errors='surrogateescape')
        except (OSError, ValueError) as error:
            raise StoreError(
                f'{table}: cannot be read as a table ({error}); remove it to read the labels alone'
            ) from error
        return replace(objects, features=features) if 'index' in features else objects


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that the file system does not allow
        return False


def _listed(path: Path) -> list[Path]:
    """The files that a list names; the list may be in UTF-8, UTF-16 or the system's encoding."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ImageError(f'{path}: cannot be read as a list of images ({error.strerror})') from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        content = content.decode('utf-16', 'replace').encode()
    if b'\0' in content:
        raise ImageError(f'{path}: is not a text file; expected one image path per line')
    lines = (line for line in content.removeprefix(codecs.BOM_UTF8).splitlines() if line.strip())
    files = [file for line in lines if (file := _file_of(line, path.parent)) is not None]
    for file in files:
        if file.suffix.lower() not in IMAGE_SUFFIXES:
            raise ImageError(f'{path}: {file.name} does not end as an image ({" ".join(IMAGE_SUFFIXES)})')
    return files


def _file_of(line: bytes, folder: Path) -> Path | None:
    """The file that a line names: of several readings of the line, the first that exists. None for a comment."""
    stripped = line.strip()
    unquoted = stripped[1:-1].strip() if stripped[:1] in b'"\'' and stripped[:1] == stripped[-1:] else stripped
    texts = [os.fsdecode(text) for text in (unquoted, stripped, line)]
    texts.append(unquoted.decode('cp1252', 'replace'))  # "ANSI" on Windows
    files = [folder / text for text in texts]
    found = next((file for file in files if _exists(file)), None)
    if found is None and stripped.startswith(b'#'):
        return None
    is_utf8 = '\ufffd' not in unquoted.decode('utf-8', 'replace')
    return found or (files[0] if is_utf8 else files[-1])
