"""Clusters of the patches of a crop, their masks as runs of pixels, and non-maximum suppression.

Pairwise merging of patches makes a binary tree; the clusters at a threshold of the published procedure are a cut of it.
Patches are numbered depth-first, so a cluster is an interval of numbers. Two clusters nest, and their IoU is the ratio
of their areas, or they are disjoint. Masks are stored as runs of pixels in column-major order, as in COCO's RLE, so the
cost of a mask depends on the length of its boundary, not on the size of the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from pycocotools import mask as coco_mask
from scipy import ndimage

from unsam_mm.masks.ops import box_intersections
from unsam_mm.masks.rle import Rle, areas_and_boxes, join_runs
from unsam_mm.masks.tree import Tree
from unsam_mm.pseudo_masks.merging import merge_regions

_CUBIC = -0.75  # parameter of Keys' cubic kernel, as in torch's bicubic interpolation
_OUTER = np.float32(-_CUBIC / 4)  # largest absolute sum of the two outer weights, half way between two centres
_HALF = np.float32(0.5 + 1e-5)  # exact halves are common on a regular grid; the offset makes rounding irrelevant


@dataclass(frozen=True)
class PatchClusters:
    """Clusters of a patch grid at several merge thresholds.

    Attributes:
        order: (P,) int64 patch numbers (row-major) in depth-first order; patches outside the mask come last.
        first: (K,) int64; cluster k contains the patches ``order[first[k]:end[k]]``.
        end: (K,) int64; see `first`.
        levels: (K, T) bool; True if cluster k exists at threshold t.
        grid_hw: Rows and columns of the grid.
    """

    order: np.ndarray
    first: np.ndarray
    end: np.ndarray
    levels: np.ndarray
    grid_hw: tuple[int, int]

    def __len__(self) -> int:
        return len(self.first)

    def patches(self, cluster: int) -> np.ndarray:
        """(h, w) bool: the patches of one cluster."""
        member = np.zeros(self.grid_hw[0] * self.grid_hw[1], bool)
        member[self.order[self.first[cluster] : self.end[cluster]]] = True
        return member.reshape(self.grid_hw)


def cluster_patches(
    grid: np.ndarray, thresholds: tuple[float, ...], min_patches: int = 4, inside: np.ndarray | None = None
) -> PatchClusters:
    """Merges adjacent patches by the cosine of mean features, and finds the clusters at each threshold.

    The published loop stops when no pair reaches the first threshold, lists the clusters, and continues with the next
    threshold. The merges do not depend on the stops, so a single tree contains the clusters of all thresholds.

    Args:
        grid: (h, w, C) features; as published they are not normalised, so features of large norm have more weight.
        thresholds: Cosines in descending order.
        min_patches: Smaller clusters are left out.
        inside: (h, w) bool, True for patches that are clustered; by default all.

    Returns:
        The distinct clusters, without the cluster of all patches, which is the object itself.
    """
    rows, columns, channels = grid.shape
    inside = np.ones((rows, columns), bool) if inside is None else inside
    components, n_components = ndimage.label(inside)
    number = np.full(rows * columns, -1)
    orders, firsts, ends, levels = [], [], [], []
    n_ordered = 0
    for component in range(1, n_components + 1):  # one tree for each component
        patches = np.flatnonzero(components.ravel() == component)
        number[patches] = np.arange(len(patches))
        features = grid.reshape(-1, channels)
        features = features if len(patches) == len(features) else features[patches]
        edges = _grid_edges(np.where(components == component, number.reshape(rows, columns), -1))
        parent, similarity = merge_regions(features, np.ones(len(patches)), edges)
        tree = Tree(parent, np.zeros(len(parent)))
        present = tree.renumbered(_levels(parent, similarity, thresholds))
        kept = present.any(axis=1) & (tree.end_leaf - tree.first_leaf >= min_patches)
        if n_components == 1:
            kept[-1] = False
        orders.append(patches[tree.region_of_leaf])
        firsts.append(tree.first_leaf[kept] + n_ordered)
        ends.append(tree.end_leaf[kept] + n_ordered)
        levels.append(present[kept])
        n_ordered += len(patches)
    empty = np.zeros(0, np.int64)
    return PatchClusters(
        order=np.concatenate([*orders, np.flatnonzero(~inside.ravel())]),
        first=np.concatenate([empty, *firsts]),
        end=np.concatenate([empty, *ends]),
        levels=np.concatenate([np.zeros((0, len(thresholds)), bool), *levels]),
        grid_hw=(rows, columns),
    )


def _grid_edges(number: np.ndarray) -> np.ndarray:
    """(E, 2) pairs of the numbers of 4-neighbouring cells, without cells of number -1."""
    pairs = np.concatenate(
        [
            np.stack([number[:, :-1].ravel(), number[:, 1:].ravel()], axis=1),
            np.stack([number[:-1].ravel(), number[1:].ravel()], axis=1),
        ]
    )
    return pairs[(pairs >= 0).all(axis=1)]


def _levels(parent: np.ndarray, similarity: np.ndarray, thresholds: tuple[float, ...]) -> np.ndarray:
    """(N, T) bool: True if node n is a cluster when the loop stops at threshold t."""
    n_leaves = len(similarity) + 1
    # Similarities are not monotone; the loop stops at the first one below the threshold.
    lowest = np.minimum.accumulate(similarity)
    n_merges = np.array([np.count_nonzero(lowest >= threshold) for threshold in thresholds])
    # Number of the merge that forms each node, and number of the merge that joins it with another node.
    formed = np.maximum(np.arange(len(parent)) - n_leaves, -1)
    joined = np.where(parent >= 0, parent - n_leaves, n_leaves)
    return (formed[:, None] < n_merges) & (n_merges <= joined[:, None])


@numba.njit(nogil=True, cache=True)
def intersect_runs(a, b):
    """(R, 2) int64: the intersection of two sorted sets of runs."""
    common = np.empty((len(a) + len(b), 2), np.int64)
    n_common = 0
    i, j = 0, 0
    if len(a):
        j = np.searchsorted(b[:, 1], a[0, 0], side='right')
    while i < len(a) and j < len(b):
        low, high = max(a[i, 0], b[j, 0]), min(a[i, 1], b[j, 1])
        if low < high:
            common[n_common, 0], common[n_common, 1] = low, high
            n_common += 1
        if a[i, 1] < b[j, 1]:
            i += 1
        else:
            j += 1
    return common[:n_common].copy()


def suppress_nested(
    first: np.ndarray,
    end: np.ndarray,
    area: np.ndarray,
    max_iou: float,
    window: int | None = None,
    runs: list[np.ndarray] | None = None,
) -> np.ndarray:
    """Non-maximum suppression of clusters of one tree, which nest or are disjoint; the larger cluster is kept.

    Args:
        first: (N,) starts of the intervals of the clusters, in descending order of area.
        end: (N,) exclusive ends of the intervals.
        area: (N,) areas in pixels. The ratio of areas is an upper bound of the IoU, and equals it for nested masks.
        max_iou: A cluster with a larger IoU with a kept cluster is removed.
        window: A kept cluster is compared with this number of following clusters; by default with all.
        runs: N masks of the clusters, if these do not nest exactly, as after interpolation. Pairs whose upper bound
            exceeds `max_iou` are compared by their masks.

    Returns:
        (N,) bool, True for clusters that are kept.
    """
    offsets = np.cumsum([0, *(len(mask) for mask in runs or ())])
    return _suppress_nested(
        np.asarray(first, np.int64),
        np.asarray(end, np.int64),
        np.asarray(area, np.float64),
        max_iou,
        len(first) if window is None else window,
        np.concatenate([np.zeros((0, 2), np.int64), *(runs or ())]),
        offsets,
    )


@numba.njit(nogil=True, cache=True)
def _suppress_nested(first, end, area, max_iou, window, runs, offsets):
    kept = np.ones(len(first), np.bool_)
    for i in range(len(first)):
        if not kept[i]:
            continue
        for j in range(i + 1, min(i + 1 + window, len(first))):
            inside = first[i] <= first[j] and end[j] <= end[i]
            around = first[j] <= first[i] and end[i] <= end[j]
            shared = min(area[i], area[j])
            if not (inside or around) or shared / max(area[i], area[j]) <= max_iou:
                continue
            if len(runs):
                common = intersect_runs(runs[offsets[i] : offsets[i + 1]], runs[offsets[j] : offsets[j + 1]])
                shared = (common[:, 1] - common[:, 0]).sum()
            kept[j] = kept[j] and shared / (area[i] + area[j] - shared) <= max_iou
    return kept


def suppress_masks(rles: list[Rle], max_iou: float) -> np.ndarray:
    """Non-maximum suppression of masks as RLEs; of two similar masks the larger is kept.

    Areas and boxes give an upper bound of the IoU, so few pairs are compared.

    Args:
        rles: N masks of one image.
        max_iou: A mask with a larger IoU with a larger kept mask is removed.

    Returns:
        Indices of the kept masks, ascending.
    """
    areas, boxes = areas_and_boxes(rles)
    kept = np.zeros(0, np.int64)
    for i in np.argsort(-areas, kind='stable'):
        close = kept[areas[i] / areas[kept] > max_iou]
        close = close[box_intersections(boxes[close], boxes[i]) / areas[close] > max_iou]
        if not len(close) or not (coco_mask.iou([rles[i]], [rles[j] for j in close], [0] * len(close)) > max_iou).any():
            kept = np.append(kept, i)
    return np.sort(kept)


def bicubic_masks(clusters: PatchClusters, box_xyxy: tuple[int, int, int, int], height: int) -> list[np.ndarray]:
    """Masks of clusters: their patches upsampled to the box by bicubic interpolation, thresholded at 0.5.

    Args:
        clusters: Clusters of the patches of a crop.
        box_xyxy: The crop in the image, in pixels; right and bottom edges exclusive.
        height: Height of the image.

    Returns:
        For each cluster (R, 2) int64 starts and exclusive ends of its runs, in column-major pixel indices of the image.
    """
    x0, y0, x1, y1 = box_xyxy
    rows, columns = _cubic_weights(clusters.grid_hw[0], y1 - y0), _cubic_weights(clusters.grid_hw[1], x1 - x0)
    masks = []
    for cluster in range(len(clusters)):
        member = clusters.patches(cluster).astype(np.float32)
        masks.append(join_runs(*_bicubic_runs(member, *rows, *columns, x0, y0, height).T))
    return masks


def _cubic_weights(n_cells: int, n_pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """For each pixel the last cell whose centre is not after it (-1 if none), and (n_pixels, 4) float32 cubic weights.

    The weights belong to the cells at the offsets -1, 0, 1 and 2 from this cell; cells beyond the ends repeat the
    outermost cell.
    """
    position = (np.arange(n_pixels) + 0.5) * n_cells / n_pixels - 0.5
    base = np.floor(position)
    distance = np.abs(position - base - np.arange(-1, 3)[:, None]).T
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * _CUBIC - 4 * _CUBIC
    return base.astype(np.int64), np.where(distance <= 1, near, far).astype(np.float32)


@numba.njit(nogil=True, cache=True)
def _bicubic_runs(member, row_base, row_weights, column_base, column_weights, x0, y0, height):
    """Runs of the pixels whose interpolated value exceeds 0.5, in a crop at (x0, y0) of an image of the given height.

    The two inner weights are never negative, the two outer ones never positive, with an absolute sum of at most
    `_OUTER`. This bounds the values between two patch centres, so only cells on the boundary are interpolated.
    """
    n_rows, n_columns = member.shape
    top, bottom, left, right = _bounds(member)
    columns = np.ascontiguousarray(member.T)
    # No value exceeds 0.5 more than one patch beyond the outermost patch centres.
    x_low, x_high = np.searchsorted(column_base, left - 1), np.searchsorted(column_base, right + 1)
    y_end = np.searchsorted(row_base, bottom + 1)
    cell_start = np.searchsorted(row_base, np.arange(top - 1, bottom + 2))
    runs = np.empty((max((x_high - x_low) * 2, 16), 2), np.int64)
    n_runs, last_column, last_base = 0, 0, -2
    line, new_line = np.zeros(n_rows, np.float32), np.zeros(n_rows, np.float32)
    for x in range(x_low, x_high):
        same = column_base[x] == last_base
        last_base = column_base[x]
        before, at = columns[max(last_base - 1, 0)], columns[max(last_base, 0)]
        after, behind = columns[min(last_base + 1, n_columns - 1)], columns[min(last_base + 2, n_columns - 1)]
        w0, w1, w2, w3 = column_weights[x]
        for row in range(top, bottom + 1):
            total = w0 * before[row] + w1 * at[row] + w2 * after[row] + w3 * behind[row]
            same &= abs(total - line[row]) < 1e-6
            new_line[row] = total
        n_before = n_runs
        if n_runs + (y_end - cell_start[0]) // 2 + 1 >= len(runs):
            runs = np.concatenate((runs, np.empty((len(runs) + height, 2), np.int64)))
        if same:  # equal to the previous column, as inside a cluster
            for run in range(last_column, n_before):
                runs[n_runs] = runs[run] + height
                n_runs += 1
        else:
            line, new_line = new_line, line
            column_start = (x + x0) * height + y0
            start = -1
            for cell in range(len(cell_start) - 1):
                base = top - 1 + cell
                a, b = line[max(base - 1, 0)], line[max(base, 0)]
                c, d = line[min(base + 1, n_rows - 1)], line[min(base + 2, n_rows - 1)]
                lowest, highest = min(b, c), max(b, c)
                sure = (
                    min(lowest, lowest + _OUTER * (lowest - max(a, d))) > _HALF + 1e-4
                    or max(highest, highest + _OUTER * (highest - min(a, d))) < _HALF - 1e-4
                )
                y_stop = cell_start[cell] + 1 if sure else cell_start[cell + 1]
                for y in range(cell_start[cell], min(y_stop, cell_start[cell + 1])):
                    weights = row_weights[y]
                    value = weights[0] * a + weights[1] * b + weights[2] * c + weights[3] * d
                    if value > _HALF:
                        start = y if start < 0 else start
                    elif start >= 0:
                        runs[n_runs] = column_start + start, column_start + y
                        n_runs += 1
                        start = -1
            if start >= 0:
                runs[n_runs] = column_start + start, column_start + y_end
                n_runs += 1
        last_column = n_before
    return runs[:n_runs].copy()


@numba.njit(nogil=True, cache=True)
def _bounds(member):
    """First and last row, first and last column of the non-zero values, inclusive."""
    top, bottom, left, right = member.shape[0], -1, member.shape[1], -1
    for row in range(member.shape[0]):
        for column in range(member.shape[1]):
            if member[row, column] > 0:
                top, bottom = min(top, row), max(bottom, row)
                left, right = min(left, column), max(right, column)
    return top, bottom, left, right
