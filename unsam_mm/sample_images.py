"""Sample photographs and micrographs, from the package data of scikit-image."""

from __future__ import annotations

from pathlib import Path

import skimage

# Only files in the installed wheel: scikit-image's other samples would be downloaded. The right view of the motorcycle is
# omitted, since it shows the same scene as the left one.
TRAIN = (
    'astronaut.png',
    'camera.png',
    'cell.png',
    'chelsea.png',
    'coins.png',
    'hubble_deep_field.jpg',
    'ihc.png',
    'motorcycle_left.png',
)
HELD_OUT = ('coffee.png', 'retina.jpg', 'rocket.jpg')


def folder() -> Path:
    """The folder that contains the files."""
    return Path(skimage.__file__).parent / 'data'
