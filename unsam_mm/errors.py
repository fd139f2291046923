"""Errors that a user can fix: each message says what was found, what was expected and how to fix it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_MAX_NAMES = 3  # number of names that a message lists
_ESCAPED = ('Cc', 'Zl', 'Zp')  # Unicode's categories of control characters, line and paragraph separators


class UnSAMError(ValueError):
    """Base of every error that this package raises on purpose.

    The command line prints its message on one line and exits with status 1, without a traceback.
    """


class ImageError(UnSAMError):
    """An image that cannot be segmented, for example because it is broken, empty, constant, a stack, or not finite."""


class WeightsError(UnSAMError):
    """Weights that are missing, incomplete or altered, or belong to another model."""


class StoreError(UnSAMError):
    """A pseudo-mask folder or annotation file that cannot be read or written."""


class DamagedError(StoreError):
    """A stored file whose content is damaged."""


class TargetError(StoreError):
    """A file that cannot be written although others can: the disk does not allow its name, or a folder has it."""


def describe_error(error: BaseException) -> str:
    """An error in one line: the first line of its message, preceded by its type if it is not a `UnSAMError`."""
    lines = str(error).strip().splitlines()
    if lines and isinstance(error, UnSAMError):
        return lines[0]
    return f'{type(error).__name__}: {lines[0]}' if lines else type(error).__name__


@contextmanager
def image_errors(path: object) -> Iterator[None]:
    """Turns errors in the processing of one image into `ImageError`, so that a run can continue with the other images.

    Args:
        path: Path of the image, for the message.

    Raises:
        ImageError: For all errors except those of weights and stores, which would occur for every image.
    """
    try:
        yield
    except (ImageError, StoreError, WeightsError):
        raise
    except Exception as error:
        raise ImageError(f'{path}: {describe_error(error)}') from error


@contextmanager
def error_context(where: object, kind: type[UnSAMError] = StoreError) -> Iterator[None]:
    """Puts a place, such as a file, in front of the message of errors.

    Args:
        where: The place.
        kind: Class of the error that is raised.
    """
    try:
        yield
    except UnSAMError as error:
        raise kind(f'{where}: {error}') from error


def first_names(names: Sequence[str]) -> str:
    """The first three names of a list, for messages."""
    return ', '.join(names[:_MAX_NAMES]) + (', ...' if len(names) > _MAX_NAMES else '')


def one_line(text: object) -> str:
    """A message on one line: line breaks and control characters, which file names may contain, are escaped."""
    return ''.join(
        char.encode('unicode_escape').decode('ascii') if unicodedata.category(char) in _ESCAPED else char
        for char in str(text)
    )
