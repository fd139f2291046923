"""The colours of objects, the same on screen and in files."""

from __future__ import annotations

# The Okabe-Ito colours, then lighter tints. Black is left out, since it is invisible on dark images, and yellow, which
# is the colour of previews. The colours of clicks come last before the tints.
OBJECT_COLOURS = (
    '#56b4e9',
    '#e69f00',
    '#009e73',
    '#cc79a7',
    '#0072b2',
    '#d55e00',
    '#b5e3ff',
    '#ffd58a',
    '#7fe0c0',
    '#f3c1dc',
)


def label_rgb(label: int) -> tuple[int, int, int]:
    """The colour of a positive label in the viewer: red, green and blue, from 0 to 255."""
    colour = OBJECT_COLOURS[(label - 1) % len(OBJECT_COLOURS)]
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
