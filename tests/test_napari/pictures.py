"""Pictures of the window for the documentation: kept small, and compared with those that are in the documentation.

Other machines have other fonts, which move everything in a window a little, and draw lines a little otherwise. So the part of the
window that shows the image is compared at a common small size, and the dock by its words; both are kept with a picture.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageFilter
from PIL.PngImagePlugin import PngInfo
from scipy.spatial import cKDTree

from napari_unsam.model.palette import OBJECT_COLOURS
from napari_unsam.viewer.layers import COLOURS, PREVIEW_COLOUR

MAX_DIFFERENCE = 3.5
"""Grey levels by which the image may differ in any of its parts."""

MAX_BYTES = 250_000

_COMPARED_PX, _PART_PX, _BLUR_PX = 192, 24, 3
_NOTES = 'image_box', 'canvas_box', 'words'
_N_COLOURS = 256, 192, 128, 64
_PALETTE = [PREVIEW_COLOUR, *COLOURS.values(), '#ffffff', *OBJECT_COLOURS]
"""Colours that mean something and cover little, so that no palette of the most frequent ones would have them."""


Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Picture:
    """What a window showed.

    Attributes:
        pixels: (H, W, 3) uint8.
        image_box: Left, top, right and bottom of the image in it, which may lie outside of it.
        canvas_box: The same of the canvas.
        words: Of the dock.
    """

    pixels: np.ndarray
    image_box: Box
    canvas_box: Box
    words: tuple[str, ...]

    def save(self, path: Path) -> None:
        """Writes a PNG with few colours, which has box and words in its text."""
        notes = PngInfo()
        for name in _NOTES:
            notes.add_itxt(name, json.dumps(getattr(self, name)))
        for n_colours in _N_COLOURS:
            self._with_few_colours(n_colours).save(path, optimize=True, pnginfo=notes)
            if path.stat().st_size < MAX_BYTES:
                return

    @classmethod
    def load(cls, path: Path) -> Picture:
        with Image.open(path) as kept:
            return cls(np.asarray(kept.convert('RGB')), *(tuple(json.loads(kept.text[name])) for name in _NOTES))

    def image_difference(self, other: Picture) -> float:
        """By how many grey levels the images differ in the part where they differ most, as far as both show it."""
        seen = np.stack([self._seen, other._seen])
        both = (*seen[:, :2].max(axis=0), *seen[:, 2:].min(axis=0))
        mine, others = (one._small_image(both) for one in (self, other))
        parts = np.abs(mine - others).reshape(_COMPARED_PX // _PART_PX, _PART_PX, _COMPARED_PX // _PART_PX, _PART_PX, 3)
        return float(parts.mean(axis=(1, 3, 4)).max())

    def differing_words(self, other: Picture) -> list[str]:
        """What only one of the docks says; numbers do not count."""
        mine, others = (sorted(re.sub(r'\d[\d,.]*', '#', word) for word in one.words) for one in (self, other))
        return sorted(set(mine) ^ set(others))

    def _with_few_colours(self, n_colours: int) -> Image.Image:
        frequent = Image.fromarray(self.pixels).quantize(n_colours - len(_PALETTE), kmeans=1).getpalette()
        palette = np.array([*chain.from_iterable(map(ImageColor.getrgb, _PALETTE)), *frequent], np.uint8).reshape(-1, 3)
        colours, place = np.unique(self.pixels @ np.array([1 << 16, 1 << 8, 1]), return_inverse=True)
        nearest = cKDTree(palette).query(np.stack([colours >> 16, colours >> 8 & 255, colours & 255], axis=1))[1]
        few = Image.fromarray(nearest[place].astype(np.uint8).reshape(self.pixels.shape[:2]), mode='P')
        few.putpalette(palette.tobytes())
        return few

    @property
    def _seen(self) -> np.ndarray:
        """The box of what is seen of the image, as shares of its sides."""
        corner, size = np.array(self.image_box[:2]), np.subtract(self.image_box[2:], self.image_box[:2])
        return np.clip((np.reshape(self.canvas_box, (2, 2)) - corner) / size, 0, 1).ravel()

    def _small_image(self, shares: Box) -> np.ndarray:
        corner, size = np.array(self.image_box[:2]), np.subtract(self.image_box[2:], self.image_box[:2])
        box = tuple((corner + np.reshape(shares, (2, 2)) * size).ravel())
        small = Image.fromarray(self.pixels).resize((_COMPARED_PX,) * 2, Image.Resampling.BOX, box)
        # A line that is a pixel off is the same line; one that is missing leaves its colour in the mean.
        return np.asarray(small.filter(ImageFilter.GaussianBlur(_BLUR_PX)), float)
