"""`UnSAMPredictor`, with the interface of ``segment_anything.SamPredictor``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unsam_mm.errors import UnSAMError
from unsam_mm.generator import PseudoMaskGenerator
from unsam_mm.images import as_rgb_uint8
from unsam_mm.masks.hierarchy import MaskHierarchy
from unsam_mm.prompting.embedding_file import load_embedding, save_arrays
from unsam_mm.prompting.engine import Engine
from unsam_mm.prompting.enlarged import EnlargedEngine
from unsam_mm.prompting.planes import LazyArray, LazyPlane
from unsam_mm.prompting.prompt import (
    LOGIT_SCALE,
    MAX_MASKS_PER_PROMPT,
    NO_IMAGE,
    Prompt,
    as_numbers,
    low_resolution_logits,
)
from unsam_mm.prompting.tile_pyramid import MaskCrop
from unsam_mm.prompting.tiled_engine import TiledEngine
from unsam_mm.prompting.tree_engine import TreeEngine

if TYPE_CHECKING:
    from torch import Tensor

ENGINES = ('tree', 'model')
DEFAULT_MODEL = 'unsam_s'


def make_engine(
    name: str,
    generator: PseudoMaskGenerator | None = None,
    device: str = 'cpu',
    weights: str | Path | None = None,
) -> Engine:
    """Makes an engine by its name; see `UnSAMPredictor` for the arguments and errors.

    For the region model, images of up to 400 px are upsampled by two, see `EnlargedEngine`.
    """
    if name not in ENGINES:
        raise UnSAMError(f'engine must be one of {", ".join(ENGINES)}, got {name!r}')
    if name == 'tree':
        if weights is not None:
            raise UnSAMError(f"weights={str(weights)!r} are for the engine 'model'; the engine 'tree' has none")
        return TreeEngine(generator, device)
    if generator is not None:
        raise UnSAMError(
            "a generator is for the engine 'tree'; the engine 'model' uses the generator settings in its weights file"
        )
    from unsam_mm.prompting.model import RegionEngine
    from unsam_mm.student.weights import packaged_weights

    path = packaged_weights(DEFAULT_MODEL) if weights is None else weights
    return EnlargedEngine(RegionEngine.from_file(path, device))


class UnSAMPredictor:
    """Predicts masks for points and boxes, like ``segment_anything.SamPredictor``.

    Args:
        engine: 'tree', the region tree of the image, which needs no trained weights; 'model', the region model; or
            an engine, for example from `unsam_model_registry`.
        generator: For the engine 'tree': the generator of the region tree; by default that of the default preset.
        device: Torch device.
        weights: For the engine 'model': a file that `unsam_mm.student.weights.save_weights` wrote; by default
            the weights in the package.
        tile_px: If given, images are processed in tiles of this side, at several resolutions, and only where prompts
            lie; see `TiledEngine`.

    Raises:
        UnSAMError: If the engine is unknown, an argument belongs to another engine, or `tile_px` is too small.
        WeightsError: If the weights are not available.
    """

    def __init__(
        self,
        engine: str | Engine = 'tree',
        generator: PseudoMaskGenerator | None = None,
        device: str = 'cpu',
        weights: str | Path | None = None,
        tile_px: int | None = None,
    ) -> None:
        self.engine = make_engine(engine, generator, device, weights) if isinstance(engine, str) else engine
        if not hasattr(self.engine, 'answer'):
            raise UnSAMError(f'engine must be one of {", ".join(ENGINES)}, or an engine, got {type(engine).__name__}')
        if tile_px is not None:
            self.engine = TiledEngine(self.engine, tile_px)
        self.transform = SameCoordinates()

    @classmethod
    def from_pretrained(
        cls, name: str = DEFAULT_MODEL, device: str = 'cpu', tile_px: int | None = None
    ) -> UnSAMPredictor:
        """A predictor with weights in the package.

        Args:
            name: 'unsam_s'.
            device: Torch device.
            tile_px: See the class.

        Raises:
            WeightsError: If the package includes no model of this name.
        """
        from unsam_mm.student.weights import packaged_weights

        return cls('model', device=device, weights=packaged_weights(name), tile_px=tile_px)

    @property
    def hierarchy(self) -> MaskHierarchy:
        """Region tree of the current image.

        Raises:
            UnSAMError: If no image is set, or the engine has no region tree of it.
        """
        if not self.is_image_set:
            raise UnSAMError(NO_IMAGE)
        if (hierarchy := self.engine.hierarchy) is None:
            raise UnSAMError(
                f'the engine {self.engine.name!r} has no region tree of this image of {self.engine.size_hw} px: tiled and '
                "enlarged images have none; use UnSAMPredictor(engine='tree')"
            )
        return hierarchy

    @property
    def device(self) -> str:
        """Name of the torch device of the engine."""
        return self.engine.device

    @property
    def is_image_set(self) -> bool:
        """True if an image is set, so that `predict` can be called."""
        return self.engine.size_hw is not None

    def set_image(self, image: np.ndarray, image_format: str = 'RGB') -> None:
        """Computes the embedding of an image, which all later prompts use.

        Args:
            image: (H, W) or (H, W, 3 or 4); see `unsam_mm.images.as_rgb_uint8`.
            image_format: 'RGB' or 'BGR'.

        Raises:
            ImageError: If the array is not an image that can be segmented.
            UnSAMError: If the format is unknown.
        """
        if image_format not in ('RGB', 'BGR'):
            raise UnSAMError(f"image_format must be 'RGB' or 'BGR', got {image_format!r}")
        rgb = as_rgb_uint8(image)
        self.engine.set_image(rgb[..., ::-1] if image_format == 'BGR' else rgb)

    def set_plane(
        self,
        plane: LazyArray | Sequence[LazyArray],
        limits: tuple[float, float] | None = None,
        store: str | Path | None = None,
    ) -> None:
        """Sets a plane of any size. Pixels are read when a prompt needs them.

        Args:
            plane: (H, W) or (H, W, 1, 3 or 4) array that can be sliced, such as a memory map, a zarr or a dask array;
                or a pyramid, a list of the plane at full size, half size, and so on.
            limits: The values that are mapped to black and white; by default 0 and 255 for uint8, and otherwise
                estimated from patches of the plane.
            store: Folder in which embeddings of tiles are cached; several planes and engines may use the same folder.

        Raises:
            ImageError: If an array is not a plane, too small, or not downsampled by a power of two; or if the limits are
                not two ascending numbers.
            UnSAMError: If the predictor was made without `tile_px`.
        """
        self.engine.set_plane(LazyPlane(plane, limits), store)

    def set_hierarchy(self, hierarchy: MaskHierarchy) -> None:
        """Sets an existing region tree in place of an image.

        Raises:
            UnSAMError: If the engine is not 'tree'.
        """
        self.engine.set_hierarchy(hierarchy)

    def reset_image(self) -> None:
        """Removes the image."""
        self.engine.reset_image()

    def get_image_embedding(self) -> dict[str, np.ndarray]:
        """The embedding of the current image as named arrays, which `save_embedding` writes.

        Raises:
            UnSAMError: If no image is set.
        """
        return self.engine.embedding()

    def save_embedding(self, path: str | Path) -> None:
        """Writes the embedding of the current image, which `load_embedding` reads.

        Args:
            path: A path with the suffix .npz. The file takes about 1 MB for an image of a megapixel.

        Raises:
            UnSAMError: If no image is set.
            StoreError: If the path has another suffix, is a file other than an embedding, or cannot be written.
        """
        save_arrays(path, self.engine.name, self.get_image_embedding())

    def load_embedding(self, path: str | Path) -> None:
        """Reads an embedding in place of `set_image`; neither the image nor the ViT is needed.

        Raises:
            StoreError: If the file is missing, cannot be read, or was written for another engine.
            DamagedError: If it is damaged, or does not match the weights.
        """
        load_embedding(path, self.engine)

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        granularity: float | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks for one prompt.

        Every mask agrees with every click: it contains the positive points and no negative one. If no mask does, because
        one pixel has a positive and a negative click or negative clicks rule out every mask in a box, one empty mask
        with the score 0 is returned. The order of the clicks matters: each corrects the best mask for the previous ones.
        A box is clipped to the image. The engine 'tree' returns the smallest mask first, and nested masks for one click
        or a box; the engine 'model' returns the best mask first.

        Args:
            point_coords: (N, 2) pixel coordinates, x before y.
            point_labels: (N,) 1 for positive, 0 for negative points, -1 for padding.
            box: (4,) x0, y0, x1, y1 in pixels.
            mask_input: (1, 256, 256) logits of an earlier call; masks similar to it are preferred.
            multimask_output: True to return up to six masks, False to return only the best.
            return_logits: True to return float32 logits instead of bool masks.
            granularity: In [0, 1]: return only the mask of the nearest size. 1 is the whole image, 0.75 a tenth of its
                area, 0 the smallest mask; see `unsam_mm.masks.granularity`. The area never falls as the granularity
                rises. The engine 'tree' has no such mask if no region of its main tree agrees with all clicks.

        Returns:
            masks: (C, H, W) bool, or float32 logits if `return_logits`, with C in 1..6.
            scores: (C,) float32 in [0, 1].
            logits: (C, 256, 256) float32; the longer side of the image fills the square, the padding is negative.

        Raises:
            UnSAMError: If no image is set, the prompt is empty, an argument has another shape or range, or the prompt
                lies outside the image.
        """
        prompt = self._checked_prompt(point_coords, point_labels, box, mask_input, granularity)
        masks, scores = self.engine.answer(prompt, multimask_output, granularity)
        if not len(masks):  # callers written for Segment Anything expect at least one mask
            masks, scores = np.zeros((1, *self.engine.size_hw), bool), np.zeros(1, np.float32)
        shown = (masks.astype(np.float32) - 0.5) * LOGIT_SCALE if return_logits else masks
        return shown, scores, low_resolution_logits(masks)

    def predict_crops(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        granularity: float | None = None,
    ) -> tuple[list[MaskCrop], np.ndarray]:
        """Same as `predict`, but each mask is cropped to its box, without arrays of the size of the image.

        On tiled planes, `multimask_output=False` is faster: six masks may need coarser tiles, up to the one that covers
        the whole plane.

        Returns:
            crops: C masks with `bitmap`, `top` and `left`; none if no mask agrees with the prompt.
            scores: (C,) float32 in [0, 1].

        Raises:
            UnSAMError: As for `predict`.
        """
        prompt = self._checked_prompt(point_coords, point_labels, box, mask_input, granularity)
        return self.engine.crops(prompt, multimask_output, granularity)

    def _checked_prompt(
        self,
        points_xy: np.ndarray | None,
        point_labels: np.ndarray | None,
        box_xyxy: np.ndarray | None,
        mask_input: np.ndarray | None,
        granularity: float | None,
    ) -> Prompt:
        size_hw = self.engine.size_hw
        if size_hw is None:
            raise UnSAMError(NO_IMAGE)
        if granularity is not None:
            values = as_numbers(granularity, 'granularity')
            if values.size != 1 or not 0 <= values.item() <= 1:
                raise UnSAMError(f'granularity must lie in [0, 1], got {granularity}')
        return Prompt.checked(size_hw, points_xy, point_labels, box_xyxy, mask_input)

    def predict_torch(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        granularity: float | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Masks for B independent prompts; see `predict`.

        Args:
            point_coords: (B, N, 2) pixel coordinates of the image, or None. `transform` does not change coordinates.
            point_labels: (B, N), or None; -1 for padding.
            boxes: (B, 4), or None.
            mask_input: (B, 1, 256, 256), or None.
            multimask_output: True to return six masks, False to return one.
            return_logits: True to return float32 logits instead of bool masks.
            granularity: One value for all prompts; if it is given, one mask is returned.

        Returns:
            masks: (B, C, H, W) bool or float32, with C = 6 or 1; padded with empty masks of score 0.
            scores: (B, C) float32.
            logits: (B, C, 256, 256) float32.

        Raises:
            UnSAMError: As for `predict`, or if the numbers of prompts differ.
        """
        import torch

        given = [point_coords, point_labels, boxes, mask_input]
        rows = [None if values is None else _rows(values) for values in given]
        counts = {len(values) for values in rows if values is not None}
        if len(counts) != 1 or 0 in counts:
            raise UnSAMError(
                f'points, labels, boxes and masks must have the same number of objects, got {sorted(counts)}'
            )
        (count,) = counts
        n_masks = MAX_MASKS_PER_PROMPT if multimask_output and granularity is None else 1
        answers = [
            _padded(self.predict(*prompt, multimask_output, return_logits, granularity), n_masks)
            for prompt in zip(*([None] * count if row is None else row for row in rows), strict=True)
        ]
        masks, scores, logits = (torch.from_numpy(np.stack(values)) for values in zip(*answers, strict=True))
        return masks, scores, logits


def _rows(values: Any) -> np.ndarray:
    """(B, ...) float64 array, one row for each prompt."""
    import torch

    # NumPy supports neither bfloat16 nor tensors that require a gradient.
    rows = values.detach().cpu().double() if isinstance(values, torch.Tensor) else values
    return np.atleast_1d(as_numbers(rows, 'points, labels, boxes and masks'))


class SameCoordinates:
    """An identity transform with the interface of Segment Anything's `ResizeLongestSide`."""

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """The image, unchanged."""
        return image

    def apply_coords(self, coords: Any, original_size: tuple[int, int]) -> Any:
        """The coordinates in pixels of the image, unchanged."""
        return coords

    apply_boxes = apply_coords_torch = apply_boxes_torch = apply_coords


def _padded(answer: tuple[np.ndarray, ...], count: int) -> list[np.ndarray]:
    """The masks, scores and logits of a prompt, padded with empty masks up to `count`."""
    masks, scores, logits = answer
    missing = count - len(masks)
    empty = (False if masks.dtype == bool else -0.5 * LOGIT_SCALE, 0.0, -0.5 * LOGIT_SCALE)
    return [
        np.concatenate([values, np.full((missing, *values.shape[1:]), fill, values.dtype)])
        for values, fill in zip((masks, scores, logits), empty, strict=True)
    ]


def _model(checkpoint: str | Path | None = None) -> Engine:
    return make_engine('model', weights=checkpoint)


def _tree(checkpoint: None = None) -> Engine:
    return make_engine('tree', weights=checkpoint)


unsam_model_registry = {DEFAULT_MODEL: _model, 'default': _model, 'tree': _tree}
"""Functions that make an engine, by name, like ``segment_anything.sam_model_registry``:
``unsam_model_registry[name](checkpoint=path)``."""
