"""A direct implementation of the conquer step of divide-and-conquer, compared with ours in time and memory.

`plain_parts` follows the paper step by step: it searches a dictionary of all touching pairs for its maximum before every
merge, enlarges every cluster of every level to the size of the image, and compares whole images for every pair of the
suppression. `unsam_mm.published.procedure.conquer_object` finds the same masks on one tree of patches and on run lengths.

    python -m benchmarks.plain_published

uses a photograph enlarged to 1500 x 2250 pixels, twenty regions of it as objects, and the same patch features for both
sides. It prints one line with the ratios of time and of peak memory, and the number of equal masks. It runs on Linux
and macOS only: each side runs in a forked process, whose peak memory the system reports.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import resource
import sys
import time
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from skimage import data

from benchmarks.timing import Cost
from unsam_mm import PseudoMaskGenerator
from unsam_mm.masks.rle import Rle, encode_bitmaps
from unsam_mm.pseudo_masks.vit import PatchFeatureExtractor
from unsam_mm.published.maskcut import resize_to_square
from unsam_mm.published.procedure import RELEASE, PublishedSettings, conquer_object, crop_box

_SIZE_HW = (1500, 2250)
_HALF = 0.5 + 1e-5  # more than a half, so that the result for exact halves does not depend on rounding
_ROUNDING_PX = 3  # pixels, of millions, that may differ because other values are rounded


def plain_parts(features: np.ndarray, mask: np.ndarray, settings: PublishedSettings = RELEASE) -> list[np.ndarray]:
    """Parts of one object, after the suppression of the released code.

    Args:
        features: (rows, columns, channels) float patch features of the object's box.
        mask: (H, W) bool, the object.
        settings: Only `is_centred`, `thetas`, `min_patches`, `min_coverage`, `nms_iou` and `nms_window` are used.

    Returns:
        (H, W) bool masks, large ones first.
    """
    height, width = mask.shape
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = xs[0], ys[0], xs[-1] + 1, ys[-1] + 1
    masks = []
    for clusters in _clusters_by_level(features, settings):
        for patches in clusters:
            enlarged = _enlarged(patches, features.shape[:2], box, (height, width))
            if (enlarged & mask).sum() > settings.min_coverage * enlarged.sum():
                masks.append(enlarged)
    masks.sort(key=lambda mask: -int(mask.sum()))  # a stable sort: among equal areas, the earlier level is first
    dropped: set[int] = set()
    for i, larger in enumerate(masks):
        if i in dropped:
            continue
        for j in range(i + 1, min(i + 1 + (settings.nms_window or len(masks)), len(masks))):
            if (larger & masks[j]).sum() > settings.nms_iou * (larger | masks[j]).sum():
                dropped.add(j)
    return [mask for i, mask in enumerate(masks) if i not in dropped]


def _clusters_by_level(grid: np.ndarray, settings: PublishedSettings) -> list[list[list[int]]]:
    """For each threshold, the clusters that still touch another cluster, as lists of patches."""
    rows, columns, channels = grid.shape
    features = (
        (grid - grid.mean(axis=(0, 1))).reshape(-1, channels) if settings.is_centred else grid.reshape(-1, channels)
    )
    members = {patch: [patch] for patch in range(len(features))}
    sums = dict(enumerate(features))
    similarity: dict[tuple[int, int], float] = {}

    def cosine(a: int, b: int) -> float:
        return float(sums[a] @ sums[b] / (np.linalg.norm(sums[a]) * np.linalg.norm(sums[b])))

    for patch in range(len(features)):
        row, column = divmod(patch, columns)
        if column + 1 < columns:
            similarity[patch, patch + 1] = cosine(patch, patch + 1)
        if row + 1 < rows:
            similarity[patch, patch + columns] = cosine(patch, patch + columns)
    levels, new = [], len(features)
    for theta in settings.thetas:
        while similarity and similarity[best := max(similarity, key=similarity.__getitem__)] >= theta:
            members[new] = members.pop(best[0]) + members.pop(best[1])
            sums[new] = sums.pop(best[0]) + sums.pop(best[1])
            touching = [pair for pair in similarity if pair[0] in best or pair[1] in best]
            for pair in touching:
                del similarity[pair]
            for other in {region for pair in touching for region in pair} - set(best):
                similarity[other, new] = cosine(other, new)
            new += 1
        regions = sorted({region for pair in similarity for region in pair})
        levels.append([members[region] for region in regions if len(members[region]) >= settings.min_patches])
    return levels


def _enlarged(
    patches: list[int], grid_hw: tuple[int, int], box_xyxy: tuple[int, int, int, int], size_hw: tuple[int, int]
) -> np.ndarray:
    """(H, W) bool mask of patches of a box, enlarged bicubically to the size of the box, in the whole image."""
    import torch
    from torch.nn.functional import interpolate

    x0, y0, x1, y1 = box_xyxy
    member = torch.zeros(grid_hw)
    member.view(-1)[patches] = 1
    large = interpolate(member[None, None], size=(int(y1 - y0), int(x1 - x0)), mode='bicubic', align_corners=False)
    enlarged = np.zeros(size_hw, bool)
    enlarged[y0:y1, x0:x1] = large[0, 0].numpy() > _HALF
    return enlarged


def divided_photograph(n_objects: int = 20, size_hw: tuple[int, int] = _SIZE_HW) -> tuple[list[Rle], list[np.ndarray]]:
    """RLEs of regions of an enlarged photograph, each 1 to 60 % of its area, and the patch features of their boxes."""
    height, width = size_hw
    small = np.ascontiguousarray(data.astronaut()[:341])
    image = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    regions = PseudoMaskGenerator.from_preset('default')(small).select(2000)
    share = regions.areas / (small.shape[0] * small.shape[1])
    rows, columns = np.arange(height) * small.shape[0] // height, np.arange(width) * small.shape[1] // width
    objects = [
        encode_bitmaps(coco_mask.decode(regions.rles[i]).astype(bool)[np.ix_(rows, columns)][None])[0]
        for i in np.flatnonzero((share > 0.01) & (share < 0.6))[:n_objects]
    ]
    extract = PatchFeatureExtractor(RELEASE.vit, RELEASE.facet, 32 * 14)
    boxes = [crop_box(rle) for rle in objects]
    crops = [resize_to_square(image[y0:y1, x0:x1], 32 * 14, Image.Resampling.BICUBIC) for x0, y0, x1, y1 in boxes]
    return objects, [extract(crop) for crop in crops]


@dataclass(frozen=True)
class Measured:
    """The results of both sides.

    Attributes:
        size_hw: Height and width of the image.
        n_objects: Number of objects in it.
        n_plain: Number of objects that the direct implementation processed.
        ours: Our time for these objects, and our peak memory for all objects.
        plain: Time and peak memory of the direct implementation.
        all_masks: Number of parts that we found in all objects.
        all_s: Our CPU seconds for all objects.
        our_masks: Number of parts that we found in the objects that both sides processed.
        plain_masks: Number of parts that the direct implementation found.
        same: Number of these parts that are equal in every pixel.
        differing_px: Largest number of pixels in which one of the other parts differs from the most similar part of
            ours: one or two, where an interpolated value is a half up to rounding.
    """

    size_hw: tuple[int, int]
    n_objects: int
    n_plain: int
    ours: Cost
    plain: Cost
    all_masks: int
    all_s: float
    our_masks: int
    plain_masks: int
    same: int
    differing_px: int

    @property
    def agree(self) -> bool:
        """True if both sides found the same masks, up to rounding."""
        return self.plain_masks == self.our_masks and self.differing_px <= _ROUNDING_PX

    def __str__(self) -> str:
        height, width = self.size_hw
        ours, plain = self.ours, self.plain
        return (
            f'conquer, {height} x {width} px: {self.n_objects} objects, {self.all_masks} parts in {self.all_s:.2f} s; '
            f'{self.n_plain} of them plainly {plain.cpu_s:.1f} s, ours {ours.cpu_s:.3f} s: '
            f'{plain.cpu_s / ours.cpu_s:.0f} times faster; peak memory {plain.peak_mb:.0f} MB, ours (all objects) '
            f'{ours.peak_mb:.0f} MB: {plain.peak_mb / ours.peak_mb:.0f} times less; '
            f'masks {self.plain_masks} and {self.our_masks}, {self.same} of them equal in every pixel, '
            f'the others but for {self.differing_px}'
        )


def compare(n_objects: int = 20, n_plain: int = 3, size_hw: tuple[int, int] = _SIZE_HW) -> Measured:
    """Runs both sides.

    Args:
        n_objects: Maximum number of objects in the image.
        n_plain: Number of objects, evenly spaced, for which time is compared: the direct implementation needs seconds
            for each. Its peak memory for these is compared with ours for all objects.
        size_hw: Height and width of the image.
    """
    objects, features = divided_photograph(n_objects, size_hw)
    chosen = np.linspace(0, len(objects) - 1, min(n_plain, len(objects))).round().astype(int)
    some = [objects[i] for i in chosen], [features[i] for i in chosen]
    _fast([objects[0]], [features[0]])  # compiles
    _plain([encode_bitmaps(np.ones((1, 64, 64), bool))[0]], [features[0]])  # imports
    all_masks, for_all = _measured(_fast, objects, features)
    # Our side runs before and after the slow one, because the load of the machine may change.
    runs = [_measured(_fast, *some)]
    plain_masks, plain = _measured(_plain, *some)
    runs.append(_measured(_fast, *some))
    masks = runs[0][0]
    cpu_s, wall_s = (sum(getattr(cost, name) for _, cost in runs) / len(runs) for name in ('cpu_s', 'wall_s'))
    return Measured(
        size_hw=size_hw,
        n_objects=len(objects),
        n_plain=len(chosen),
        ours=Cost(cpu_s, wall_s, for_all.peak_mb),
        plain=plain,
        all_masks=len(all_masks),
        all_s=for_all.cpu_s,
        our_masks=len(masks),
        plain_masks=len(plain_masks),
        same=len(masks & plain_masks),
        differing_px=_differing_px(plain_masks - masks, masks - plain_masks, size_hw),
    )


def _differing_px(some: set[bytes], others: set[bytes], size_hw: tuple[int, int]) -> int:
    """The largest number of pixels in which a mask of `some` differs from the most similar mask of `others`.

    Masks are given as run lengths. If either set is empty, all pixels of the masks are counted.
    """
    drawn, other_drawn = (
        [coco_mask.decode({'size': list(size_hw), 'counts': counts}) for counts in masks] for masks in (some, others)
    )
    if not drawn or not other_drawn:
        return sum(int(mask.sum()) for mask in drawn + other_drawn)
    return max(min(int((mask != other).sum()) for other in other_drawn) for mask in drawn)


def _fast(objects: list[Rle], features: list[np.ndarray]) -> set[bytes]:
    return {
        part['counts']
        for rle, grid in zip(objects, features, strict=True)
        for part in conquer_object(grid, rle, RELEASE)[0]
    }


def _plain(objects: list[Rle], features: list[np.ndarray]) -> set[bytes]:
    found = []
    for rle, grid in zip(objects, features, strict=True):
        found += plain_parts(grid, coco_mask.decode(rle).astype(bool))
    return {encode_bitmaps(mask[None])[0]['counts'] for mask in found}


def _measured(function, objects: list[Rle], features: list[np.ndarray]) -> tuple[set[bytes], Cost]:
    """Result and cost of one side, in a forked process; memory that the process had before is not counted."""
    _return_free_memory()
    context = multiprocessing.get_context('fork')
    receiver, sender = context.Pipe(duplex=False)

    def run() -> None:
        unit = 1 if sys.platform == 'darwin' else 1024
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start, cpu_start = time.perf_counter(), time.process_time()
        result = function(objects, features)
        cpu_s, wall_s = time.process_time() - cpu_start, time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        sender.send((result, Cost(cpu_s, wall_s, max(peak - before, 1) * unit / 1e6)))

    process = context.Process(target=run)
    process.start()
    sender.close()
    measured = receiver.recv()
    process.join()
    return measured


def _return_free_memory() -> None:
    """Returns freed memory to the system, so that using it again counts as new memory; glibc only."""
    if trim := getattr(ctypes.CDLL(None), 'malloc_trim', None):
        trim(0)


def main() -> None:
    """Prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--objects', type=int, default=20, help='objects in the image')
    parser.add_argument('--plain', type=int, default=3, help='objects that the direct implementation processes')
    parser.add_argument(
        '--height', type=int, default=_SIZE_HW[0], help='height of the image; the width is 1.5 times as large'
    )
    parser.add_argument('--json', action='store_true', help='print the figures as JSON')
    options = parser.parse_args()
    measured = compare(options.objects, options.plain, (options.height, options.height * 3 // 2))
    print(json.dumps({**asdict(measured), 'agree': measured.agree}) if options.json else measured)


if __name__ == '__main__':
    main()
