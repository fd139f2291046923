"""Error messages from dataloader workers."""

from __future__ import annotations


def own_words(error: Exception) -> str:
    """The message of an error, without the traceback that torch adds in a dataloader worker."""
    text = str(error)
    if not text.startswith('Caught '):
        return text
    # A traceback ends with the class name, possibly with its module, a colon and the message.
    return text.rpartition(f'{type(error).__name__}: ')[2].strip()
