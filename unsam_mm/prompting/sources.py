"""Candidate masks for prompts: regions of the trees of an image, and masks that the region model predicts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from unsam_mm.masks.hierarchy import MaskHierarchy
from unsam_mm.prompting.nested_masks import LabelMap, NestedMasks, WorkingGrid
from unsam_mm.prompting.nodes import click_merits, nodes_around_box, path_from
from unsam_mm.prompting.prompt import Prompt, box_iou, mask_of_logits

if TYPE_CHECKING:
    from unsam_mm.student.clicks import ClickableImage

_EPSILON = 1e-6  # added to scores and IoUs before their logarithm is taken
_MODEL_WEIGHT = 0.2  # of the model's log prior of a mask; that of the trees has the rest
_IOU_POWER = 4.0  # of the IoU of two masks, with which the prior of one is passed on to the other


class TreeSource:
    """Candidate masks from the region trees of an image.

    Args:
        hierarchy: The main tree. Its alternatives are used for prompts of several clicks.
        all_trees: Whether the alternatives are also used for the first click. Its masks then need not nest.
    """

    def __init__(self, hierarchy: MaskHierarchy, all_trees: bool = False) -> None:
        self.grid, self._all_trees = WorkingGrid(hierarchy.size_hw), all_trees
        self._trees = (hierarchy, *hierarchy.alternatives)
        merits = [click_merits(tree) for tree in self._trees]
        best = max(max(float(values.max()) for values in merits), np.finfo(np.float32).tiny)
        self._log_scores = [np.log(values / best + _EPSILON) for values in merits]
        self._label_maps = [LabelMap(tree.leaf_labels, self.grid) for tree in self._trees]

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
            fit = 0.0 if box is None else np.log(box_iou(tree.boxes_xyxy[nodes], box) + _EPSILON)
            nested_sets.append(self._nested(number, nodes, fit))
        return nested_sets

    def at_point(self, point_xy: np.ndarray) -> list[NestedMasks]:
        """The path from a pixel to the root, in every tree."""
        return [self._nested(number, self._path(number, point_xy)) for number in range(len(self._trees))]

    def _path(self, number: int, point_xy: np.ndarray) -> np.ndarray:
        tree, (x, y) = self._trees[number], point_xy
        nodes = path_from(tree, tree.leaf_labels[y, x])
        # Leaves of level-set trees need not be regions; those have the score 0. The root always is a region.
        return nodes if number == 0 else nodes[(tree.score[nodes] > 0) | (nodes == len(tree) - 1)]

    def _nested(self, number: int, nodes: np.ndarray, fit: np.ndarray | float = 0.0) -> NestedMasks:
        tree = self._trees[number]
        first_indices = np.full(tree.n_leaves, len(nodes))
        for first_index, node in reversed(list(enumerate(nodes))):
            first_indices[tree.first_leaf[node] : tree.last_leaf[node]] = first_index
        log_prior = self._log_scores[number][nodes] + fit
        return NestedMasks(self._label_maps[number], first_indices, log_prior, tree.boxes_xyxy[nodes])


class RegionSource:
    """Candidate masks from the region model and from the region trees; the prior of each combines both.

    Args:
        image: Encoded by the region model.
        trees: Source of tree regions for the same image.
    """

    def __init__(self, image: ClickableImage, trees: TreeSource) -> None:
        self.grid, self._image, self._trees = trees.grid, image, trees
        self._regions = LabelMap(image.tokens.labels, trees.grid)
        self._areas = np.bincount(self._regions.sampled, minlength=len(image.tokens))

    def at_point(self, point_xy: np.ndarray) -> list[NestedMasks]:
        """The path from a pixel to the root, in every tree."""
        return self._trees.at_point(point_xy)

    def for_prompt(self, prompt: Prompt) -> list[NestedMasks]:
        """The paths of the trees, and for a single click or box also the masks that the model predicts.

        Later clicks do not run the network. On 220 segments of 24 images, five clicks reach an IoU of 74.4 without and
        73.0 with it on BSDS500, 83.9 and 82.9 on DSB2018, in a third of the time.
        """
        if len(prompt.points_xy) + (prompt.box_xyxy is not None) > 1:
            return self._trees.for_prompt(prompt)
        members, scores = self._predictions(prompt)
        log_scores = np.log(scores + _EPSILON)
        areas = members @ self._areas
        nested_sets, log_tree_priors = [], np.full(len(members), np.log(_EPSILON))
        for nested in self._trees.for_prompt(prompt):
            rows = nested.first_indices.astype(np.int64) * len(self._areas)
            counts = np.bincount(rows + self._regions.sampled, minlength=(len(nested) + 1) * len(self._areas))
            inside = counts.reshape(-1, len(self._areas)).cumsum(axis=0)[:-1]
            shared = inside @ members.T
            iou = shared / np.maximum(inside.sum(axis=1)[:, None] + areas - shared, 1)
            log_iou = _IOU_POWER * np.log(iou + _EPSILON)
            from_trees = (log_iou + nested.log_prior[:, None]).max(axis=0, initial=-np.inf)
            log_tree_priors = np.maximum(log_tree_priors, from_trees)
            from_model = np.maximum((log_iou + log_scores).max(axis=1, initial=-np.inf), np.log(_EPSILON))
            nested_sets.append(replace(nested, log_prior=_combined(nested.log_prior, from_model)))
        log_priors = _combined(log_tree_priors, log_scores)
        predicted = [
            NestedMasks(self._regions, np.where(held, 0, 1), log_priors[[i]]) for i, held in enumerate(members)
        ]
        return nested_sets + predicted

    def _predictions(self, prompt: Prompt) -> tuple[np.ndarray, np.ndarray]:
        """(Q, L) int64 masks as sets of regions, 0 or 1, and (Q,) float32 scores."""
        from unsam_mm.student.pixel_clicks import region_clicks

        previous = None
        if prompt.mask_input is not None:
            previous = mask_of_logits(prompt.mask_input, self.grid.size_hw)
        clicks = region_clicks(self._image, prompt.points_xy, prompt.positive, prompt.box_xyxy, previous)
        answers = self._image.ask(clicks)
        return answers.masks.astype(np.int64), answers.scores


def _combined(log_tree: np.ndarray, log_model: np.ndarray) -> np.ndarray:
    return (1 - _MODEL_WEIGHT) * log_tree + _MODEL_WEIGHT * log_model
