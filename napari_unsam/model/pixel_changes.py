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
"""How many pixels each label has gained, or lost if negative."""

_FASTEST = 1  # of zlib: masks of objects shrink by a hundred times all the same
_MAX_BINS = 1 << 20  # labels up to this are counted in bins, which is ten times as quick as sorting them


@dataclass(frozen=True, eq=False)
class _Values:
    """Labels of the changed pixels, in C order: one number if all are the same."""

    packed: int | bytes
    dtype: np.dtype

    @classmethod
    def of(cls, values: np.ndarray) -> _Values:
        first = values.flat[0]
        is_uniform = values.ndim == 0 or bool((values == first).all())
        return cls(int(first) if is_uniform else zlib.compress(values.tobytes(), _FASTEST), values.dtype)

    def unpacked(self) -> np.ndarray:
        """(P,) values, or () if all are the same."""
        if isinstance(self.packed, int):
            return np.asarray(self.packed, self.dtype)
        return np.frombuffer(zlib.decompress(self.packed), self.dtype)

    @property
    def nbytes(self) -> int:
        return len(self.packed) if isinstance(self.packed, bytes) else 0


@dataclass(frozen=True, eq=False)
class PixelChange:
    """Pixels that were given other labels.

    Attributes:
        box: Box of the array that holds them, one slice per axis.
        array_shape: Of the array.
        n_pixels: How many they are.
        packed_mask: Which pixels of the box, one bit each, compressed.
        old: Their labels before.
        new: Their labels after.
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
        """A change that was made already.

        Args:
            box: Box of the array, one slice with a start and a stop per axis.
            array_shape: Of the array.
            mask: Bool, shape of the box; at least one pixel.
            old: (P,) labels of its pixels before, or () for all.
            new: (P,) labels of its pixels after, or () for all.
        """
        packed = zlib.compress(np.packbits(mask), _FASTEST)
        n_pixels = int(np.count_nonzero(mask))
        return cls(box, tuple(array_shape), n_pixels, packed, _Values.of(old), _Values.of(new))

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it takes, about."""
        return 500 + len(self.packed_mask) + self.old.nbytes + self.new.nbytes

    @property
    def counts(self) -> Counts:
        """What it has changed."""
        return _difference(self.old.unpacked(), self.new.unpacked(), self.n_pixels)

    def is_in(self, array: Any) -> bool:
        """Whether its pixels have their new labels."""
        held = np.asarray(array[self.box])[self._mask()]
        return bool((held == self.new.unpacked()).all())

    def undo(self, array: Any) -> Counts:
        """Restores the old labels where pixels still have the new ones; other pixels were changed since."""
        return self._swap(array, self.new, self.old)

    def redo(self, array: Any) -> Counts:
        """Writes the new labels where pixels have their old ones."""
        return self._swap(array, self.old, self.new)

    def _swap(self, array: Any, held: _Values, given: _Values) -> Counts:
        before, after = held.unpacked(), given.unpacked()
        if tuple(array.shape) != self.array_shape or not _fit(after, array.dtype):
            return {}  # another array was put in its place
        mask = self._mask()
        part = np.asarray(array[self.box])
        is_held = part[mask] == before
        if not is_held.all():
            before, after = (one if one.ndim == 0 else one[is_held] for one in (before, after))
            mask[mask] = is_held
        _put(array, self.box, part, mask, after)
        return _difference(before, after, int(np.count_nonzero(is_held)))

    def _mask(self) -> np.ndarray:
        shape = [part.stop - part.start for part in self.box]
        bits = np.frombuffer(zlib.decompress(self.packed_mask), np.uint8)
        return np.unpackbits(bits, count=int(np.prod(shape))).view(bool).reshape(shape)


def write(array: Any, box: Slices, mask: np.ndarray, label: int) -> PixelChange | None:
    """Gives pixels of an array a label.

    Args:
        array: Labels; what takes and gives parts as numpy does.
        box: Box of the array, one slice with a start and a stop per axis.
        mask: Bool, shape of the box.
        label: What to write.

    Returns:
        What was changed; None if all pixels had that label already.
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

    The brush, the fill bucket and the polygon tool give a box, a mask in it (None for the whole box), the old labels and the
    new one; `data_setitem` gives indices, old and new labels. The event may come before napari writes, so the array is not
    read.

    Args:
        value: Of the event.
        array: Of the layer.

    Raises:
        ValueError: If it is neither.
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
    """The sum of what several changes did."""
    summed: Counter[int] = Counter()
    for one in counts:
        summed.update(one)
    return summed


def areas_in(array: LazyArray) -> Counts:
    """How many pixels each label but 0 has in an array, which is read block by block."""
    parts = (np.asarray(array[block]) for block in blocks(array.shape))
    return total(dict(_counted(part[part != 0])) for part in parts)


def _fit(labels: np.ndarray, dtype: np.dtype) -> bool:
    """Whether an array of a type can hold labels; NumPy would write others."""
    limits = np.iinfo(dtype)
    return np.can_cast(labels.dtype, dtype) or (limits.min <= labels.min() and labels.max() <= limits.max)


def _put(array: Any, box: Slices, part: np.ndarray, mask: np.ndarray, labels: np.ndarray) -> None:
    """Writes labels where a mask is set in a part of an array that was read."""
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
    """Each label with the number of its pixels, which is asked for if all have the same label."""
    if values.ndim == 0:
        yield int(values), n_pixels
    elif values.size and values.min() >= 0 and values.max() < _MAX_BINS:
        numbers = np.bincount(values.astype(np.intp, copy=False))
        yield from ((int(label), int(numbers[label])) for label in np.flatnonzero(numbers))
    else:
        labels, numbers = np.unique(values, return_counts=True)
        yield from zip(labels.tolist(), numbers.tolist(), strict=True)


def _of_indices(indices: Any, old: Any, new: Any, shape: tuple[int, ...]) -> PixelChange:
    places = np.stack([np.ravel(part) for part in np.broadcast_arrays(*indices)])
    places = np.where(places < 0, places + np.array(shape)[:, None], places)
    starts, stops = places.min(axis=1), places.max(axis=1) + 1
    sides = tuple((stops - starts).tolist())
    flat, first = np.unique(np.ravel_multi_index(tuple(places - starts[:, None]), sides), return_index=True)
    mask = np.zeros(sides, bool)
    mask.flat[flat] = True
    old, new = np.ravel(old), np.asarray(new)
    new = new if new.ndim == 0 else np.ravel(np.broadcast_to(new, places.shape[1]))[first]
    box = tuple(slice(int(start), int(stop)) for start, stop in zip(starts, stops, strict=True))
    return PixelChange.of(box, shape, mask, old[first], new)
