"""Pseudo-masks of many images: a store of one file an image, resumable runs, a Dask cluster, and merging with other labels."""
