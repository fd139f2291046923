"""Label images whose grey values or colours encode segment ids, such as those of COCO panoptic files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from unsam_mm.errors import ImageError

_BYTE = 256


def read_mask_picture(path: Path, colours_as_numbers: bool) -> np.ndarray:
    """(H, W) integers of a mask picture; colours as red + 256 green + 65536 blue, COCO's way, or as the largest.

    Raises:
        ImageError: If it cannot be read.
    """
    try:
        with Image.open(path) as file:
            values = np.asarray(file)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f'{path}: cannot be read as a mask picture ({error}); copy it again') from error
    if values.ndim == 2:
        return values.astype(np.int64)
    colours = values[..., : 1 if values.shape[-1] == 2 else 3].astype(np.int64)
    if not colours_as_numbers:
        return colours.max(axis=-1)
    return (colours * _BYTE ** np.arange(colours.shape[-1])).sum(axis=-1)
