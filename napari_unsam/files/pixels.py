"""`unsam_mm.image_io.reader` under its former name."""

from __future__ import annotations

from unsam_mm.image_io.reader import ImagePixels, read_pixels

__all__ = ['ImagePixels', 'read_pixels']
