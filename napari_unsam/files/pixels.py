"""Image files as arrays of their own numbers; see `unsam_mm.image_files`."""

from __future__ import annotations

from unsam_mm.image_files import ImagePixels, read_pixels

__all__ = ['ImagePixels', 'read_pixels']
