"""The review queue: certainty of objects, and accepted objects."""

from __future__ import annotations

from dataclasses import dataclass, field

import numba
import numpy as np
import pandas as pd

from unsam_mm.masks.hierarchy import MaskHierarchy

SAME_IOU = 0.8
"""Minimum IoU of two regions that count as the same object."""

REVIEWED = 'reviewed'
"""Column of the features table: True once an object was accepted."""


def stability(tree: MaskHierarchy) -> np.ndarray:
    """(N,) float32 in [0, 1]: range of levels in which a region, or nearly the same region, exists.

    Its ancestors, its largest child, the largest child of that child and so on count as nearly the same region if their
    IoU with it is at least `SAME_IOU`. So a region stays stable if it gains or loses slivers.
    """
    return _stability(tree.parent, tree.area, tree.level.astype(np.float64), SAME_IOU).astype(np.float32)


@numba.njit(nogil=True, cache=True)
def _stability(parent, area, level, same_iou):
    n_nodes = len(parent)
    largest = np.full(n_nodes, -1)
    for node in range(n_nodes - 1):
        up = parent[node]
        if largest[up] < 0 or area[node] > area[largest[up]]:
            largest[up] = node
    spans = np.zeros(n_nodes)
    for node in range(n_nodes):
        up = node
        while up >= 0 and area[node] >= same_iou * area[up]:
            up = parent[up]
        end = 1.0 if up < 0 else level[up]
        low = node
        while largest[low] >= 0 and area[largest[low]] >= same_iou * area[node]:
            low = largest[low]
        begin = 0.0 if largest[low] < 0 else level[low]
        spans[node] = end - begin
    return spans


def certainty(features: pd.DataFrame) -> pd.Series:
    """Certainty of objects in [0, 1], comparable within one table.

    The mean of the relative ranks by stability, by score, and by closeness to the median size. On 26 micrographs of
    DSB2018, a correct object of Auto had a higher certainty than a wrong one in 62 % of pairs by stability alone, in
    72 % by score alone, and in 77 % by all three.

    Args:
        features: Rows of objects; missing values do not count, and a row without any has certainty 0.
    """
    cues = [features[name].astype(float) for name in ('stability', 'score') if name in features]
    if 'area_px' in features:
        sizes = np.log(features['area_px'].astype(float).clip(lower=1))
        cues.append(-(sizes - sizes.median()).abs())
    if not cues:
        return pd.Series(0.0, index=features.index)
    return pd.concat([cue.rank(pct=True) for cue in cues], axis=1).mean(axis=1).fillna(0.0)


def accepted(features: pd.DataFrame) -> np.ndarray:
    """(K,) bool: True for rows of accepted objects."""
    if REVIEWED not in features:
        return np.zeros(len(features), bool)
    return features[REVIEWED].eq(True).to_numpy(bool)


@dataclass(frozen=True)
class ReviewQueue:
    """Objects to review, the least certain first.

    Attributes:
        labels: Labels of all objects.
        done: Labels of the accepted objects.
        current: Label of the object being reviewed; None if there is none.
    """

    labels: tuple[int, ...]
    done: frozenset[int] = field(default_factory=frozenset)
    current: int | None = None

    @classmethod
    def of(cls, features: pd.DataFrame, current: int | None = None) -> ReviewQueue:
        """Makes the queue from a features table, whose column `index` contains the labels."""
        rows = features[features['index'] > 0] if 'index' in features else features.iloc[:0]
        if not len(rows):
            return cls(())
        order = certainty(rows).to_numpy().argsort(kind='stable')
        labels = tuple(int(label) for label in rows['index'].to_numpy()[order])
        done = frozenset(int(label) for label in rows['index'][accepted(rows)])
        return cls(labels, done, current if current in labels else None)

    @property
    def left(self) -> int:
        """Number of objects that are not accepted yet."""
        return len(self.labels) - len(self.done)

    def next(self) -> int | None:
        """The next object to review: after the current one, then from the start; None if all are done."""
        start = self.labels.index(self.current) + 1 if self.current in self.labels else 0
        for label in (*self.labels[start:], *self.labels[:start]):
            if label not in self.done:
                return label
        return None
