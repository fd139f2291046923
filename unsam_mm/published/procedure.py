"""UnSAM's divide-and-conquer as its paper describes it and as its code was released.

A divider finds a few large objects. Each is cropped and enlarged, its patches are clustered at six levels, and the
clusters become masks of its parts. Near-equal masks are suppressed, and what is left may be refined.

The paper and the released code differ in places, so there are two presets; `PublishedSettings` says for every value whose
it is. Both take any ViT, and need no download beyond it when they divide by MaskCut.

Source: UnSAM, section 3.2, algorithm 1 and appendix; the code of its authors.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from unsam_mm.errors import UnSAMError
from unsam_mm.images import as_rgb_uint8
from unsam_mm.masks.hierarchy import MaskHierarchy
from unsam_mm.masks.rle import Rle, encode_bitmaps, encode_runs, run_edges
from unsam_mm.pseudo_masks.vit import PatchFeatureExtractor, PatchFeatures
from unsam_mm.published.maskcut import Divider, MaskCutDivider, centred, squeezed
from unsam_mm.published.patch_tree import (
    BicubicPixels,
    PartitionPixels,
    PatchClusters,
    cluster_patches,
    draw_runs,
    intersect_runs,
    suppress_masks,
    suppress_nested,
)

_CHOICES = {
    'divide': ('maskcut', 'cutler'),
    'maskcut_overlap_with': ('all', 'last'),
    'maskcut_found_patches': ('zero', 'remove'),
    'crop_resample': ('bilinear', 'bicubic'),
    'nms_scope': ('global', 'per_mask'),
    'refine': ('none', 'partition', 'crf', 'cascadepsp'),
}


@dataclass(frozen=True)
class PublishedSettings:
    """Everything that decides which masks divide-and-conquer finds; the defaults are those of the paper.

    Attributes:
        vit: ViT of both steps. Paper and release: 'dino_vitb8'.
        facet: What is read from its last layer. Paper and release: 'key'.
        centre: Whether the mean of a grid is subtracted, which makes the thresholds, published for DINO, fit other
            ViTs; see `unsam_mm.published.maskcut.centred`. None: for all but DINO's, whose names start with 'dino_'.
        divide: 'cutler', the detector that paper and release use, whose weights are not free for commercial use, or
            'maskcut', which made that detector's training labels and needs only the ViT.
        min_score: Objects that the detector scores lower are dropped. Paper 0.3, release 0.1. MaskCut has no scores.
        maskcut_patches: Side of the square patch grid of MaskCut. 60, as CutLER's paper and code.
        maskcut_tau: See `unsam_mm.published.maskcut.maskcut`, also for the next five. 0.15 in CutLER's paper.
        maskcut_masks: 3 in CutLER's paper and code.
        maskcut_max_corners: 1 in CutLER's paper, 2 in its code.
        maskcut_overlap_with: 'last' in CutLER's code, which looks like an oversight: 'all' in both presets.
        maskcut_repeat_rejected: True in CutLER's code, a bug: False in both presets.
        maskcut_found_patches: 'zero' in CutLER's paper and code; 'remove' finds more objects, which were no
            better on five BSDS500 images.
        crop_patches: Side of the square patch grid of a crop. Paper and release: 256 px of 8 px patches, which is 32.
            The crop gets as many pixels as the ViT needs for that.
        crop_resample: How a crop is brought to that size. Paper 'bilinear', release 'bicubic'.
        drop_last_row_column: The release takes the last row and column of an object's box as exclusive and loses
            them, a bug. False in both presets.
        thetas: Falling cosines at which the merging of a crop's patches is recorded. Paper and release the same.
        min_patches: Smaller clusters are left out. Release 4. The paper has no such rule, but single patches are no
            masks, so its preset says 4 as well.
        restrict_to_mask: Whether only patches inside the object are merged, and masks of its parts end where it
            ends. Paper: yes. Release: no, the whole box is merged.
        min_coverage: Parts of which not more than this share lies inside the object are dropped. Release 0.9.
        nms_iou: Of two masks with a larger IoU the smaller one is dropped. Paper and release 0.9.
        nms_scope: Paper 'global', among all masks. Release 'per_mask', among the parts of one object.
        nms_window: With 'per_mask', each mask is compared with only so many of those next in size. Release 4, where a
            cluster counts once for every level that records it. None: with all.
        refine: Paper and release: 'cascadepsp', whose weights were trained with labels; the paper also reports 'crf'.
            'partition' gives each pixel of a crop to one patch, in one pass for all parts; objects, and parts in boxes
            that have less than one pixel a patch, stay as they are. 'none' in both presets.
        keep_if_iou: Masks whose IoU with their refined form is smaller are dropped. Release 0.5. 'crf' and 'cascadepsp' drop
            those below 0.5 by themselves, so smaller values count with 'partition' only.
        max_area: Masks that hold a larger share of the image are dropped. Release 0.9, as part of the refinement.
    """

    vit: str = 'dinov2_vits14'
    facet: str = 'key'
    centre: bool | None = None
    divide: str = 'maskcut'
    min_score: float = 0.3
    maskcut_patches: int = 60
    maskcut_tau: float = 0.15
    maskcut_masks: int = 3
    maskcut_max_corners: int = 1
    maskcut_overlap_with: str = 'all'
    maskcut_repeat_rejected: bool = False
    maskcut_found_patches: str = 'zero'
    crop_patches: int = 32
    crop_resample: str = 'bilinear'
    drop_last_row_column: bool = False
    thetas: tuple[float, ...] = (0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
    min_patches: int = 4
    restrict_to_mask: bool = True
    min_coverage: float = 0.0
    nms_iou: float = 0.9
    nms_scope: str = 'global'
    nms_window: int | None = None
    refine: str = 'none'
    keep_if_iou: float = 0.5
    max_area: float = 0.9

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UnSAMError(f'{name} must be one of {", ".join(choices)}, got {getattr(self, name)!r}')
        for name in ('maskcut_patches', 'maskcut_masks', 'crop_patches', 'min_patches'):
            if getattr(self, name) < 1:
                raise UnSAMError(f'{name} must be at least 1, got {getattr(self, name)}')
        for name in ('min_score', 'min_coverage', 'nms_iou', 'keep_if_iou', 'max_area'):
            if not 0 <= getattr(self, name) <= 1:
                raise UnSAMError(f'{name} must lie in [0, 1], got {getattr(self, name)}')
        if self.nms_window is not None and (self.nms_window < 1 or self.nms_scope != 'per_mask'):
            raise UnSAMError(
                f"nms_window={self.nms_window} with nms_scope={self.nms_scope!r}: a window must be at least 1 and needs 'per_mask'"
            )
        for name, low, high in (('maskcut_tau', -1, 1), ('maskcut_max_corners', 0, 4)):
            if not low <= getattr(self, name) <= high:
                raise UnSAMError(f'{name} must lie in [{low}, {high}], got {getattr(self, name)}')
        falling = all(high > low for high, low in itertools.pairwise(self.thetas))
        if not self.thetas or not falling or not all(-1 <= theta <= 1 for theta in self.thetas):
            raise UnSAMError(f'thetas must be falling cosines in [-1, 1], at least one, got {self.thetas}')

    @property
    def label_free(self) -> bool:
        """Whether no label had any part in the masks."""
        return self.refine != 'cascadepsp'

    @property
    def centres(self) -> bool:
        """Whether features are centred: `centre`, decided by the ViT where it is None."""
        return not Path(self.vit).name.startswith('dino_') if self.centre is None else self.centre


PAPER = PublishedSettings()
"""What the paper says; the divider and the ViT are those that can be had without a licence or a large download."""

RELEASE = PublishedSettings(
    min_score=0.1,
    maskcut_max_corners=2,
    crop_resample='bicubic',
    restrict_to_mask=False,
    min_coverage=0.9,
    nms_scope='per_mask',
    nms_window=4,
)
"""What the released code does, without its plain mistakes, each of which can be put back."""

PRESETS = {'paper': PAPER, 'release': RELEASE}


class PublishedProcedure:
    """Divide-and-conquer with published settings.

    Args:
        settings: What to compute.
        device: Torch device of the networks; the rest runs on the CPU.
        divider: Finds the objects; by default the one that the settings name.

    Raises:
        UnSAMError: If a name is unknown or the device cannot be used.
        WeightsError: If weights cannot be had.
    """

    def __init__(
        self, settings: PublishedSettings = PAPER, device: str = 'cpu', divider: Divider | None = None
    ) -> None:
        self.settings = settings
        self._extract = PatchFeatureExtractor(settings.vit, settings.facet, _PROBE_PX, device)
        patch_px = _PROBE_PX // len(self._extract(np.zeros((_PROBE_PX, _PROBE_PX, 3), np.uint8)).grid)
        self._extract.long_side_px = settings.crop_patches * patch_px
        self._divide = divider or _make_divider(settings, self._extract, patch_px, device)
        self._refine_mask = _make_refiner(settings.refine, device)

    def __call__(self, image: np.ndarray, progress: Callable[[float, str], None] | None = None) -> MaskHierarchy:
        """The masks of one image.

        Neither paper nor release orders the masks. Here an object has its divider's score, and a part the score of its
        object times the share of levels that it lives through.

        Args:
            image: (H, W) or (H, W, 3 or 4) array; see `unsam_mm.images.as_rgb_uint8` for dtypes.
            progress: Called with the finished share in [0, 1] and what comes next; raise inside it to stop.

        Raises:
            ImageError: If the array is not one image that can be segmented.
        """
        image = as_rgb_uint8(image)
        rles, scores = self.find_masks(image, progress)
        return MaskHierarchy.from_masks(rles, scores, image.shape[:2])

    def find_masks(
        self, image: np.ndarray, progress: Callable[[float, str], None] | None = None
    ) -> tuple[list[Rle], np.ndarray]:
        """The bag of masks that the procedure yields, before they are arranged as a hierarchy.

        Args:
            image: (H, W, 3) uint8 RGB.
            progress: See `__call__`.

        Returns:
            K masks and their (K,) float32 scores in [0, 1], objects first, then the parts of each.
        """
        report = progress or (lambda done, message: None)
        report(0.0, 'finding objects')
        objects, scores = self._find_objects(image)
        rles = list(objects)
        for done, (rle, score) in enumerate(zip(objects, scores.copy(), strict=True)):
            report(0.4 + 0.4 * done / len(objects), 'finding parts')
            parts, shares = self._find_parts(image, rle)
            rles += parts
            scores = np.append(scores, score * shares)
        report(0.8, 'comparing masks')
        if self.settings.nms_scope == 'global':
            kept = suppress_masks(rles, self.settings.nms_iou)
            rles, scores = [rles[i] for i in kept], scores[kept]
        if self._refine_mask is not None:
            for i, rle in enumerate(rles):
                report(0.8 + 0.2 * i / len(rles), 'refining masks')
                rles[i] = self._refined(image, rle)
        largest = self.settings.max_area * image.shape[0] * image.shape[1]
        fitting = [i for i, rle in enumerate(rles) if rle is not None and 0 < coco_mask.area(rle) <= largest]
        report(1.0, 'done')
        return [rles[i] for i in fitting], scores[fitting].astype(np.float32)

    def _find_objects(self, image: np.ndarray) -> tuple[list[Rle], np.ndarray]:
        """The divider's masks as run lengths: those of a hundred objects are small, a hundred bitmaps are not."""
        masks, scores = self._divide(image)
        found = [i for i, mask in enumerate(masks) if mask.any()]
        return [encode_bitmaps(masks[i : i + 1])[0] for i in found], np.asarray(scores, np.float64)[found]

    def _find_parts(self, image: np.ndarray, rle: Rle) -> tuple[list[Rle], np.ndarray]:
        x0, y0, x1, y1 = crop_box(rle, self.settings.drop_last_row_column)
        if x1 <= x0 or y1 <= y0:
            return [], np.zeros(0)
        crop = image[y0:y1, x0:x1]
        resample = Image.Resampling[self.settings.crop_resample.upper()]
        features = self._extract(squeezed(crop, self._extract.long_side_px, resample))
        patch_of_pixel = None
        if self.settings.refine == 'partition' and min(crop.shape[:2]) >= self.settings.crop_patches:
            from unsam_mm.published.refine import partition_labels

            patch_of_pixel = partition_labels(crop, features.grid.shape[:2])
        return conquer_object(features, rle, self.settings, patch_of_pixel)

    def _refined(self, image: np.ndarray, rle: Rle) -> Rle | None:
        """One mask refined in a crop of twice its longer side, or None if it comes out another mask."""
        height, width = image.shape[:2]
        x, y, box_width, box_height = coco_mask.toBbox(rle)
        reach = max(box_width, box_height)
        centre_x, centre_y = x + box_width / 2, y + box_height / 2
        y0, y1 = int(max(centre_y - reach, 0)), int(min(np.ceil(centre_y + reach), height))
        x0, x1 = int(max(centre_x - reach, 0)), int(min(np.ceil(centre_x + reach), width))
        mask = draw_runs(run_edges(rle), height, x0, y0, x1, y1)
        shrink = min(_REFINED_PX / max(mask.shape), 1)
        size = tuple(max(round(side * shrink), 1) for side in mask.shape[::-1])
        crop = Image.fromarray(np.ascontiguousarray(image[y0:y1, x0:x1])).resize(size, Image.Resampling.BICUBIC)
        before = Image.fromarray(np.ascontiguousarray(mask)).resize(size, Image.Resampling.NEAREST)
        after = self._refine_mask(np.asarray(crop), np.asarray(before).astype(bool))
        if after is None:
            return None
        after = Image.fromarray(np.asarray(after, bool)).resize(mask.shape[::-1], Image.Resampling.NEAREST)
        refined = np.zeros((height, width), bool)
        refined[y0:y1, x0:x1] = after
        refined = encode_bitmaps(refined[None])[0]
        return refined if coco_mask.iou([rle], [refined], [0])[0, 0] >= self.settings.keep_if_iou else None


_REFINED_PX = 900  # larger crops are refined at this size, as released
_PROBE_PX = 112  # a multiple of 8, 14 and 16: the number of patches says how large they are


def conquer_object(
    features: PatchFeatures, rle: Rle, settings: PublishedSettings, patch_of_pixel: np.ndarray | None = None
) -> tuple[list[Rle], np.ndarray]:
    """Parts of one object: clusters of the patches of its box, near-equal ones once.

    Args:
        features: Features of the object's box.
        rle: The object.
        settings: Which clusters count.
        patch_of_pixel: (h, w) integer patch number (row-major) of each pixel of the box, where the parts shall end at
            edges of the image; by default their patches are enlarged bicubically.

    Returns:
        K masks of the size of the image, large ones first, and (K,) float shares of the levels each lives through.
    """
    features = centred(features) if settings.centres else features
    height, width = rle['size']
    box = crop_box(rle, settings.drop_last_row_column)
    object_runs = run_edges(rle)
    inside = None
    if settings.restrict_to_mask:
        crop = Image.fromarray(np.ascontiguousarray(draw_runs(object_runs, height, *box)) * np.uint8(255))
        inside = np.asarray(crop.resize(features.grid.shape[1::-1], Image.Resampling.BOX)) > 127
    clusters = cluster_patches(features.grid, settings.thetas, settings.min_patches, inside)
    pixels = BicubicPixels(clusters, box, height)
    runs, areas = [], np.zeros(len(clusters), np.int64)
    for cluster in range(len(clusters)):
        enlarged = pixels.runs(cluster)
        shared = intersect_runs(enlarged, object_runs)
        if _n_pixels(shared) > settings.min_coverage * _n_pixels(enlarged):
            areas[cluster] = _n_pixels(shared if settings.restrict_to_mask else enlarged)
        runs.append(shared if settings.restrict_to_mask else enlarged)
    kept = _near_equal_once(clusters, runs, areas, settings)
    if patch_of_pixel is not None:
        pixels = PartitionPixels(clusters, patch_of_pixel, box, height)
        refined = {cluster: pixels.runs(cluster) for cluster in kept}
        if settings.restrict_to_mask:
            refined = {cluster: intersect_runs(found, object_runs) for cluster, found in refined.items()}
        kept = [cluster for cluster in kept if _iou(runs[cluster], refined[cluster]) >= settings.keep_if_iou]
        runs = refined
    shares = clusters.levels.sum(axis=1) / (clusters.levels.shape[1] + 1)
    return [encode_runs(*runs[cluster].T, (height, width)) for cluster in kept], shares[kept]


def _near_equal_once(
    clusters: PatchClusters, runs: list[np.ndarray], areas: np.ndarray, settings: PublishedSettings
) -> list[int]:
    """The clusters with an area, large ones first, after suppression among them if that is where it happens."""
    present = clusters.levels & (areas > 0)[:, None]
    if settings.nms_scope == 'global':
        kept = np.flatnonzero(present.any(axis=1))
        return kept[np.argsort(-areas[kept], kind='stable')].tolist()
    if settings.nms_window is None:
        records = np.flatnonzero(present.any(axis=1))
        records = records[np.argsort(-areas[records], kind='stable')]
    else:  # copies of one cluster fill the window
        level, records = np.nonzero(present.T)
        records = records[np.lexsort([records, level, -areas[records]])]
    masks = [runs[record] for record in records]
    kept = suppress_nested(
        clusters.first[records], clusters.last[records], areas[records], settings.nms_iou, settings.nms_window, masks
    )
    return list(dict.fromkeys(records[kept].tolist()))


def crop_box(rle: Rle, drop_last_row_column: bool = False) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of a mask in pixels, right and bottom edges exclusive; optionally one row and column short."""
    x, y, width, height = (int(value) for value in coco_mask.toBbox(rle))
    return x, y, x + width - drop_last_row_column, y + height - drop_last_row_column


def _n_pixels(runs: np.ndarray) -> int:
    return int((runs[:, 1] - runs[:, 0]).sum())


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    shared = _n_pixels(intersect_runs(a, b))
    return shared / max(_n_pixels(a) + _n_pixels(b) - shared, 1)


def _make_divider(settings: PublishedSettings, extractor: PatchFeatureExtractor, patch_px: int, device: str) -> Divider:
    if settings.divide == 'cutler':
        from unsam_mm.published.cutler import CutLERDivider  # brings in MMDetection

        return CutLERDivider(score_threshold=settings.min_score, device=device)
    extractor = copy.copy(extractor)  # another input size, the same network
    extractor.long_side_px = settings.maskcut_patches * patch_px
    return MaskCutDivider(
        extractor,
        centre=settings.centres,
        n_masks=settings.maskcut_masks,
        tau=settings.maskcut_tau,
        max_corners=settings.maskcut_max_corners,
        overlap_with=settings.maskcut_overlap_with,
        repeat_rejected=settings.maskcut_repeat_rejected,
        found_patches=settings.maskcut_found_patches,
    )


def _make_refiner(name: str, device: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray | None] | None:
    """What is called for every single mask, if anything is."""
    if name == 'crf':
        from unsam_mm.published.refine import mask_crf

        return mask_crf
    if name == 'cascadepsp':
        from unsam_mm.published.refine import CascadePSPRefiner

        return CascadePSPRefiner(device=device)
    return None
