"""The default generator: region trees over superpixels and trees of level sets, ranked together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from unsam_mm import threads
from unsam_mm.errors import UnSAMError
from unsam_mm.masks.hierarchy import MaskHierarchy
from unsam_mm.pseudo_masks.conquer import SuperpixelMeans, grow_trees
from unsam_mm.pseudo_masks.level_sets import level_set_tree
from unsam_mm.pseudo_masks.ranking import RankingSettings, UnrankedTree, rank_regions
from unsam_mm.pseudo_masks.superpixels import ColourEdges, Superpixels, find_superpixels
from unsam_mm.pseudo_masks.vit import PatchFeatureExtractor

ProgressCallback = Callable[[float, str], None]
"""Called with the progress in [0, 1] and the name of the next step; an exception raised inside stops the work."""


@dataclass(frozen=True)
class GeneratorSettings:
    """Settings of the default generator.

    Attributes:
        vit: Name of the ViT in `unsam_mm.weights.TABLE`, or a folder in transformers' format.
        facet: Features that are read from its last layer: 'key', 'query', 'value' or 'token'.
        long_side_px: Longer side to which the image is resized for the ViT.
        superpixel_spacing_px: Distance between the seeds of the superpixels.
        max_superpixels: Maximum number of seeds; the spacing is increased on images that would have more.
        merge_weights: For each region tree the weights of colour and of borders, see
            `unsam_mm.pseudo_masks.conquer.grow_trees`. The first tree is the main one; the others add masks that
            partially overlap its regions or differ slightly from them.
        lightness_levels: Number of levels of the max-tree and the min-tree of the lightness; 0 for no such trees.
        ranking: Settings of the ranking of all regions.
    """

    vit: str = 'dinov2_vits14'
    facet: str = 'key'
    long_side_px: int = 518
    superpixel_spacing_px: float = 8.0
    max_superpixels: int = 20_000
    merge_weights: tuple[tuple[float, float], ...] = ((0.2, 0.6), (0.2, 0.3), (0.6, 0.7), (0.6, 0.4))
    lightness_levels: int = 32
    ranking: RankingSettings = field(default_factory=RankingSettings)

    def __post_init__(self) -> None:
        positive = ('long_side_px', 'superpixel_spacing_px', 'max_superpixels')
        wrong = [name for name in positive if not 0 < getattr(self, name) < float('inf')]
        if not 0 <= self.lightness_levels < float('inf'):
            wrong.append('lightness_levels')
        if wrong:
            raise UnSAMError(
                f'{wrong[0]}={getattr(self, wrong[0])} is out of range; it must be positive and finite '
                '(lightness_levels may be 0)'
            )
        if not len(self.merge_weights) or not all(
            len(pair) == 2 and 0 <= pair[0] < float('inf') and 0 <= pair[1] < 1 for pair in self.merge_weights
        ):
            raise UnSAMError(
                f'merge_weights={self.merge_weights} is out of range; it must contain at least one pair of a colour '
                'weight, finite and not negative, and a border weight in [0, 1)'
            )


@dataclass(frozen=True)
class GrownRegions:
    """Superpixels and region trees of an image, before ranking.

    Attributes:
        superpixels: The leaves of all trees.
        means: Mean features and colours, in the numbering of `superpixels`.
        trees: One unranked tree for each entry of `GeneratorSettings.merge_weights`. Each numbers the superpixels in
            its own depth-first order.
    """

    superpixels: Superpixels
    means: SuperpixelMeans
    trees: tuple[MaskHierarchy, ...]


class RegionTrees:
    """The default generator: several region trees over superpixels, and the max-tree and min-tree of the lightness.

    Args:
        settings: Settings of all steps.
        device: Torch device for the ViT.

    Raises:
        UnSAMError: If the facet, the ViT or the device is unknown.
        WeightsError: If the weights are not available.
    """

    def __init__(self, settings: GeneratorSettings, device: str = 'cpu') -> None:
        self.settings = settings
        self._extract = PatchFeatureExtractor(settings.vit, settings.facet, settings.long_side_px, device)

    def __call__(self, image: np.ndarray, progress: ProgressCallback | None = None) -> MaskHierarchy:
        """The main region tree of an (H, W, 3) uint8 RGB image; the other trees are its alternatives."""
        return self.rank(self.grow(image, progress), progress)

    def grow(
        self, image: np.ndarray, progress: ProgressCallback | None = None, superpixel_spacing_px: float | None = None
    ) -> GrownRegions:
        """The first part: superpixels, features and unranked region trees.

        Args:
            image: (H, W, 3) uint8 RGB.
            progress: Called with progress from 0 to 0.6.
            superpixel_spacing_px: Replaces the spacing of the settings if it is given.
        """
        report = progress or (lambda done, message: None)
        report(0.0, 'finding patch features')
        spacing_px = superpixel_spacing_px or self.settings.superpixel_spacing_px

        def segment() -> Superpixels:
            return find_superpixels(ColourEdges.from_image(image), spacing_px, self.settings.max_superpixels)

        with threads.run_in_background(segment) as superpixels_found:

            def after_block(done: float) -> None:
                superpixels_found.reclaim_thread()
                report(0.5 * done, 'finding patch features')

            features = self._extract(image, after_block)
            report(0.5, 'finding superpixels')
            superpixels = superpixels_found()
        report(0.6, 'merging regions')
        means = SuperpixelMeans.from_features(superpixels, features)
        trees = grow_trees(superpixels, means, self.settings.merge_weights)
        return GrownRegions(superpixels, means, tuple(trees))

    def rank(self, grown: GrownRegions, progress: ProgressCallback | None = None) -> MaskHierarchy:
        """The second part: adds the trees of level sets and ranks the regions of all trees.

        Args:
            grown: The result of `grow`.
            progress: Called with progress from 0.7 to 1.
        """
        report = progress or (lambda done, message: None)
        colour = grown.superpixels.colour
        unranked = [UnrankedTree(tree, grown.superpixels, np.ones(len(tree), bool)) for tree in grown.trees]
        report(0.7, 'finding level sets')
        if self.settings.lightness_levels:
            n_levels = self.settings.lightness_levels
            unranked += threads.run_parallel(
                [partial(level_set_tree, colour, bright, n_levels) for bright in (True, False)]
            )
        report(0.8, 'ranking regions')
        hierarchy = rank_regions(unranked, self.settings.ranking)
        report(1.0, 'done')
        return hierarchy
