"""Answers from the region model, which puts the regions of an image together as each prompt asks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from unsam_mm.errors import UnSAMError
from unsam_mm.mask_set import MaskSet
from unsam_mm.prompting.prompt import MAX_MASKS_PER_PROMPT, NO_IMAGE, Prompt, mask_of_logits
from unsam_mm.region_model import RegionNet, RegionTokenizer, RegionTokens, propose, to_mask_set
from unsam_mm.region_model.clicks import ClickableImage
from unsam_mm.region_model.pixel_clicks import PixelClicks
from unsam_mm.region_model.weights import load_weights


class RegionEngine:
    """Asks a trained `RegionNet`.

    A mask is a set of regions, at most 768 of them in an image; what is smaller than a region cannot be had by a single
    click. Further clicks also mend what lies inside a region, see `PixelClicks`.

    Args:
        net: The network.
        tokenizer: Makes the tokenizer for a device; called when the first image comes, since that loads the ViT.
        device: Torch device of the network and the ViT.
    """

    name = 'model'

    def __init__(self, net: RegionNet, tokenizer: Callable[[str], RegionTokenizer], device: str = 'cpu') -> None:
        self._net, self._make_tokenizer, self.device = net.eval().to(device), tokenizer, str(device)
        self._tokenizer: RegionTokenizer | None = None
        self._image: ClickableImage | None = None

    @classmethod
    def from_file(cls, path: str | Path, device: str = 'cpu') -> RegionEngine:
        """From weights that `save_weights` wrote.

        Raises:
            WeightsError: If the file is missing, damaged or of another model.
        """
        trained = load_weights(path)

        def tokenizer(device: str) -> RegionTokenizer:
            return RegionTokenizer(trained.settings, trained.n_tokens, device)

        return cls(trained.net, tokenizer, device)

    @property
    def size_hw(self) -> tuple[int, int] | None:
        """Height and width of the image; None if none is set."""
        return None if self._image is None else self._image.tokens.size_hw

    def set_image(self, rgb: np.ndarray) -> None:
        """Finds the regions of an (H, W, 3) uint8 RGB image and reads them."""
        self._tokenizer = self._tokenizer or self._make_tokenizer(self.device)
        self._image = ClickableImage(self._net, self._tokenizer(rgb))

    def reset_image(self) -> None:
        """Forgets the image."""
        self._image = None

    def answer(
        self, prompt: Prompt, multimask_output: bool, granularity: float | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(C, H, W) bool masks, best first, and (C,) float32 scores; see `PixelClicks`."""
        image = self._image
        previous = None
        if prompt.mask_input is not None:
            previous = image.shares_of(mask_of_logits(prompt.mask_input, image.tokens.size_hw))
        clicks = PixelClicks(image, prompt.points_xy, prompt.positive, prompt.box_xyxy, previous)
        if granularity is None:
            return clicks.answer(MAX_MASKS_PER_PROMPT if multimask_output else 1)
        return clicks.answer_at(granularity)

    def all_masks(
        self, max_masks: int, min_area_px: int, points_per_side: int, max_iou: float
    ) -> tuple[MaskSet, np.ndarray]:
        """Masks around as many regions as a grid has points, and how well each is found again from its largest region."""
        image = self._image
        members, scores = propose(
            self._net, image.inputs, n_seeds=points_per_side**2, max_masks=max_masks, duplicate_iou=max_iou
        )
        large = members @ image.tokens.areas_px.astype(np.int64) >= min_area_px
        members, scores = members[large], scores[large]
        return to_mask_set(image.tokens, members, scores), image.stability(members)

    def embedding(self) -> dict[str, np.ndarray]:
        """The tokens of the image; they fit any network that was trained on such tokens."""
        if self._image is None:
            raise UnSAMError(NO_IMAGE)
        return dict(vars(self._image.tokens))

    def set_embedding(self, arrays: dict[str, np.ndarray]) -> None:
        """Takes back what `embedding` gave.

        Raises:
            UnSAMError: If the arrays are not the tokens of one image, or of another kind than the network's.
        """
        try:
            tokens = RegionTokens(**arrays)
            same = {len(tokens), len(tokens.features), len(tokens.centres_yx), tokens.tree_orders.shape[1]}
            if len(same) > 1 or int(tokens.labels.max()) >= len(tokens):
                raise ValueError(f'numbers of regions are {sorted(same)}')
            self._image = ClickableImage(self._net, tokens)
        except UnSAMError:
            raise
        except (TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            raise UnSAMError(
                f'the arrays are no region tokens of one image ({error}); make the embedding again'
            ) from error

    def to(self, device: str) -> RegionEngine:
        """Moves the network, and the image that is set."""
        if str(device) != self.device:
            self.device, self._tokenizer = str(device), None
            self._net.to(device)
            if self._image is not None:
                self._image = ClickableImage(self._net, self._image.tokens)
        return self
