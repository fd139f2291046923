"""Reads image files of all common formats: unscaled pixel values, axes, channels and pixel size."""
