"""Masks of an image: run-length encodings, mask sets, region trees, and overlaps between regions."""
