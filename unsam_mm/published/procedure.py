"""UnSAM's divide-and-conquer, as in its paper and as in its released code.

A divider finds a few large objects. Each is cropped and resized, its patches are clustered at six thresholds, and the
clusters become masks of its parts. Near-duplicates are suppressed, and the remaining masks may be refined.

The paper and the released code differ, so there are two presets; `PublishedSettings` names the source of each value.
Both support any ViT, and with MaskCut need no other download.

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
from unsam_mm.masks.rle import (
    LabelRuns,
    Rle,
    decode_crop,
    draw_runs,
    encode_bitmaps,
    encode_crop,
    encode_runs,
    run_edges,
)
from unsam_mm.pseudo_masks.vit import PatchFeatureExtractor
from unsam_mm.published.maskcut import Divider, MaskCutDivider, centred, resize_to_square
from unsam_mm.published.patch_tree import (
    PatchClusters,
    bicubic_masks,
    cluster_patches,
    intersect_runs,
    suppress_masks,
    suppress_nested,
)

_REFINED_PX = 900  # longer side to which larger crops are downsampled for refinement, as in the release
_PROBE_PX = 112  # side of a test image whose number of patches gives the patch size; a multiple of 8, 14 and 16
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
    """Settings of divide-and-conquer; the defaults are those of the paper.

    Attributes:
        vit: ViT of both steps. Paper and release: 'dino_vitb8'.
        facet: Features read from its last layer. Paper and release: 'key'.
        centre: True to subtract the mean of the features, so that thresholds published for DINO apply to other ViTs;
            see `unsam_mm.published.maskcut.centred`. None: True unless the name of the ViT starts with 'dino_'.
        divide: 'cutler', the detector of paper and release, whose weights are not free for commercial use, or
            'maskcut', which made the training labels of that detector and needs only the ViT.
        min_score: Objects with a lower detection score are removed. Paper 0.3, release 0.1. Not used by MaskCut.
        maskcut_patches: Side of the square patch grid of MaskCut. 60, as in CutLER's paper and code.
        maskcut_tau: See `unsam_mm.published.maskcut.maskcut` for this and the next five. 0.15 in CutLER's paper.
        maskcut_masks: `n_masks`; 3 in CutLER's paper and code.
        maskcut_max_corners: 1 in CutLER's paper, 2 in its code.
        maskcut_overlap_with: 'last' in CutLER's code, apparently a mistake; 'all' in both presets.
        maskcut_repeat_rejected: True in CutLER's code, a bug; False in both presets.
        maskcut_found_patches: 'zero' in CutLER's paper and code; 'remove' finds more objects, without a better recall
            on five BSDS500 images.
        crop_patches: Side of the square patch grid of a crop. Paper and release: 256 px of 8 px patches, which is 32.
            The crop is resized to this number of patches of the ViT.
        crop_resample: Interpolation of that resizing. Paper 'bilinear', release 'bicubic'.
        drop_last_row_column: True to leave out the last row and column of an object's box, a bug of the release. False
            in both presets.
        thetas: Cosine thresholds of the clusters, descending. Equal in paper and release.
        min_patches: Smaller clusters are left out. Release 4. The paper does not mention it; its preset has 4 too,
            since single patches are not masks.
        restrict_to_mask: True to merge only patches inside the object, and to clip masks of parts to the object; False
            to merge all patches of the box. Paper True, release False.
        min_coverage: Parts of which at most this fraction lies inside the object are removed. Release 0.9.
        nms_iou: Of two masks with a larger IoU the smaller one is removed. Paper and release 0.9.
        nms_scope: Paper 'global', among all masks. Release 'per_mask', among the parts of one object.
        nms_window: With 'per_mask', each mask is compared with only this number of the next smaller masks. Release 4,
            where a cluster counts once for every threshold at which it exists. None: with all masks.
        refine: Paper and release: 'cascadepsp', whose weights were trained with labels; the paper also reports 'crf'.
            'partition' assigns each pixel of a crop to one patch, once for all parts; it does not refine objects, nor
            parts of objects whose box has fewer pixels than patches along a side. 'none' in both presets.
        keep_if_iou: Masks with a smaller IoU with their refined mask are removed. Release 0.5. 'crf' and 'cascadepsp'
            always remove masks below 0.5, so smaller values affect 'partition' only.
        max_area: Masks that cover a larger fraction of the image are removed. Release 0.9, as part of the refinement.
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
                f'nms_window={self.nms_window} with nms_scope={self.nms_scope!r} is invalid; a window must be at least 1 '
                "and needs the scope 'per_mask'"
            )
        for name, low, high in (('maskcut_tau', -1, 1), ('maskcut_max_corners', 0, 4)):
            if not low <= getattr(self, name) <= high:
                raise UnSAMError(f'{name} must lie in [{low}, {high}], got {getattr(self, name)}')
        falling = all(high > low for high, low in itertools.pairwise(self.thetas))
        if not self.thetas or not falling or not all(-1 <= theta <= 1 for theta in self.thetas):
            raise UnSAMError(f'thetas must be descending cosines in [-1, 1], at least one, got {self.thetas}')

    @property
    def is_centred(self) -> bool:
        """True if features are centred: `centre`, or the default for the ViT if `centre` is None."""
        return not Path(self.vit).name.startswith('dino_') if self.centre is None else self.centre


PAPER = PublishedSettings()
"""The values of the paper, but with a divider and a ViT that are freely available and small."""

RELEASE = PublishedSettings(
    min_score=0.1,
    maskcut_max_corners=2,
    crop_resample='bicubic',
    restrict_to_mask=False,
    min_coverage=0.9,
    nms_scope='per_mask',
    nms_window=4,
)
"""The values of the released code, without its bugs, which can be enabled one by one."""

PRESETS = {'paper': PAPER, 'release': RELEASE}


class PublishedProcedure:
    """UnSAM's divide-and-conquer.

    Args:
        settings: Settings of all steps.
        device: Torch device of the networks; the other steps run on the CPU.
        divider: Finds the objects; by default the divider of the settings.

    Raises:
        UnSAMError: If a name is unknown or the device cannot be used.
        WeightsError: If weights are not available.
    """

    def __init__(
        self, settings: PublishedSettings = PAPER, device: str = 'cpu', divider: Divider | None = None
    ) -> None:
        self.settings = settings
        self._extract = PatchFeatureExtractor(settings.vit, settings.facet, _PROBE_PX, device)
        patch_px = _PROBE_PX // len(self._extract(np.zeros((_PROBE_PX, _PROBE_PX, 3), np.uint8)))
        self._extract.long_side_px = settings.crop_patches * patch_px
        self._divide = divider or _make_divider(settings, self._extract, patch_px, device)
        self._refine_mask = _make_refiner(settings.refine, device)

    def __call__(self, image: np.ndarray, progress: Callable[[float, str], None] | None = None) -> MaskHierarchy:
        """The masks of one image.

        Paper and release do not rank the masks. Here an object has the score of the divider. The score of a part is
        that of its object times t / (T + 1), where the part exists at t of the T thresholds.

        Args:
            image: (H, W) or (H, W, 3 or 4) array; see `unsam_mm.images.as_rgb_uint8` for dtypes.
            progress: Called with the progress in [0, 1] and the name of the next step; an exception raised inside stops
                the work.

        Raises:
            ImageError: If the array is not an image that can be segmented.
        """
        image = as_rgb_uint8(image)
        rles, scores = self.find_masks(image, progress)
        return MaskHierarchy.from_masks(rles, scores, image.shape[:2])

    def find_masks(
        self, image: np.ndarray, progress: Callable[[float, str], None] | None = None
    ) -> tuple[list[Rle], np.ndarray]:
        """The masks before they are arranged as a hierarchy.

        Args:
            image: (H, W, 3) uint8 RGB.
            progress: See `__call__`.

        Returns:
            K masks and their (K,) float32 scores in [0, 1]: first all objects, then the parts of each object.
        """
        report = progress or (lambda done, message: None)
        report(0.0, 'finding objects')
        objects, scores = self._find_objects(image)
        rles = list(objects)
        for done, (rle, score) in enumerate(zip(objects, scores, strict=True)):
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
        """The non-empty masks of the divider as RLEs, to save memory, and their scores."""
        masks, scores = self._divide(image)
        found = [i for i, mask in enumerate(masks) if mask.any()]
        return [encode_bitmaps(masks[i : i + 1])[0] for i in found], np.asarray(scores, np.float64)[found]

    def _find_parts(self, image: np.ndarray, rle: Rle) -> tuple[list[Rle], np.ndarray]:
        x0, y0, x1, y1 = crop_box(rle, self.settings.drop_last_row_column)
        if x1 <= x0 or y1 <= y0:
            return [], np.zeros(0)
        crop = image[y0:y1, x0:x1]
        resample = Image.Resampling[self.settings.crop_resample.upper()]
        features = self._extract(resize_to_square(crop, self._extract.long_side_px, resample))
        patch_of_pixel = None
        if self.settings.refine == 'partition' and min(crop.shape[:2]) >= self.settings.crop_patches:
            from unsam_mm.published.refine import partition_labels

            patch_of_pixel = partition_labels(crop, features.shape[:2])
        return conquer_object(features, rle, self.settings, patch_of_pixel)

    def _refined(self, image: np.ndarray, rle: Rle) -> Rle | None:
        """One mask, refined in a crop of twice the longer side of its box, or None if the refinement is rejected."""
        height, width = image.shape[:2]
        x, y, box_width, box_height = coco_mask.toBbox(rle)
        reach = max(box_width, box_height)
        centre_x, centre_y = x + box_width / 2, y + box_height / 2
        y0, y1 = int(max(centre_y - reach, 0)), int(min(np.ceil(centre_y + reach), height))
        x0, x1 = int(max(centre_x - reach, 0)), int(min(np.ceil(centre_x + reach), width))
        mask = decode_crop(rle, (x0, y0, x1, y1)).view(np.uint8)
        shrink = min(_REFINED_PX / max(mask.shape), 1)
        size = tuple(max(round(side * shrink), 1) for side in mask.shape[::-1])
        crop = Image.fromarray(np.ascontiguousarray(image[y0:y1, x0:x1])).resize(size, Image.Resampling.BICUBIC)
        before = Image.fromarray(np.ascontiguousarray(mask)).resize(size, Image.Resampling.NEAREST)
        after = self._refine_mask(np.asarray(crop), np.asarray(before).astype(bool))
        if after is None:
            return None
        after = Image.fromarray(np.asarray(after, bool)).resize(mask.shape[::-1], Image.Resampling.NEAREST)
        refined = encode_crop(np.asarray(after), y0, x0, (height, width))
        return refined if coco_mask.iou([rle], [refined], [0])[0, 0] >= self.settings.keep_if_iou else None


def conquer_object(
    features: np.ndarray, rle: Rle, settings: PublishedSettings, patch_of_pixel: np.ndarray | None = None
) -> tuple[list[Rle], np.ndarray]:
    """Parts of one object: clusters of the patches in its box, without near-duplicates.

    Args:
        features: (h, w, C) patch features of the object's box.
        rle: The object.
        settings: Settings of the clustering.
        patch_of_pixel: Integer patch number (row-major) of each pixel of the box, in an array of the size of the box,
            which refines the parts to image edges; by default masks are upsampled by bicubic interpolation.

    Returns:
        K masks of the size of the image, largest first, and (K,) floats t / (T + 1), where a mask exists at t of the T
        thresholds.
    """
    features = centred(features) if settings.is_centred else features
    height, width = rle['size']
    box = crop_box(rle, settings.drop_last_row_column)
    object_runs = run_edges(rle)
    inside = None
    if settings.restrict_to_mask:
        crop = Image.fromarray(np.ascontiguousarray(draw_runs(object_runs, height, *box)) * np.uint8(255))
        inside = np.asarray(crop.resize(features.shape[1::-1], Image.Resampling.BOX)) > 127
    clusters = cluster_patches(features, settings.thetas, settings.min_patches, inside)
    runs, areas = [], np.zeros(len(clusters), np.int64)
    for cluster, enlarged in enumerate(bicubic_masks(clusters, box, height)):
        shared = intersect_runs(enlarged, object_runs)
        if _n_pixels(shared) > settings.min_coverage * _n_pixels(enlarged):
            areas[cluster] = _n_pixels(shared if settings.restrict_to_mask else enlarged)
        runs.append(shared if settings.restrict_to_mask else enlarged)
    kept = _without_near_duplicates(clusters, runs, areas, settings)
    if patch_of_pixel is not None:
        leaf_of_patch = np.argsort(clusters.order)
        partition = LabelRuns(leaf_of_patch[patch_of_pixel], len(leaf_of_patch), box[:2], (height, width))
        refined = {cluster: partition.edges(clusters.first[cluster], clusters.end[cluster]) for cluster in kept}
        if settings.restrict_to_mask:
            refined = {cluster: intersect_runs(found, object_runs) for cluster, found in refined.items()}
        kept = [cluster for cluster in kept if _iou(runs[cluster], refined[cluster]) >= settings.keep_if_iou]
        runs = refined
    shares = clusters.levels.sum(axis=1) / (clusters.levels.shape[1] + 1)
    return [encode_runs(runs[cluster], (height, width)) for cluster in kept], shares[kept]


def _without_near_duplicates(
    clusters: PatchClusters, runs: list[np.ndarray], areas: np.ndarray, settings: PublishedSettings
) -> list[int]:
    """Indices of clusters of non-zero area, largest first, after non-maximum suppression if its scope is 'per_mask'."""
    present = clusters.levels & (areas > 0)[:, None]
    if settings.nms_scope == 'global':
        kept = np.flatnonzero(present.any(axis=1))
        return kept[np.argsort(-areas[kept], kind='stable')].tolist()
    if settings.nms_window is None:
        records = np.flatnonzero(present.any(axis=1))
        records = records[np.argsort(-areas[records], kind='stable')]
    else:  # a cluster is listed once for each threshold, as in the release
        level, records = np.nonzero(present.T)
        records = records[np.lexsort([records, level, -areas[records]])]
    masks = [runs[record] for record in records]
    kept = suppress_nested(
        clusters.first[records], clusters.end[records], areas[records], settings.nms_iou, settings.nms_window, masks
    )
    return list(dict.fromkeys(records[kept].tolist()))


def crop_box(rle: Rle, drop_last_row_column: bool = False) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of a mask in pixels, ends exclusive; optionally without the last row and column."""
    x, y, width, height = (int(value) for value in coco_mask.toBbox(rle))
    return x, y, x + width - drop_last_row_column, y + height - drop_last_row_column


def _n_pixels(runs: np.ndarray) -> int:
    return int((runs[:, 1] - runs[:, 0]).sum())


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    shared = _n_pixels(intersect_runs(a, b))
    return shared / max(_n_pixels(a) + _n_pixels(b) - shared, 1)


def _make_divider(settings: PublishedSettings, extractor: PatchFeatureExtractor, patch_px: int, device: str) -> Divider:
    if settings.divide == 'cutler':
        from unsam_mm.published.cutler import CutLERDivider  # imports MMDetection

        return CutLERDivider(score_threshold=settings.min_score, device=device)
    extractor = copy.copy(extractor)  # shares the network, with another input size
    extractor.long_side_px = settings.maskcut_patches * patch_px
    return MaskCutDivider(
        extractor,
        centre=settings.is_centred,
        n_masks=settings.maskcut_masks,
        tau=settings.maskcut_tau,
        max_corners=settings.maskcut_max_corners,
        overlap_with=settings.maskcut_overlap_with,
        repeat_rejected=settings.maskcut_repeat_rejected,
        found_patches=settings.maskcut_found_patches,
    )


def _make_refiner(name: str, device: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray | None] | None:
    """The function that refines single masks, or None for 'none' and 'partition'."""
    if name == 'crf':
        from unsam_mm.published.refine import mask_crf

        return mask_crf
    if name == 'cascadepsp':
        from unsam_mm.published.cascadepsp import CascadePSPRefiner

        return CascadePSPRefiner(device=device)
    return None
