"""Finds the checkpoint from which an interrupted training resumes."""

from __future__ import annotations

import zipfile
from pathlib import Path

POINTER = 'last_checkpoint'
"""The file in which MMEngine notes the checkpoint that it wrote last."""


def find_resumable(work_dir: str | Path) -> Path | None:
    """The last whole checkpoint of a training, or None if it had not come to write one.

    A process can be killed while it writes a checkpoint or the note about it. A checkpoint that was cut short is passed
    over; where the note is empty or names a file that is gone, the newest checkpoint of the folder is taken. The folder
    may have been moved since the note was written.

    Args:
        work_dir: Folder of the training.
    """
    folder = Path(work_dir)
    pointer = folder / POINTER
    noted = [folder / Path(pointer.read_text(encoding='utf-8').strip()).name] if pointer.is_file() else []
    # A best checkpoint has no optimizer, so training could not go on from it.
    written = sorted(folder.glob('iter_*.pth'), key=lambda path: path.stat().st_mtime, reverse=True)
    return next((path for path in [*noted, *written] if path.is_file() and zipfile.is_zipfile(path)), None)
