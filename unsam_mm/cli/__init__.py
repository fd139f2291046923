"""The commands of ``python -m unsam_mm``: one module each, with `add_parser` and `run`."""

from __future__ import annotations

import argparse


def positive_int(text: str) -> int:
    """Parses a whole number above 0.

    Raises:
        ArgumentTypeError: If the text is not such a number.
    """
    if text.strip().isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f'{text!r} is not a whole number above 0')
