"""Pseudo-masks of image folders: file store, resumable runs, Dask clusters, and merging with other labels."""
