"""Label images: OME-TIFF and OME-Zarr come back equal, with the size of their voxels."""

import datetime
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import zarr

from napari_unsam.io import images as images_module
from napari_unsam.io.formats import FORMATS, export, read_objects
from napari_unsam.io.images import (
    read_label_tiff,
    read_ome_zarr,
    write_label_tiff,
    write_ome_zarr,
)
from napari_unsam.io.objects import LabelledObjects, objects_of_layer, slice_at
from napari_unsam.model.palette import OBJECT_COLOURS, label_rgb
from tests.test_napari.labelled import drawn_objects
from unsam_mm.errors import StoreError

WRITERS = {'tiff': (write_label_tiff, read_label_tiff, 'a.tif'), 'zarr': (write_ome_zarr, read_ome_zarr, 'a.ome.zarr')}


@pytest.mark.parametrize('kind', WRITERS)
@pytest.mark.parametrize('n_planes', [0, 3])
@pytest.mark.parametrize('largest', [9, 70_000, 4_000_000_000])
def test_labels_and_their_place_come_back(tmp_path, kind, n_planes, largest):
    write, read, name = WRITERS[kind]
    objects = drawn_objects(n_planes, largest)
    write(tmp_path / name, objects)
    back = read(tmp_path / name)
    assert np.array_equal(np.asarray(back.labels[...]), objects.labels)
    assert (back.scale, back.units, back.axes) == (objects.scale, objects.units, objects.axes)
    assert set(back.features['index']) == set(objects.features['index'])


@pytest.mark.parametrize(('largest', 'dtype'), [(65_535, np.uint16), (65_536, np.uint32)])
def test_tiffs_are_as_small_as_the_labels_allow(tmp_path, largest, dtype):
    write_label_tiff(tmp_path / 'a.tif', drawn_objects(largest=largest))
    assert tifffile.imread(tmp_path / 'a.tif').dtype == dtype


def test_tiffs_of_movies_tell_the_time_between_images(tmp_path):
    labels = np.zeros((4, 2, 6, 7), np.uint32)
    labels[2, 1, 3, 3] = 5
    units = ('second', 'micrometer', 'micrometer', 'micrometer')
    write_label_tiff(tmp_path / 'a.tif', LabelledObjects(labels, scale=(30.0, 2.0, 0.5, 0.5), units=units))
    back = read_label_tiff(tmp_path / 'a.tif')
    assert np.array_equal(back.labels, labels)
    assert (back.scale, back.units) == ((30.0, 2.0, 0.5, 0.5), units)


def test_without_units_a_tiff_tells_no_size(tmp_path):
    write_label_tiff(tmp_path / 'a.tif', LabelledObjects(np.ones((5, 6), np.uint8)))
    with tifffile.TiffFile(tmp_path / 'a.tif') as file:
        assert 'PhysicalSize' not in file.ome_metadata
    assert not read_label_tiff(tmp_path / 'a.tif').is_calibrated


@pytest.mark.parametrize('name', FORMATS)
@pytest.mark.parametrize('odd', ['a\udcff\n.png', 'a\ud800.png'])
def test_names_that_are_not_utf8_are_written_with_escapes(tmp_path, name, odd):
    features = pd.DataFrame({'index': [1], 'parent_id': [1], 'parent': ['b\udcff.png']})
    objects = LabelledObjects(np.ones((5, 6), np.uint8), features, odd, kind=odd)
    assert objects.name == objects.kind == {'a\udcff\n.png': r'a\xff\n.png', 'a\ud800.png': r'a\ud800.png'}[odd]
    FORMATS[name].write(tmp_path / f'a{FORMATS[name].ending}', objects)


def test_sizes_in_imagej_files_are_read(tmp_path):
    metadata = {'axes': 'ZYX', 'spacing': 2.5, 'unit': 'um'}
    pixels = np.zeros((3, 8, 9), np.uint16)
    tifffile.imwrite(tmp_path / 'a.tif', pixels, imagej=True, resolution=(4, 2), metadata=metadata)
    back = read_label_tiff(tmp_path / 'a.tif')
    assert (back.scale, back.units) == ((2.5, 0.5, 0.25), ('micrometer',) * 3)


def test_the_pyramid_halves_planes_and_keeps_labels_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(images_module, '_CHUNK_PX', 16)
    labels = np.random.default_rng(0).integers(0, 9, (2, 61, 45)).astype(np.uint32)
    objects = LabelledObjects(labels, scale=(2.0, 0.5, 0.5), units=('nanometer',) * 3)
    write_ome_zarr(tmp_path / 'a.zarr', objects)
    image = zarr.open_group(tmp_path / 'a.zarr', mode='r')['labels/objects']
    scales = image.attrs['ome']['multiscales'][0]
    assert [image[level['path']].shape for level in scales['datasets']] == [(2, 61, 45), (2, 31, 23), (2, 16, 12)]
    assert np.array_equal(image['2'][...], labels[:, ::4, ::4])
    assert scales['datasets'][2]['coordinateTransformations'] == [{'type': 'scale', 'scale': [2.0, 2.0, 2.0]}]
    assert image['0'].chunks == (1, 16, 16)


def test_zarr_metadata_are_those_of_ome_ngff_0_5(tmp_path):
    write_ome_zarr(tmp_path / 'a.zarr', drawn_objects(3))
    root, group, image = (
        json.loads((tmp_path / 'a.zarr' / place / 'zarr.json').read_text())['attributes']['ome']
        for place in ('', 'labels', 'labels/objects')
    )
    assert root['version'] == group['version'] == image['version'] == '0.5'
    assert group['labels'] == ['objects']
    assert image['multiscales'][0]['axes'][0] == {'name': 'z', 'type': 'space', 'unit': 'micrometer'}
    values = [entry['label-value'] for entry in image['image-label']['colors']]
    assert values == [1, 2, 3, 4, 5, 6, 9]
    assert all(len(entry['rgba']) == 4 for entry in image['image-label']['colors'])
    part = next(entry for entry in image['image-label']['properties'] if entry['label-value'] == 2)
    assert (part['parent_id'], part['granularity']) == (1, pytest.approx(1 / 6))
    array = json.loads((tmp_path / 'a.zarr' / 'labels/objects/0/zarr.json').read_text())
    assert array['dimension_names'] == ['z', 'y', 'x']


@pytest.mark.parametrize('name', FORMATS)
def test_what_is_there_is_replaced_only_by_what_is_whole(tmp_path, name, monkeypatch):
    form = FORMATS[name]
    path = tmp_path / f'a{form.ending}'
    form.write(path, drawn_objects())
    before = content_of(path)

    class Broken:
        shape, dtype = (40, 30), np.dtype(np.uint32)

        def __getitem__(self, index):
            raise KeyboardInterrupt

    broken = LabelledObjects(Broken(), pd.DataFrame({'index': [1]}))
    if name == 'csv':
        monkeypatch.setattr(pd.DataFrame, 'to_csv', lambda *args, **more: Broken()[0])
    with pytest.raises(KeyboardInterrupt):
        form.write(path, broken)
    assert content_of(path) == before
    monkeypatch.undo()
    form.write(path, drawn_objects(3, largest=11))
    assert content_of(path) != before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def content_of(path: Path):
    files = [path] if path.is_file() else sorted(part for part in path.rglob('*') if part.is_file())
    return [(file.relative_to(path.parent), file.read_bytes()) for file in files]


@pytest.mark.parametrize('name', [name for name in FORMATS if name != 'csv'])
def test_writing_tells_how_far_it_is_and_can_be_stopped(tmp_path, name):
    told = []
    path = tmp_path / 'a'
    export(path, drawn_objects(5), name, lambda fraction, text: told.append(fraction))
    assert told == sorted(told)
    assert told[0] == 0
    assert told[-1] >= 0.8
    before = content_of(path)

    def stop(fraction, text):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(path, drawn_objects(3), name, stop)
    assert content_of(path) == before


@pytest.mark.parametrize(
    ('value', 'text'),
    [
        (pd.Timestamp('2026-01-02'), '2026-01-02 00:00:00'),
        (datetime.date(2026, 1, 2), '2026-01-02'),
        ([1, 'a', pd.Timestamp('2026-01-02')], [1, 'a', '2026-01-02 00:00:00']),
        (np.float32(0.5), 0.5),
    ],
)
def test_what_zarr_metadata_cannot_hold_is_written_as_text(tmp_path, value, text):
    objects = drawn_objects()
    objects.features['note'] = [value] * len(objects.features)
    objects.features['nothing'] = pd.NaT
    write_ome_zarr(tmp_path / 'a.ome.zarr', objects)
    back = read_ome_zarr(tmp_path / 'a.ome.zarr').features
    assert back['note'].tolist() == [text] * len(objects.features)
    assert 'nothing' not in back


def test_a_folder_of_other_data_is_never_replaced(tmp_path):
    zarr.create_group(tmp_path / 'raw.zarr').create_array('0', shape=(4,), dtype='u1')
    with pytest.raises(StoreError, match='other data'):
        write_ome_zarr(tmp_path / 'raw.zarr', drawn_objects())
    assert zarr.open_group(tmp_path / 'raw.zarr', mode='r')['0'].shape == (4,)


def test_places_that_cannot_be_written_are_told(tmp_path):
    (tmp_path / 'file').write_text('')
    for form in FORMATS.values():
        with pytest.raises(StoreError, match='file'):
            form.write(tmp_path / 'file' / f'a{form.ending}', drawn_objects())


@pytest.mark.parametrize(
    ('name', 'content', 'words'),
    [
        ('a.tif', b'no image', 'cannot be read as a TIFF'),
        ('a.json', b'{', 'not a JSON file'),
        ('a.geojson', b'{}', 'can be written only'),
        ('a.zarr/readme', b'', 'no label image'),
        ('b.tif', None, 'no such file'),
    ],
)
def test_files_that_hold_no_objects_are_refused(tmp_path, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    with pytest.raises(StoreError, match=words):
        read_objects(tmp_path / name.split('/')[0])


def test_a_container_is_opened_by_the_file_in_it_too(tmp_path):
    write_ome_zarr(tmp_path / 'a.zarr', drawn_objects())
    assert np.array_equal(read_objects(tmp_path / 'a.zarr' / 'zarr.json').labels[...], drawn_objects().labels)


def test_an_image_of_fractions_holds_no_labels(tmp_path):
    tifffile.imwrite(tmp_path / 'a.tif', np.zeros((4, 4), np.float32))
    with pytest.raises(StoreError, match='whole numbers'):
        read_objects(tmp_path / 'a.tif')


def test_objects_of_a_layer_have_its_place_but_not_the_axis_of_channels():
    from napari.layers import Labels

    layer = Labels(
        np.arange(24, dtype=np.uint32).reshape(2, 1, 3, 4),
        scale=(5, 3, 0.5, 0.5),
        units=('s', 'pixel', 'um', 'um'),
        axis_labels=('t', 'c', 'y', 'x'),
    )
    objects = objects_of_layer(layer, channel_axis=1)
    assert (objects.shape, objects.scale, objects.axes) == ((2, 3, 4), (5.0, 0.5, 0.5), 'tyx')
    assert objects.units == ('second', 'micrometer', 'micrometer')
    assert np.array_equal(objects.labels[1,], layer.data[1, 0])
    assert np.array_equal(objects.labels[0:1, 1:2, 0:3], layer.data[0:1, 0, 1:2, 0:3])


def test_objects_of_a_layer_have_its_table_as_it_is_now():
    from napari.layers import Labels

    layer = Labels(np.ones((3, 4), int), features=pd.DataFrame({'index': [1], 'score': [0.5]}))
    objects = objects_of_layer(layer)
    layer.features.loc[0, 'score'] = 0.75
    assert objects.rows()[1]['score'] == 0.5


def test_a_layer_without_names_of_axes_gets_the_usual_ones():
    from napari.layers import Labels

    assert objects_of_layer(Labels(np.zeros((2, 3, 4), int))).axes == 'zyx'


def test_a_place_along_an_axis_is_read_when_asked_for():
    array = np.arange(60).reshape(3, 4, 5)
    assert np.array_equal(slice_at(array, -1, 2)[0:2, 1:3], array[0:2, 1:3, 2])
    assert np.array_equal(slice_at(array, 0, 1)[2,], array[1, 2])
    assert np.array_equal(np.asarray(slice_at(array, -1, 2)), array[..., 2])


def test_labels_have_the_colours_of_the_palette_again_and_again():
    assert label_rgb(1) == (0x56, 0xB4, 0xE9)
    assert label_rgb(1) == label_rgb(1 + len(OBJECT_COLOURS))
