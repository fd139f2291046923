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
from unsam_mm.prompting.nested_masks import LabelMap, NestedMasks, WorkingGrid
from unsam_mm.prompting.prompt import NO_IMAGE, Prompt

_DISTINCT_IOU = 0.8
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
        self.hierarchy: MaskHierarchy | None = None
        self._clicks: ClickInference | None = None

    @property
    def signature(self) -> str | None:
        """The signature of the generator; None if it has none."""
        return getattr(self._generator, 'signature', None)

    @property
    def size_hw(self) -> tuple[int, int] | None:
        return None if self.hierarchy is None else self.hierarchy.size_hw

    def set_image(self, rgb: np.ndarray) -> None:
        """Computes the tree of an (H, W, 3) uint8 RGB image."""
        self.set_hierarchy(self._generator(rgb))

    def set_hierarchy(self, hierarchy: MaskHierarchy) -> None:
        self.hierarchy = hierarchy
        self._clicks = ClickInference(TreeSource(hierarchy))

    def reset_image(self) -> None:
        self.hierarchy = self._clicks = None

    def answer(
        self, prompt: Prompt, multimask_output: bool, granularity: float | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(C, H, W) bool masks, smallest first, and (C,) float32 scores."""
        if granularity is not None:
            return self._answer_at(prompt, granularity)
        return self._clicks.masks(prompt, multimask_output, smallest_first=True)

    def _answer_at(self, prompt: Prompt, granularity: float) -> tuple[np.ndarray, np.ndarray]:
        """The node of the nearest area that agrees with a prompt; none if no node agrees."""
        tree = self.hierarchy
        nodes = agreeing_nodes(tree, prompt)
        if len(nodes) == 0:
            return np.zeros((0, *tree.size_hw), bool), np.zeros(0, np.float32)
        chosen = nodes[nearest_area(tree.area[nodes], granularity_area(granularity, tree.partition.labels.size))]
        return tree.mask(chosen)[None], click_scores(tree)[[chosen]]

    def all_masks(
        self, max_masks: int, min_area_px: int, points_per_side: int, max_iou: float
    ) -> tuple[MaskSet, np.ndarray]:
        """The best nodes of all trees, and their stability: the range of merge heights in which each persists.

        `points_per_side` and `max_iou` have no effect: there is no grid of points, and the scores include soft NMS.
        """
        source, nodes = self.hierarchy.best_nodes(max_masks, min_area_px)
        return self.hierarchy.to_mask_set(nodes, source), self.hierarchy.gather('lifetime', source, nodes)

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
        all_trees: Whether the alternatives are also used for the first click. Then the masks for the first click may cross each other.
    """

    def __init__(self, hierarchy: MaskHierarchy, all_trees: bool = False) -> None:
        self.grid, self._all_trees = WorkingGrid(hierarchy.size_hw), all_trees
        self._trees = hierarchy.trees
        merits = [click_merits(tree) for tree in self._trees]
        best = max(max(float(values.max()) for values in merits), np.finfo(np.float32).tiny)
        self._log_scores = [np.log(values / best + EPSILON) for values in merits]
        label_maps = {tree.partition: LabelMap(tree.partition.labels, self.grid) for tree in self._trees}
        self._label_maps = [label_maps[tree.partition] for tree in self._trees]

    def for_prompt(self, prompt: Prompt) -> list[NestedMasks]:
        """The path from the first positive click to the root, or the nodes that nest with the best fit to the box."""
        box = prompt.box_xyxy
        is_first = len(prompt.points_xy) + (box is not None) == 1
        nested_sets = []
        for number in range(len(self._trees) if self._all_trees or not is_first else 1):
            tree = self._trees[number]
            if prompt.positive.any():
                nodes = self._path(number, prompt.points_xy[prompt.positive.argmax()])
            else:
                nodes = nodes_around_box(tree, box)
            fit = 0.0 if box is None else np.log(box_iou(tree.boxes_xyxy[nodes], box) + EPSILON)
            nested_sets.append(self._nested(number, nodes, fit))
        return nested_sets

    def at_point(self, point_xy: np.ndarray) -> list[NestedMasks]:
        """The path from a pixel to the root, in every tree."""
        return [self._nested(number, self._path(number, point_xy)) for number in range(len(self._trees))]

    def _path(self, number: int, point_xy: np.ndarray) -> np.ndarray:
        tree, (x, y) = self._trees[number], point_xy
        nodes = tree.tree.path(tree.leaves_at(y, x))
        # Leaves of level-set trees need not be regions; those have the score 0. The root always is a region.
        return nodes if number == 0 else nodes[(tree.score[nodes] > 0) | (nodes == len(tree) - 1)]

    def _nested(self, number: int, nodes: np.ndarray, fit: np.ndarray | float = 0.0) -> NestedMasks:
        tree = self._trees[number]
        of_leaves = np.full(tree.n_leaves, len(nodes))
        for first_index, node in reversed(list(enumerate(nodes))):
            of_leaves[tree.first_leaf[node] : tree.last_leaf[node]] = first_index
        log_prior = self._log_scores[number][nodes] + fit
        return NestedMasks(self._label_maps[number], of_leaves[tree.tree.position], log_prior, tree.boxes_xyxy[nodes])


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
    return agreeing_nodes(hierarchy, Prompt.checked(hierarchy.size_hw, points_xy, point_labels, box_xyxy))


def click_scores(hierarchy: MaskHierarchy) -> np.ndarray:
    """(N,) float32 in [0, 1]: scores of the nodes for a click.

    `MaskHierarchy.score` favours large regions, as is right for a list of all masks. For a click, large regions and
    regions along the image border get lower scores. On 13 BSDS500 validation and 17 DSB2018 images this raises the IoU
    of the first mask with the clicked segment from 0.166 to 0.359 and from 0.038 to 0.603; the best mask of each path
    has 0.594 and 0.665 (0.620 and 0.726 with a superpixel spacing of 5 px).
    """
    merits = click_merits(hierarchy)
    return (merits / max(float(merits.max()), np.finfo(np.float32).tiny)).astype(np.float32)


def click_merits(hierarchy: MaskHierarchy) -> np.ndarray:
    """(N,) float: the scores before normalisation, which are comparable between the trees of an image."""
    merits = hierarchy.score / np.sqrt(hierarchy.area) * np.exp(-4.0 * hierarchy.border_share)
    merits[-1] = 0.0  # a click never means the whole image
    return merits


def distinct_nodes(
    hierarchy: MaskHierarchy,
    chain: np.ndarray,
    scores: np.ndarray,
    max_iou: float = _DISTINCT_IOU,
    keep: int | None = None,
) -> np.ndarray:
    """Non-maximum suppression of nested nodes, best first.

    A path from a leaf to the root has 20 to 60 nodes, many of them near-duplicates. The node of the highest score is
    kept, all nodes with an IoU above `max_iou` with it are removed, and so on.

    Args:
        hierarchy: Region tree of the image.
        chain: (K,) nested nodes, as from `candidate_nodes`.
        scores: (N,) score of every node, such as `click_scores`.
        max_iou: Largest IoU of two nodes that are kept, in (0, 1].
        keep: A node of the chain that is kept and comes first, whatever its score.
    """
    chain = np.asarray(chain, np.int64)
    rank = np.where(chain == keep, np.inf, scores[chain])
    kept: list[int] = []
    for node in chain[np.argsort(-rank, kind='stable')]:
        if not kept or hierarchy.iou(node, np.array(kept)).max() <= max_iou:
            kept.append(int(node))
    return np.array(kept, np.int64)


def agreeing_nodes(hierarchy: MaskHierarchy, prompt: Prompt) -> np.ndarray:
    """Same as `candidate_nodes`, for a validated prompt."""
    x, y = prompt.points_xy.T
    leaves = hierarchy.leaves_at(y, x)
    if prompt.positive.any():
        chain = hierarchy.tree.path(leaves[prompt.positive].min())
        chain = chain[hierarchy.last_leaf[chain] > leaves[prompt.positive].max()]
    else:
        chain = nodes_around_box(hierarchy, prompt.box_xyxy)
    for leaf in leaves[~prompt.positive]:
        chain = chain[(leaf < hierarchy.first_leaf[chain]) | (leaf >= hierarchy.last_leaf[chain])]
    return chain


def nodes_around_box(hierarchy: MaskHierarchy, box_xyxy: np.ndarray) -> np.ndarray:
    """(K,) nested nodes for a box, finest first: the node of the highest box IoU, its ancestors, and a path of
    descendants.

    Of nodes with equal IoU the larger is taken; below it the path follows the larger child.
    """
    iou = box_iou(hierarchy.boxes_xyxy, box_xyxy)
    best = int(np.lexsort((hierarchy.area, iou))[-1])
    finer: list[int] = []
    while len(children := hierarchy.children(finer[-1] if finer else best)):
        finer.append(int(children[np.argmax(hierarchy.area[children])]))
    return np.concatenate([np.array(finer[::-1], np.int64), hierarchy.tree.path(best)])
