"""Images for the rows: scikit-image's photographs, or the images of a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from unsam_mm import sample_images
from unsam_mm.errors import UnSAMError
from unsam_mm.images import list_images, read_image
from unsam_mm.pseudo_masks.vit import PatchFeatureExtractor
from unsam_mm.published.maskcut import centred, resize_to_square

_PATCH_PX = 14  # of the default ViT
_PICTURES = ('coffee.png', 'astronaut.png', 'chelsea.png', 'rocket.jpg')


@dataclass(frozen=True)
class Inputs:
    """Images for rows that need several.

    Attributes:
        images: Folder of images; None: scikit-image's photographs.
        ground_truth: COCO file of the images in this folder.
        count: Maximum number of images.
    """

    images: Path | None = None
    ground_truth: Path | None = None
    count: int = 4

    def __post_init__(self) -> None:
        if self.ground_truth and not self.images:
            raise UnSAMError(f'{self.ground_truth} needs the folder of its images: give --images')

    def paths(self) -> list[Path]:
        """The first `count` images."""
        if self.images is None:
            return [sample_images.folder() / name for name in _PICTURES[: self.count]]
        return list_images(self.images)[: self.count]


def photograph(name: str = 'astronaut.png') -> np.ndarray:
    """One of scikit-image's photographs, (H, W, 3) uint8 RGB."""
    return read_image(sample_images.folder() / name)


def resampled(image: np.ndarray, n_pixels: float) -> np.ndarray:
    """Resizes an (H, W, 3) image to about `n_pixels` pixels, with the same aspect ratio."""
    height, width = image.shape[:2]
    scale = (n_pixels / (height * width)) ** 0.5
    size = round(width * scale), round(height * scale)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def patch_keys(side: int) -> np.ndarray:
    """(side, side, 384) float32 keys of DINOv2 on a photograph, centred as in the generator."""
    extract = PatchFeatureExtractor(long_side_px=side * _PATCH_PX)
    return centred(extract(resize_to_square(photograph(), side * _PATCH_PX)))
