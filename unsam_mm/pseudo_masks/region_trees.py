"""The default way from an image to masks: trees of regions over superpixels, and trees of level sets, ranked together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from unsam_mm import threads
from unsam_mm.errors import UnSAMError
from unsam_mm.masks.hierarchy import MaskHierarchy
from unsam_mm.pseudo_masks.conquer import GrowthSettings, LeafMeans, grow_trees
from unsam_mm.pseudo_masks.level_sets import level_set_tree
from unsam_mm.pseudo_masks.ranking import RankedTree, RankingSettings, rank_regions
from unsam_mm.pseudo_masks.superpixels import ColourEdges, Leaves, find_leaves
from unsam_mm.pseudo_masks.vit import PatchFeatureExtractor

ProgressCallback = Callable[[float, str], None]
"""Called with the finished share in [0, 1] and what comes next; an exception raised inside stops the work."""


@dataclass(frozen=True)
class GeneratorSettings:
    """Everything that decides which masks the region trees hold.

    Attributes:
        vit: Name of the ViT in `unsam_mm.weights.TABLE`, or a folder that transformers can read.
        facet: What is read from its last layer: 'key', 'query', 'value' or 'token'.
        long_side_px: Size of the image that the ViT sees.
        leaf_spacing_px: Distance between the seeds of the leaves.
        max_leaves: The spacing grows on images that would have more.
        growths: For each tree the weights of colour and of borders, see `GrowthSettings`; the first tree is the one that
            people see, the others add near-equal and crossing masks.
        lightness_levels: Levels of the two trees of what is brighter and what is darker than its surroundings; 0: without.
        ranking: How regions of all trees are put in order.
    """

    vit: str = 'dinov2_vits14'
    facet: str = 'key'
    long_side_px: int = 518
    leaf_spacing_px: float = 8.0
    max_leaves: int = 20_000
    growths: tuple[tuple[float, float], ...] = ((0.2, 0.6), (0.2, 0.3), (0.6, 0.7), (0.6, 0.4))
    lightness_levels: int = 32
    ranking: RankingSettings = field(default_factory=RankingSettings)

    def __post_init__(self) -> None:
        positive = ('long_side_px', 'leaf_spacing_px', 'max_leaves')
        wrong = [name for name in positive if not 0 < getattr(self, name) < float('inf')]
        if not 0 <= self.lightness_levels < float('inf'):
            wrong.append('lightness_levels')
        if wrong:
            raise UnSAMError(
                f'{wrong[0]}={getattr(self, wrong[0])} is out of range; it must be positive and finite '
                '(lightness_levels may be 0)'
            )
        if not len(self.growths) or not all(
            len(growth) == 2 and 0 <= growth[0] < float('inf') and 0 <= growth[1] < 1 for growth in self.growths
        ):
            raise UnSAMError(
                f'growths={self.growths} is out of range; it must hold at least one pair of a colour weight, finite and '
                'not negative, and a border weight in [0, 1)'
            )


@dataclass(frozen=True)
class GrownRegions:
    """What is known of an image once its regions are grown.

    Attributes:
        leaves: The finest partition.
        means: What the leaves look like, in the numbering of `leaves`.
        trees: One tree over the leaves for each growth, without scores; each numbers the leaves in its own way.
    """

    leaves: Leaves
    means: LeafMeans
    trees: tuple[MaskHierarchy, ...]


class RegionTrees:
    """The default way: trees of regions over leaves that follow every edge, and trees of level sets.

    Args:
        settings: What to compute.
        device: Torch device for the ViT.
    """

    def __init__(self, settings: GeneratorSettings, device: str = 'cpu') -> None:
        self.settings = settings
        self._extract = PatchFeatureExtractor(settings.vit, settings.facet, settings.long_side_px, device)

    def __call__(self, image: np.ndarray, progress: ProgressCallback | None = None) -> MaskHierarchy:
        """The region tree of an (H, W, 3) uint8 RGB image, with the other trees as its alternatives."""
        return self.rank(self.grow(image, progress), progress)

    def grow(
        self, image: np.ndarray, progress: ProgressCallback | None = None, leaf_spacing_px: float | None = None
    ) -> GrownRegions:
        """The first part of the work, up to the trees as they are before regions are compared.

        Args:
            image: (H, W, 3) uint8 RGB.
            progress: Told about the share from 0 to 0.7.
            leaf_spacing_px: In place of that of the settings.
        """
        report = progress or _silent
        report(0.0, 'finding patch features')
        spacing_px = leaf_spacing_px or self.settings.leaf_spacing_px

        def cut_into_leaves() -> Leaves:
            return find_leaves(ColourEdges.of(image), spacing_px, self.settings.max_leaves)

        with threads.run_in_background(cut_into_leaves) as leaves_found:

            def after_block(done: float) -> None:
                leaves_found.reclaim_thread()
                report(0.5 * done, 'finding patch features')

            features = self._extract(image, after_block)
            report(0.5, 'finding leaves')
            leaves = leaves_found()
        report(0.6, 'merging regions')
        means = LeafMeans.of(leaves, features)
        trees = grow_trees(leaves, means, [GrowthSettings(*growth) for growth in self.settings.growths])
        return GrownRegions(leaves, means, tuple(trees))

    def rank(self, grown: GrownRegions, progress: ProgressCallback | None = None) -> MaskHierarchy:
        """The second part: adds the level sets and gives every region its score.

        Args:
            grown: As from `grow`.
            progress: Told about the share from 0.7 to 1.
        """
        report = progress or _silent
        colour = grown.leaves.colour
        ranked = [RankedTree(tree, grown.leaves, np.ones(len(tree), bool)) for tree in grown.trees]
        report(0.7, 'finding level sets')
        if self.settings.lightness_levels:
            n_levels = self.settings.lightness_levels
            ranked += threads.run_parallel(
                [partial(level_set_tree, colour, bright, n_levels) for bright in (True, False)]
            )
        report(0.8, 'ranking regions')
        hierarchy = rank_regions(ranked, self.settings.ranking)
        report(1.0, 'done')
        return hierarchy


def _silent(done: float, message: str) -> None:
    """Reports to nobody."""
