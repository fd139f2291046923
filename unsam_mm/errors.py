"""Errors that a user can act on: each message says what was found, what was expected and the fix."""

from __future__ import annotations


class UnSAMError(ValueError):
    """Base of every error that this package raises on purpose.

    The command line prints its message on one line and exits with status 1, without a traceback.
    """


class ImageError(UnSAMError):
    """An image that cannot be segmented: broken, empty, constant, a stack, or not finite."""


class WeightsError(UnSAMError):
    """Weights that are missing, incomplete, altered, or belong to another model."""


class StoreError(UnSAMError):
    """A pseudo-mask folder or annotation file that cannot be read or written."""


class DamagedError(StoreError):
    """A stored file that does not hold what was written into it."""
