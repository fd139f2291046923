"""Errors that were raised in a dataloader worker."""

from __future__ import annotations


def own_words(error: Exception) -> str:
    """What an error says, without the trace that torch puts before it when it comes out of a dataloader worker."""
    text = str(error)
    if not text.startswith('Caught '):
        return text
    # A trace ends with the name of the class, a colon and the message; the class may be shown with its module.
    return text.rpartition(f'{type(error).__name__}: ')[2].strip()
