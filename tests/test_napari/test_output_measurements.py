"""The numbers of each object, against scikit-image on the whole image and against shapes whose numbers are known."""

import numpy as np
import pandas as pd
import pytest
import zarr
from scipy.ndimage import gaussian_filter
from skimage import data
from skimage.filters import threshold_otsu
from skimage.measure import label, regionprops_table
from skimage.morphology import convex_hull_image

from napari_unsam.io.measurements import measure, merged, write_csv
from napari_unsam.io.objects import LabelledObjects
from napari_unsam.model.label_boxes import blocks, object_boxes
from unsam_mm.errors import UnSAMError


@pytest.fixture(scope='module')
def coins():
    image = data.coins()
    return image, label(image > threshold_otsu(image)).astype(np.uint32)


def disk(shape, centre, radius):
    return sum((axis - at) ** 2 for axis, at in zip(np.indices(shape), centre, strict=True)) <= radius**2


def test_numbers_agree_with_scikit_image_on_the_whole_image(coins):
    image, labels = coins
    names = ('label', 'area', 'centroid', 'bbox', 'eccentricity', 'solidity', 'perimeter')
    whole = regionprops_table(labels, image, properties=(*names, 'intensity_mean', 'intensity_min', 'intensity_max'))
    table = measure(LabelledObjects(labels), {'': image})
    pairs = {
        'index': 'label',
        'area_px': 'area',
        'centroid_y': 'centroid-0',
        'centroid_x': 'centroid-1',
        'bbox_y0': 'bbox-0',
        'bbox_x1': 'bbox-3',
        'eccentricity': 'eccentricity',
        'solidity': 'solidity',
        'perimeter_px': 'perimeter',
        'mean_intensity': 'intensity_mean',
        'min_intensity': 'intensity_min',
        'max_intensity': 'intensity_max',
    }
    assert len(table) > 50
    for ours, theirs in pairs.items():
        np.testing.assert_allclose(table[ours], whole[theirs], rtol=1e-9, err_msg=ours)


def test_world_units_are_told_in_the_names_of_columns():
    labels = np.zeros((20, 30), np.uint32)
    labels[5:9, 10:20] = 1
    [row] = measure(LabelledObjects(labels, scale=(0.5, 0.5), units=('micrometer',) * 2)).to_dict('records')
    assert row['area_px'] == 40
    assert row['area_um2'] == 10
    assert row['centroid_y_um'] == pytest.approx(6.5 * 0.5)
    assert row['perimeter_um'] == row['perimeter_px'] / 2


def test_without_units_and_scale_there_are_no_world_columns():
    labels = np.ones((3, 4), np.uint32)
    assert not [name for name in measure(LabelledObjects(labels)) if name.endswith(('um', 'um2', 'world'))]


def test_pixels_that_are_not_square_have_an_area_but_no_perimeter_in_world_units():
    table = measure(LabelledObjects(np.ones((6, 4), np.uint32), scale=(2.0, 1.0), units=('nanometer',) * 2))
    assert table['area_nm2'][0] == 48
    assert 'perimeter_nm' not in table


def test_a_ball_has_its_volume_and_is_almost_convex():
    labels = disk((40, 40, 40), (20, 20, 20), 15).astype(np.uint32)
    objects = LabelledObjects(labels, scale=(2.0, 0.5, 0.5), units=('micrometer',) * 3)
    [row] = measure(objects).to_dict('records')
    assert row['volume_um3'] == pytest.approx(4 / 3 * np.pi * 15**3 * 0.5, rel=0.02)
    assert row['solidity'] == pytest.approx(1, abs=0.06)
    assert (row['centroid_z'], row['centroid_z_um']) == (20, 40)


@pytest.mark.parametrize('seed', range(5))
def test_solidity_of_a_volume_agrees_with_scikit_image(seed):
    mask = gaussian_filter(np.random.default_rng(seed).random((12, 25, 30)), 3) > 0.51
    row = measure(LabelledObjects(mask.astype(np.uint32)))
    assert row['solidity'][0] == pytest.approx(mask.sum() / convex_hull_image(mask).sum(), abs=0.005)


def test_a_box_of_voxels_is_convex():
    labels = np.zeros((5, 6, 7), np.uint32)
    labels[1:3, 2:5, 3:7] = 9
    assert measure(LabelledObjects(labels))['solidity'][0] == pytest.approx(1)


def test_an_object_in_one_plane_of_a_stack_is_measured_as_in_2d():
    labels = np.zeros((3, 50, 60), np.uint32)
    labels[1] = disk((50, 60), (20, 30), 10)
    flat = measure(LabelledObjects(labels[1]))
    for name in ('eccentricity', 'solidity', 'perimeter_px'):
        assert measure(LabelledObjects(labels))[name][0] == flat[name][0]


def test_time_does_not_count_as_space():
    labels = np.zeros((4, 10, 12), np.uint32)
    labels[1:3, 2:4, 3:6] = 1
    table = measure(
        LabelledObjects(labels, scale=(30.0, 0.5, 0.5), units=('second', 'nanometer', 'nanometer'), axes='tyx')
    )
    assert table['area_nm2'][0] == 12 * 0.25
    assert table['centroid_t_s'][0] == 45


def test_each_channel_has_its_columns_and_nan_is_left_out():
    labels = np.ones((2, 3), np.uint32)
    pixels = np.array([[1.0, np.nan, 3.0], [5.0, 1.0, 2.0]])
    table = measure(LabelledObjects(labels), {'dapi': pixels, 'gfp': np.full((2, 3), 7)})
    assert table['mean_intensity_dapi'][0] == pytest.approx(12 / 5)
    assert table['max_intensity_dapi'][0] == 5
    assert table['min_intensity_gfp'][0] == 7


def test_a_channel_of_another_shape_is_refused():
    with pytest.raises(UnSAMError, match=r"'dapi' has shape \(4, 4\)"):
        measure(LabelledObjects(np.ones((2, 3), np.uint32)), {'dapi': np.zeros((4, 4))})


def test_no_objects_give_an_empty_table_with_an_index():
    assert list(measure(LabelledObjects(np.zeros((5, 5), np.uint32)))) == ['index']


def test_measuring_can_be_stopped():
    def stop(fraction, text):
        if fraction > 0.4:
            raise KeyboardInterrupt

    labels = np.repeat(np.arange(10, dtype=np.uint32), 4).reshape(10, 4)
    with pytest.raises(KeyboardInterrupt):
        measure(LabelledObjects(labels), progress=stop)


def test_arrays_on_disk_are_read_in_blocks_and_boxes_only(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, '__defaults__', (1000,))
    labels = np.zeros((6, 40, 50), np.uint32)
    labels[:, 3:9, 4:8] = 7
    labels[2, 30:39, 10:44] = 4_000_000_000
    stored = zarr.create_array(tmp_path / 'a.zarr', data=labels, chunks=(1, 20, 25))
    read = []

    class ProgressArray:
        shape, dtype = stored.shape, stored.dtype

        def __getitem__(self, index):
            part = np.asarray(stored[index])
            read.append(part.size)
            return part

    table = measure(LabelledObjects(ProgressArray()))
    assert table['index'].tolist() == [7, 4_000_000_000]
    assert table['area_px'].tolist() == [6 * 6 * 4, 9 * 34]
    assert max(read) <= 1000


@pytest.mark.parametrize('shape', [(7,), (5, 300), (3, 40, 50), (2, 3, 8, 9)])
def test_blocks_tile_an_array(shape):
    seen = np.zeros(shape, int)
    for block in blocks(shape, max_voxels=200):
        assert seen[block].size <= 200
        seen[block] += 1
    assert (seen == 1).all()


def test_boxes_grow_over_blocks():
    labels = np.zeros((10, 10), np.uint32)
    labels[1, 2] = labels[8, 7] = 3
    assert object_boxes(labels) == {3: (slice(1, 9), slice(2, 8))}


def test_a_table_keeps_the_rows_and_columns_of_others():
    known = pd.DataFrame({'index': [5, 2, 9], 'score': [0.5, 0.2, 0.9], 'note': ['a', 'b', 'c'], 'area_px': [1, 1, 1]})
    measured = pd.DataFrame({'index': [2, 5, 7], 'area_px': [20, 50, 70]})
    table = merged(known, measured)
    assert table['index'].tolist() == [5, 2, 9, 7]
    assert table['area_px'].tolist() == [50, 20, 1, 70]
    assert table['area_px'].dtype == np.int64
    assert table['note'].tolist()[:3] == ['a', 'b', 'c']
    assert np.isnan(table['score'][3])


def test_measuring_twice_changes_nothing(coins):
    image, labels = coins
    once = merged(pd.DataFrame({'index': [1, 2]}), measure(LabelledObjects(labels), {'': image}))
    again = merged(once, measure(LabelledObjects(labels), {'': image}))
    pd.testing.assert_frame_equal(once, again)


def test_csv_files_come_back_as_they_were(tmp_path, coins):
    table = measure(LabelledObjects(coins[1]))
    write_csv(tmp_path / 'deep' / 'objects.csv', table)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / 'deep' / 'objects.csv'), table)


@pytest.mark.parametrize(
    ('given', 'words'),
    [
        ({'labels': np.zeros(4, np.uint8)}, '2 to 6 axes'),
        ({'labels': np.zeros((4, 4))}, 'must be integers'),
        ({'labels': np.zeros((4, 4), int), 'scale': (1.0,)}, 'scale needs one entry'),
        ({'labels': np.zeros((4, 4), int), 'features': pd.DataFrame({'a': []})}, 'lack the column "index"'),
    ],
)
def test_what_cannot_be_objects_is_refused(given, words):
    with pytest.raises(UnSAMError, match=words):
        LabelledObjects(**given)
