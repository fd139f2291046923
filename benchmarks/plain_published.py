"""The conquer step of divide-and-conquer done the plain way, and how much longer that takes.

`plain_parts` follows the published text step by step: a dictionary of all touching pairs that is searched for its maximum
before every merge, every cluster of every level enlarged to the size of the image, and a comparison of whole images
for every pair of the suppression. `unsam_mm.pseudo_masks.published.conquer_object` finds the same masks on one tree of
patches and on run lengths.

    python -m benchmarks.plain_published

takes a photograph enlarged to 1500 x 2250 pixels, twenty regions of it as divided objects, and patch features that both
sides are given, and prints one line with the ratios of time and of peak memory and how many masks are the same. Linux and
macOS only: each side runs in a forked process, whose peak memory the system reports.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import resource
import sys
import time

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from skimage import data

from unsam_mm import PseudoMaskGenerator
from unsam_mm.pseudo_masks.divide import squeezed
from unsam_mm.pseudo_masks.features import PatchFeatureExtractor, PatchFeatures
from unsam_mm.pseudo_masks.published import RELEASE, PublishedSettings, conquer_object, crop_box
from unsam_mm.rle import Rle, encode_bitmaps

_SIZE_HW = (1500, 2250)
_HALF = 0.5 + 1e-5  # exact halves are no matter of rounding


def plain_parts(features: PatchFeatures, mask: np.ndarray, settings: PublishedSettings = RELEASE) -> list[np.ndarray]:
    """Parts of one object, with the suppression of the release.

    Args:
        features: Features of the object's box.
        mask: (H, W) bool, the object.
        settings: `thetas`, `min_patches`, `min_coverage`, `nms_iou` and `nms_window` count.

    Returns:
        (H, W) bool masks, large ones first.
    """
    height, width = mask.shape
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = xs[0], ys[0], xs[-1] + 1, ys[-1] + 1
    masks = []
    for clusters in _clusters_by_level(features.grid, settings):
        for patches in clusters:
            enlarged = _enlarged(patches, features.grid.shape[:2], box, (height, width))
            if (enlarged & mask).sum() > settings.min_coverage * enlarged.sum():
                masks.append(enlarged)
    masks.sort(key=lambda mask: -int(mask.sum()))  # a stable sort: of equal areas the earlier level first
    dropped: set[int] = set()
    for i, larger in enumerate(masks):
        if i in dropped:
            continue
        for j in range(i + 1, min(i + 1 + (settings.nms_window or len(masks)), len(masks))):
            if (larger & masks[j]).sum() > settings.nms_iou * (larger | masks[j]).sum():
                dropped.add(j)
    return [mask for i, mask in enumerate(masks) if i not in dropped]


def _clusters_by_level(grid: np.ndarray, settings: PublishedSettings) -> list[list[list[int]]]:
    """For each threshold the clusters, as lists of patches, that still touch another one."""
    rows, columns, channels = grid.shape
    features = (grid - grid.mean(axis=(0, 1))).reshape(-1, channels) if settings.centres else grid.reshape(-1, channels)
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
    """(H, W) bool: patches of a box, enlarged to it bicubically, in the whole image."""
    import torch
    from torch.nn.functional import interpolate

    x0, y0, x1, y1 = box_xyxy
    member = torch.zeros(grid_hw)
    member.view(-1)[patches] = 1
    large = interpolate(member[None, None], size=(int(y1 - y0), int(x1 - x0)), mode='bicubic', align_corners=False)
    enlarged = np.zeros(size_hw, bool)
    enlarged[y0:y1, x0:x1] = large[0, 0].numpy() > _HALF
    return enlarged


def divided_photograph(n_objects: int = 20) -> tuple[list[Rle], list[PatchFeatures]]:
    """Regions of a photograph, 1 to 60 % of its area each, in an image of 1500 x 2250 pixels, and their features."""
    height, width = _SIZE_HW
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
    crops = [squeezed(image[y0:y1, x0:x1], 32 * 14, Image.Resampling.BICUBIC) for x0, y0, x1, y1 in boxes]
    return objects, [extract(crop) for crop in crops]


def compare(n_objects: int = 20, n_plain: int = 3) -> str:
    """Runs both sides and says what came out.

    Args:
        n_objects: How many objects the image is divided into.
        n_plain: Time is compared on so many of them, spread evenly, since the plain side takes seconds for each. Memory
            is compared to its disadvantage: its peak on these with the other side's on all.
    """
    objects, features = divided_photograph(n_objects)
    chosen = np.linspace(0, len(objects) - 1, min(n_plain, len(objects))).round().astype(int)
    some = [objects[i] for i in chosen], [features[i] for i in chosen]
    _fast([objects[0]], [features[0]])  # compiles
    _plain([encode_bitmaps(np.ones((1, 64, 64), bool))[0]], [features[0]])  # imports
    all_masks, all_seconds, memory = _measured(_fast, objects, features)
    masks, seconds, _ = _measured(_fast, *some)
    plain_masks, plain_seconds, plain_memory = _measured(_plain, *some)
    same = len(masks & plain_masks)
    return (
        f'conquer, {_SIZE_HW[0]} x {_SIZE_HW[1]} px: {len(objects)} objects, {len(all_masks)} parts in {all_seconds:.2f} s; '
        f'{len(chosen)} of them plainly {plain_seconds:.1f} s, ours {seconds:.3f} s: {plain_seconds / seconds:.0f} times faster; '
        f'peak memory {plain_memory / 1e6:.0f} MB, ours (all objects) {memory / 1e6:.0f} MB: '
        f'{plain_memory / memory:.0f} times less; '
        f'masks {len(plain_masks)} and {len(masks)}, {same} of them equal in every pixel'
    )


def _fast(objects: list[Rle], features: list[PatchFeatures]) -> set[bytes]:
    return {
        part['counts']
        for rle, grid in zip(objects, features, strict=True)
        for part in conquer_object(grid, rle, RELEASE)[0]
    }


def _plain(objects: list[Rle], features: list[PatchFeatures]) -> set[bytes]:
    found = []
    for rle, grid in zip(objects, features, strict=True):
        found += plain_parts(grid, coco_mask.decode(rle).astype(bool))
    return {encode_bitmaps(mask[None])[0]['counts'] for mask in found}


def _measured(function, objects: list[Rle], features: list[PatchFeatures]) -> tuple[set[bytes], float, int]:
    """Result, processor seconds and bytes of memory at the peak, above what the process had before."""
    _return_free_memory()
    context = multiprocessing.get_context('fork')
    receiver, sender = context.Pipe(duplex=False)

    def run() -> None:
        unit = 1 if sys.platform == 'darwin' else 1024
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.process_time()  # of this process alone, on a machine that others may use
        result = function(objects, features)
        seconds = time.process_time() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        sender.send((result, seconds, max(peak - before, 1) * unit))

    process = context.Process(target=run)
    process.start()
    sender.close()
    measured = receiver.recv()
    process.join()
    return measured


def _return_free_memory() -> None:
    """Gives memory that was freed but kept back to the system, so that its use shows as new; glibc only."""
    if trim := getattr(ctypes.CDLL(None), 'malloc_trim', None):
        trim(0)


def main() -> None:
    """Prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--objects', type=int, default=20, help='objects in the image')
    parser.add_argument('--plain', type=int, default=3, help='how many of them the plain side is given')
    options = parser.parse_args()
    sys.stdout.write(compare(options.objects, options.plain) + '\n')


if __name__ == '__main__':
    main()
