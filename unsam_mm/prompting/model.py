"""The engine 'model': masks of the region model and of the region trees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np

from unsam_mm.errors import UnSAMError
from unsam_mm.masks.hierarchy import MaskHierarchy
from unsam_mm.masks.mask_set import MaskSet
from unsam_mm.prompting.engine import Engine
from unsam_mm.prompting.inference import ClickInference
from unsam_mm.prompting.nested_masks import LabelMap, NestedMasks
from unsam_mm.prompting.prompt import NO_IMAGE, Prompt, mask_of_logits
from unsam_mm.prompting.tree_engine import EPSILON, TreeSource
from unsam_mm.student import RegionNet, RegionTokenizer, RegionTokens, propose, to_mask_set
from unsam_mm.student.encoded_image import EncodedImage
from unsam_mm.student.tokenizer import tokens_signature
from unsam_mm.student.weights import load_weights

_MODEL_WEIGHT = 0.2  # weight of the model's log prior of a mask; that of the trees has the weight 0.8
_IOU_POWER = 4.0  # the prior of a mask, times this power of the IoU, is also a prior of an overlapping mask


class RegionEngine(Engine):
    """Predicts masks with a trained `RegionNet` and the region trees of the image.

    The masks of the network are sets of the regions of the image, by default at most 768; the trees add smaller masks.
    See `ClickInference` for how both are scored.

    Args:
        net: The network.
        tokenizer: Function that makes the tokenizer for a device. It loads the ViT, so it is called only when the first
            image is set.
        device: Torch device of the network and the ViT.
        signature: Function that returns the signature of the tokenizer without loading the ViT; see `tokens_signature`.
    """

    name = 'model'

    def __init__(
        self,
        net: RegionNet,
        tokenizer: Callable[[str], RegionTokenizer],
        device: str = 'cpu',
        signature: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._make_signature = signature
        self._net, self._make_tokenizer, self.device = net.eval().to(device), tokenizer, str(device)
        self._tokenizer: RegionTokenizer | None = None
        self._image: EncodedImage | None = None
        self.hierarchy: MaskHierarchy | None = None
        self._inference: ClickInference | None = None

    @classmethod
    def from_file(cls, path: str | Path, device: str = 'cpu') -> RegionEngine:
        """An engine with the weights of a file that `save_weights` wrote.

        Raises:
            WeightsError: If the file is missing, damaged or of another model.
        """
        trained = load_weights(path)

        def tokenizer(device: str) -> RegionTokenizer:
            return RegionTokenizer(trained.settings, trained.n_tokens, device)

        return cls(trained.net, tokenizer, device, partial(tokens_signature, trained.settings, trained.n_tokens))

    @property
    def signature(self) -> str | None:
        """The signature of the tokenizer, since embeddings do not depend on the network; None if unknown."""
        return self._make_signature()

    @property
    def size_hw(self) -> tuple[int, int] | None:
        return None if self._image is None else self._image.tokens.size_hw

    def set_image(self, rgb: np.ndarray) -> None:
        """Computes tokens and trees of an (H, W, 3) uint8 RGB image."""
        self._tokenizer = self._tokenizer or self._make_tokenizer(self.device)
        self._set(*self._tokenizer.with_trees(rgb, self._encode))

    def _encode(self, tokens: RegionTokens) -> EncodedImage:
        return EncodedImage(self._net, tokens)

    def _set(self, image: EncodedImage, hierarchy: MaskHierarchy) -> None:
        self._image, self.hierarchy = image, hierarchy
        self._inference = ClickInference(RegionSource(self._image, TreeSource(hierarchy, all_trees=True)))

    def reset_image(self) -> None:
        self._image = self.hierarchy = self._inference = None

    def answer(
        self, prompt: Prompt, multimask_output: bool, granularity: float | None
    ) -> tuple[np.ndarray, np.ndarray]:
        if granularity is not None:
            if prompt.contradicts_itself:
                return np.zeros((0, *self.size_hw), bool), np.zeros(0, np.float32)
            return self._image.mask_at(granularity, prompt.points_xy, prompt.positive, prompt.box_xyxy)
        return self._inference.masks(prompt, multimask_output)

    def all_masks(
        self, max_masks: int, min_area_px: int, points_per_side: int, max_iou: float
    ) -> tuple[MaskSet, np.ndarray]:
        """Masks for at most ``points_per_side ** 2`` seed regions, best first, and their (N,) float32 stability."""
        image = self._image
        members, scores = propose(
            self._net, image.inputs, n_seeds=points_per_side**2, max_masks=max_masks, duplicate_iou=max_iou
        )
        large = members @ image.tokens.areas_px.astype(np.int64) >= min_area_px
        members, scores = members[large], scores[large]
        return to_mask_set(image.tokens, members, scores), image.stability(members)

    def embedding(self) -> dict[str, np.ndarray]:
        """The tokens and trees of the image; they do not depend on the network."""
        if self._image is None:
            raise UnSAMError(NO_IMAGE)
        return vars(self._image.tokens) | self.hierarchy.to_arrays()

    def set_embedding(self, arrays: dict[str, np.ndarray]) -> None:
        names = {field.name for field in fields(RegionTokens)}
        hierarchy = MaskHierarchy.from_arrays({name: values for name, values in arrays.items() if name not in names})
        try:
            tokens = RegionTokens(**{name: values for name, values in arrays.items() if name in names})
            if tokens.size_hw != hierarchy.size_hw:
                raise ValueError(f'sizes are {tokens.size_hw} and {hierarchy.size_hw}')
            self._set(self._encode(tokens), hierarchy)
        except (TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            raise UnSAMError(
                f'the arrays are no region tokens of an image ({error}); make the embedding again'
            ) from error

    def to(self, device: str) -> RegionEngine:
        if str(device) != self.device:
            self.device, self._tokenizer = str(device), None
            self._net.to(device)
            if self._image is not None:
                self._set(self._encode(self._image.tokens), self.hierarchy)
        return self


class RegionSource:
    """Candidate masks from the region model and from the region trees; the prior of each combines both.

    Args:
        image: The image, encoded by the region model.
        trees: Source of tree regions for the same image.
    """

    def __init__(self, image: EncodedImage, trees: TreeSource) -> None:
        self.grid, self._image, self._trees = trees.grid, image, trees
        self._regions = LabelMap(image.tokens.labels, trees.grid)
        self._areas = np.bincount(self._regions.sampled, minlength=len(image.tokens))

    def at_point(self, point_xy: np.ndarray) -> list[NestedMasks]:
        """The regions that contain a pixel, one nested set for each tree."""
        return self._trees.at_point(point_xy)

    def for_prompt(self, prompt: Prompt) -> list[NestedMasks]:
        """The nested regions of the trees, and for a single click or box also the masks that the model predicts."""
        if len(prompt.points_xy) + (prompt.box_xyxy is not None) > 1:
            return self._trees.for_prompt(prompt)  # for later clicks the network takes time but does not help
        members, scores = self._predictions(prompt)
        log_scores = np.log(scores + EPSILON)
        areas = members @ self._areas
        nested_sets, log_tree_priors = [], np.full(len(members), np.log(EPSILON))
        for nested in self._trees.for_prompt(prompt):
            rows = nested.first_indices.astype(np.int64) * len(self._areas)
            counts = np.bincount(rows + self._regions.sampled, minlength=(len(nested) + 1) * len(self._areas))
            inside = counts.reshape(-1, len(self._areas)).cumsum(axis=0)[:-1]
            shared = inside @ members.T
            iou = shared / np.maximum(inside.sum(axis=1)[:, None] + areas - shared, 1)
            log_iou = _IOU_POWER * np.log(iou + EPSILON)
            from_trees = (log_iou + nested.log_prior[:, None]).max(axis=0, initial=-np.inf)
            log_tree_priors = np.maximum(log_tree_priors, from_trees)
            from_model = np.maximum((log_iou + log_scores).max(axis=1, initial=-np.inf), np.log(EPSILON))
            nested_sets.append(replace(nested, log_prior=_combined(nested.log_prior, from_model)))
        log_priors = _combined(log_tree_priors, log_scores)
        predicted = [
            NestedMasks(self._regions, np.where(inside, 0, 1), log_priors[[i]]) for i, inside in enumerate(members)
        ]
        return nested_sets + predicted

    def _predictions(self, prompt: Prompt) -> tuple[np.ndarray, np.ndarray]:
        """(Q, L) int64, 1 for the regions of each mask and 0 for the others, and (Q,) float32 scores."""
        previous = None
        if prompt.mask_input is not None:
            previous = mask_of_logits(prompt.mask_input, self.grid.size_hw)
        region_prompt = self._image.region_prompt(prompt.points_xy, prompt.positive, prompt.box_xyxy, previous)
        predictions = self._image.predict(region_prompt)
        return predictions.masks.astype(np.int64), predictions.scores


def _combined(log_tree: np.ndarray, log_model: np.ndarray) -> np.ndarray:
    return (1 - _MODEL_WEIGHT) * log_tree + _MODEL_WEIGHT * log_model
