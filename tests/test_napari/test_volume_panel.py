"""The section for stacks and movies, with a real session on a viewer without a window."""

import threading
from itertools import pairwise

import numpy as np
import pytest
from napari.layers import Tracks
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest
from skimage.draw import disk

from napari_unsam.levels.region_properties import Brightness
from napari_unsam.model.mask import EMPTY, BoxMask
from napari_unsam.qt.iou_strip import IouStrip, colour_of
from napari_unsam.qt.volume_panel import VolumePanel
from napari_unsam.viewer.object_write import ObjectWrite
from napari_unsam.volumes import segmenter as work_module
from napari_unsam.volumes.propagation import Direction, SliceMask, SliceState
from napari_unsam.volumes.segmenter import TRACKS_NAME, Regions, StackSettings
from tests.test_napari.stand_ins import is_problem

SIZE_HW, N_SLICES = (48, 72), 6
BALL, OTHER = (
    {z: (24, 20 + z, r) for z, r in zip(range(1, 5), (8, 10, 10, 8), strict=True)},
    dict.fromkeys(range(1, 6), (24, 54, 9)),
)


def disc(discs, z):
    mask = np.zeros(SIZE_HW, bool)
    if z in discs:
        row, column, radius = discs[z]
        mask[disk((row, column), radius, shape=SIZE_HW)] = True
    return mask


def stack():
    image = np.random.default_rng(0).normal(60, 3, (N_SLICES, *SIZE_HW))
    for z in range(N_SLICES):
        image[z][disc(BALL, z)] += 120
        image[z][disc(OTHER, z)] += 90
    return image.clip(0, 255).astype(np.uint8)


@pytest.fixture
def panel(qtbot, viewer, session):
    """The section over a stack of two objects whose slices are two units apart, with slice 2 in view."""
    image = viewer.add_image(stack(), scale=(2, 1, 1), translate=(10, 0, 0), contrast_limits=(0, 255), name='Stack')
    session.set_image(image)
    viewer.dims.set_point(0, 10 + 2 * 2)
    panel = VolumePanel(session)
    qtbot.addWidget(panel)
    yield panel
    panel.close_session()


def mark(session, z, mask, label):
    """Writes an object into one slice, as a commit does."""
    x0, y0, x1, y1 = (crop := BoxMask.of(mask)).box_xyxy
    box = (slice(z, z + 1), slice(y0, y1), slice(x0, x1))
    session.write_objects('mark', [ObjectWrite(box, crop.mask[None], label, {'score': 1.0})])
    session.ensure_objects().selected_label = label


def paint(session, z, mask, label):
    """Paints in one slice as a user does with napari's brush."""
    rows, columns = np.nonzero(mask)
    session.objects.data_setitem((np.full(len(rows), z), rows, columns), label)


@pytest.fixture
def press(mailbox, session):
    """Presses a button and waits for what it began."""

    def press(button):
        button.click()
        mailbox.open_until(lambda: not session.controller.is_busy)

    return press


def object_slices(session, label):
    return np.flatnonzero((session.objects.data == label).any(axis=(1, 2))).tolist()


def test_the_section_offers_the_slider_of_a_stack_and_all_of_its_slices(panel):
    assert panel.axis_choice.count() == 1
    assert panel.axis_choice.currentText() == '6 slices'
    assert (panel.first_box.value(), panel.last_box.value()) == (0, 5)
    assert panel.current_button.isEnabled()
    assert not panel.again_button.isEnabled()


@pytest.mark.parametrize(
    ('labels', 'said'),
    [(('z', 'y', 'x'), 'z, 6 slices'), (('t', 'y', 'x'), 't, 6 frames'), (('-3', '-2', '-1'), '6 slices')],
)
def test_the_slider_is_called_what_the_layer_calls_its_axis(qtbot, viewer, session, labels, said):
    session.set_image(viewer.add_image(stack(), axis_labels=labels))
    panel = VolumePanel(session)
    qtbot.addWidget(panel)
    assert panel.axis_choice.currentText() == said
    panel.close_session()


def test_one_slice_is_spoken_of_in_the_singular(panel):
    assert panel.gap_box.text() == '2 slices'
    panel.gap_box.setValue(1)
    assert panel.gap_box.text() == '1 slice'


def test_several_sliders_without_names_are_told_apart(qtbot, viewer, session):
    session.set_image(viewer.add_image(np.stack([stack()] * 2)))
    panel = VolumePanel(session)
    qtbot.addWidget(panel)
    assert [panel.axis_choice.itemText(row) for row in range(2)] == ['axis 2, 6 slices', 'axis 1, 2 slices']
    panel.close_session()


def test_an_image_without_a_slider_has_nothing_to_propagate(qtbot, viewer, session):
    session.set_image(viewer.add_image(stack()[0]))
    panel = VolumePanel(session)
    qtbot.addWidget(panel)
    assert not panel.current_button.isEnabled()
    panel.key_actions['propagate']()
    assert is_problem(session, 'no slider')
    panel.close_session()


def test_the_selected_label_is_propagated_as_one_action(panel, session, press):
    mark(session, 2, disc(BALL, 2), 1)
    press(panel.current_button)
    assert object_slices(session, 1) == [1, 2, 3, 4]
    wrong = (session.objects.data == 1) ^ np.stack([disc(BALL, z) for z in range(N_SLICES)])
    assert wrong.sum() < 0.15 * (session.objects.data == 1).sum()
    session.controller.undo()
    assert object_slices(session, 1) == [2]
    session.controller.redo()
    assert object_slices(session, 1) == [1, 2, 3, 4]


def test_the_table_has_one_row_for_the_whole_object(panel, session, press):
    mark(session, 2, disc(BALL, 2), 1)
    press(panel.current_button)
    table = session.objects.features
    assert table['index'].tolist() == [1]
    assert table['area_px'].tolist() == [(session.objects.data == 1).sum()]
    areas = (session.objects.data == 1).sum(axis=(1, 2))
    expected = (1 + np.log10(areas[areas > 0] / session.objects.data[0].size) / 4).mean()
    assert table['granularity'][0] == pytest.approx(expected)


def test_a_mask_on_offer_is_committed_and_propagated(panel, session, press, settle):
    session.controller.embed()
    settle(session.controller)
    session.controller.add_prompt((2, 24, 22))
    settle(session.controller)
    assert session.controller.proposal is not None
    press(panel.current_button)
    assert session.controller.proposal is None
    assert 2 in object_slices(session, 1)


def test_without_an_object_the_user_is_told_what_to_do(panel, session):
    panel.current_button.click()
    assert is_problem(session, 'click on one')
    panel.slice_button.click()
    assert is_problem(session, 'no object in this slice')
    panel.segmenter.propagate_again()
    assert is_problem(session, 'No slice was corrected')


def test_all_objects_of_a_slice_go_in_one_run_and_one_action(panel, session, press):
    mark(session, 2, disc(BALL, 2), 1)
    mark(session, 2, disc(OTHER, 2), 2)
    press(panel.slice_button)
    assert object_slices(session, 1) == [1, 2, 3, 4]
    assert object_slices(session, 2) == [1, 2, 3, 4, 5]
    assert panel.object_choice.count() == 2
    session.controller.undo()
    assert object_slices(session, 1) == object_slices(session, 2) == [2]


def test_range_and_direction_limit_where_it_goes(panel, session, press):
    mark(session, 2, disc(BALL, 2), 1)
    panel.last_box.setValue(3)
    panel.direction_choice.setCurrentIndex(panel.direction_choice.findData(Direction.FORWARD))
    press(panel.current_button)
    assert object_slices(session, 1) == [2, 3]
    panel.all_button.click()
    assert panel.last_box.value() == 5


def test_a_slice_outside_the_range_is_refused(panel, session):
    mark(session, 2, disc(BALL, 2), 1)
    panel.first_box.setValue(3)
    panel.current_button.click()
    assert is_problem(session, 'widen the range')


def test_the_threshold_says_when_to_stop(panel, session, press):
    mark(session, 2, disc(BALL, 2), 1)
    panel.threshold_box.setValue(1.0)
    press(panel.current_button)
    assert object_slices(session, 1) == [2]


def test_other_objects_keep_their_pixels_unless_the_user_says_otherwise(panel, session, press):
    mark(session, 3, disc(BALL, 3), 7)
    mark(session, 2, disc(BALL, 2), 1)
    press(panel.current_button)
    assert (session.objects.data[3][disc(BALL, 3)] == 7).all()
    session.controller.undo()
    session.keep_existing = False
    press(panel.current_button)
    assert (session.objects.data[3] == 7).sum() < 0.1 * disc(BALL, 3).sum()


def test_the_bars_show_the_iou_of_the_masks_without_the_pixels_of_other_objects(panel, session, press):
    half = disc(BALL, 3)
    half[:, : BALL[3][1]] = False
    mark(session, 3, half, 7)
    mark(session, 2, disc(BALL, 2), 1)
    press(panel.current_button)
    strip, masks = panel.segmenter.strip, [BoxMask.of(labels == 1) for labels in session.objects.data]
    assert masks[3].intersection(BoxMask.of(half)) == 0
    assert 0.3 < strip[3].iou < 0.6
    assert strip[1].iou == pytest.approx(masks[1].iou(masks[2]))
    for z in (3, 4):  # slice 4 is whole, but was propagated from slice 3
        assert strip[z].iou == pytest.approx(masks[z].iou(masks[z - 1]))


def test_slices_mended_by_hand_are_kept_and_the_others_follow(panel, session, press):
    mark(session, 2, disc(BALL, 2), 1)
    press(panel.current_button)
    paint(session, 3, disc(BALL, 3), 1)
    paint(session, 3, disc({3: (24, 23, 2)}, 3), 0)  # a hole, on purpose
    paint(session, 4, np.ones(SIZE_HW, bool), 0)  # it ends before slice 4
    press(panel.again_button)
    assert object_slices(session, 1) == [1, 2, 3]
    assert session.objects.data[3, 24, 23] == 0
    states = {z: one.state for z, one in panel.segmenter.strip.items()}
    assert states[2] is states[3] is states[4] is SliceState.CORRECTED
    assert states[1] is SliceState.PROPAGATED


def test_slices_marked_before_are_kept_and_tie_the_object_down(panel, session, press):
    mark(session, 2, disc(BALL, 2), 1)
    paint(session, 4, disc({4: (24, 24, 4)}, 4), 1)
    press(panel.current_button)
    assert np.array_equal(session.objects.data[4] == 1, disc({4: (24, 24, 4)}, 4))
    assert panel.segmenter.strip[4].state is SliceState.CORRECTED
    assert 3 in object_slices(session, 1)


def test_what_was_propagated_before_is_found_again(panel, session, press):
    mark(session, 2, disc(BALL, 2), 1)
    press(panel.current_button)
    panel.threshold_box.setValue(1.0)
    press(panel.current_button)
    assert object_slices(session, 1) == [2]


@pytest.mark.parametrize('keep_existing', [True, False])
def test_what_is_painted_over_an_object_while_it_is_found_again_stays(
    panel, session, press, monkeypatch, keep_existing
):
    mark(session, 2, disc(BALL, 2), 1)
    press(panel.current_button)
    panel.threshold_box.setValue(1.0)  # so that all slices but one are erased
    session.keep_existing, meanwhile = keep_existing, disc({4: (24, 24, 4)}, 4)

    def written(*args):
        found = computed(*args)
        session.objects.data[4][meanwhile] = 9
        return found

    computed = work_module.object_writes
    monkeypatch.setattr(work_module, 'object_writes', written)
    press(panel.current_button)
    assert object_slices(session, 1) == [2]
    assert np.array_equal(session.objects.data[4] == 9, meanwhile)


def test_a_stack_in_time_is_gone_through_along_the_chosen_slider(qtbot, viewer, session, press):
    session.set_image(viewer.add_image(np.stack([stack()] * 3), contrast_limits=(0, 255)))
    viewer.dims.set_point((0, 1), (1, 2))
    panel = VolumePanel(session)
    qtbot.addWidget(panel)
    assert panel.axis_choice.count() == 2
    assert panel.segmenter.axis == 1
    box = (slice(1, 2), slice(2, 3), slice(0, SIZE_HW[0]), slice(0, SIZE_HW[1]))
    session.write_objects('mark', [ObjectWrite(box, disc(BALL, 2)[None, None], 1)])
    session.objects.selected_label = 1
    press(panel.current_button)
    assert np.argwhere((session.objects.data == 1).any(axis=(2, 3))).tolist() == [[1, z] for z in (1, 2, 3, 4)]
    viewer.dims.set_point(0, 2)
    assert panel.segmenter.strip == {}
    panel.segmenter.set_axis(0)
    press(panel.tracks_button)
    panel.close_session()


def test_a_run_that_was_taken_back_is_not_taken_for_corrections(panel, session, press):
    mark(session, 2, disc(BALL, 2), 1)
    press(panel.current_button)
    session.controller.undo()
    session.controller.undo()
    press(panel.again_button)
    assert is_problem(session, 'No slice was corrected')


def test_the_stack_is_not_read_for_corrections_in_the_thread_of_the_user(panel, session, press, monkeypatch):
    mark(session, 2, disc(BALL, 2), 1)
    press(panel.current_button)
    paint(session, 3, disc({3: (24, 23, 2)}, 3), 0)
    threads, masks_by_label = set(), work_module.masks_by_label
    monkeypatch.setattr(
        work_module, 'masks_by_label', lambda *args: threads.add(threading.current_thread()) or masks_by_label(*args)
    )
    press(panel.again_button)
    assert threads
    assert threading.main_thread() not in threads


def test_cancel_leaves_everything_as_it_was(panel, session, mailbox):
    mark(session, 2, disc(BALL, 2), 1)
    panel.current_button.click()
    assert panel.cancel_button.isEnabled()
    panel.cancel_button.click()
    assert not session.controller.is_busy
    assert object_slices(session, 1) == [2]
    assert not panel.cancel_button.isEnabled()


def test_the_strip_shows_each_slice_and_brings_it_into_view(qtbot, panel, session, viewer, press):
    mark(session, 2, disc(BALL, 2), 1)
    press(panel.current_button)
    assert sorted(panel.segmenter.strip)[:4] == [0, 1, 2, 3]
    panel.strip.resize(120, 34)
    middle = panel.strip.bar(4).center().toPoint()
    QTest.mouseClick(panel.strip, Qt.MouseButton.LeftButton, pos=QPoint(middle.x(), middle.y()))
    assert viewer.dims.point[0] == 10 + 2 * 4
    assert session.controller.target.plane.index[0] == 4


def test_another_image_empties_the_strip(panel, session, viewer, press):
    mark(session, 2, disc(BALL, 2), 1)
    press(panel.current_button)
    session.set_image(viewer.add_image(stack()[:4], scale=(2, 1, 1), translate=(10, 0, 0)))
    assert panel.segmenter.labels == []
    assert panel.last_box.maximum() == 3
    assert not panel.again_button.isEnabled()


def test_whole_stacks_are_found_as_3d_objects_in_one_action(panel, session, press):
    panel.regions_choice.setCurrentIndex(panel.regions_choice.findData(Regions.BEST))
    panel.min_area_box.setValue(100)
    panel.extent_box.setValue(3)
    press(panel.automatic_button)
    assert len(session.objects.features) >= 1
    labels = session.objects.data
    assert all(len(object_slices(session, label)) >= 3 for label in session.objects.features['index'])
    session.controller.undo()
    assert not labels.any()


def test_one_level_of_all_slices_is_joined(panel, session, press):
    panel.segmenter.automatic(StackSettings(level=0.6, min_area_px=100, max_share=0.5))
    panel.segmenter.session.controller.cancel()
    panel.level_slider.setValue(600)
    press(panel.automatic_button)
    assert session.objects.features['level'].eq(0.6).all()
    assert panel.level_label.text() == 'Level 0.60'


@pytest.mark.parametrize(
    ('brightness', 'other', 'is_inverted'),
    [(Brightness.BRIGHT, Brightness.DARK, False), (Brightness.DARK, Brightness.BRIGHT, True)],
)
def test_objects_lie_on_the_side_of_the_light_that_was_chosen(panel, session, press, brightness, other, is_inverted):
    if is_inverted:
        session.image.data = 255 - session.image.data
    in_discs = np.array([disc(BALL, z) | disc(OTHER, z) for z in range(N_SLICES)])
    panel.regions_choice.setCurrentIndex(panel.regions_choice.findData(Regions.BEST))
    panel.brightness_choice.setCurrentIndex(panel.brightness_choice.findData(other))
    press(panel.automatic_button)
    assert not ((session.ensure_objects().data > 0) & in_discs).any()
    session.controller.undo()
    panel.brightness_choice.setCurrentIndex(panel.brightness_choice.findData(brightness))
    press(panel.automatic_button)
    found = session.objects.data > 0
    assert (found & in_discs).sum() > 0.9 * (found | in_discs).sum()


@pytest.fixture
def finding(panel, session, mailbox):
    """All objects of the stack are being found; the result waits until `finding()`."""
    panel.regions_choice.setCurrentIndex(panel.regions_choice.findData(Regions.BEST))
    panel.brightness_choice.setCurrentIndex(panel.brightness_choice.findData(Brightness.BRIGHT))
    panel.automatic_button.click()
    return lambda: mailbox.open_until(lambda: not session.controller.is_busy)


def test_what_a_run_finds_goes_to_the_image_that_it_was_begun_on(finding, session, viewer):
    objects = session.objects
    session.set_image(viewer.add_image(stack()[::-1].copy(), name='Another'))
    finding()
    assert objects.data.any()
    assert session.objects is None or not session.objects.data.any()
    session.controller.undo()
    assert not objects.data.any()


def test_what_a_run_finds_for_an_image_that_is_gone_is_told_and_dropped(finding, session, viewer):
    viewer.layers.remove('Stack')
    finding()
    assert is_problem(session, 'its image was deleted')
    assert not session.history.undo_name


def test_objects_committed_during_a_run_keep_their_label_and_their_pixels(finding, session):
    mark(session, 3, disc(BALL, 3), 1)
    before = session.objects.data[3] == 1
    finding()
    labels = session.objects.data
    assert ((labels == 1).sum(axis=(1, 2)) > 0).tolist() == [z == 3 for z in range(N_SLICES)]
    assert (before == (labels[3] == 1)).all()
    assert sorted(session.objects.features['index']) == sorted(set(labels.flat) - {0})


def test_the_likeliest_regions_are_recorded_with_levels_of_their_own(finding, session):
    finding()
    assert not session.objects.features['level'].eq(StackSettings().level).any()


def test_what_is_clicked_is_propagated_once_there_is_a_mask_for_it(panel, session, settle):
    mark(session, 2, disc(BALL, 2), 1)
    session.click((10 + 2 * 2, 24, 54))
    panel.segmenter.propagate_current()
    assert not panel.segmenter.labels
    settle(session.controller)
    assert panel.segmenter.labels == [2]


def test_an_object_that_is_taken_back_while_it_is_propagated_stays_away(panel, session, mailbox, settle):
    session.click((10 + 2 * 2, 24, 54))
    settle(session.controller)
    panel.segmenter.propagate_current()
    session.controller.undo()
    mailbox.open_until(lambda: not session.controller.is_busy)
    assert is_problem(session, 'Nothing was propagated: object')
    assert not session.objects.data.any()


def test_slices_may_be_given_the_other_way_round(panel, session, press):
    panel.first_box.setValue(4)
    panel.last_box.setValue(1)
    assert panel.segmenter.z_range == (1, 5)


def test_objects_that_are_corrected_into_each_others_place_take_each_others_pixels(panel, session, press):
    mark(session, 2, disc(BALL, 2), 1)
    mark(session, 2, disc(OTHER, 2), 2)
    press(panel.slice_button)
    for label, discs in ((2, BALL), (1, OTHER)):
        paint(session, 2, disc(discs, 2), label)
    press(panel.again_button)
    for z in (1, 3, 4):
        for label, discs in ((2, BALL), (1, OTHER)):
            found, wanted = session.objects.data[z] == label, disc(discs, z)
            assert (found & wanted).sum() > 0.8 * (found | wanted).sum()


def test_without_a_mask_for_the_prompts_nothing_is_propagated(panel, session):
    mark(session, 2, disc(BALL, 2), 1)
    session.click((10 + 2 * 2, 24, 54))
    session.controller.cancel()
    panel.segmenter.propagate_current()
    assert is_problem(session, 'No mask yet')
    assert not panel.segmenter.labels


def test_what_is_too_small_is_not_an_object(panel, session, press):
    panel.min_area_box.setValue(100_000)
    press(panel.automatic_button)
    assert is_problem(session, 'No object was found')


def test_tracks_lie_where_the_image_lies(panel, session, viewer, press):
    panel.regions_choice.setCurrentIndex(panel.regions_choice.findData(Regions.BEST))
    panel.min_area_box.setValue(100)
    press(panel.tracks_button)
    (tracks,) = [layer for layer in viewer.layers if isinstance(layer, Tracks)]
    assert tracks.name == TRACKS_NAME
    assert tracks.scale.tolist() == [2, 1, 1]
    assert tracks.translate.tolist() == [10, 0, 0]
    assert len(np.unique(tracks.data[:, 0])) == len(session.objects.features)
    session.controller.undo()
    assert tracks not in viewer.layers
    assert not session.objects.data.any()
    session.controller.redo()
    assert tracks in viewer.layers


def strip_of(found, n_slices=5):
    strip = IouStrip()
    strip.resize(100, 34)
    strip.set_slices(found, n_slices, 1)
    return strip


def one(iou, state=SliceState.PROPAGATED, mask=None):
    return SliceMask(mask or BoxMask.of(disc(BALL, 2)), iou, 0.9, 0.4, state)


def test_a_bar_is_as_high_as_the_agreement(qtbot):
    strip = strip_of({1: one(1.0), 2: one(0.5), 4: one(0.1, SliceState.STOPPED, EMPTY)})
    qtbot.addWidget(strip)
    picture = strip.grab().toImage()
    ratio = picture.width() / 100

    def colour(z, share_of_height):
        room = strip.bar(z)
        return picture.pixelColor(
            int((room.left() + 3) * ratio), int(room.height() * (1 - share_of_height) * ratio)
        ).name()

    assert colour(2, 0.4) == colour_of(0.5)
    assert colour(2, 0.7) != colour_of(0.5)
    assert colour(1, 0.9) == colour_of(1.0)


def test_the_colours_rise_in_lightness_so_that_hue_is_not_needed():
    def lightness(name):
        red, green, blue = (int(name[i : i + 2], 16) for i in (1, 3, 5))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    shades = [lightness(colour_of(iou)) for iou in np.linspace(0, 1, 11)]
    assert all(a < b for a, b in pairwise(shades))


def test_the_strip_tells_about_every_slice(qtbot):
    strip = strip_of({1: one(1.0, SliceState.CORRECTED), 2: one(0.5), 3: one(0.1, SliceState.STOPPED, EMPTY)})
    qtbot.addWidget(strip)
    assert 'set by hand' in strip.describe(1)
    assert 'IoU 0.50' in strip.describe(2)
    assert 'stopped' in strip.describe(3)
    assert 'not analysed' in strip.describe(0)


def test_beside_the_bars_there_is_no_slice(qtbot):
    strip = strip_of({}, n_slices=2)
    qtbot.addWidget(strip)
    assert strip.slice_at(5) == 0
    assert strip.slice_at(99) is None
    assert strip.slice_at(-1) is None
    assert strip_of({}, n_slices=0).slice_at(5) is None
