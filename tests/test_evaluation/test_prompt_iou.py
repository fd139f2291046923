"""The figures of prompted masks against numbers worked out by hand, and the rule of the next click."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.test_evaluation.prompt_scenes import Answering
from unsam_mm.errors import StoreError, UnSAMError
from unsam_mm.evaluation.click_simulation import simulate_clicks
from unsam_mm.evaluation.prompt_data import Segment
from unsam_mm.evaluation.prompt_iou import (
    SegmentIoUs,
    draw_click_curves,
    format_prompt_table,
    iou_curve,
    mask_ious,
    max_and_oracle,
    number_of_clicks,
    save_click_curves,
    summarize,
)
from unsam_mm.next_click import centre_of, next_click


def box(y0, x0, y1, x1, size_hw=(9, 12)):
    mask = np.zeros(size_hw, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def masks_of(size_hw):
    return arrays.arrays(bool, size_hw, elements=st.booleans())


NOTHING = box(0, 0, 0, 0)


def test_the_first_click_is_the_pixel_farthest_from_the_outline():
    assert centre_of(box(2, 3, 7, 8)) == (5, 4)


def test_of_equally_far_pixels_the_first_in_reading_order_is_clicked():
    assert centre_of(box(1, 1, 5, 5)) == (2, 2)


def test_the_border_of_the_image_is_an_outline_too():
    assert centre_of(box(0, 0, 5, 5)) == (2, 2)
    assert centre_of(np.ones((9, 12), bool)) == (4, 4)


def test_an_empty_segment_has_no_centre():
    assert centre_of(NOTHING) is None


@given(masks_of((7, 6)))
def test_centre_agrees_with_distances_measured_one_by_one(mask):
    padded = np.pad(mask, 1)
    outside = np.argwhere(~padded) - 1
    best = max(
        ((np.square(outside - pixel).sum(axis=1).min(), *-pixel) for pixel in np.argwhere(mask)),
        default=(0, None, None),
    )
    assert centre_of(mask) == (None if best[0] == 0 else (-best[2], -best[1]))


def test_iou_of_masks_with_a_segment():
    truth = box(2, 2, 4, 4)  # 4 px
    masks = np.stack([truth, box(2, 3, 4, 5), box(2, 2, 4, 5), NOTHING])
    assert mask_ious(masks, truth).tolist() == [1, 2 / 6, 4 / 6, 0]


def test_ignored_pixels_count_neither_as_overlap_nor_as_union():
    truth, mask = box(2, 2, 4, 6), box(2, 4, 4, 8)  # 8 px each, 4 shared
    assert mask_ious(mask[None], truth, ignored=box(2, 5, 4, 7))[0] == 2 / 8


def test_max_iou_is_that_of_the_best_score_and_oracle_iou_the_best():
    assert max_and_oracle([0.2, 0.7, 0.9], [0.1, 0.8, 0.3]) == (0.7, 0.9)


def test_of_equal_scores_the_first_mask_counts_and_no_mask_is_zero():
    assert max_and_oracle([0.2, 0.7], [0.5, 0.5]) == (0.2, 0.7)
    assert max_and_oracle([], []) == (0.0, 0.0)


@pytest.mark.parametrize('scores', [[0.5], [0.5, np.nan]])
def test_every_mask_needs_a_finite_score(scores):
    with pytest.raises(UnSAMError, match='2 masks of a prompt have scores'):
        max_and_oracle([0.2, 0.7], scores)


def test_number_of_clicks_and_failures_by_hand():
    ious = np.array([[0.3, 0.8, 0.79], [0.9, 0.1, 0.1], [0.5, 0.6, 0.8], [0.5, 0.6, 0.799]])
    clicks, failed = number_of_clicks(ious, 0.80)
    assert clicks.tolist() == [2, 1, 3, 3]
    assert failed.tolist() == [False, False, False, True]  # with the last click is in time


def test_an_iou_of_four_fifths_reaches_eighty_percent():
    clicks, failed = number_of_clicks(np.array([[0.1 + 0.7]]), 0.80)  # a little less than 0.8 in binary
    assert (clicks.tolist(), failed.tolist()) == ([1], [False])


def three_segments():
    """One image with one segment and one with two, three clicks each."""
    first, second = np.array([[0.4, 0.8, 0.9]]), np.array([[0.1, 0.2, 0.3], [0.6, 0.85, 0.85]])
    return SegmentIoUs.join([(first, first + 0.1), (second, second)], n_clicks=3)


def test_all_segments_of_all_images_weigh_the_same_and_images_only_where_named_so():
    figures = summarize(three_segments())
    assert figures['max_iou'] == pytest.approx((0.4 + 0.1 + 0.6) / 3)
    assert figures['image_max_iou'] == pytest.approx((0.4 + 0.35) / 2)
    assert figures['oracle_iou'] == pytest.approx((0.5 + 0.1 + 0.6) / 3)
    assert figures['image_oracle_iou'] == pytest.approx((0.5 + 0.35) / 2)
    assert (figures['segments'], figures['images']) == (3, 2)


def test_figures_over_several_clicks_by_hand():
    figures = summarize(three_segments())
    assert iou_curve(figures) == pytest.approx([1.1 / 3, 1.85 / 3, 2.05 / 3])
    assert iou_curve(figures, 'oracle')[2] == pytest.approx((1.0 + 0.3 + 0.85) / 3)
    assert figures['NoC3@80'] == pytest.approx((2 + 3 + 2) / 3)
    assert figures['NoC3@85'] == pytest.approx((3 + 3 + 2) / 3)
    assert figures['NoC3@90'] == pytest.approx((3 + 3 + 3) / 3)
    assert [figures[f'failures3@{percent}'] for percent in (80, 85, 90)] == [1, 1, 2]


def test_one_click_has_no_number_of_clicks():
    one = SegmentIoUs.join([(np.array([[0.5]]), np.array([[0.7]]))], n_clicks=1)
    assert set(summarize(one)) == {
        'max_iou', 'oracle_iou', 'image_max_iou', 'image_oracle_iou', 'segments', 'images'
    }  # fmt: skip
    assert iou_curve(summarize(one)) == [0.5]


def test_images_without_segments_do_not_count():
    none, one = np.zeros((0, 1)), np.array([[0.5]])
    figures = summarize(SegmentIoUs.join([(none, none), (one, one), (none, none)], n_clicks=1))
    assert (figures['images'], figures['image_max_iou']) == (1, 0.5)


def test_nothing_measured_is_an_error():
    with pytest.raises(UnSAMError, match='no segment was prompted'):
        summarize(SegmentIoUs.join([], n_clicks=1))


def test_the_table_has_percentages_clicks_and_counts():
    table = format_prompt_table({'tree': summarize(three_segments()), 'flood': {'max_iou': 0.5}})
    cells = [[cell.strip() for cell in line.split('|')[1:-1]] for line in table.split('\n')]
    assert cells[0] == ['', 'tree', 'flood']
    assert {'max_iou': ['36.7', '50.0'], 'NoC3@80': ['2.33', '-'], 'segments': ['3', '-']}.items() <= {
        name: figures for name, *figures in cells
    }.items()


def test_next_click_is_positive_in_what_is_missing_and_negative_in_what_is_too_much():
    truth = box(1, 1, 8, 8)
    assert next_click(box(1, 1, 8, 5), truth, NOTHING) == ((6, 2), True)  # 3 px wide, the first of depth 2
    assert next_click(truth | box(2, 8, 7, 12), truth, NOTHING) == ((9, 3), False)


def test_the_deeper_error_is_clicked_and_of_equal_ones_the_negative():
    truth = box(0, 0, 9, 6)
    mask = box(3, 0, 9, 6) | box(0, 7, 3, 10)  # both errors are 3 px across
    assert next_click(mask, truth, NOTHING) == ((8, 1), False)
    assert next_click(mask & ~box(3, 0, 6, 6), truth, NOTHING) == ((2, 2), True)


def test_a_pixel_is_not_clicked_twice_and_a_perfect_mask_not_at_all():
    truth = box(3, 3, 6, 6)
    assert next_click(NOTHING, truth, NOTHING) == ((4, 4), True)
    assert next_click(NOTHING, truth, box(4, 4, 5, 5)) == ((3, 3), True)
    assert next_click(NOTHING, truth, truth) is None
    assert next_click(truth, truth, NOTHING) is None


def test_nothing_is_wrong_in_ignored_pixels():
    truth = box(3, 3, 6, 6)
    assert next_click(box(3, 3, 6, 8), truth, NOTHING, ignored=box(0, 6, 9, 12)) is None


@given(masks_of((6, 7)), masks_of((6, 7)))
def test_a_click_always_lies_in_an_error_of_its_kind(mask, truth):
    click = next_click(mask, truth, np.zeros_like(truth))
    if click is None:
        assert np.array_equal(mask, truth)
    else:
        (x, y), positive = click
        assert (truth[y, x], mask[y, x]) == (positive, not positive)


def of_size(truth):
    """A predictor that answers k clicks with the first k columns of a segment."""
    columns = np.flatnonzero(truth.any(axis=0))

    def answer(_, points, labels):
        return (truth & (np.arange(truth.shape[1]) < columns[0] + len(points)))[None], np.ones(1)

    return Answering(answer)


def test_simulated_clicks_by_hand():
    truth = box(1, 2, 8, 6)  # four columns
    predictor = of_size(truth)
    best_scored, oracle = simulate_clicks(predictor, Segment(truth), 3)
    assert best_scored.tolist() == [0.25, 0.5, 0.75]
    assert oracle.tolist() == best_scored.tolist()
    points, labels, _ = predictor.asked[-1]
    assert points == [[3, 2], [4, 2], [4, 1]]
    assert labels == [1, 1, 1]


def test_once_nothing_is_wrong_no_more_clicks_are_made():
    truth = box(1, 2, 8, 6)
    predictor = of_size(truth)
    best_scored, _ = simulate_clicks(predictor, Segment(truth), 20)
    assert best_scored[3:].tolist() == [1.0] * 17
    assert len(predictor.asked) == 4


@given(masks_of((6, 7)).filter(np.any))
def test_a_perfect_predictor_needs_one_click_and_has_an_iou_of_one(truth):
    predictor = Answering(lambda _, points, labels: (np.stack([~truth, truth]), np.array([0.2, 0.4])))
    ious = SegmentIoUs.join([tuple(part[None] for part in simulate_clicks(predictor, Segment(truth), 20))], 20)
    figures = summarize(ious)
    assert {figures[name] for name in ('max_iou', 'oracle_iou', 'NoC20@80', 'NoC20@85', 'NoC20@90')} == {1.0}
    assert {figures[f'failures20@{percent}'] for percent in (80, 85, 90)} == {0}


@given(masks_of((5, 6)).filter(np.any), st.lists(masks_of((5, 6)), min_size=1, max_size=4))
def test_with_the_segment_among_the_masks_the_oracle_is_one_and_never_below_the_best_scored(truth, others):
    masks = np.stack([*others, truth])
    predictor = Answering(lambda _, points, labels: (masks, np.arange(len(masks))[::-1]))
    best_scored, oracle = simulate_clicks(predictor, Segment(truth), 3)
    assert (oracle == 1).all()
    assert (best_scored <= oracle).all()


def test_no_answer_is_an_empty_mask_and_clicking_goes_on_elsewhere():
    truth = box(3, 3, 6, 6)
    predictor = Answering(lambda _, points, labels: (np.zeros((0, 9, 12), bool), np.zeros(0)))
    best_scored, oracle = simulate_clicks(predictor, Segment(truth), 12)
    assert best_scored.tolist() == oracle.tolist() == [0.0] * 12
    assert sorted(map(tuple, predictor.asked[-1][0])) == [(x, y) for x in (3, 4, 5) for y in (3, 4, 5)]


@pytest.mark.parametrize('feed_mask', [True, False])
def test_logits_of_the_best_scored_mask_go_back_with_the_next_click(feed_mask):
    truth = box(3, 3, 6, 6)
    predictor = Answering(lambda _, points, labels: (np.stack([truth, NOTHING, truth]), np.array([0.1, 0.9, 0.5])))
    simulate_clicks(predictor, Segment(truth), 2, feed_mask)
    first, second = (mask_input for _, _, mask_input in predictor.asked)
    assert first is None
    assert (second[0, 0, 0] == 1 and second.shape == (1, 4, 4)) if feed_mask else second is None


def test_masks_of_another_size_are_refused():
    predictor = Answering(lambda _, points, labels: (np.ones((1, 4, 4), bool), np.ones(1)))
    with pytest.raises(UnSAMError, match=r'masks of shape \(1, 4, 4\); expected'):
        simulate_clicks(predictor, Segment(box(3, 3, 6, 6)), 1)


def test_a_picture_of_curves_has_a_line_for_each_and_shows_more_as_higher():
    low, high = (draw_click_curves({'a': [value] * 3}) for value in (0.2, 0.8))
    assert low.shape == (460, 720, 3)
    rows = [np.flatnonzero(np.ptp(picture[:, 300].astype(int), axis=-1) > 60).mean() for picture in (low, high)]
    assert rows[0] == pytest.approx(24 + 380 * 0.8, abs=2)
    assert rows[1] == pytest.approx(24 + 380 * 0.2, abs=2)


def test_a_curve_is_a_png_under_any_name_and_a_folder_in_its_place_is_explained(tmp_path):
    save_click_curves(tmp_path / 'new' / 'curve', {'a': [0.5]})
    assert (tmp_path / 'new' / 'curve').read_bytes().startswith(b'\x89PNG')
    with pytest.raises(StoreError, match='new: is a folder'):
        save_click_curves(tmp_path / 'new', {'a': [0.5]})


@pytest.mark.parametrize('curves', [{}, {'a': []}, {'a': [1.2]}, {'a': [np.nan]}])
def test_curves_that_cannot_be_drawn_are_refused(curves):
    with pytest.raises(UnSAMError):
        draw_click_curves(curves)
