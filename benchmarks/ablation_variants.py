"""The variants of the generator that ``benchmarks.ablation`` compares, and a class that computes their masks."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from unsam_mm.generator import Settings
from unsam_mm.masks.hierarchy import MaskHierarchy, MaskSet
from unsam_mm.pseudo_masks.merging import merge_regions
from unsam_mm.pseudo_masks.ranking import RankingSettings, UnrankedTree, rank_regions
from unsam_mm.pseudo_masks.region_trees import GeneratorSettings, RegionTrees
from unsam_mm.pseudo_masks.superpixels import ColourEdges, Superpixels
from unsam_mm.pseudo_masks.vit import VITS, PatchFeatureExtractor
from unsam_mm.published.maskcut import centred
from unsam_mm.published.procedure import PAPER, RELEASE, PublishedProcedure, PublishedSettings
from unsam_mm.published.refine import MaskCRF, partition_labels

_MAX_MASKS = 1000
_CRF_MASKS = 100


@dataclass(frozen=True)
class Variant:
    """One row of a table.

    Attributes:
        label: Title of the row, in Markdown.
        settings: Settings of the generator; trees of patches use only the settings of the ViT.
        how: 'generator'; 'whole image', the published procedure with the image as its only object; or, for a tree of
            patches, how patches become masks: 'nearest' (squares), 'partition' or 'crf'.
        few: True if the variant is measured on few images, since it is slow or needs another run of the ViT.
    """

    label: str
    settings: Settings
    how: str = 'generator'
    few: bool = False


# Variants are changes of this base. The default settings, which were chosen last, differ from it in these two values.
_BASE = replace(GeneratorSettings(), superpixel_spacing_px=5.0, long_side_px=714)


def _ranked(**changes) -> GeneratorSettings:
    return replace(_BASE, ranking=replace(_BASE.ranking, **changes))


_PERSISTENCE = dict(
    edge=0.0, roughness=0.0, area=0.0, fullness=0.0, persistence=1.0, cross_tree_consensus=0.0, max_decay=0.0
)
VARIANTS: dict[str, Variant] = {
    'base': Variant('**base**: superpixel spacing 5 px, long side 714 px', _BASE),
    'one_tree': Variant('one tree instead of four', replace(_BASE, merge_weights=_BASE.merge_weights[:1])),
    'no_level_sets': Variant('without level sets', replace(_BASE, lightness_levels=0)),
    'plain_tree': Variant(
        'one tree, without level sets', replace(_BASE, merge_weights=_BASE.merge_weights[:1], lightness_levels=0)
    ),
    'no_borders': Variant(
        'without borders in the merge (four weights of colour)',
        replace(_BASE, merge_weights=((0.2, 0.0), (0.1, 0.0), (0.6, 0.0), (0.4, 0.0))),
    ),
    'colour_only': Variant(
        'without the ViT: colour and borders only',
        replace(_BASE, merge_weights=tuple((1000.0, border) for border in (0.6, 0.3, 0.7, 0.4))),
    ),
    'no_consensus': Variant('ranking without consensus', _ranked(cross_tree_consensus=0.0)),
    'no_repetition': Variant('ranking without soft non-maximum suppression', _ranked(max_decay=0.0)),
    'persistence': Variant('ranking by persistence only', _ranked(**_PERSISTENCE)),
    'spacing_8': Variant('superpixel spacing 8 px', replace(_BASE, superpixel_spacing_px=8.0)),
    'spacing_10': Variant('superpixel spacing 10 px', replace(_BASE, superpixel_spacing_px=10.0)),
    'patches': Variant('tree of patches, unrefined', _BASE, 'nearest'),
    'patches_partition': Variant('tree of patches, `partition_labels`', _BASE, 'partition'),
    'patches_crf': Variant(f'tree of patches, CRF on the best {_CRF_MASKS}', _BASE, 'crf', few=True),
    'default': Variant('**default**: superpixel spacing 8 px, long side 518 px', GeneratorSettings()),
    'long_side_518': Variant('long side 518 px', replace(_BASE, long_side_px=518)),
    'long_side_1036': Variant('long side 1036 px', replace(_BASE, long_side_px=1036), few=True),
    **{
        f'facet_{facet}': Variant(f'facet: {facet}', replace(_BASE, facet=facet), few=True)
        for facet in ('query', 'value', 'token')
    },
    'paper': Variant('preset `paper` (MaskCut)', PAPER, few=True),
    'release': Variant('preset `release` (MaskCut)', RELEASE, few=True),
    'paper_partition': Variant('`paper` with `partition_labels`', replace(PAPER, refine='partition'), few=True),
    'paper_whole': Variant('`paper` without divide: the image is the only object', PAPER, 'whole image', few=True),
    **{f'vit_{vit}': Variant(f'ViT: {vit}', replace(_BASE, vit=vit), few=True) for vit in VITS if vit != _BASE.vit},
}


class MaskFinder:
    """Runs variants on images; variants with the same ViT, facet and image size share its features.

    Args:
        folder: Folder in which the features for the base variant are stored. None: they are not stored.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._extractors: dict[str, PatchFeatureExtractor] = {}
        self._procedures: dict[str, PublishedProcedure] = {}
        self._latest: tuple[str, np.ndarray, float] | None = None

    def __call__(self, name: str, image: np.ndarray) -> tuple[MaskSet, float]:
        """The masks that a variant finds in an (H, W, 3) uint8 RGB image, and the CPU time in seconds."""
        variant = VARIANTS[name]
        features, vit_s = None, 0.0
        if isinstance(variant.settings, PublishedSettings):
            self._prepare_published(name)
        else:
            features, vit_s = self._features(image, variant.settings)
        start_s = time.process_time()
        if features is None:
            masks = self._procedures[name](image).select(_MAX_MASKS)
        elif variant.how == 'generator':
            masks = _GivenFeatures(variant.settings, features)(image).select(_MAX_MASKS)
        elif variant.how == 'crf':
            masks = sharpened(image, patch_tree(image, features).select(_CRF_MASKS))
        else:
            masks = patch_tree(image, features, variant.how == 'partition').select(_MAX_MASKS)
        return masks, vit_s + time.process_time() - start_s

    def _prepare_published(self, name: str) -> None:
        """Loads the network, so that loading is not part of the measured time."""
        if name not in self._procedures:
            variant = VARIANTS[name]
            divider = _whole_image if variant.how == 'whole image' else None
            self._procedures[name] = PublishedProcedure(variant.settings, divider=divider)

    def _features(self, image: np.ndarray, settings: GeneratorSettings) -> tuple[np.ndarray, float]:
        described = f'{settings.vit}-{settings.facet}-{settings.long_side_px}'
        name = f'{hashlib.sha256(image.tobytes()).hexdigest()[:16]}-{described.replace("/", "_")}'
        if self._latest and self._latest[0] == name:
            return self._latest[1:]
        is_shared = self._folder is not None and (settings.vit, settings.facet, settings.long_side_px) == (
            _BASE.vit,
            _BASE.facet,
            _BASE.long_side_px,
        )
        path = self._folder / f'{name}.npz' if is_shared else None
        if path is not None and path.is_file():
            with np.load(path) as kept:
                features, seconds = kept['grid'], float(kept['seconds'])
        else:
            features, seconds = self._extract(image, settings)
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                part = path.with_suffix('.part.npz')
                np.savez(part, grid=features, seconds=seconds)
                part.replace(path)
        self._latest = (name, features, seconds)
        return features, seconds

    def _extract(self, image: np.ndarray, settings: GeneratorSettings) -> tuple[np.ndarray, float]:
        if settings.vit not in self._extractors:
            self._extractors[settings.vit] = PatchFeatureExtractor(settings.vit)
        extractor = self._extractors[settings.vit]
        extractor.facet, extractor.long_side_px = settings.facet, settings.long_side_px
        start_s = time.process_time()
        features = extractor(image)
        return features, time.process_time() - start_s


class _GivenFeatures(RegionTrees):
    """The generator's procedure with given features instead of a ViT."""

    def __init__(self, settings: GeneratorSettings, features: np.ndarray) -> None:
        self.settings = settings
        self._extract = lambda image, progress: features


def _whole_image(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A divider that returns the whole image as one object."""
    return np.ones((1, *image.shape[:2]), bool), np.ones(1, np.float32)


def patch_tree(image: np.ndarray, features: np.ndarray, partition: bool = False) -> MaskHierarchy:
    """The region tree of the patches, without superpixels, ranked like the regions of the default generator.

    Args:
        image: (H, W, 3) uint8 RGB.
        features: (rows, columns, channels) float patch features of this image.
        partition: True to assign pixels to patches by `partition_labels`; otherwise a patch is a rectangle.
    """
    rows, columns, channels = features.shape
    height, width = image.shape[:2]
    ys, xs = ((np.arange(n) + 0.5) * cells / n for n, cells in ((height, rows), (width, columns)))
    squares = ys.astype(int)[:, None] * columns + xs.astype(int)[None]
    labels = partition_labels(image, (rows, columns)) if partition else squares
    # A superpixel must not be empty: a patch that lost all its pixels gets the central one back.
    lost = np.setdiff1d(np.arange(rows * columns), labels)
    y, x = (lost // columns * 2 + 1) * height // (2 * rows), (lost % columns * 2 + 1) * width // (2 * columns)
    labels[y, x] = lost
    number = np.arange(rows * columns).reshape(rows, columns)
    pairs = [(number[:, :-1], number[:, 1:]), (number[:-1], number[1:])]
    edges = np.concatenate([np.stack([a.ravel(), b.ravel()], axis=1) for a, b in pairs])
    grid = centred(features).reshape(-1, channels)
    parent, similarity = merge_regions(grid, np.ones(len(grid)), edges)
    tree = MaskHierarchy.from_merges(labels, parent, np.r_[np.zeros(len(grid)), np.maximum(1 - similarity, 0)])
    superpixels = Superpixels(labels.astype(np.int32), ColourEdges.from_image(image))
    return rank_regions([UnrankedTree(tree, superpixels, np.ones(len(tree), bool))], RankingSettings())


def sharpened(image: np.ndarray, masks: MaskSet) -> MaskSet:
    """The masks after MaskCut's CRF, without the masks that the CRF rejects."""
    crf = MaskCRF(image)
    refined = [(crf(one.to_bitmaps()[0]), one.scores[0]) for one in masks]
    kept = [(mask, score) for mask, score in refined if mask is not None]
    bitmaps = np.array([mask for mask, _ in kept], bool).reshape(-1, *image.shape[:2])
    return MaskSet.from_bitmaps(bitmaps, np.array([score for _, score in kept], np.float32))
