"""Converts checkpoints of other frameworks to files that MMEngine or this package loads."""
