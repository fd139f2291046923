"""The reader of image files under the name that scripts of the plugin know; see `unsam_mm.image_files`."""

from __future__ import annotations

from unsam_mm.image_files import ImagePixels, read_pixels

__all__ = ['ImagePixels', 'read_pixels']
