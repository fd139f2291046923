import numpy as np
import pytest

from napari_unsam.model.plane import Plane
from napari_unsam.model.plane_prompts import on_plane, outline_logits, plane_prompt, samples_along
from napari_unsam.model.prompts import PointPrompt, Polarity, Prompts, ShapeKind, ShapePrompt
from napari_unsam.viewer.contours import outline_segments
from unsam_mm.prompting.prompt import mask_of_logits

PLANE = Plane(shape=(9, 40, 60), axes=(1, 2), index=(3, 0, 0))


def shape(kind, *corners, polarity=Polarity.POSITIVE):
    return ShapePrompt(kind, tuple((3.0, float(row), float(column)) for row, column in corners), polarity)


def test_clicks_become_pixels_with_labels_in_their_order():
    prompts = Prompts((PointPrompt((3, 10.4, 20.6)), PointPrompt((3, 5, 6), Polarity.NEGATIVE)))
    question = plane_prompt(prompts, PLANE)
    assert question.points_xy.tolist() == [[21, 10], [6, 5]]
    assert question.labels.tolist() == [1, 0]
    assert question.has_positive


def test_prompts_of_other_planes_are_not_asked_about():
    there, beside = PointPrompt((3, 1, 1)), PointPrompt((4, 1, 1))
    box = ShapePrompt(ShapeKind.BOX, ((4, 1, 1), (4, 9, 9)))
    assert on_plane(Prompts((there, beside), (box,)), PLANE) == Prompts((there,))


def test_a_box_holds_the_pixels_of_its_corners():
    question = plane_prompt(Prompts(shapes=(shape(ShapeKind.BOX, (4, 6), (4, 20), (10, 20), (10, 6)),)), PLANE)
    assert question.box_xyxy.tolist() == [6, 4, 21, 11]
    assert question.points_xy is None
    assert question.has_positive


def test_the_last_box_counts():
    boxes = (shape(ShapeKind.BOX, (0, 0), (5, 5)), shape(ShapeKind.BOX, (4, 6), (10, 20)))
    assert plane_prompt(Prompts(shapes=boxes), PLANE).box_xyxy.tolist() == [6, 4, 21, 11]


def test_an_outline_is_given_as_its_box_and_as_a_mask():
    triangle = shape(ShapeKind.OUTLINE, (5, 5), (5, 45), (35, 5))
    question = plane_prompt(Prompts(shapes=(triangle,)), PLANE)
    assert question.box_xyxy.tolist() == [5, 5, 46, 36]
    drawn = mask_of_logits(question.mask, PLANE.size_hw)
    assert drawn[8, 8]
    assert not drawn[34, 44]
    assert drawn.sum() == pytest.approx(30 * 40 / 2, rel=0.05)


def test_an_outline_on_a_large_plane_takes_no_array_of_its_size():
    logits = outline_logits(np.array([[0, 0], [0, 50_000], [50_000, 0]]), (100_000, 80_000))
    assert logits.shape == (256, 256)
    assert (logits > 0).mean() == pytest.approx(1 / 8, rel=0.05)


def test_a_scribble_becomes_a_few_clicks_along_it_the_middle_one_first():
    scribble = shape(ShapeKind.SCRIBBLE, (20, 0), (20, 50), polarity=Polarity.NEGATIVE)
    question = plane_prompt(Prompts(shapes=(scribble,)), PLANE)
    assert question.labels.tolist() == [0] * 5
    assert question.points_xy[0].tolist() == [25, 20]
    assert sorted(question.points_xy[:, 0]) == [5, 15, 25, 35, 45]
    assert not question.has_positive


def test_a_short_scribble_is_one_click_and_what_lies_outside_is_left_out():
    assert samples_along(np.array([[5.0, 5.0], [6.0, 6.0]]), (40, 60)) in ([(5, 5)], [(6, 6)], [(5, 6)])
    assert all(0 <= column < 60 for _, column in samples_along(np.array([[5.0, -50.0], [5.0, 30.0]]), (40, 60)))


def test_clicks_of_both_kinds_on_one_pixel_contradict_each_other():
    both = Prompts((PointPrompt((3, 5, 5)), PointPrompt((3, 5.2, 5), Polarity.NEGATIVE)))
    assert plane_prompt(both, PLANE).is_contradictory


@pytest.mark.parametrize(
    ('mask', 'count'),
    [
        pytest.param([[1]], 4, id='a pixel'),
        pytest.param([[1, 1], [1, 0]], 6, id='an angle'),
        pytest.param([[1, 1, 1], [1, 0, 1], [1, 1, 1]], 8, id='a ring'),
    ],
)
def test_an_outline_runs_along_the_sides_of_pixels_in_as_few_segments_as_can_be(mask, count):
    mask = np.array(mask, bool)
    segments = outline_segments(mask)
    assert len(segments) == count
    padded = np.pad(mask, 1).astype(int)
    assert segments[:, 1].sum() == np.abs(np.diff(padded, axis=0)).sum() + np.abs(np.diff(padded, axis=1)).sum()
