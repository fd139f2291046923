"""Checkpoints of other frameworks as files that MMEngine or this package loads."""
