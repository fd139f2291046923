"""Segments of real images in the layouts of published benchmarks, and predictors whose answers are known."""

import json

import numpy as np
from PIL import Image
from skimage import data, segmentation

from unsam_mm.masks.rle import encode_bitmaps, rle_to_json


def scene(image, scale=200):
    """A small photograph and its segments, (N, H, W) bool."""
    labels = segmentation.felzenszwalb(image, scale=scale, min_size=40)
    return image, np.stack([labels == value for value in np.unique(labels)])


def scenes():
    """File name to photograph and segments; not square, of two sizes."""
    return {'coffee.png': scene(data.coffee()[::4, ::4]), 'chelsea.png': scene(data.chelsea()[::3, ::3])}


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_coco(folder, photographs):
    """``gt.json`` and ``images/`` below a folder; returns both paths."""
    images, annotations = [], []
    for image_id, (name, (image, truths)) in enumerate(photographs.items(), start=5):
        save(folder / 'images' / name, image)
        images.append({'id': image_id, 'height': image.shape[0], 'width': image.shape[1], 'file_name': name})
        for rle in encode_bitmaps(truths):
            record = {'id': len(annotations) + 1, 'image_id': image_id, 'segmentation': rle_to_json(rle)}
            annotations.append(record | {'iscrowd': 0, 'category_id': 1})
    (folder / 'gt.json').write_text(json.dumps({'images': images, 'annotations': annotations}))
    return folder / 'gt.json', folder / 'images'


class Answering:
    """A predictor with SAM's interface whose masks are a function of the clicks; it records what it was asked."""

    def __init__(self, answer):
        self.answer, self.asked, self.images = answer, [], []

    def set_image(self, image):
        self.images.append(image)

    def predict(self, point_coords, point_labels, mask_input=None, multimask_output=True):
        self.asked.append((point_coords.tolist(), point_labels.tolist(), mask_input))
        masks, scores = self.answer(self, point_coords, point_labels)
        return masks, scores, np.arange(len(masks), dtype=np.float32).reshape(-1, 1, 1) * np.ones((1, 4, 4), np.float32)


class Omniscient(Answering):
    """Knows all segments of all images: answers with the one that is clicked at, ranked best among wrong ones."""

    def __init__(self, photographs):
        super().__init__(Omniscient._segment)
        self._photographs = photographs

    def _segment(self, points, labels):
        x, y = points[0].astype(int)
        truths = next(truths for image, truths in self._photographs.values() if np.array_equal(image, self.images[-1]))
        mask = next(truth for truth in truths if truth[y, x])
        return np.stack([~mask, mask, np.ones_like(mask)]), np.array([0.1, 0.9, 0.5])
