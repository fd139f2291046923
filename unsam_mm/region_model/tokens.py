"""What the region model knows of an image: its regions, and of each training mask how much of every region it holds."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from unsam_mm.errors import StoreError
from unsam_mm.files import atomic_writer

_FORMAT = 1
"""Raised when older files can no longer be read."""


@dataclass(frozen=True, eq=False)
class RegionTokens:
    """L regions that tile an image, and how they hang together in T trees.

    Attributes:
        labels: (H, W) uint16 region of each pixel, 0..L-1.
        areas_px: (L,) int32.
        features: (L, C) float16 mean patch feature.
        lab_mean: (L, 3) float16 mean CIE Lab colour.
        lab_std: (L, 3) float16 standard deviation of the colour inside the region.
        centres_yx: (L, 2) float32 mean pixel coordinates.
        tree_orders: (T, L) uint16; the regions in depth-first order of each tree.
        tree_heights: (T, L - 1) float32 in [0, 1]; granularity of the smallest node of the tree that holds both
            neighbours of each gap in that order.
        edges: (E, 2) uint16 pairs of touching regions, smaller number first, sorted.
        edge_lengths_px: (E,) float32 number of pixel sides that the pair shares.
        edge_strengths: (E,) float32 mean colour gradient along them.
    """

    labels: np.ndarray
    areas_px: np.ndarray
    features: np.ndarray
    lab_mean: np.ndarray
    lab_std: np.ndarray
    centres_yx: np.ndarray
    tree_orders: np.ndarray
    tree_heights: np.ndarray
    edges: np.ndarray
    edge_lengths_px: np.ndarray
    edge_strengths: np.ndarray

    def __len__(self) -> int:
        return len(self.areas_px)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        height, width = self.labels.shape
        return height, width

    def save(self, path: str | Path, masks: TokenMasks | None = None, notes: str = '') -> None:
        """Writes one file, which is whole or absent.

        Args:
            path: Name of the file, by custom with the suffix .npz.
            masks: Training masks of the same image, stored in the same file.
            notes: Stored in the same file; see `read_notes`.

        Raises:
            StoreError: If the folder cannot be written or the disk is full.
        """
        added = {f'mask_{name}': values for name, values in vars(masks).items()} if masks is not None else {}
        with atomic_writer(path, binary=True) as file:
            np.savez_compressed(file, format=np.int64(_FORMAT), notes=np.array(notes), **vars(self), **added)

    @classmethod
    def load(cls, path: str | Path) -> RegionTokens:
        """Reads what `save` wrote.

        Raises:
            StoreError: If the file is missing, damaged or of another kind.
        """
        tokens = cls(**_load(Path(path), [field.name for field in fields(cls)]))
        n_tokens = len(tokens.areas_px)
        lengths = {len(tokens.features), len(tokens.centres_yx), tokens.tree_orders.shape[-1], n_tokens}
        if len(lengths) > 1 or tokens.labels.ndim != 2 or int(tokens.labels.max(initial=0)) >= n_tokens:
            raise StoreError(f'{path}: the parts do not belong together; remove the file and make it again')
        return tokens


@dataclass(frozen=True, eq=False)
class TokenMasks:
    """M training masks of an image as shares of its regions, best first.

    Attributes:
        shares: (M, L) uint8; how much of each region a mask holds, 255 for all of it.
        scores: (M,) float32 in [0, 1].
        areas_px: (M,) int64.
    """

    shares: np.ndarray
    scores: np.ndarray
    areas_px: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def load(cls, path: str | Path) -> TokenMasks:
        """Reads the masks that `RegionTokens.save` wrote.

        Raises:
            StoreError: If the file is missing, damaged, of another kind or without masks.
        """
        names = [field.name for field in fields(cls)]
        found = _load(Path(path), [f'mask_{name}' for name in names])
        return cls(**{name: found[f'mask_{name}'] for name in names})


def read_notes(path: Path) -> str:
    """The notes in a file of region tokens; empty in files of earlier versions, which had none.

    Raises:
        StoreError: If the file is missing, damaged or of another kind.
    """
    return str(_load(path, [], ['notes']).get('notes', ''))


def _load(path: Path, names: list[str], optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    try:
        with path.open('rb') as stream, np.load(stream, allow_pickle=False) as file:
            if missing := sorted({'format', *names} - set(file.files)):
                raise StoreError(f'{path}: holds no {missing[0]}; expected a file of region tokens: make it again')
            if int(file['format']) != _FORMAT:
                raise StoreError(f'{path}: has format {int(file["format"])}, expected {_FORMAT}; make it again')
            return {name: file[name] for name in (*names, *(name for name in optional if name in file.files))}
    except StoreError:
        raise
    except FileNotFoundError as error:
        raise StoreError(f'{path}: no such file; make it with RegionTokenizer') from error
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StoreError(f'{path}: not a file of region tokens ({reason}); remove it and make it again') from error
