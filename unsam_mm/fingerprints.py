"""Digests of weights and image files, which show whether stored results are still current."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from unsam_mm.errors import ImageError, WeightsError
from unsam_mm.image_io.image_file import check_is_file

if TYPE_CHECKING:
    import torch

_WEIGHT_FILES = ('config.json', '*.safetensors', '*.index.json', '*.bin', '*.pth')
_BLOCK_BYTES = 2**20
_DIGEST_BYTES = 16
_CACHE_SIZE = 4096


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal digits."""
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def file_digest(path: Path) -> str:
    """BLAKE2b digest of a file, 32 hexadecimal digits.

    The metadata in the header of a safetensors file do not count. The digest is cached until the file changes.

    Raises:
        OSError: If the file cannot be read.
    """
    found = path.stat()
    return _digest(path.resolve(), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


@lru_cache(_CACHE_SIZE)
def _digest(path: Path, size: int, *times_and_inode: int) -> str:
    """Digest of a file; `times_and_inode` is part of the cache key, so a changed file is read again."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    with path.open('rb') as file:
        if path.suffix == '.safetensors':
            digest.update(_tensor_table(file, size))
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def weights_digest(path: Path) -> str:
    """BLAKE2b digest of the weights in a file, or in a folder in the format of transformers, 32 hexadecimal digits.

    Raises:
        WeightsError: If a file cannot be read.
    """
    try:
        if path.is_file():
            return file_digest(path)
        files = sorted({file for pattern in _WEIGHT_FILES for file in path.glob(pattern)})
        described = [(file.name, file_digest(file)) for file in files]
    except OSError as error:
        raise WeightsError(f'{path}: weights cannot be read ({error.strerror}); check the permissions') from error
    return hashlib.blake2b(json.dumps(described).encode(), digest_size=_DIGEST_BYTES).hexdigest()


def tensors_digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """BLAKE2b digest of names and values of tensors, 24 hexadecimal digits; it does not depend on their device."""
    import torch

    digest = hashlib.blake2b(digest_size=12)
    for name, value in tensors:
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def image_stamp(path: Path) -> dict[str, int | str]:
    """Size, modification time and digest of an image file, stored with the results for that image; see `is_current`.

    Raises:
        ImageError: If the file cannot be read, or is a device or pipe.
    """
    check_is_file(path)
    try:
        found = path.stat()
        return {'bytes': found.st_size, 'mtime_ns': found.st_mtime_ns, 'blake2b': file_digest(path)}
    except OSError as error:
        raise ImageError(f'{path}: cannot be read ({error.strerror}); check the path and its permissions') from error


def is_current(result: Path, image: Path, stamp: Mapping[str, Any] | None) -> bool:
    """True if a stored result was made from the present content of the image file.

    Args:
        result: The file with the result.
        image: The image file. If it does not exist, the result counts as current. If it was modified and cannot be read,
            the result counts as outdated.
        stamp: The value of `image_stamp` when the result was made. If None, as for files of other programs, the result is
            current if the image file is not newer than the result.
    """
    try:
        found = image.stat()
    except OSError:
        return True
    if not isinstance(stamp, Mapping):
        return result.stat().st_mtime_ns >= found.st_mtime_ns
    if stamp.get('bytes') != found.st_size:
        return False
    if stamp.get('mtime_ns') == found.st_mtime_ns:
        return True
    try:
        return stamp.get('blake2b') == file_digest(image)
    except OSError:
        return False


def _tensor_table(file: IO[bytes], size: int) -> bytes:
    """The header of a safetensors file without the metadata, whose order varies between writes."""
    length = file.read(8)
    header = file.read(min(int.from_bytes(length, 'little'), size))  # in a damaged file the length can be any number
    try:
        table = json.loads(header)
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):  # damaged: loading the weights raises an error
        return length + header
    table.pop('__metadata__', None)
    return json.dumps(table, sort_keys=True).encode()
