"""Log lines of data sets, and error messages of their workers."""

from __future__ import annotations

import logging

from mmengine.logging import print_log


class LogOnce:
    """Logs only the first message for each key."""

    def __init__(self) -> None:
        self._keys: set[str] = set()

    def __call__(self, key: str, message: str, level: int = logging.WARNING) -> None:
        if key not in self._keys:
            self._keys.add(key)
            print_log(message, logger='current', level=level)

    def __len__(self) -> int:
        return len(self._keys)


def log_warning(message: str) -> None:
    """Logs a warning."""
    print_log(message, logger='current', level=logging.WARNING)


def original_message(error: Exception) -> str:
    """The message of an error, without the traceback that torch adds in a dataloader worker."""
    text = str(error)
    if not text.startswith('Caught '):
        return text
    # A traceback ends with the class name, possibly with its module, a colon and the message.
    return text.rpartition(f'{type(error).__name__}: ')[2].strip()
