"""Loads images of common formats, including 16-bit microscopy, in MMDetection pipelines."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS
from mmengine.logging import print_log

from unsam_mm.errors import ImageError, UnSAMError, image_errors
from unsam_mm.images import read_image


@TRANSFORMS.register_module()
class UnSAMLoadImage(BaseTransform):
    """Reads ``img_path`` into ``img`` (H, W, 3) uint8, and sets ``img_shape``, ``ori_shape``, ``height``, ``width``.

    Greyscale, RGBA, 16-bit and float files are accepted; see `unsam_mm.images.as_rgb_uint8`.

    Args:
        channel_order: 'bgr', the convention of MMDetection's steps and tools, with ``bgr_to_rgb=True`` in
            `DetDataPreprocessor`; or 'rgb', for a model without that.
        skip_broken: Whether to log unreadable files and return None, so that the dataset draws another image. Set it to
            False in test pipelines, where the error must be raised.

    Raises:
        UnSAMError: If `channel_order` is unknown.
    """

    def __init__(self, channel_order: str = 'bgr', skip_broken: bool = True) -> None:
        if channel_order not in ('rgb', 'bgr'):
            raise UnSAMError(f"channel_order must be 'rgb' or 'bgr', got {channel_order!r}")
        self.channel_order = channel_order
        self.skip_broken = skip_broken
        self._reported: set[str] = set()

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Adds the image to `results`; None if the file cannot be read and `skip_broken` is set.

        Raises:
            ImageError: If the file cannot be read and `skip_broken` is not set.
        """
        path = results['img_path']
        try:
            with image_errors(path):
                image = read_image(path, max_pixels=None)  # crops are cut from it
        except ImageError as error:
            if not self.skip_broken:
                raise
            if path not in self._reported:
                self._reported.add(path)
                print_log(f'image skipped: {error}', logger='current', level=logging.WARNING)
            return None
        # Decoders may return read-only arrays, but later steps write into the image.
        results['img'] = np.require(image if self.channel_order == 'rgb' else image[..., ::-1], requirements=['C', 'W'])
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        results['height'], results['width'] = image.shape[:2]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(channel_order={self.channel_order!r}, skip_broken={self.skip_broken})'
