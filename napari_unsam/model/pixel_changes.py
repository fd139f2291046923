"""Changed pixels of a labels array, compressed, for undo and redo."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from napari_unsam.model.label_boxes import LazyArray, Slices, blocks

Counts = Mapping[int, int]
"""Number of pixels by label; in the counts of a change, negative for labels that lose pixels."""

_ZLIB_LEVEL = 1  # the fastest; masks of objects still become 100 times smaller
_MAX_BINS = 1 << 20  # arrays of smaller labels are counted with bincount, ten times as fast as by sorting


@dataclass(frozen=True, eq=False)
class _Values:
    """The labels of changed pixels in C order: compressed, or one number if all are equal."""

    packed: int | bytes
    dtype: np.dtype

    @classmethod
    def of(cls, values: np.ndarray) -> _Values:
        first = values.flat[0]
        is_uniform = values.ndim == 0 or bool((values == first).all())
        return cls(int(first) if is_uniform else zlib.compress(values.tobytes(), _ZLIB_LEVEL), values.dtype)

    def unpacked(self) -> np.ndarray:
        """(P,) labels, or an array of shape () if all are equal."""
        if isinstance(self.packed, int):
            return np.asarray(self.packed, self.dtype)
        return np.frombuffer(zlib.decompress(self.packed), self.dtype)

    @property
    def nbytes(self) -> int:
        return len(self.packed) if isinstance(self.packed, bytes) else 0


@dataclass(frozen=True, eq=False)
class PixelChange:
    """A change of the labels of some pixels of an array.

    Attributes:
        box: Box of the array that contains the changed pixels.
        array_shape: Shape of the array.
        n_pixels: Number of changed pixels.
        packed_mask: Mask of the changed pixels in the box, one bit per pixel, compressed.
        old: Labels before the change.
        new: Labels after the change.
    """

    box: Slices
    array_shape: tuple[int, ...]
    n_pixels: int
    packed_mask: bytes
    old: _Values
    new: _Values

    @classmethod
    def of(
        cls, box: Slices, array_shape: tuple[int, ...], mask: np.ndarray, old: np.ndarray, new: np.ndarray
    ) -> PixelChange:
        """Describes a change that has already been made.

        Args:
            box: Box of the array.
            array_shape: Shape of the array.
            mask: Bool, of the shape of the box; True for the P changed pixels, P > 0.
            old: (P,) labels of these pixels before the change, in C order; shape () if they are equal.
            new: (P,) labels after the change, likewise.
        """
        packed = zlib.compress(np.packbits(mask), _ZLIB_LEVEL)
        n_pixels = int(np.count_nonzero(mask))
        return cls(box, tuple(array_shape), n_pixels, packed, _Values.of(old), _Values.of(new))

    @property
    def nbytes(self) -> int:
        """Approximate memory in bytes."""
        return 500 + len(self.packed_mask) + self.old.nbytes + self.new.nbytes

    @property
    def counts(self) -> Counts:
        """Number of pixels that each label gains by the change; negative if it loses pixels."""
        return _difference(self.old.unpacked(), self.new.unpacked(), self.n_pixels)

    def is_applied_to(self, array: Any) -> bool:
        """True if all changed pixels of an array have their new labels."""
        labels = np.asarray(array[self.box])[self._mask()]
        return bool((labels == self.new.unpacked()).all())

    def undo(self, array: Any) -> Counts:
        """Restores the old labels of pixels that still have the new ones; returns the pixels that each label gains."""
        return self._swap(array, self.new, self.old)

    def redo(self, array: Any) -> Counts:
        """Writes the new labels of pixels that still have the old ones; returns the pixels that each label gains."""
        return self._swap(array, self.old, self.new)

    def _swap(self, array: Any, expected: _Values, replacement: _Values) -> Counts:
        before, after = expected.unpacked(), replacement.unpacked()
        if tuple(array.shape) != self.array_shape or not _fit(after, array.dtype):
            return {}  # the array was replaced
        mask = self._mask()
        part = np.asarray(array[self.box])
        is_expected = part[mask] == before
        if not is_expected.all():
            before, after = (one if one.ndim == 0 else one[is_expected] for one in (before, after))
            mask[mask] = is_expected
        _put(array, self.box, part, mask, after)
        return _difference(before, after, int(np.count_nonzero(is_expected)))

    def _mask(self) -> np.ndarray:
        shape = [part.stop - part.start for part in self.box]
        bits = np.frombuffer(zlib.decompress(self.packed_mask), np.uint8)
        return np.unpackbits(bits, count=int(np.prod(shape))).view(bool).reshape(shape)


def write(array: Any, box: Slices, mask: np.ndarray, label: int) -> PixelChange | None:
    """Sets the label of pixels.

    Args:
        array: Labels, a NumPy or zarr array, for example.
        box: Box of the array.
        mask: Bool, of the shape of the box; True for pixels to set.
        label: The new label.

    Returns:
        The change; None if all these pixels already had the label.
    """
    part = np.asarray(array[box])
    changed = mask & (part != label)
    if not changed.any():
        return None
    new = np.asarray(label, part.dtype)
    change = PixelChange.of(box, array.shape, changed, part[changed], new)
    _put(array, box, part, changed, new)
    return change


def changes_of_paint(value: Iterable[Any], array: Any) -> list[PixelChange]:
    """The changes in the `paint` event of a Labels layer.

    Events of the brush, the fill bucket and the polygon tool have a box, a mask in it (None for the whole box), the old labels
    and the new one; those of `data_setitem` have indices, old and new labels. napari may emit them before it writes, so the
    array is not read.

    Args:
        value: The value of the event.
        array: The array of the layer; only its shape is used.

    Raises:
        ValueError: If the value has neither form.
    """
    shape = tuple(array.shape)
    changes = []
    for atom in value:
        if hasattr(atom, 'slice_key'):
            box = tuple(slice(*part.indices(length)[:2]) for part, length in zip(atom.slice_key, shape, strict=True))
            sides = [part.stop - part.start for part in box]
            mask = np.ones(sides, bool) if atom.mask is None else np.asarray(atom.mask).reshape(sides)
            old = np.asarray(atom.old_values).ravel()
            changes.append(PixelChange.of(box, shape, mask, old, np.asarray(atom.new_value, old.dtype)))
        elif len(atom) == 3 and len(atom[0]) == len(shape):
            changes.append(_of_indices(*atom, shape))
        else:
            raise ValueError(f'a paint event holds {atom!r:.80}; expected a box with a mask, or indices and labels')
    return changes


def total(counts: Iterable[Counts]) -> Counts:
    """The sum of several counts."""
    summed: Counter[int] = Counter()
    for one in counts:
        summed.update(one)
    return summed


def areas_in(array: LazyArray) -> Counts:
    """Number of pixels of each label except 0; the array is read block by block."""
    parts = (np.asarray(array[block]) for block in blocks(array.shape))
    return total(dict(_counted(part[part != 0])) for part in parts)


def _fit(labels: np.ndarray, dtype: np.dtype) -> bool:
    """True if a dtype can represent all labels; NumPy would wrap the others."""
    limits = np.iinfo(dtype)
    return np.can_cast(labels.dtype, dtype) or (limits.min <= labels.min() and labels.max() <= limits.max)


def _put(array: Any, box: Slices, part: np.ndarray, mask: np.ndarray, labels: np.ndarray) -> None:
    """Sets the labels of a mask in a part of an array, and writes the part back unless it is a view of the array."""
    if labels.ndim == 0:
        np.copyto(part, labels, where=mask)
    else:
        part[mask] = labels
    if not (isinstance(array, np.ndarray) and np.may_share_memory(part, array)):
        array[box] = part


def _difference(old: np.ndarray, new: np.ndarray, n_pixels: int) -> Counts:
    counts = Counter(dict(_counted(new, n_pixels)))
    counts.subtract(dict(_counted(old, n_pixels)))
    return counts


def _counted(values: np.ndarray, n_pixels: int = 0) -> Iterator[tuple[int, int]]:
    """Each label with the number of its pixels; a value of shape () stands for `n_pixels` pixels."""
    if values.ndim == 0:
        yield int(values), n_pixels
    elif values.size and values.min() >= 0 and values.max() < _MAX_BINS:
        numbers = np.bincount(values.astype(np.intp, copy=False))
        yield from ((int(label), int(numbers[label])) for label in np.flatnonzero(numbers))
    else:
        labels, numbers = np.unique(values, return_counts=True)
        yield from zip(labels.tolist(), numbers.tolist(), strict=True)


def _of_indices(indices: Any, old: Any, new: Any, shape: tuple[int, ...]) -> PixelChange:
    pixels = np.stack([np.ravel(part) for part in np.broadcast_arrays(*indices)])
    pixels = np.where(pixels < 0, pixels + np.array(shape)[:, None], pixels)
    starts, stops = pixels.min(axis=1), pixels.max(axis=1) + 1
    sides = tuple((stops - starts).tolist())
    flat, first = np.unique(np.ravel_multi_index(tuple(pixels - starts[:, None]), sides), return_index=True)
    mask = np.zeros(sides, bool)
    mask.flat[flat] = True
    old, new = np.ravel(old), np.asarray(new)
    new = new if new.ndim == 0 else np.ravel(np.broadcast_to(new, pixels.shape[1]))[first]
    box = tuple(slice(int(start), int(stop)) for start, stop in zip(starts, stops, strict=True))
    return PixelChange.of(box, shape, mask, old[first], new)
