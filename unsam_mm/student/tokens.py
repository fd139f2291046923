"""Region tokens, the input of the region model, and training masks as fractions of the regions."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from unsam_mm.errors import DamagedError, StoreError, UnSAMError
from unsam_mm.files import atomic_writer
from unsam_mm.npz import read_npz

MAX_TOKENS = 4096  # the pairwise distances, 36 bytes a pair, then take 0.6 GB

_FORMAT = 1
"""Incremented when older files can no longer be read."""

_FORMS = {
    'labels': (np.uint16, 'HW'),
    'areas_px': (np.int32, 'L'),
    'features': (np.float16, 'LC'),
    'lab_mean': (np.float16, 'L3'),
    'lab_std': (np.float16, 'L3'),
    'centres_yx': (np.float32, 'L2'),
    'tree_orders': (np.uint16, 'TL'),
    'tree_heights': (np.float32, 'TG'),
    'edges': (np.uint16, 'E2'),
    'edge_lengths_px': (np.float32, 'E'),
    'edge_strengths': (np.float32, 'E'),
}
"""Dtype and axes of each field: a letter has the same length in all fields; G is L - 1."""


@dataclass(frozen=True, eq=False)
class RegionTokens:
    """L regions that partition an image, and their order and heights in T trees.

    Attributes:
        labels: (H, W) uint16 region of each pixel, 0..L-1.
        areas_px: (L,) int32 area of each region.
        features: (L, C) float16 mean patch feature.
        lab_mean: (L, 3) float16 mean CIE Lab colour.
        lab_std: (L, 3) float16 standard deviation of the colour inside the region.
        centres_yx: (L, 2) float32 mean pixel coordinates.
        tree_orders: (T, L) uint16; the regions in depth-first order of each tree.
        tree_heights: (T, L - 1) float32 in [0, 1]; level of the lowest common ancestor of each pair of regions that are
            consecutive in that order.
        edges: (E, 2) uint16 pairs of adjacent regions, smaller number first, sorted.
        edge_lengths_px: (E,) float32 number of pixel sides that the pair shares.
        edge_strengths: (E,) float32 mean colour gradient along these sides.

    Raises:
        UnSAMError: If the arrays have other dtypes or shapes, are not finite, or do not describe a partition of an image.
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

    def __post_init__(self) -> None:
        self._check_forms()
        n_tokens = len(self)
        if (
            not 1 <= n_tokens <= MAX_TOKENS
            or self.labels.size == 0
            or min(self.features.shape[1], len(self.tree_orders)) < 1
        ):
            raise UnSAMError(f'{n_tokens} regions in an image of {self.labels.shape} px; expected 1..{MAX_TOKENS}')
        areas = np.bincount(self.labels.ravel(), minlength=n_tokens)
        if len(areas) > n_tokens or (areas != self.areas_px).any() or not areas.all():
            raise UnSAMError('areas_px differ from the areas of the labels, or a region has no pixel')
        if (np.sort(self.tree_orders, axis=1) != np.arange(n_tokens)).any():
            raise UnSAMError(f'tree_orders must contain each of the {n_tokens} regions once in every row')
        self._check_ranges()
        self._check_edges()

    def _check_forms(self) -> None:
        """Raises `UnSAMError` unless all fields are finite arrays with the dtypes and axes of `_FORMS`."""
        lengths = {'2': 2, '3': 3}
        for name, (dtype, axes) in _FORMS.items():
            values = getattr(self, name)
            if not isinstance(values, np.ndarray) or values.dtype != dtype or values.ndim != len(axes):
                found = f'{values.dtype}{values.shape}' if isinstance(values, np.ndarray) else type(values).__name__
                raise UnSAMError(f'{name} must be {np.dtype(dtype)} with {len(axes)} axes, found {found}')
            for axis, length in zip(axes, values.shape, strict=True):
                if axis == 'G':
                    axis, length = 'L', length + 1
                if lengths.setdefault(axis, length) != length:
                    raise UnSAMError(f'{name} has the shape {values.shape}, which does not match the other fields')
            if not np.isfinite(values).all():
                raise UnSAMError(f'{name} must be finite')

    def _check_ranges(self) -> None:
        height, width = self.size_hw
        if (self.centres_yx < 0).any() or (self.centres_yx > (height - 1, width - 1)).any():
            raise UnSAMError(f'centres_yx must lie in the image of {height} x {width} px')
        if (self.lab_std < 0).any():
            raise UnSAMError('lab_std must not be negative')
        if (self.tree_heights < 0).any() or (self.tree_heights > 1).any():
            raise UnSAMError('tree_heights must lie in [0, 1]')

    def _check_edges(self) -> None:
        places = self.edges.astype(np.int64) @ (len(self), 1)
        if (
            (self.edges >= len(self)).any()
            or (self.edges[:, 0] >= self.edges[:, 1]).any()
            or (np.diff(places) <= 0).any()
        ):
            raise UnSAMError('edges must be pairs of regions, smaller number first, sorted, without duplicates')
        if (self.edge_lengths_px <= 0).any() or (self.edge_strengths < 0).any():
            raise UnSAMError('edge_lengths_px must be positive, and edge_strengths not negative')

    def __len__(self) -> int:
        return len(self.areas_px)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        height, width = self.labels.shape
        return height, width

    def save(self, path: str | Path, masks: TokenMasks | None = None, notes: str = '') -> None:
        """Writes the tokens to one file, atomically.

        Args:
            path: Path of the file, usually with the suffix .npz.
            masks: Training masks of the same image, stored in the same file.
            notes: Text stored in the same file; see `read_notes`.

        Raises:
            StoreError: If the folder cannot be written or the disk is full.
        """
        added = {f'mask_{name}': values for name, values in vars(masks).items()} if masks is not None else {}
        with atomic_writer(path, binary=True) as file:
            np.savez_compressed(file, format=np.int64(_FORMAT), notes=np.array(notes), **vars(self), **added)

    @classmethod
    def load(cls, path: str | Path) -> RegionTokens:
        """Reads a file that `save` wrote.

        Raises:
            StoreError: If the file is missing, damaged or not a file of region tokens.
        """
        return _made(cls, path, '')


@dataclass(frozen=True, eq=False)
class TokenMasks:
    """M training masks of an image, as the fractions of its regions that they cover, best first.

    Attributes:
        shares: (M, L) uint8; fraction of each region that a mask covers, times 255.
        scores: (M,) float32 in [0, 1].
        areas_px: (M,) int64 area of each mask.

    Raises:
        UnSAMError: If the arrays have other dtypes or shapes, or scores or areas are out of range.
    """

    shares: np.ndarray
    scores: np.ndarray
    areas_px: np.ndarray

    def __post_init__(self) -> None:
        for name, dtype in (('shares', np.uint8), ('scores', np.float32), ('areas_px', np.int64)):
            values = getattr(self, name)
            n_axes = 2 if name == 'shares' else 1
            if values.dtype != dtype or values.ndim != n_axes or len(values) != len(self.scores):
                raise UnSAMError(
                    f'{name} of masks must be {np.dtype(dtype)} with {n_axes} axes and the length of scores, found '
                    f'{values.dtype}{values.shape}'
                )
        if not ((self.scores >= 0) & (self.scores <= 1)).all() or (self.areas_px < 0).any():
            raise UnSAMError('scores of masks must lie in [0, 1], and areas must not be negative')

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def load(cls, path: str | Path) -> TokenMasks:
        """Reads the masks from a file that `RegionTokens.save` wrote.

        Raises:
            StoreError: If the file is missing, damaged or not a file of region tokens, or contains no masks.
        """
        return _made(cls, path, 'mask_')


def read_notes(path: str | Path) -> str:
    """The notes in a file of region tokens; empty for files of earlier versions.

    Raises:
        StoreError: If the file is missing, damaged or not a file of region tokens.
    """
    return str(_read(path, ['notes', 'format']).get('notes', ''))


def _made(kind: type, path: str | Path, prefix: str) -> Any:
    """Tokens or masks from the arrays of a file whose names have the prefix."""
    names = [field.name for field in fields(kind)]
    stored = [prefix + name for name in names]
    found = _read(path, [*stored, 'format'])
    if missing := sorted(set(stored) - found.keys()):
        raise StoreError(f'{path}: contains no {missing[0]}; expected a file of region tokens; make it again')
    try:
        return kind(**{name: found[prefix + name] for name in names})
    except UnSAMError as error:
        raise DamagedError(f'{path}: {error}; remove the file and make it again') from error


def _read(path: str | Path, names: list[str]) -> dict[str, np.ndarray]:
    """Those of the named arrays that a file of region tokens contains."""
    try:
        found = read_npz(path, names)
    except FileNotFoundError as error:
        raise StoreError(f'{path}: no such file; make it with RegionTokenizer') from error
    number = found.get('format')
    if number is None:
        raise StoreError(f'{path}: contains no format; expected a file of region tokens; make it again')
    if number.shape or number.dtype.kind not in 'iu' or number != _FORMAT:
        raise StoreError(f'{path}: has format {str(number)[:20]}, expected {_FORMAT}; make it again')
    return found
