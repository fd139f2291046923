"""GeoJSON: what QuPath and other readers are promised, and that polygons drawn again are the masks."""

import json
import uuid
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from napari_unsam.io.geojson import write_geojson
from tests.test_napari.labelled import background_of_one_object, drawn_objects
from tests.test_napari.test_output_outlines import drawn


def written(tmp_path, objects):
    write_geojson(tmp_path / 'a.geojson', objects)
    content = json.loads(
        (tmp_path / 'a.geojson').read_text(), parse_constant=lambda word: pytest.fail(f'{word} is no JSON')
    )
    check(content)
    return content['features']


def check(content):
    """RFC 7946, and the members that QuPath's reader asks for by their types."""
    assert set(content) == {'type', 'features'}
    assert content['type'] == 'FeatureCollection'
    ids = [feature['id'] for feature in content['features']]
    assert len(set(ids)) == len(ids)
    for feature in content['features']:
        assert feature['type'] == 'Feature'
        assert str(uuid.UUID(feature['id'])) == feature['id']
        check_geometry(feature['geometry'])
        properties = feature['properties']
        assert properties['objectType'] in ('annotation', 'detection')
        assert isinstance(properties['name'], str)
        assert isinstance(properties['classification']['name'], str)
        for colour in (properties['color'], properties['classification']['color']):
            assert len(colour) == 3
            assert all(0 <= part <= 255 for part in colour)
        numbers = properties['measurements'].values()
        assert all(isinstance(value, int | float) and not isinstance(value, bool) for value in numbers)
        assert all(isinstance(value, str) for value in properties['metadata'].values())
        assert properties['parent'] is None or properties['parent'] in ids


def check_geometry(geometry):
    parts = geometry['coordinates'] if geometry['type'] == 'MultiPolygon' else [geometry['coordinates']]
    assert geometry['type'] in ('Polygon', 'MultiPolygon')
    for part in parts:
        for place, ring in enumerate(part):
            assert len(ring) >= 5
            assert ring[0] == ring[-1]
            assert all(len(point) == 2 for point in ring)
            area = sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairwise(ring))
            assert (area > 0) == (place == 0), 'the outer ring comes first and runs the other way round than holes'
    if 'plane' in geometry:
        assert set(geometry['plane']) == {'c', 'z', 't'}


def rasterised(features, shape):
    labels = np.zeros(shape, np.uint32)
    for feature in features:
        geometry = feature['geometry']
        parts = geometry['coordinates'] if geometry['type'] == 'MultiPolygon' else [geometry['coordinates']]
        plane = geometry.get('plane')
        target = labels if plane is None else labels[plane['z']]
        mask = drawn(parts, target.shape)
        assert not target[mask].any(), 'polygons overlap'
        target[mask] = feature['properties']['label']
    return labels


@pytest.mark.parametrize('objects', [drawn_objects(), drawn_objects(3), background_of_one_object()])
def test_polygons_drawn_again_are_the_labels(tmp_path, objects):
    assert np.array_equal(rasterised(written(tmp_path, objects), objects.shape), objects.labels)


def test_parts_make_a_multipolygon_and_holes_stay_holes(tmp_path):
    by_label = {feature['properties']['label']: feature['geometry'] for feature in written(tmp_path, drawn_objects())}
    assert by_label[5]['type'] == by_label[3]['type'] == 'MultiPolygon'
    assert by_label[1]['type'] == 'Polygon'
    assert len(by_label[1]['coordinates']) == 2
    assert by_label[9]['coordinates'] == [[[8, 0], [8, 1], [7, 1], [7, 0], [8, 0]]]


def test_measurements_parents_and_classes_are_told(tmp_path):
    features = {feature['properties']['label']: feature for feature in written(tmp_path, drawn_objects())}
    part, whole = features[2]['properties'], features[1]
    assert part['parent'] == part['metadata']['parent'] == whole['id']
    assert part['measurements']['parent_id'] == 1
    assert part['classification']['name'] == 'object'
    assert 'score' not in features[5]['properties']['measurements']
    assert part['measurements']['score'] == 0.25


def test_a_parent_in_a_linked_layer_has_the_id_that_it_has_in_the_file_of_that_layer(tmp_path):
    cells, nuclei = (replace(drawn_objects(), kind=kind) for kind in ('cells', 'nuclei'))
    nuclei.features['parent'] = np.where(nuclei.features['index'] == 2, 'cells', '')
    by_label = {feature['properties']['label']: feature for feature in written(tmp_path, cells)}
    write_geojson(tmp_path / 'nuclei.geojson', nuclei)
    features = json.loads((tmp_path / 'nuclei.geojson').read_text())['features']
    [nucleus] = [feature for feature in features if feature['properties']['label'] == 2]
    assert nucleus['properties']['parent'] == by_label[1]['id']
    assert nucleus['properties']['classification']['name'] == 'nuclei'
    assert not {feature['id'] for feature in features} & {feature['id'] for feature in by_label.values()}


def test_only_numbers_are_measurements(tmp_path):
    objects = drawn_objects()
    table = objects.features.assign(seen=True, note='x', count=np.int64(3), share=np.float32(0.5), none=np.inf)
    [first, *_] = written(tmp_path, replace(objects, features=table))
    measurements = first['properties']['measurements']
    assert {'seen', 'note', 'none'}.isdisjoint(measurements)
    assert (measurements['count'], measurements['share']) == (3, 0.5)


def test_planes_of_stacks_are_told_as_qupath_does(tmp_path):
    features = written(tmp_path, drawn_objects(3))
    assert {feature['geometry']['plane']['z'] for feature in features} == {0, 1}
    assert {feature['geometry']['plane']['c'] for feature in features} == {-1}


def test_the_same_objects_have_the_same_ids(tmp_path):
    first, second = (written(tmp_path, drawn_objects()) for _ in range(2))
    assert first == second


def test_objects_that_touch_share_their_edge(tmp_path):
    features = {feature['properties']['label']: feature['geometry'] for feature in written(tmp_path, drawn_objects())}
    hole, part = (
        {tuple(point) for point in features[label]['coordinates'][place]} for label, place in ((1, 1), (2, 0))
    )
    assert hole == part == {(1, 1), (4, 1), (4, 4), (1, 4)}
