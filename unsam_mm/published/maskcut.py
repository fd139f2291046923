"""Divide step: large objects of an image by normalized cuts of its patch graph (MaskCut).

`MaskCutDivider` needs only patch features; `unsam_mm.published.cutler` has a detector with the same interface.

Source: CutLER, section 3.1 (MaskCut); TokenCut (the normalized cut and the component of the seed).
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh, lobpcg

from unsam_mm.masks.ops import mask_iou
from unsam_mm.pseudo_masks.vit import PatchFeatureExtractor
from unsam_mm.threads import without_warnings

_WEAK_EDGE = 1e-5
"""Weight of edges between dissimilar patches, which keeps the graph connected."""
_LANCZOS_VECTORS = 12
_LANCZOS_TOLERANCE = 1e-5
_BLOCK_VECTORS = 4
_MIN_IOU_AFTER_FILLING = 0.5

Divider = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Finds (N, H, W) bool masks, and their (N,) float32 scores in [0, 1], in an (H, W, 3) uint8 RGB image."""


class MaskCutDivider:
    """MaskCut without its CRF: square input, normalized cuts, nearest-neighbour upsampling, removal of overlaps.

    Args:
        extractor: Feature extractor; DINO ViT-B/8, facet 'key', at 480 px in the paper. The image is resized to a
            square of its `long_side_px`, as in the release.
        centre: True to subtract the mean of the features, see `centred`.
        options: Further arguments of `maskcut`.
    """

    def __init__(self, extractor: PatchFeatureExtractor, centre: bool = True, **options) -> None:
        self._extract, self._centre, self._options = extractor, centre, options

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Masks in the order of the cuts, with holes filled; a mask that is more hole than mask is removed.

        Args:
            image: (H, W, 3) uint8 RGB.

        Returns:
            (N, H, W) bool masks, and (N,) float32 scores 1, 1/2, 1/3, ...: MaskCut orders its masks but gives no
            scores. N may be 0. Masks are disjoint, except that a mask also contains earlier masks that it encloses.
        """
        features = self._extract(resize_to_square(image, self._extract.long_side_px))
        features = centred(features) if self._centre else features
        height, width = image.shape[:2]
        masks, free = [], np.ones((height, width), bool)
        for patches in maskcut(features, **self._options):
            mask = _upsample_nearest(patches, (height, width)) & free
            filled = ndimage.binary_fill_holes(mask)
            if mask_iou(filled, mask) >= _MIN_IOU_AFTER_FILLING:
                masks.append(filled)
                free &= ~filled
        scores = 1 / np.arange(1, len(masks) + 1, dtype=np.float32)
        return np.array(masks, bool).reshape(-1, height, width), scores


def maskcut(
    features: np.ndarray,
    n_masks: int = 3,
    tau: float = 0.15,
    min_area: float = 0.01,
    max_overlap: float = 0.5,
    max_corners: int = 2,
    overlap_with: str = 'all',
    repeat_rejected: bool = False,
    found_patches: str = 'zero',
) -> np.ndarray:
    """Iterated normalized cuts of the patch graph (MaskCut).

    Patches are connected if the cosine of their features exceeds `tau`. The second eigenvector of the normalized graph
    bipartitions them. The part with the largest value is the foreground, unless it contains too many corners of the
    image; the connected component of the largest value is the mask. The features of its patches are then set to zero,
    and the graph is cut again.

    In the paper a part with 2 or more corners is background, in the release one with 3 or more (`max_corners`). Both
    also require that the foreground contains the patch with the largest absolute value. The sign of an eigenvector is
    arbitrary; here it is chosen so that this patch is positive, so the result does not depend on the solver.

    Args:
        features: (h, w, C) patch features of an image.
        n_masks: Number of cuts.
        tau: Cosine threshold of similar patches; 0.15 in the paper, for keys of DINO. See `centred` for other ViTs.
        min_area: Masks after the first with at most this fraction of the patches are rejected.
        max_overlap: Masks after the first with a larger IoU with an earlier mask are rejected.
        max_corners: Maximum number of image corners in the foreground: 1 in the paper, 2 in the release.
        overlap_with: 'all' earlier masks, or only the 'last' one, as in the release.
        repeat_rejected: After a rejection the release continues as if the mask had been empty: it cuts the same graph
            again, finds the same mask, and accepts it, since nothing overlaps an empty mask. True, with `overlap_with`
            'last', reproduces this; by default the search ends.
        found_patches: 'zero' sets the features of found patches to zero, as published. They then form a cluster with
            weak edges, whose eigenvalue is its fraction of the image, so after a large first object the second cut
            finds the same object again: on 5 of 12 sample images of scikit-image MaskCut ends there. 'remove' removes
            the found patches from the graph, which is not published.

    Returns:
        (N, h, w) bool masks on the patch grid, N <= n_masks, in order of discovery. They may overlap.
    """
    rows, columns, channels = features.shape
    similar = similar_patches(features.reshape(-1, channels), tau)
    masks: list[np.ndarray] = []
    previous: list[np.ndarray] = []
    in_graph = np.ones((rows, columns), bool)
    for _ in range(n_masks):
        values = np.zeros((rows, columns), np.float32)
        values[in_graph] = second_eigenvector(similar)
        mask = _foreground(values, in_graph, max_corners)
        if not mask.any():  # all patches are equal
            break
        if masks and (mask.mean() <= min_area or any(mask_iou(mask, other) > max_overlap for other in previous)):
            if not repeat_rejected:
                break
            previous = masks if overlap_with == 'all' else []
            continue
        masks.append(mask)
        previous = masks if overlap_with == 'all' else [mask]
        found = mask[in_graph]
        if found_patches == 'zero':
            similar[found] = similar[:, found] = 0
        else:
            similar = similar[~found][:, ~found]
            in_graph &= ~mask
        if not similar.any():
            break
    return np.array(masks, bool).reshape(-1, rows, columns)


def similar_patches(features: np.ndarray, tau: float) -> np.ndarray:
    """(P, P) uint8: 1 where the cosine of two rows of a (P, C) array exceeds `tau`."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    directions = (features / np.maximum(lengths, 1e-12)).astype(np.float32)
    similar = np.empty((len(features), len(features)), np.uint8)
    for start in range(0, len(features), 512):  # in chunks, since float32 cosines take four times the memory
        np.greater(
            directions[start : start + 512] @ directions.T, tau, out=similar[start : start + 512], casting='unsafe'
        )
    return similar


def second_eigenvector(similar: np.ndarray) -> np.ndarray:
    """Solves (D - A) y = lambda D y for the second smallest lambda, with A = 1 for similar patches and 1e-5 elsewhere.

    Lanczos on D^-1/2 A D^-1/2 with the known first eigenvector deflated. A is not materialised: it is a constant plus a
    binary matrix of bytes. For keys of photographs at 60 x 60 patches this takes a hundredth of the time of the dense
    solver and gives the same bipartition.

    Args:
        similar: (P, P) uint8, symmetric, 1 between similar patches.

    Returns:
        (P,) float32; the entry that is largest in absolute value is positive.
    """
    n_patches = len(similar)
    if n_patches < 4:  # too few for Lanczos
        return np.eye(1, n_patches, dtype=np.float32)[0]
    degree = _WEAK_EDGE * n_patches + (1 - _WEAK_EDGE) * similar.sum(axis=1, dtype=np.float64)
    scale = (1 / np.sqrt(degree)).astype(np.float32)
    first = (np.sqrt(degree) / np.sqrt(degree.sum())).astype(np.float32)

    def multiply(vector: np.ndarray) -> np.ndarray:
        scaled = scale * vector.ravel()
        joined = _multiply_bytes(similar, scaled)
        joined *= np.float32(1 - _WEAK_EDGE)
        joined += np.float32(_WEAK_EDGE) * scaled.sum()
        # Deflation moves the eigenvalue 1 of the first eigenvector to -1, the lower bound of all eigenvalues.
        return scale * joined - first * (2 * (first @ vector.ravel()))

    operator = LinearOperator((n_patches, n_patches), matvec=multiply, dtype=np.float32)
    start = np.random.default_rng(0).standard_normal(n_patches).astype(np.float32)
    n_vectors = min(_LANCZOS_VECTORS, n_patches - 1)
    try:
        _, vectors = eigsh(operator, k=1, which='LA', ncv=n_vectors, tol=_LANCZOS_TOLERANCE, v0=start, maxiter=1000)
    except ArpackError:
        vectors = _by_lobpcg(operator, first)
    values = scale * vectors[:, 0]
    return values * np.sign(values[np.abs(values).argmax()])


def _by_lobpcg(operator: LinearOperator, first: np.ndarray) -> np.ndarray:
    """(P, 1) eigenvector of the largest eigenvalue other than that of `first`, by LOBPCG.

    It takes about thirty times as long as Lanczos, but gives an approximation where Lanczos does not converge.
    """
    if len(first) < 6 * _BLOCK_VECTORS:  # too few rows for LOBPCG
        return np.linalg.eigh(operator @ np.eye(len(first), dtype=np.float32))[1][:, [-1]]
    start = np.random.default_rng(0).standard_normal((len(first), _BLOCK_VECTORS))
    with without_warnings(UserWarning):  # no convergence; the approximation is good enough
        values, vectors = lobpcg(
            operator, start, Y=first[:, None].astype(np.float64), largest=True, tol=_LANCZOS_TOLERANCE, maxiter=200
        )
    return vectors[:, [values.argmax()]].astype(np.float32)


def centred(features: np.ndarray) -> np.ndarray:
    """(h, w, C) features minus their mean over the image, so that thresholds published for DINO apply to DINOv2.

    The published thresholds are cosines of DINO's keys, whose distribution is centred at zero. DINOv2's keys share a
    large mean: the cosine is 0.77 or more for 95 % of the pairs of patches of an image, above every threshold of the
    paper. Without the mean, on five photographs at 60 x 60 patches, merging down to a cosine of 0.8, 0.6 and 0.1 leaves
    83, 31 and 6 regions on average; published for DINO's ViT-B/8 are 108, 38 and 2 (HASSOD, 480 px).
    """
    return features - features.mean(axis=(0, 1), dtype=np.float64).astype(features.dtype)


def resize_to_square(
    image: np.ndarray, side_px: int, resample: Image.Resampling = Image.Resampling.LANCZOS
) -> np.ndarray:
    """An (H, W, 3) uint8 image resized to (side_px, side_px, 3); the aspect ratio is not preserved."""
    return np.asarray(Image.fromarray(image).resize((side_px, side_px), resample))


def _foreground(values: np.ndarray, in_graph: np.ndarray, max_corners: int) -> np.ndarray:
    """(h, w) bool: the connected component of the largest value in the foreground of an eigenvector."""
    foreground = values > values[in_graph].mean()
    if (foreground & in_graph)[[0, 0, -1, -1], [0, -1, 0, -1]].sum() > max_corners:
        values, foreground = -values, ~foreground
    foreground &= in_graph
    components, _ = ndimage.label(foreground)
    component = components[np.unravel_index(np.where(in_graph, values, -np.inf).argmax(), values.shape)]
    return (components == component) & foreground


def _upsample_nearest(mask: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    rows, columns = (
        ((np.arange(n_pixels) + 0.5) * n_cells / n_pixels).astype(int)
        for n_pixels, n_cells in zip(size_hw, mask.shape, strict=True)
    )
    return mask[np.ix_(rows, columns)]


@numba.njit(nogil=True, cache=True, fastmath=True)
def _multiply_bytes(matrix, vector):
    """(P,) float32 product of a (P, P) uint8 matrix and a vector."""
    product = np.empty(matrix.shape[0], np.float32)
    for row in range(matrix.shape[0]):
        total = np.float32(0.0)
        for column in range(matrix.shape[1]):
            total += np.float32(matrix[row, column]) * vector[column]
        product[row] = total
    return product
