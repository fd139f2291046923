"""Images of five and six axes are annotated, measured, exported and restored like any other."""

import json

import numpy as np
import pandas as pd
import pytest
import tifffile
import zarr
from napari.layers import Labels

from napari_unsam.folders.series import place_objects, read_masks
from napari_unsam.io.formats import FORMATS, export, read_objects
from napari_unsam.io.measurements import measure
from napari_unsam.io.objects import LabelledObjects, objects_of_layer
from napari_unsam.model.frame import Channels
from napari_unsam.qt.objects_panel import ObjectsPanel
from napari_unsam.viewer.object_write import ObjectWrite
from tests.test_napari.stand_ins import is_problem
from unsam_mm.errors import StoreError, UnSAMError

SHAPES = {5: (2, 3, 2, 12, 16), 6: (2, 2, 3, 2, 12, 16)}


@pytest.fixture(params=SHAPES)
def shape(request):
    return SHAPES[request.param]


@pytest.fixture
def on_many_axes(viewer, session, settle, shape):
    """A session over an image with two objects, of which one is in two planes."""
    pixels = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    session.set_image(viewer.add_image(pixels, name='many', scale=(1,) * (len(shape) - 2) + (0.5, 0.5)))
    front = (0,) * (len(shape) - 3)
    boxes = [
        (*(slice(at, at + 1) for at in front), slice(0, 2), slice(2, 6), slice(3, 9)),
        (*(slice(at + 1, at + 2) for at in front), slice(1, 2), slice(1, 4), slice(1, 4)),
    ]
    masks = [np.ones([part.stop - part.start for part in box], bool) for box in boxes]
    session.write_objects(
        'draw', [ObjectWrite(*parts, label) for label, parts in enumerate(zip(boxes, masks, strict=True), 3)]
    )
    return session


@pytest.fixture
def panel(qtbot, on_many_axes):
    panel = ObjectsPanel(on_many_axes)
    qtbot.addWidget(panel)
    yield panel
    panel.close_session()


def exported(panel, session, settle, monkeypatch, path, name):
    monkeypatch.setattr(panel, 'choose_path', lambda suggestion, kinds: path)
    panel.format_choice.setCurrentIndex(list(FORMATS).index(name))
    panel.export_button.click()
    settle(session.controller)


def test_they_are_measured(panel, on_many_axes, settle, shape):
    panel.measure_button.click()
    settle(on_many_axes.controller)
    assert '2 objects measured' in on_many_axes.controller.status.text
    table = on_many_axes.objects.features.set_index('index')
    assert table['area_px'].to_dict() == {3: 48, 4: 9}
    assert table['bbox_z1'].to_dict() == {3: 2, 4: 2}
    assert table['centroid_x'].to_dict() == {3: 5.5, 4: 2}
    assert table['volume_world3'].to_dict() == {3: 48 * 0.25, 4: 9 * 0.25}
    assert table['max_intensity'][4] == on_many_axes.image.data[on_many_axes.objects.data == 4].max()


@pytest.mark.parametrize('name', ['tiff', 'coco'])
def test_they_are_exported_and_opened_again(panel, on_many_axes, settle, monkeypatch, tmp_path, name):
    path = tmp_path / f'a{FORMATS[name].ending}'
    exported(panel, on_many_axes, settle, monkeypatch, path, name)
    objects, drawn = read_objects(path), on_many_axes.objects.data.copy()
    assert objects.shape == drawn.shape
    assert np.array_equal(objects.labels, drawn)
    assert objects.axes == 'ptczyx'[-drawn.ndim :]
    on_many_axes.history.undo()
    assert place_objects(on_many_axes, on_many_axes.objects, read_masks(objects), 'open', keep_labels=True) == (2, 0)
    assert np.array_equal(on_many_axes.objects.data, drawn)


def test_each_plane_of_them_is_outlined_at_its_place(panel, on_many_axes, settle, monkeypatch, tmp_path, shape):
    exported(panel, on_many_axes, settle, monkeypatch, tmp_path / 'a', 'geojson')
    features = json.loads((tmp_path / 'a.geojson').read_text())['features']
    places = {
        (
            feature['properties']['label'],
            feature['properties']['metadata'].get('position'),
            *(feature['geometry']['plane'][axis] for axis in 'tcz'),
        )
        for feature in features
    }
    first, second = ('0', '1') if len(shape) == 6 else (None, None)
    assert places == {(3, first, 0, 0, 0), (3, first, 0, 0, 1), (4, second, 1, 1, 1)}
    assert len({feature['id'] for feature in features}) == 3


def test_five_axes_go_into_an_ome_zarr_and_six_are_refused_in_a_line(
    panel, on_many_axes, settle, monkeypatch, tmp_path, shape
):
    exported(panel, on_many_axes, settle, monkeypatch, tmp_path / 'a', 'zarr')
    status = on_many_axes.controller.status
    if len(shape) == 6:
        assert status.is_problem
        assert 'holds up to five axes' in status.text
        assert not (tmp_path / 'a.ome.zarr').exists()
        return
    assert np.array_equal(read_objects(tmp_path / 'a.ome.zarr').labels[...], on_many_axes.objects.data)
    attributes = zarr.open_group(tmp_path / 'a.ome.zarr', mode='r')['labels/objects'].attrs['ome']
    axes = attributes['multiscales'][0]['axes']
    assert [(axis['name'], axis['type']) for axis in axes[:3]] == [('t', 'time'), ('c', 'channel'), ('z', 'space')]


def test_they_are_restored(on_many_axes, start, viewer):
    autosave, drawn = start(), on_many_axes.objects.data.copy()
    autosave.watch(on_many_axes)
    autosave.close()
    on_many_axes.history.undo()
    later = start()
    assert later.restore(on_many_axes, later.find(on_many_axes.image)).objects == 2
    assert np.array_equal(on_many_axes.objects.data > 0, drawn > 0)


def test_an_image_of_more_axes_is_refused_in_a_line_where_it_is_chosen(viewer, session):
    session.set_image(viewer.add_image(np.zeros((2, 1, 1, 1, 2, 8, 8), np.uint8), name='many'))
    line = '"many" has 7 axes, and objects can have 6 at most'
    assert line in session.controller.status.text
    session.controller.show_info('')
    assert not session.click((0,) * 7)
    assert is_problem(session, line)
    with pytest.raises(UnSAMError, match=line):
        session.ensure_objects()


def test_of_more_axes_one_may_be_of_channels(viewer, session, settle, qtbot):
    session.set_image(viewer.add_image(np.zeros((2, 1, 1, 1, 2, 8, 8), np.uint8)))
    session.set_channels(Channels(0))
    box = tuple(slice(0, 1) for _ in range(7))
    session.write_objects('draw', [ObjectWrite(box, np.ones((1,) * 7, bool), 1)])
    panel = ObjectsPanel(session)
    qtbot.addWidget(panel)
    panel.measure_button.click()
    settle(session.controller)
    panel.close_session()
    assert '1 object measured' in session.controller.status.text


def test_positions_are_images_of_one_tiff_and_keep_the_size_of_a_pixel(tmp_path):
    labels = np.arange(2 * 3 * 4 * 5, dtype=np.uint32).reshape(2, 3, 4, 5)
    objects = LabelledObjects(labels, scale=(1.0, 2.0, 0.5, 0.25), units=('pixel',) + ('micrometer',) * 3, axes='pzyx')
    export(tmp_path / 'a.tif', objects, 'tiff', lambda fraction, text: None)
    with tifffile.TiffFile(tmp_path / 'a.tif') as file:
        assert [one.axes for one in file.series] == ['ZYX', 'ZYX']
    back = read_objects(tmp_path / 'a.tif')
    assert np.array_equal(back.labels, labels)
    assert (back.axes, back.scale, back.units) == (objects.axes, objects.scale, objects.units)


@pytest.mark.parametrize(
    ('given', 'expected'),
    [
        (('t', 'c', 'z', 'y', 'x'), 'tczyx'),
        (('Position', 'time', 'z', 'y', 'x'), 'ptzyx'),
        (('t', 'p', 'z', 'y', 'x'), 'tczyx'),
        (('well', 't', 'z', 'y', 'x'), 'tczyx'),
        (('a', 'b', 'c', 'd', 'y', 'x'), 'ptczyx'),
        (('depth', 'y', 'x'), 'zyx'),
    ],
)
def test_axes_have_the_letters_of_their_names_or_the_usual_ones(given, expected):
    layer = Labels(np.zeros((1,) * len(given), np.uint32), axis_labels=given)
    assert objects_of_layer(layer).axes == expected


def test_only_what_lies_in_one_volume_has_a_shape():
    labels = np.zeros((2, 3, 8, 8), np.uint32)
    labels[0, :, 1:4, 1:4] = 1
    labels[:, 0, 5:7, 5:7] = 2
    table = measure(LabelledObjects(labels, pd.DataFrame({'index': [1, 2]}), axes='tzyx')).set_index('index')
    assert table['solidity'][1] == 1
    assert np.isnan(table['solidity'][2])
    movie = measure(LabelledObjects(labels[:, 0], pd.DataFrame({'index': [1, 2]}), axes='tyx')).set_index('index')
    assert movie['solidity'][1] == 1
    assert np.isnan(movie['solidity'][2])


# What stands in the way


def test_a_folder_in_the_place_of_a_file_stays(tmp_path):
    (tmp_path / 'a.tif').mkdir()
    (tmp_path / 'a.tif' / 'mine.txt').write_text('mine')
    objects = LabelledObjects(np.ones((4, 4), np.uint8))
    with pytest.raises(StoreError, match='is a folder'):
        export(tmp_path / 'a.tif', objects, 'tiff', lambda fraction, text: None)
    assert (tmp_path / 'a.tif' / 'mine.txt').read_text() == 'mine'


def test_a_container_with_label_images_of_others_stays(tmp_path):
    objects = LabelledObjects(np.ones((4, 4), np.uint8))
    export(tmp_path / 'a.zarr', objects, 'zarr', lambda fraction, text: None)
    zarr.open_group(tmp_path / 'a.zarr')['labels'].create_group('nuclei')
    with pytest.raises(StoreError, match='other data'):
        export(tmp_path / 'a.zarr', objects, 'zarr', lambda fraction, text: None)
    assert 'nuclei' in zarr.open_group(tmp_path / 'a.zarr', mode='r')['labels']


def test_a_container_that_cannot_be_replaced_is_as_it_was(tmp_path, monkeypatch):
    from pathlib import Path

    objects = LabelledObjects(np.ones((4, 4), np.uint8))
    export(tmp_path / 'a.zarr', objects, 'zarr', lambda fraction, text: None)
    rename = Path.rename

    def refuse(self, target):
        if self.name.endswith('.part'):
            raise PermissionError(13, 'Permission denied')
        return rename(self, target)

    monkeypatch.setattr(Path, 'rename', refuse)
    with pytest.raises(StoreError, match='Permission denied'):
        export(tmp_path / 'a.zarr', objects, 'zarr', lambda fraction, text: None)
    assert [path.name for path in tmp_path.iterdir()] == ['a.zarr']
    assert (read_objects(tmp_path / 'a.zarr').labels[...] == 1).all()


# Labels that do not fit


LABELS = [-1, -(2**31), 0, 7, 65_535, 65_536, 2**31, 2**32 - 1, 2**32, 2**32 + 7, 2**32 + 65_535]


@pytest.mark.parametrize('name', [name for name in FORMATS if name != 'csv'])
@pytest.mark.parametrize('seed', range(6))
def test_no_two_labels_become_one_in_a_file(tmp_path, name, seed):
    rng = np.random.default_rng(seed)
    values = rng.choice(LABELS if seed % 2 else [label for label in LABELS if 0 <= label < 2**32], 4, replace=False)
    labels = rng.choice(values, (8, 9))
    is_right = labels.min() >= 0 and labels.max() < 2**32
    objects = LabelledObjects(labels, pd.DataFrame({'index': np.unique(labels)}))
    path = tmp_path / f'a{FORMATS[name].ending}'
    if not is_right:
        with pytest.raises(UnSAMError, match=r'label -?\d+ lies outside of 0 to 4294967295'):
            export(path, objects, name, lambda fraction, text: None)
        assert not path.exists()
        return
    export(path, objects, name, lambda fraction, text: None)
    if name == 'geojson':
        features = json.loads(path.read_text())['features']
        assert {feature['properties']['label'] for feature in features} == {*labels.ravel().tolist()} - {0}
    else:
        assert np.array_equal(read_objects(path).labels[...], labels)


@pytest.mark.parametrize('label', [-1, 2**32 + 7])
def test_labels_that_do_not_fit_are_not_measured_as_others(label):
    with pytest.raises(UnSAMError, match=f'label {label} lies outside'):
        measure(LabelledObjects(np.array([[0, label], [7, 65_535]])))


@pytest.mark.parametrize('dtype', [np.int16, np.int32, np.int64])
def test_a_file_of_labels_that_do_not_fit_is_refused(tmp_path, dtype):
    labels = np.array([[0, -1], [7, 7]], dtype)
    tifffile.imwrite(tmp_path / 'a.tif', labels)
    with pytest.raises(StoreError, match='labels go from -1 to 7'):
        read_objects(tmp_path / 'a.tif')
    tifffile.imwrite(tmp_path / 'a.tif', np.abs(labels))
    assert np.array_equal(read_objects(tmp_path / 'a.tif').labels, np.abs(labels))


@pytest.mark.parametrize('label', [-1, 2**32 + 7])
def test_a_file_of_annotations_of_labels_that_do_not_fit_is_refused(tmp_path, label):
    path = tmp_path / 'a.json'
    export(path, LabelledObjects(np.ones((4, 4), np.uint8)), 'coco', lambda fraction, text: None)
    content = json.loads(path.read_text())
    content['annotations'][0]['object_id'] = label
    path.write_text(json.dumps(content))
    with pytest.raises(StoreError, match=f'object_id is {label}; expected'):
        read_objects(path)
