"""The engine 'tree': masks of the region trees of an image, without trained weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from unsam_mm.errors import UnSAMError
from unsam_mm.generator import PseudoMaskGenerator
from unsam_mm.masks.granularity import granularity_area, nearest_area
from unsam_mm.masks.hierarchy import MaskHierarchy
from unsam_mm.masks.mask_set import MaskSet
from unsam_mm.prompting.inference import ClickInference, masks_of
from unsam_mm.prompting.nodes import agreeing_nodes, click_scores
from unsam_mm.prompting.prompt import NO_IMAGE, Prompt
from unsam_mm.prompting.sources import TreeSource

_TREE_ARRAYS = ('leaf_labels', 'parent', 'height', 'score')


class TreeEngine:
    """Predicts masks from the region trees of an image, without trained weights.

    Args:
        generator: The generator of the trees; by default that of the default preset.
        device: Torch device of the default generator.
    """

    name = 'tree'

    def __init__(self, generator: PseudoMaskGenerator | None = None, device: str = 'cpu') -> None:
        self._given, self.device = generator, str(device)
        self._generator = generator or PseudoMaskGenerator.from_preset('default', device=device)
        self.hierarchy: MaskHierarchy | None = None
        self._clicks: ClickInference | None = None

    @property
    def signature(self) -> str | None:
        """The signature of the generator; None if it has none."""
        return getattr(self._generator, 'signature', None)

    @property
    def size_hw(self) -> tuple[int, int] | None:
        """Height and width of the image; None if none is set."""
        return None if self.hierarchy is None else self.hierarchy.size_hw

    def set_image(self, rgb: np.ndarray) -> None:
        """Computes the tree of an (H, W, 3) uint8 RGB image."""
        self.set_hierarchy(self._generator(rgb))

    def set_hierarchy(self, hierarchy: MaskHierarchy) -> None:
        """Sets an existing tree in place of an image."""
        self.hierarchy = hierarchy
        self._clicks = ClickInference(TreeSource(hierarchy))

    def reset_image(self) -> None:
        """Removes the image."""
        self.hierarchy = self._clicks = None

    def answer(
        self, prompt: Prompt, multimask_output: bool, granularity: float | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(C, H, W) bool masks, smallest first, and (C,) float32 scores."""
        if granularity is not None:
            return self._answer_at(prompt, granularity)
        answer = self._clicks.answer(prompt)
        candidates, scores = (
            (answer.candidates, answer.scores) if multimask_output else (answer.candidates[:1], answer.scores[:1])
        )
        order = np.argsort([candidate.n_points for candidate in candidates], kind='stable')
        return masks_of([candidates[i] for i in order], self.hierarchy.size_hw), scores[order]

    def _answer_at(self, prompt: Prompt, granularity: float) -> tuple[np.ndarray, np.ndarray]:
        """The node of the nearest area that agrees with a prompt; none if no node agrees."""
        tree = self.hierarchy
        nodes = agreeing_nodes(tree, prompt)
        if len(nodes) == 0:
            return np.zeros((0, *tree.size_hw), bool), np.zeros(0, np.float32)
        chosen = nodes[nearest_area(tree.area[nodes], granularity_area(granularity, tree.leaf_labels.size))]
        return tree.mask(chosen)[None], click_scores(tree)[[chosen]]

    def all_masks(
        self, max_masks: int, min_area_px: int, points_per_side: int, max_iou: float
    ) -> tuple[MaskSet, np.ndarray]:
        """The best nodes of all trees, and their stability: the range of merge heights in which each persists.

        `points_per_side` and `max_iou` have no effect: there is no grid of points, and the scores include soft NMS.
        """
        trees = (self.hierarchy, *self.hierarchy.alternatives)
        source, nodes = self.hierarchy.best_nodes(max_masks, min_area_px)
        stability = np.zeros(len(nodes), np.float32)
        for number, tree in enumerate(trees):
            stability[source == number] = _lifetimes(tree)[nodes[source == number]]
        return self.hierarchy.to_mask_set(nodes, source), stability

    def embedding(self) -> dict[str, np.ndarray]:
        """The arrays of the tree and its alternatives."""
        if self.hierarchy is None:
            raise UnSAMError(NO_IMAGE)
        return tree_arrays(self.hierarchy)

    def set_embedding(self, arrays: dict[str, np.ndarray]) -> None:
        """Restores an embedding from `embedding`.

        Raises:
            UnSAMError: If the arrays do not describe trees of one image.
        """
        self.set_hierarchy(hierarchy_of_arrays(arrays))

    def to(self, device: str) -> TreeEngine:
        """Moves the default generator to a device; a generator given by the caller is not moved. Returns itself."""
        if self._given is None and str(device) != self.device:
            self.device = str(device)
            self._generator = PseudoMaskGenerator.from_preset('default', device=self.device)
        return self


def tree_arrays(hierarchy: MaskHierarchy) -> dict[str, np.ndarray]:
    """The named arrays of a tree and its alternatives, in their stored form."""
    trees = (hierarchy, *hierarchy.alternatives)
    return {f'{name}_{i}': getattr(tree, name) for i, tree in enumerate(trees) for name in _TREE_ARRAYS}


def hierarchy_of_arrays(arrays: dict[str, np.ndarray]) -> MaskHierarchy:
    """The hierarchy from the arrays of `tree_arrays`.

    Raises:
        UnSAMError: If the arrays do not describe trees of one image.
    """
    try:
        count, rest = divmod(len(arrays), len(_TREE_ARRAYS))
        if rest:
            raise ValueError(f'{len(arrays)} arrays')
        # Validates the arrays; leaves in depth-first order keep their numbers.
        first, *others = (
            MaskHierarchy.from_merges(*(arrays[f'{name}_{i}'] for name in _TREE_ARRAYS)) for i in range(count)
        )
        sizes_hw = {first.size_hw, *(other.size_hw for other in others)}
        if len(sizes_hw) > 1:
            raise ValueError(f'sizes are {sorted(sizes_hw)}')
        if not all(isinstance(values, np.ndarray) for values in arrays.values()):
            raise ValueError('not all are arrays')
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UnSAMError(f'the arrays are no region trees of one image ({error}); make the embedding again') from error
    return replace(first, alternatives=tuple(others))


def _lifetimes(tree: MaskHierarchy) -> np.ndarray:
    """(N,) float32 range of merge heights in which each node persists, relative to the height of the root."""
    lifetimes = np.ones(len(tree), np.float32)
    lifetimes[:-1] = (tree.height[tree.parent[:-1]] - tree.height[:-1]) / max(float(tree.height[-1]), 1e-12)
    return lifetimes
