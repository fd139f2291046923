"""Singular and plural in messages."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """A number with its noun: '1 object', '2 objects', '2 matches'."""
    return f'{number} {noun}' if number == 1 else f'{number} {noun}{"es" if noun.endswith("ch") else "s"}'
