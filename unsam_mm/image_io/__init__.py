"""The one reader of image files: their own numbers, axes, channels and the size of a pixel, from any common format."""
