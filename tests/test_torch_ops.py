"""The ops in plain torch, against references that follow the definition one sample and one box at a time."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from unsam_mm._torch_ops import nms, roi_align_forward
from unsam_mm.errors import UnSAMError


def random_boxes(count: int, side: float, generator: torch.Generator) -> torch.Tensor:
    corners = torch.rand(count, 2, 2, generator=generator) * side
    return torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)


def nms_by_definition(boxes, scores, threshold, offset):
    def area(box):
        return (box[2] - box[0] + offset) * (box[3] - box[1] + offset)

    def iou(a, b):
        width = min(a[2], b[2]) - max(a[0], b[0]) + offset
        height = min(a[3], b[3]) - max(a[1], b[1]) + offset
        overlap = max(width, 0) * max(height, 0)
        return overlap / (area(a) + area(b) - overlap)

    rows, kept = boxes.double().tolist(), []
    for index in sorted(range(len(rows)), key=lambda index: -scores[index].item()):
        if all(iou(rows[index], rows[other]) <= threshold for other in kept):
            kept.append(index)
    return kept


@pytest.mark.parametrize(('threshold', 'offset'), [(0.3, 0), (0.65, 0), (0.5, 1)])
@pytest.mark.parametrize('count', [1, 40, 400])
def test_suppression_keeps_what_going_through_the_boxes_one_by_one_keeps(threshold, offset, count):
    generator = torch.Generator().manual_seed(count)
    boxes, scores = random_boxes(count, 30, generator), torch.rand(count, generator=generator)
    assert nms(boxes, scores, threshold, offset).tolist() == nms_by_definition(boxes, scores, threshold, offset)


def test_suppression_reaches_across_blocks_of_boxes(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    boxes, scores = random_boxes(300, 30, generator), torch.rand(300, generator=generator)
    whole = nms(boxes, scores, 0.4)
    monkeypatch.setattr('unsam_mm._torch_ops._BLOCK', 7)
    assert nms(boxes, scores, 0.4).tolist() == whole.tolist()


def test_a_suppressed_box_suppresses_nothing():
    boxes = torch.tensor([[0.0, 0, 10, 10], [3, 0, 13, 10], [6, 0, 16, 10]])  # each overlaps the next, IoU 7 / 13
    assert nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist() == [0, 2]


def test_equal_boxes_of_equal_score_leave_the_first_and_no_boxes_leave_none():
    assert nms(torch.tensor([[0.0, 0, 5, 5]] * 3), torch.ones(3), 0.5).tolist() == [0]
    assert nms(torch.zeros(0, 4), torch.zeros(0), 0.5).tolist() == []


def bilinear(feature, y, x):
    """Value of an (H, W) map between its pixels: 0 more than a pixel outside, the border's value closer by."""
    height, width = feature.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = math.floor(y), math.floor(x)
    value = 0.0
    for row, column in itertools.product((top, top + 1), (left, left + 1)):
        weight = (1 - abs(y - row)) * (1 - abs(x - column))
        if weight > 0:
            value += weight * feature[row, column].item()
    return value


def roi_align_by_definition(features, rois, bins_hw, scale, ratio, aligned):
    output = torch.zeros(len(rois), features.shape[1], *bins_hw)
    for number, (image, *box) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (value * scale - (0.5 if aligned else 0) for value in box)
        smallest = 0 if aligned else 1
        size_h, size_w = max(y2 - y1, smallest) / bins_hw[0], max(x2 - x1, smallest) / bins_hw[1]
        count_y, count_x = (ratio or math.ceil(size) for size in (size_h, size_w))
        for channel, row, column in itertools.product(range(features.shape[1]), range(bins_hw[0]), range(bins_hw[1])):
            values = [
                bilinear(
                    features[int(image), channel],
                    y1 + (row + (i + 0.5) / count_y) * size_h,
                    x1 + (column + (j + 0.5) / count_x) * size_w,
                )
                for i, j in itertools.product(range(count_y), range(count_x))
            ]
            output[number, channel, row, column] = sum(values) / max(len(values), 1)
    return output


def roi_align(features, rois, bins_hw, scale, ratio, aligned):
    output = torch.full((len(rois), features.shape[1], *bins_hw), 99.0)
    empty = torch.zeros(0)
    roi_align_forward(features, rois, output, empty, empty, *bins_hw, scale, ratio, 1, aligned)
    return output


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 1, 2])
@pytest.mark.parametrize('scale', [1.0, 0.25])
def test_bins_average_the_bilinear_samples_of_the_definition(aligned, ratio, scale):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 9, 13, generator=generator)
    boxes = random_boxes(12, 13 / scale, generator)
    boxes[0] = torch.tensor([-4.0, -4.0, 60.0, 60.0])  # more than a pixel over every border
    boxes[1] = torch.tensor([3.0, 2.0, 3.0, 2.0])  # no area
    boxes[2] = torch.tensor([1.0, 4.0, 12.0, 4.5])  # wide and flat: many samples along one side only
    rois = torch.cat([torch.arange(12)[:, None] % 2, boxes], dim=1)
    found = roi_align(features, rois, (3, 2), scale, ratio, aligned)
    assert torch.allclose(found, roi_align_by_definition(features, rois, (3, 2), scale, ratio, aligned), atol=1e-5)


def test_regions_in_small_portions_are_pooled_alike(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 3, 20, 20, generator=generator)
    rois = torch.cat([torch.zeros(30, 1), random_boxes(30, 20, generator)], dim=1)
    whole = roi_align(features, rois, (7, 7), 1.0, 0, True)
    monkeypatch.setattr('unsam_mm._torch_ops._MAX_SAMPLES', 1)
    assert torch.equal(roi_align(features, rois, (7, 7), 1.0, 0, True), whole)


def test_a_ramp_keeps_its_values_at_the_centres_of_the_bins():
    ramp = torch.arange(10.0).expand(1, 1, 10, 10)  # the pixel in column x has its centre at x + 0.5
    found = roi_align(ramp, torch.tensor([[0.0, 2.0, 2.0, 6.0, 6.0]]), (4, 4), 1.0, 0, True)
    assert torch.allclose(found[0, 0, 0], torch.tensor([2.0, 3.0, 4.0, 5.0]))


def test_maximum_pooling_is_refused():
    empty = torch.zeros(0)
    with pytest.raises(UnSAMError, match='set pool_mode to avg'):
        roi_align_forward(torch.zeros(1, 1, 2, 2), torch.zeros(1, 5), empty, empty, empty, 1, 1, 1.0, 0, 0, True)


def test_no_regions_give_an_empty_answer():
    assert roi_align(torch.zeros(1, 2, 4, 4), torch.zeros(0, 5), (2, 2), 1.0, 0, True).shape == (0, 2, 2, 2)
