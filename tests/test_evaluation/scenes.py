"""Small scenes in COCO's form, and their figures by pycocotools itself."""

import contextlib
import copy
import io

import numpy as np
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from unsam_mm.masks.rle import encode_bitmaps, rle_to_json

MAX_DETS = (1, 10, 100, 1000)


def reference(predictions, ground_truth, max_dets=MAX_DETS):
    """The same figures read from the arrays of pycocotools' own evaluation."""
    truth, results = COCO(), None
    truth.dataset = copy.deepcopy(ground_truth)
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        results = truth.loadRes(copy.deepcopy(predictions))
        evaluation = COCOeval(truth, results, 'segm')
        evaluation.params.useCats = 0
        evaluation.params.maxDets = list(max_dets)
        evaluation.evaluate()
        evaluation.accumulate()
    recall, precision = evaluation.eval['recall'], evaluation.eval['precision']
    last = max_dets[-1]
    return {
        **{f'AR@{k}': recall[:, 0, 0, i].mean() for i, k in enumerate(max_dets)},
        **{f'AR_{name}@{last}': recall[:, 0, i, -1].mean() for i, name in enumerate('sml', start=1)},
        f'AP@{last}': precision[..., 0, 0, -1].mean(),
        f'AP50@{last}': precision[0, :, 0, 0, -1].mean(),
        f'AP75@{last}': precision[5, :, 0, 0, -1].mean(),
    }


def box_mask(y0, x0, y1, x1, size_hw=(40, 60)):
    mask = np.zeros(size_hw, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def record(image_id, mask, **fields):
    return {
        'image_id': image_id,
        'category_id': 1,
        'segmentation': rle_to_json(encode_bitmaps(mask[None])[0]),
        **fields,
    }


def coco(annotations, size_hw=(40, 60), n_images=1):
    """A ground truth with all fields that pycocotools insists on."""
    images = [{'id': i + 1, 'height': size_hw[0], 'width': size_hw[1]} for i in range(n_images)]
    annotations = [{'iscrowd': 0, 'area': 1, **a, 'id': i + 1} for i, a in enumerate(annotations)]
    return {'images': images, 'annotations': annotations, 'categories': [{'id': 1}, {'id': 2}]}


OBJECT = box_mask(5, 10, 25, 30)


@st.composite
def scenes(draw):
    """Truths and jittered copies of them, with crowds, equal scores, two categories and areas near the limits."""
    n_images, size_hw = draw(st.integers(1, 3)), (120, 110)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    annotations, predictions = [], []
    for image_id in range(1, n_images + 1):
        for _ in range(random.integers(1 if image_id == 1 else 0, 7)):
            y, x = random.integers(0, 60, 2)
            h, w = random.choice([8, 31, 32, 33, 60, 95, 96, 100], 2)
            mask = box_mask(y, x, y + h, x + w, size_hw)
            fields = {
                'area': int(mask.sum()),
                'category_id': int(random.integers(1, 3)),
                'iscrowd': int(random.random() < 0.2),
            }
            annotations.append(record(image_id, mask) | fields)
            for _ in range(random.integers(0, 4)):
                dy, dx, dh, dw = random.integers(-4, 5, 4)
                jittered = box_mask(max(y + dy, 0), max(x + dx, 0), y + h + dh, x + w + dw, size_hw)
                score, category = round(float(random.random()), 1), int(random.integers(1, 3))
                predictions.append(record(image_id, jittered, score=score) | {'category_id': category})
    first = record(1, box_mask(0, 0, 50, 50, size_hw), area=2500)
    return predictions + [record(i, OBJECT_120, score=0.5) for i in range(1, n_images + 1)], coco(
        [first, *annotations], size_hw, n_images
    )


OBJECT_120 = box_mask(20, 20, 52, 52, (120, 110))
