"""The engine 'tree': masks of the region trees of an image, without trained weights."""

from __future__ import annotations

import numpy as np

from unsam_mm.errors import UnSAMError
from unsam_mm.generator import PseudoMaskGenerator
from unsam_mm.masks.granularity import granularity_area, nearest_area
from unsam_mm.masks.hierarchy import MaskHierarchy
from unsam_mm.masks.mask_set import MaskSet
from unsam_mm.masks.ops import box_iou
from unsam_mm.prompting.engine import Engine
from unsam_mm.prompting.inference import ClickInference
from unsam_mm.prompting.nested_masks import LabelMap, NestedMasks, SamplingGrid
from unsam_mm.prompting.prompt import NO_IMAGE, Prompt

EPSILON = 1e-6
"""Added to scores and IoUs before their logarithm is taken."""


class TreeEngine(Engine):
    """Predicts masks from the region trees of an image, without trained weights.

    Args:
        generator: The generator of the trees; by default that of the default preset.
        device: Torch device of the default generator.
    """

    name = 'tree'

    def __init__(self, generator: PseudoMaskGenerator | None = None, device: str = 'cpu') -> None:
        self._given, self.device = generator, str(device)
        self._generator = generator or PseudoMaskGenerator.from_preset('default', device=device)
        self.reset_image()

    @property
    def signature(self) -> str | None:
        """The signature of the generator; None if it has none."""
        return getattr(self._generator, 'signature', None)

    @property
    def size_hw(self) -> tuple[int, int] | None:
        return None if self.hierarchy is None else self.hierarchy.size_hw

    def set_image(self, rgb: np.ndarray) -> None:
        """Computes the region trees of an (H, W, 3) uint8 RGB image."""
        self.set_hierarchy(self._generator(rgb))

    def set_hierarchy(self, hierarchy: MaskHierarchy) -> None:
        self.hierarchy = hierarchy
        self._inference = ClickInference(TreeSource(hierarchy))

    def reset_image(self) -> None:
        self.hierarchy: MaskHierarchy | None = None
        self._inference: ClickInference | None = None

    def answer(
        self, prompt: Prompt, multimask_output: bool, granularity: float | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(C, H, W) bool masks, smallest first, and (C,) float32 scores."""
        if granularity is not None:
            return self._answer_at(prompt, granularity)
        return self._inference.masks(prompt, multimask_output, smallest_first=True)

    def _answer_at(self, prompt: Prompt, granularity: float) -> tuple[np.ndarray, np.ndarray]:
        """The node of the nearest area that agrees with a prompt; none if no node agrees."""
        tree = self.hierarchy
        nodes = _agreeing_nodes(tree, prompt)
        if len(nodes) == 0:
            return np.zeros((0, *tree.size_hw), bool), np.zeros(0, np.float32)
        chosen = nodes[nearest_area(tree.area[nodes], granularity_area(granularity, tree.partition.labels.size))]
        return tree.mask(chosen)[None], click_scores(tree)[[chosen]]

    def all_masks(
        self, max_masks: int, min_area_px: int, points_per_side: int, max_iou: float
    ) -> tuple[MaskSet, np.ndarray]:
        """The best nodes of all trees, and their stability, which is their relative persistence.

        `points_per_side` and `max_iou` have no effect: there is no grid of points, and the scores include soft NMS.
        """
        tree_index, nodes = self.hierarchy.best_nodes(max_masks, min_area_px)
        stability = self.hierarchy.gather('relative_persistence', tree_index, nodes)
        return self.hierarchy.to_mask_set(nodes, tree_index), stability

    def embedding(self) -> dict[str, np.ndarray]:
        """The arrays of the tree and its alternatives."""
        if self.hierarchy is None:
            raise UnSAMError(NO_IMAGE)
        return self.hierarchy.to_arrays()

    def set_embedding(self, arrays: dict[str, np.ndarray]) -> None:
        self.set_hierarchy(MaskHierarchy.from_arrays(arrays))

    def to(self, device: str) -> TreeEngine:
        """Moves the default generator to a device; a generator given by the caller is not moved. Returns itself."""
        if self._given is None and str(device) != self.device:
            self.device = str(device)
            self._generator = PseudoMaskGenerator.from_preset('default', device=self.device)
        return self


class TreeSource:
    """Candidate masks from the region trees of an image.

    Args:
        hierarchy: The main tree. Its alternatives are used for prompts of several clicks.
        all_trees: True to use the alternatives also for a single click or box, whose masks then may partially overlap.
    """

    def __init__(self, hierarchy: MaskHierarchy, all_trees: bool = False) -> None:
        self.grid, self._all_trees = SamplingGrid(hierarchy.size_hw), all_trees
        self._trees = hierarchy.trees
        scores = [_unscaled_click_scores(tree) for tree in self._trees]
        best = max(max(float(values.max()) for values in scores), np.finfo(np.float32).tiny)
        self._log_scores = [np.log(values / best + EPSILON) for values in scores]
        label_maps = {tree.partition: LabelMap(tree.partition.labels, self.grid) for tree in self._trees}
        self._label_maps = [label_maps[tree.partition] for tree in self._trees]

    def for_prompt(self, prompt: Prompt) -> list[NestedMasks]:
        """One set of nested regions for each tree that is used.

        These are the regions that contain the first positive click; for a box without one, those that nest with the
        region whose bounding box fits the box best.
        """
        box = prompt.box_xyxy
        is_first = len(prompt.points_xy) + (box is not None) == 1
        nested_sets = []
        for number in range(len(self._trees) if self._all_trees or not is_first else 1):
            tree = self._trees[number]
            if prompt.positive.any():
                nodes = self._path(number, prompt.points_xy[prompt.positive.argmax()])
            else:
                nodes = _nodes_around_box(tree, box)
            log_box_iou = 0.0 if box is None else np.log(box_iou(tree.boxes_xyxy[nodes], box) + EPSILON)
            nested_sets.append(self._nested(number, nodes, log_box_iou))
        return nested_sets

    def at_point(self, point_xy: np.ndarray) -> list[NestedMasks]:
        """The regions that contain a pixel, one nested set for each tree."""
        return [self._nested(number, self._path(number, point_xy)) for number in range(len(self._trees))]

    def _path(self, number: int, point_xy: np.ndarray) -> np.ndarray:
        tree, (x, y) = self._trees[number], point_xy
        nodes = tree.tree.path(tree.leaves_at(y, x))
        # In level-set trees a leaf need not be a region; its score is 0 then. The root is always a region.
        return nodes if number == 0 else nodes[(tree.score[nodes] > 0) | (nodes == len(tree) - 1)]

    def _nested(self, number: int, nodes: np.ndarray, log_box_iou: np.ndarray | float = 0.0) -> NestedMasks:
        """The masks of (K,) nested nodes of a tree; the log prior is the log score plus the log IoU with the box."""
        tree = self._trees[number]
        of_leaves = np.full(tree.n_leaves, len(nodes))
        for first_index, node in reversed(list(enumerate(nodes))):
            of_leaves[tree.first_leaf[node] : tree.end_leaf[node]] = first_index
        log_prior = self._log_scores[number][nodes] + log_box_iou
        return NestedMasks(
            self._label_maps[number], of_leaves[tree.tree.leaf_of_region], log_prior, tree.boxes_xyxy[nodes]
        )


def candidate_nodes(
    hierarchy: MaskHierarchy,
    points_xy: np.ndarray | None = None,
    point_labels: np.ndarray | None = None,
    box_xyxy: np.ndarray | None = None,
) -> np.ndarray:
    """The nested regions that agree with a prompt, finest first.

    A region agrees if it contains every positive point and no negative one. For a box without positive points these are
    the regions that nest with the region whose bounding box has the highest IoU with the box.

    Args:
        hierarchy: Region tree of the image.
        points_xy: (N, 2) pixel coordinates, x before y.
        point_labels: (N,) 1 for positive, 0 for negative points, -1 for padding as in Segment Anything; by default all
            positive.
        box_xyxy: (4,) pixel coordinates of two opposite corners.

    Returns:
        (K,) node numbers; empty if no region agrees.

    Raises:
        UnSAMError: If there is no prompt, an argument has another shape or label, a point lies outside the image, or
            the box does not touch it.
    """
    return _agreeing_nodes(hierarchy, Prompt.checked(hierarchy.size_hw, points_xy, point_labels, box_xyxy))


def click_scores(hierarchy: MaskHierarchy) -> np.ndarray:
    """(N,) float32 in [0, 1]: scores of the nodes for a click.

    `MaskHierarchy.score` ranks the masks of a whole image and favours large regions. For a click, large regions and
    regions along the image border get lower scores.
    """
    scores = _unscaled_click_scores(hierarchy)
    return (scores / max(float(scores.max()), np.finfo(np.float32).tiny)).astype(np.float32)


def _unscaled_click_scores(hierarchy: MaskHierarchy) -> np.ndarray:
    """(N,) float: `click_scores` before division by the maximum; comparable between the trees of an image."""
    scores = hierarchy.score / np.sqrt(hierarchy.area) * np.exp(-4.0 * hierarchy.border_share)
    scores[-1] = 0.0  # a click never means the whole image
    return scores


def distinct_nodes(hierarchy: MaskHierarchy, nodes: np.ndarray, scores: np.ndarray, max_iou: float = 0.8) -> np.ndarray:
    """Non-maximum suppression of nested nodes, best first.

    A path from a leaf to the root has 20 to 60 nodes, many of them near-duplicates.

    Args:
        hierarchy: Region tree of the image.
        nodes: (K,) nested nodes, as from `candidate_nodes`.
        scores: (N,) score of every node, such as `click_scores`.
        max_iou: Largest IoU of two nodes that are kept, in (0, 1].
    """
    nodes = np.asarray(nodes, np.int64)
    kept: list[int] = []
    for node in nodes[np.argsort(-scores[nodes], kind='stable')]:
        if not kept or hierarchy.iou(node, np.array(kept)).max() <= max_iou:
            kept.append(int(node))
    return np.array(kept, np.int64)


def _agreeing_nodes(hierarchy: MaskHierarchy, prompt: Prompt) -> np.ndarray:
    """Same as `candidate_nodes`, for a validated prompt."""
    x, y = prompt.points_xy.T
    leaves = hierarchy.leaves_at(y, x)
    if prompt.positive.any():
        nodes = hierarchy.tree.path(leaves[prompt.positive].min())
        nodes = nodes[hierarchy.end_leaf[nodes] > leaves[prompt.positive].max()]
    else:
        nodes = _nodes_around_box(hierarchy, prompt.box_xyxy)
    for leaf in leaves[~prompt.positive]:
        nodes = nodes[(leaf < hierarchy.first_leaf[nodes]) | (leaf >= hierarchy.end_leaf[nodes])]
    return nodes


def _nodes_around_box(hierarchy: MaskHierarchy, box_xyxy: np.ndarray) -> np.ndarray:
    """(K,) nested nodes for a box, finest first: the node of the highest box IoU, its ancestors, and a path of
    descendants.

    Of nodes with equal IoU the largest is chosen; below it the path follows the largest child.
    """
    iou = box_iou(hierarchy.boxes_xyxy, box_xyxy)
    best = int(np.lexsort((hierarchy.area, iou))[-1])
    finer: list[int] = []
    while len(children := hierarchy.children(finer[-1] if finer else best)):
        finer.append(int(children[np.argmax(hierarchy.area[children])]))
    return np.concatenate([np.array(finer[::-1], np.int64), hierarchy.tree.path(best)])
