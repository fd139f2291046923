"""Singular and plural in what the user is told."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """A number with its noun: '1 object', '2 objects'."""
    return f'{number} {noun}' if number == 1 else f'{number} {noun}s'


def them(number: int) -> str:
    """What stands for so many things that something is done to: 'it' or 'them'."""
    return 'it' if number == 1 else 'them'
