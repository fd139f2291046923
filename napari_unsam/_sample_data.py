"""Sample images that come with scikit-image, so that no download is needed."""

from __future__ import annotations

from typing import Any

from skimage import data

LayerData = tuple[Any, dict[str, Any], str]


def coffee() -> list[LayerData]:
    """A photo of a cup on a table: parts within objects within a scene."""
    return [(data.coffee(), {'name': 'Coffee cup'}, 'image')]


def coins() -> list[LayerData]:
    """Greek coins, greyscale: many objects of one kind."""
    return [(data.coins(), {'name': 'Coins'}, 'image')]


def cell() -> list[LayerData]:
    """One cell in an interferometric microscope, greyscale."""
    return [(data.cell(), {'name': 'Cell'}, 'image')]
