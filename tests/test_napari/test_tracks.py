import tracemalloc

import numpy as np
import pytest
from napari.layers import Tracks
from skimage.draw import disk

from napari_unsam.volumes.linking import LinkSettings
from napari_unsam.volumes.slices import masks_by_label
from napari_unsam.volumes.tracks import track


def movie(*frames):
    """Label maps of cells, by frame: row, column, radius."""
    maps = []
    for cells in frames:
        labels = np.zeros((60, 80), np.int32)
        for number, (row, column, radius) in enumerate(cells, start=1):
            labels[disk((row, column), radius, shape=labels.shape)] = number
        maps.append(labels)
    return maps


DIVIDING = movie(
    *[[(30, 40, 12)]] * 3,
    *[[(30, 40 - 7 - i, 6), (30, 40 + 7 + i, 6)] for i in range(3)],
)
UNEQUAL = movie(*[[(30, 40, 12)]] * 3, *[[(30, 38 - i, 9), (30, 51 + i, 3.5)] for i in range(3)])


def test_a_moving_cell_is_one_track_with_its_centres():
    table = track(movie(*[[(20, 20 + 3 * t, 8)] for t in range(4)]))
    assert table.data[:, :2].tolist() == [[1, 0], [1, 1], [1, 2], [1, 3]]
    assert table.data[:, 2:] == pytest.approx(np.array([[20, 20], [20, 23], [20, 26], [20, 29]]))
    assert table.graph == {}


def test_a_cell_that_divides_is_the_mother_of_two_tracks():
    table = track(DIVIDING)
    (mother,) = {parents[0] for parents in table.graph.values()}
    assert len(table.graph) == 2
    assert [one.z for one in table.regions[mother]] == [0, 1, 2]
    for daughter in table.graph:
        assert [one.z for one in table.regions[daughter]] == [3, 4, 5]


def test_a_mother_does_not_go_on_as_the_larger_daughter():
    table = track(UNEQUAL)
    assert len(table.regions) == 3
    assert sorted(len(regions) for regions in table.regions.values()) == [3, 3, 3]
    assert len(table.graph) == 2


def test_a_cell_that_comes_in_from_outside_has_no_mother():
    table = track(movie([(20, 20, 8)], [(20, 21, 8), (40, 70, 6)], [(20, 22, 8), (40, 68, 6)]))
    assert len(table.regions) == 2
    assert table.graph == {}


def test_a_slip_of_one_frame_is_no_daughter():
    table = track(movie(*[[(30, 40, 12)]] * 2, [(30, 38, 10), (30, 51, 2)], *[[(30, 40, 12)]] * 2))
    assert table.graph == {}
    assert max(len(regions) for regions in table.regions.values()) == 5


def test_short_tracks_can_be_left_out():
    frames = movie([(20, 20, 8)], [(20, 21, 8), (45, 60, 4)], [(20, 22, 8)])
    assert len(track(frames, LinkSettings(min_extent=2)).regions) == 1
    assert len(track(frames, LinkSettings(min_extent=1)).regions) == 2


def test_a_cell_that_is_missed_in_one_frame_stays_one_track():
    table = track(movie([(20, 20, 8)], [], [(20, 22, 8)]))
    assert table.data[:, :2].tolist() == [[1, 0], [1, 2]]


def test_daughters_must_lie_in_their_mother():
    beside = movie(*[[(30, 40, 12)]] * 3, *[[(30, 27 - i, 6), (30, 53 + i, 6)] for i in range(3)])
    assert len(track(beside).regions) == 3
    assert track(beside).graph == {}


def test_napari_takes_the_tracks():
    table = track(DIVIDING)
    layer = Tracks(table.data, graph=table.graph)
    assert layer.graph == table.graph
    assert len(np.unique(layer.data[:, 0])) == 3


def test_a_movie_without_cells_has_no_tracks():
    table = track(movie([], []))
    assert table.data.shape == (0, 4)
    assert table.regions == {}


class CountedFrames(list):
    """Label maps that count how often one is looked at."""

    looks = 0

    def __getitem__(self, z):
        self.looks += 1
        return super().__getitem__(z)


@pytest.mark.parametrize('n_cells', [2, 16])
def test_looking_for_divisions_takes_as_many_looks_whatever_the_number_of_cells(n_cells):
    """Cells that come and go in turns, so that there are many tracks and no division."""
    cells = [(6 + 12 * (i // 4), 8 + 18 * (i % 4), 4) for i in range(n_cells)]
    frames = CountedFrames(movie(*[cells[t // 2 % 2 :: 2] for t in range(12)]))
    table = track(frames, LinkSettings(max_gap=0, min_extent=1))
    assert len(table.regions) == 6 * n_cells // 2
    assert frames.looks <= 8 * 12


def test_an_object_with_a_large_label_takes_no_more_memory_than_others():
    labels = np.zeros((64, 64), np.uint32)
    labels[2:5, 3:9], labels[40:50, 40:50], labels[60:, 60:] = 20_000_000, 7, 2**32 - 1
    masks_by_label(labels)  # what it calls is compiled once, which takes memory
    tracemalloc.start()
    masks = masks_by_label(labels)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert list(masks) == [7, 20_000_000, 2**32 - 1]
    assert masks[20_000_000].box_xyxy == (3, 2, 9, 5)
    assert peak_bytes < 2_000_000
