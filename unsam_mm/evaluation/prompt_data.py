"""Segments for simulated clicks, from COCO files, COCO's panoptic files, and folders of mask pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unsam_mm.coco_files.fields import image_size, is_crowd, listed_name, panoptic_segments, read_mask_picture
from unsam_mm.coco_files.ground_truth import load_ground_truth, match_images, name_parts
from unsam_mm.coco_files.segmentations import describe_record, read_rles
from unsam_mm.errors import StoreError, UnSAMError, error_context, first_names
from unsam_mm.evaluation.matching import group_by_image
from unsam_mm.images import list_images, walk_images
from unsam_mm.masks.rle import decode_rles


@dataclass(frozen=True)
class Segment:
    """The ground truth of a prompt.

    Attributes:
        mask: (H, W) bool.
        ignored: (H, W) bool, pixels that do not count; None if all count.
    """

    mask: np.ndarray
    ignored: np.ndarray | None = None

    def counted(self) -> np.ndarray:
        """(H, W) bool: the pixels of the segment that count."""
        return self.mask if self.ignored is None else self.mask & ~self.ignored


@dataclass(frozen=True)
class PromptImage:
    """An image and its segments.

    Attributes:
        path: Path of the image.
        segments: Reads the segments, which have the size of the image.
    """

    path: Path
    segments: Callable[[], Iterator[Segment]]


def coco_prompts(
    annotations: str | Path, images: str | Path, masks: str | Path | None = None, limit: int | None = None
) -> list[PromptImage]:
    """The images of a COCO file with their segments; crowds, and images without segments, are left out.

    Args:
        annotations: COCO file with polygons or RLEs (COCO, LVIS, SBD, PartImageNet), or in COCO's panoptic format,
            whose segments, things and stuff, are in PNG files.
        images: Folder of the images, which are found by ``file_name``, or else by the end of their path.
        masks: Folder of the PNG files of the panoptic format.
        limit: Maximum number of images, the first ones in the file that have segments.

    Raises:
        StoreError: If the file is not a COCO file, an image or PNG file is missing, or there are no segments.
    """
    truth = load_ground_truth(annotations)
    entries = {image['id']: image for image in truth['images']}
    if 'segments_info' in truth['annotations'][0]:
        groups = _read_panoptic(annotations, truth, masks)
    else:
        objects = []
        for record in truth['annotations']:
            with error_context(f'{annotations}: {describe_record(record)}'):
                if not is_crowd(record):
                    objects.append(record)
        with error_context(annotations):
            by_image = group_by_image(objects, entries, 'ground-truth annotation')
        groups = {
            image_id: partial(_decode_records, records, image_size(entries[image_id]), annotations)
            for image_id, records in by_image.items()
        }
    chosen = [image for image_id, image in entries.items() if image_id in groups][:limit]
    if not chosen:
        raise StoreError(f'{annotations}: no image has a segment that is not a crowd; nothing can be measured')
    paths = _find_images(Path(images), annotations, chosen)
    return [PromptImage(paths[image['id']], groups[image['id']]) for image in chosen]


def folder_prompts(
    images: str | Path,
    masks: str | Path,
    each_value: bool = False,
    ignored_value: int | None = None,
    limit: int | None = None,
) -> list[PromptImage]:
    """Images with mask pictures in another folder, as in GrabCut, Berkeley and DAVIS.

    A mask has the name of its image with any suffix, or this name, ``#`` and a number if an image has several masks.
    All non-zero pixels are one object. The value of a colour is its largest channel; in PNG files with a palette, the
    value of a pixel is its index.

    Args:
        images: Folder of images: ``data_GT`` in GrabCut, ``images`` in Berkeley, ``img`` in DAVIS.
        masks: Folder of PNG files: ``boundary_GT`` in GrabCut, ``masks`` in Berkeley, ``gt`` in DAVIS.
        each_value: True if each non-zero value or colour is one object.
        ignored_value: Value of pixels that do not count; 128 in GrabCut.
        limit: Maximum number of images, the first ones by name that have masks.

    Raises:
        StoreError: If a mask has no image, or there are no masks.
        ImageError: If a folder is missing or empty.
    """
    images, masks = Path(images), Path(masks)
    by_name: dict[str, list[Path]] = defaultdict(list)
    for mask in list_images(masks):
        by_name[mask.stem].append(mask)
    found: dict[Path, list[Path]] = {}
    for image in list_images(images):
        names = [name for name in by_name if name == image.stem or name.rpartition('#')[0] == image.stem]
        if own := [mask for name in names for mask in by_name.pop(name)]:
            found[image] = own
    if by_name:
        lost = sorted(path.name for paths in by_name.values() for path in paths)
        raise StoreError(
            f'{masks}: {len(lost)} masks have no image in {images} ({first_names(lost)}); a mask has the name of its image, '
            'or this name and # with a number'
        )
    return [
        PromptImage(image, partial(_decode_pictures, own, each_value, ignored_value)) for image, own in found.items()
    ][:limit]


def _decode_records(
    records: list[Mapping[str, Any]], size_hw: tuple[int | None, int | None], annotations: str | Path
) -> Iterator[Segment]:
    with error_context(annotations):
        rles = read_rles(records, size_hw)
    for rle in rles:
        yield Segment(decode_rles([rle], tuple(rle['size']))[0])


def _decode_pictures(paths: Iterable[Path], each_value: bool, ignored_value: int | None) -> Iterator[Segment]:
    for path in paths:
        values = read_mask_picture(path, each_value)
        ignored = None if ignored_value is None else values == ignored_value
        objects = values > 0 if ignored is None else (values > 0) & ~ignored
        if each_value:
            for value in np.unique(values[objects]):
                yield Segment(values == value, ignored)
        else:
            yield Segment(objects, ignored)


def _read_panoptic(
    annotations: str | Path, truth: Mapping[str, Any], masks: str | Path | None
) -> dict[Any, Callable[[], Iterator[Segment]]]:
    if masks is None:
        raise StoreError(
            f'{annotations}: its segments are in PNG files; name their folder (--masks on the command line)'
        )
    groups = {}
    missing = []
    for record in truth['annotations']:
        try:
            name, ids, crowds = panoptic_segments(record)
        except UnSAMError as error:
            raise StoreError(
                f'{annotations}: {describe_record(record)}: {error}; do not mix instances and the panoptic format in one file'
            ) from error
        path = Path(masks) / name
        object_ids = [segment_id for segment_id, crowd in zip(ids, crowds, strict=True) if not crowd]
        if not path.is_file():
            missing.append(name)
        if object_ids:
            groups[record['image_id']] = partial(_decode_panoptic, path, object_ids)
    if missing:
        raise StoreError(f'{masks}: {len(missing)} PNG files of {annotations} are not there ({first_names(missing)})')
    return groups


def _decode_panoptic(path: Path, ids: Iterable[int]) -> Iterator[Segment]:
    values = read_mask_picture(path, colours_as_numbers=True)
    for segment_id in ids:
        yield Segment(values == segment_id)


def _find_images(folder: Path, annotations: str | Path, entries: list[Mapping[str, Any]]) -> dict[Any, Path]:
    paths = {image['id']: folder / image['file_name'] for image in entries if image.get('file_name')}
    if len(paths) == len(entries) and all(path.is_file() for path in paths.values()):
        return paths
    names = list(walk_images(folder))
    ends = {name_parts(listed_name(image))[-1:] for image in entries}
    matches = match_images([name for name in names if name_parts(name)[-1:] in ends], {'images': entries})
    paths = {image_id: folder / name for name, image_id in matches.items()}
    missing = [listed_name(image) or str(image['id']) for image in entries if image['id'] not in paths]
    if missing:
        raise StoreError(
            f'{folder}: {len(missing)} of {len(entries)} images of {annotations} are not there ({first_names(missing)}); '
            'check the folder'
        )
    return paths
