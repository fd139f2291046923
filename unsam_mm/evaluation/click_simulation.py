"""Simulated clicks at the largest errors of masks, for predictors with Segment Anything's interface."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np

from unsam_mm.errors import UnSAMError
from unsam_mm.evaluation.prompt_data import PromptImage, Segment
from unsam_mm.evaluation.prompt_iou import SegmentIoUs, mask_ious, max_and_oracle
from unsam_mm.images import read_image
from unsam_mm.next_click import next_click


class Predictor(Protocol):
    """`unsam_mm.UnSAMPredictor`, ``segment_anything.SamPredictor``, or another predictor with this interface."""

    def set_image(self, image: np.ndarray) -> None:
        """Sets the (H, W, 3) uint8 RGB image."""

    def predict(
        self, point_coords: np.ndarray, point_labels: np.ndarray, mask_input: np.ndarray | None, multimask_output: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks (C, H, W) bool, scores (C,), and logits (C, h, w), one of which can be `mask_input` of the next call."""


def simulate_clicks(
    predictor: Predictor, segment: Segment, n_clicks: int, feed_mask: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Clicks at one segment: first at its centre, then in the error of the mask with the best score.

    If the predictor returns no masks, the mask is empty.

    Args:
        predictor: A predictor whose image is set.
        segment: The segment, with at least one pixel that counts.
        n_clicks: Number of clicks K. If the mask has no error left, its IoU is repeated for the remaining clicks.
        feed_mask: True to give the logits of the mask to the predictor with the next click.

    Returns:
        best_scored, oracle: (K,) float64 IoU of the mask with the best score, and best IoU, after each click.

    Raises:
        UnSAMError: If there is not one finite score for each mask, or masks have another size than the segment.
    """
    truth, ignored = segment.mask, segment.ignored
    shown, clicked, logits = np.zeros_like(truth), np.zeros_like(truth), None
    points: list[tuple[int, int]] = []
    labels: list[bool] = []
    ious = np.zeros((2, n_clicks))
    for k in range(n_clicks):
        click = next_click(shown, truth, clicked, ignored)
        if click is None:
            ious[:, k:] = ious[:, k - 1 : k]
            break
        points.append(click[0])
        labels.append(click[1])
        clicked[click[0][1], click[0][0]] = True
        masks, scores, low_resolution = predictor.predict(
            point_coords=np.array(points, np.float64),
            point_labels=np.array(labels, np.int64),
            mask_input=logits,
            multimask_output=True,
        )
        masks = np.asarray(masks, bool)
        if masks.shape[1:] != truth.shape:
            raise UnSAMError(f'predict() returned masks of shape {masks.shape}; expected (C, {truth.shape[0]}, ...)')
        of_each = mask_ious(masks, truth, ignored)
        ious[:, k] = max_and_oracle(of_each, scores)
        best = int(np.argmax(scores)) if len(masks) else None
        shown = np.zeros_like(truth) if best is None else masks[best]
        logits = low_resolution[best : best + 1] if feed_mask and best is not None else None
    return ious[0], ious[1]


def evaluate_prompts(
    predictor: Predictor,
    images: Sequence[PromptImage],
    n_clicks: int = 1,
    feed_mask: bool = True,
    max_segments: int | None = None,
    seed: int = 0,
    progress: Callable[[Iterable[PromptImage]], Iterable[PromptImage]] = iter,
) -> SegmentIoUs:
    """Simulates clicks at the segments of all images.

    Args:
        predictor: The predictor; `set_image` is called once for each image that has segments.
        images: The images; see `unsam_mm.evaluation.prompt_data`.
        n_clicks: Number of clicks at each segment.
        feed_mask: See `simulate_clicks`.
        max_segments: Maximum number of segments of an image. They are sampled by `seed`, the index of the image and the
            number of its segments only, so they are the same for all predictors.
        seed: Seed of the sampling.
        progress: Wrapper of the images, such as tqdm.

    Raises:
        UnSAMError: If `n_clicks` or `max_segments` is not positive, segments and image differ in size, or the predictor
            returns wrong masks or scores; see `simulate_clicks`.
        ImageError: If an image cannot be read.
    """
    if n_clicks < 1 or (max_segments is not None and max_segments < 1):
        raise UnSAMError(f'n_clicks and max_segments must be at least 1, got {n_clicks} and {max_segments}')
    parts = []
    for number, image in enumerate(progress(images)):
        ious = []
        for segment in sampled_segments(image, max_segments, (seed, number)):
            if not ious:
                pixels = read_image(image.path)
                predictor.set_image(pixels)
            if segment.mask.shape != pixels.shape[:2]:
                raise UnSAMError(
                    f'{image.path}: the image is {pixels.shape[0]} x {pixels.shape[1]} px, a segment '
                    f'{segment.mask.shape[0]} x {segment.mask.shape[1]} px; give images and segments of the same size'
                )
            ious.append(simulate_clicks(predictor, segment, n_clicks, feed_mask))
        best_scored, oracle = np.reshape(ious, (len(ious), 2, n_clicks)).swapaxes(0, 1)
        parts.append((best_scored, oracle))
    return SegmentIoUs.join(parts, n_clicks)


def sampled_segments(image: PromptImage, max_segments: int | None, seed: Sequence[int]) -> Iterator[Segment]:
    """Yields the segments of an image that have pixels that count, or a random sample of them, in their order."""
    chosen = None
    if max_segments is not None:
        # Masks are decoded twice, since those of a large image together need gigabytes of memory.
        numbers = [i for i, segment in enumerate(image.segments()) if segment.counted().any()]
        if len(numbers) > max_segments:
            numbers = np.random.default_rng(seed).choice(numbers, max_segments, replace=False)
        chosen = frozenset(int(i) for i in numbers)
    for i, segment in enumerate(image.segments()):
        if i in chosen if chosen is not None else segment.counted().any():
            yield segment
