"""The engine 'model': masks of the region model and of the region trees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path

import numpy as np

from unsam_mm.errors import UnSAMError
from unsam_mm.masks.hierarchy import MaskHierarchy
from unsam_mm.masks.mask_set import MaskSet
from unsam_mm.prompting.inference import ClickInference, masks_of
from unsam_mm.prompting.prompt import NO_IMAGE, Prompt
from unsam_mm.prompting.sources import RegionSource, TreeSource
from unsam_mm.prompting.tree import hierarchy_of_arrays, tree_arrays
from unsam_mm.student import RegionNet, RegionTokenizer, RegionTokens, propose, to_mask_set
from unsam_mm.student.clicks import ClickableImage
from unsam_mm.student.pixel_clicks import mask_at_granularity
from unsam_mm.student.tokenizer import tokens_signature
from unsam_mm.student.weights import load_weights


class RegionEngine:
    """Predicts masks with a trained `RegionNet` and the region trees of the image.

    The masks of the network are sets of at most 768 regions; the trees add smaller ones. See `ClickInference` for how
    both are scored.

    Args:
        net: The network.
        tokenizer: Makes the tokenizer for a device. It is called for the first image, since it loads the ViT.
        device: Torch device of the network and the ViT.
        signature: Returns the signature of the tokenizer without loading the ViT, see `tokens_signature`.
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
        self._image: ClickableImage | None = None
        self._hierarchy: MaskHierarchy | None = None
        self._clicks: ClickInference | None = None

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
        """The signature of the tokenizer, on which embeddings depend alone; None if unknown."""
        return self._make_signature()

    @property
    def size_hw(self) -> tuple[int, int] | None:
        """Height and width of the image; None if none is set."""
        return None if self._image is None else self._image.tokens.size_hw

    @property
    def hierarchy(self) -> MaskHierarchy | None:
        """The region trees of the image; None if no image is set."""
        return self._hierarchy

    def set_image(self, rgb: np.ndarray) -> None:
        """Computes tokens and trees of an (H, W, 3) uint8 RGB image."""
        self._tokenizer = self._tokenizer or self._make_tokenizer(self.device)
        self._set(*self._tokenizer.with_trees(rgb, self._read))

    def _read(self, tokens: RegionTokens) -> ClickableImage:
        return ClickableImage(self._net, tokens)

    def _set(self, image: ClickableImage, hierarchy: MaskHierarchy) -> None:
        self._image, self._hierarchy = image, hierarchy
        self._clicks = ClickInference(RegionSource(self._image, TreeSource(hierarchy, all_trees=True)))

    def reset_image(self) -> None:
        """Removes the image."""
        self._image = self._hierarchy = self._clicks = None

    def answer(
        self, prompt: Prompt, multimask_output: bool, granularity: float | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(C, H, W) bool masks, best first, and (C,) float32 scores."""
        if granularity is not None:
            if prompt.contradicts_itself:
                return np.zeros((0, *self.size_hw), bool), np.zeros(0, np.float32)
            return mask_at_granularity(self._image, granularity, prompt.points_xy, prompt.positive, prompt.box_xyxy)
        answer = self._clicks.answer(prompt)
        count = len(answer.candidates) if multimask_output else 1
        return masks_of(answer.candidates[:count], self.size_hw), answer.scores[:count]

    def all_masks(
        self, max_masks: int, min_area_px: int, points_per_side: int, max_iou: float
    ) -> tuple[MaskSet, np.ndarray]:
        """Masks for ``points_per_side ** 2`` seed regions, best first, and their stability."""
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
        return vars(self._image.tokens) | tree_arrays(self._hierarchy)

    def set_embedding(self, arrays: dict[str, np.ndarray]) -> None:
        """Restores an embedding from `embedding`.

        Raises:
            UnSAMError: If the arrays are not tokens and trees of one image, or do not match the network.
        """
        names = {field.name for field in fields(RegionTokens)}
        hierarchy = hierarchy_of_arrays({name: values for name, values in arrays.items() if name not in names})
        try:
            tokens = RegionTokens(**{name: values for name, values in arrays.items() if name in names})
            if tokens.size_hw != hierarchy.size_hw:
                raise ValueError(f'sizes are {tokens.size_hw} and {hierarchy.size_hw}')
            self._set(self._read(tokens), hierarchy)
        except (TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            raise UnSAMError(
                f'the arrays are no region tokens of an image ({error}); make the embedding again'
            ) from error

    def to(self, device: str) -> RegionEngine:
        """Moves the network and the current image to a device; returns itself."""
        if str(device) != self.device:
            self.device, self._tokenizer = str(device), None
            self._net.to(device)
            if self._image is not None:
                self._set(self._read(self._image.tokens), self._hierarchy)
        return self
