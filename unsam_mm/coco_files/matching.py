"""Matches file names to the images of a COCO file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from unsam_mm.coco_files.fields import listed_name
from unsam_mm.errors import StoreError, first_names


def match_images(names: Iterable[str], ground_truth: Mapping[str, Any], skip_unmatched: bool = False) -> dict[str, Any]:
    """Pairs image names with the images of a COCO file.

    A name matches the image with the same ``file_name``; else to the one that shares the longest end of its path
    (whole parts, at least the file name), so that ``101085.jpg`` finds ``val/101085.jpg``. Where ``file_name`` is
    missing, ``coco_url`` is used (LVIS).

    Args:
        names: Image names or paths, with their suffix.
        ground_truth: A COCO dictionary.
        skip_unmatched: Leave out names that no image has, instead of raising.

    Returns:
        Name to image id.

    Raises:
        StoreError: If a name fits no image, fits several equally well, or two names fit the same image.
    """
    by_file: dict[str, list[tuple[tuple[str, ...], Any]]] = defaultdict(list)
    for image in ground_truth['images']:
        parts = name_parts(listed_name(image))
        if not parts:
            raise StoreError(
                f'ground-truth image {image.get("id")} has no "file_name", so predictions cannot be paired with it'
            )
        by_file[parts[-1]].append((parts, image['id']))

    paired: dict[str, Any] = {}
    missing = []
    for name in names:
        parts = name_parts(name)
        named_alike = by_file.get(parts[-1], ()) if parts else ()  # '.' has no parts
        shared = [(_shared_end(parts, other), other, image_id) for other, image_id in named_alike]
        if not shared:
            missing.append(name)
            continue
        # An equal path beats one that merely ends with it.
        best = max((length, parts == other) for length, other, _ in shared)
        fits = [(other, image_id) for length, other, image_id in shared if (length, parts == other) == best]
        if len(fits) > 1:
            rivals = first_names(['/'.join(other) for other, _ in fits])
            raise StoreError(
                f'{name}: fits {len(fits)} images of the ground truth ({rivals}); keep their folders in the name'
            )
        paired[name] = fits[0][1]
    if missing and not (skip_unmatched and paired):
        raise StoreError(
            f'{len(missing)} of {len(missing) + len(paired)} images with predictions are not in the ground truth '
            f'({first_names(missing)}); '
            'use predictions and ground truth of the same data set, or skip the others with '
            'skip_unmatched=True (--skip-unmatched on the command line)'
        )
    _check_unique(paired)
    return paired


def name_parts(name: str) -> tuple[str, ...]:
    """Folders and file name of a path, whose folders may be divided as on Windows."""
    return PurePosixPath(name.replace('\\', '/')).parts


def _shared_end(left: tuple[str, ...], right: tuple[str, ...]) -> int:
    length = 0
    for a, b in zip(reversed(left), reversed(right), strict=False):
        if a != b:
            break
        length += 1
    return length


def _check_unique(paired: Mapping[str, Any]) -> None:
    owner: dict[Any, str] = {}
    for name, image_id in paired.items():
        if image_id in owner:
            raise StoreError(
                f'{owner[image_id]} and {name} fit the same ground-truth image {image_id}; keep one of them'
            )
        owner[image_id] = name
