"""Metadata of TIFF files, odd and broken ones too: sizes are right or left out, and no image is lost for them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from hypothesis import example, given
from hypothesis import strategies as st
from skimage import data

from tests.test_image_io.image_writers import write_tiff
from unsam_mm.image_io.reader import read_pixels
from unsam_mm.image_io.tiff_metadata import own_ome_xml, parse_xml, pixel_sizes
from unsam_mm.images import read_image

GREY = data.coins()[100:148, 100:164]
UNKNOWN = ((1.0, 1.0), ('pixel', 'pixel'))
NAMESPACE = 'xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"'


def ome(attributes, inside='<Channel ID="Channel:0:0"/><TiffData IFD="0" PlaneCount="1"/>'):
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><OME {NAMESPACE}><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" '
        f'Type="uint8" SizeX="64" SizeY="48" SizeC="1" SizeZ="1" SizeT="1" {attributes}>{inside}</Pixels></Image></OME>'
    )


def sizes(x, y=None, unit=None):
    units = '' if unit is None else f' PhysicalSizeXUnit="{unit}" PhysicalSizeYUnit="{unit}"'
    return f'PhysicalSizeX="{x}" PhysicalSizeY="{y or x}"{units}'


def calibration(path):
    """What two readers make of a file; both have to read its pixels."""
    pixels = read_pixels(path)
    assert (pixels.picture() == GREY).all()
    assert (read_image(path)[..., 0] == GREY).all()
    return pixels.scale, pixels.units


def square(size, unit='micrometer'):
    return pytest.approx((size, size), rel=1e-12), (unit,) * 2


@pytest.mark.parametrize(
    ('attributes', 'expected'),
    [
        pytest.param(sizes(0.25), square(0.25), id='micrometers by default'),
        pytest.param(sizes(0.25, unit='\u00b5m'), square(0.25), id='micro sign'),
        pytest.param(sizes(0.25, unit='\u03bcm'), square(0.25), id='mu'),
        pytest.param(sizes('0,25'), square(0.25), id='decimal comma'),
        pytest.param(sizes(' 0.25 '), square(0.25), id='blanks'),
        pytest.param(sizes('2.5e-1'), square(0.25), id='exponent'),
        pytest.param(sizes(5, unit='nm'), square(5, 'nanometer'), id='nm'),
        pytest.param(sizes(2.5, unit='Å'), square(0.25, 'nanometer'), id='angstrom'),
        pytest.param(sizes(2.5, unit='\u212b'), square(0.25, 'nanometer'), id='angstrom sign'),
        pytest.param(sizes(5, unit='pm'), square(0.005, 'nanometer'), id='pm'),
        pytest.param(sizes(0.5, unit='in'), square(12.7, 'millimeter'), id='inch'),
        pytest.param(sizes(0.5, unit='mm'), square(0.5, 'millimeter'), id='mm'),
        pytest.param(sizes(72, unit='pt'), square(25.4, 'millimeter'), id='points'),
        pytest.param(sizes(3, unit='thou'), square(76.2), id='thou'),
        pytest.param(
            'PhysicalSizeX="250" PhysicalSizeXUnit="nm" PhysicalSizeY="0.25" PhysicalSizeYUnit="µm"',
            square(250, 'nanometer'),
            id='two units',
        ),
        *(
            pytest.param(sizes(value), UNKNOWN, id=f'size {value}')
            for value in ('0', '0.0', '-1', 'NaN', 'INF', '-inf', '1e-300', '1e300', '1e400', '', 'none', '1,000.5', '0,2,5')
        ),
        *(
            pytest.param(sizes(0.25, unit=unit), UNKNOWN, id=f'unit {unit}')
            for unit in ('pixel', 'reference frame', 's', 'furlong', '')
        ),
        pytest.param('PhysicalSizeX="0.25"', UNKNOWN, id='x alone'),
        pytest.param('PhysicalSizeX="0.25" PhysicalSizeY="0"', UNKNOWN, id='y is 0'),
    ],
)  # fmt: skip
def test_sizes_in_ome_metadata_are_right_or_left_out(tmp_path, attributes, expected):
    tifffile.imwrite(tmp_path / 'a.ome.tif', GREY, description=ome(attributes).encode(), metadata=None)
    assert calibration(tmp_path / 'a.ome.tif') == expected


@pytest.mark.parametrize(
    ('lines', 'resolution', 'expected'),
    [
        pytest.param('unit=micron\n', (4, 4), square(0.25), id='micron'),
        pytest.param('unit=um\n', (4, 4), square(0.25), id='um'),
        pytest.param('unit=\\u00B5m\n', (4, 4), square(0.25), id='escaped micro sign'),
        pytest.param(b'unit=\xb5m\n', (4, 4), square(0.25), id='micro sign in Latin-1'),
        pytest.param('unit=µm\n'.encode(), (4, 4), square(0.25), id='micro sign in UTF-8'),
        pytest.param('unit=Microns\n', (4, 4), square(0.25), id='capital'),
        pytest.param('unit=nm\n', (4, 4), square(0.25, 'nanometer'), id='nm'),
        pytest.param('unit=inch\n', (72, 72), square(25.4 / 72, 'millimeter'), id='inch'),
        pytest.param('unit=micron\nspacing=0,5\n', (4, 4), square(0.25), id='comma in the spacing'),
        pytest.param('unit=micron\nspacing=\nfinterval=x\n', (4, 4), square(0.25), id='odd spacing'),
        pytest.param('unit=pixel\n', (4, 4), UNKNOWN, id='pixel'),
        pytest.param('unit=\n', (4, 4), UNKNOWN, id='empty'),
        pytest.param('', (4, 4), UNKNOWN, id='no unit'),
        pytest.param('unit=micron\n', ((0, 1), (0, 1)), UNKNOWN, id='resolution 0/1'),
        pytest.param('unit=micron\n', ((0, 0), (0, 0)), UNKNOWN, id='resolution 0/0'),
        pytest.param('unit=micron\n', ((4, 0), (4, 0)), UNKNOWN, id='resolution 4/0'),
        pytest.param('unit=micron\nslices=x\nframes=-3\n', (4, 4), square(0.25), id='odd numbers of planes'),
        pytest.param('unit=micron\nimages=7\nslices=7\n', (4, 4), square(0.25), id='planes that are not there'),
    ],
)
def test_sizes_in_imagej_metadata_are_right_or_left_out(tmp_path, lines, resolution, expected):
    lines = lines if isinstance(lines, bytes) else lines.encode()
    steps = resolution if isinstance(resolution[0], tuple) else [(value, 1) for value in resolution]
    tags = [(270, 2, b'ImageJ=1.54f\nimages=1\n' + lines + b'\0'), (282, 5, steps[0]), (283, 5, steps[1])]
    write_tiff(tmp_path / 'a.tif', GREY.tobytes(), GREY.shape, tags=tags)
    assert calibration(tmp_path / 'a.tif') == expected


@pytest.mark.parametrize(
    'xml',
    [
        pytest.param(ome('')[:150] + '</OME>', id='cut'),
        pytest.param(f'<OME {NAMESPACE}></OME>', id='empty'),
        pytest.param(f'<OME {NAMESPACE}><Image><Pixels/></Image></OME>', id='no attributes'),
        pytest.param(ome('', '<TiffData IFD="7" FirstZ="9" PlaneCount="x"/>'), id='odd planes'),
        pytest.param(ome('').replace('SizeX="64"', 'SizeX="many"'), id='no number'),
        pytest.param(ome('').replace('SizeX="64"', 'SizeX="6400"'), id='another size'),
        pytest.param(ome('').replace('XYCZT', 'QWERTY'), id='odd order'),
        pytest.param(ome('') + '<OME>', id='two roots'),
        pytest.param(ome(sizes(0.25)).replace('<OME', '<!DOCTYPE OME><OME', 1), id='document type'),
        pytest.param(f'<OME {NAMESPACE}><BinaryOnly MetadataFile="set.companion.ome" UUID="urn:uuid:1"/></OME>', id='companion'),
    ],
)  # fmt: skip
def test_broken_ome_metadata_cost_no_image(tmp_path, xml):
    tifffile.imwrite(tmp_path / 'a.ome.tif', GREY, description=xml, metadata=None)
    assert calibration(tmp_path / 'a.ome.tif') == UNKNOWN


def test_long_ome_metadata_are_read(tmp_path):
    notes = '<Description>' + 'x' * 5_000_000 + '</Description>'
    xml = ome(sizes(0.25)).replace('<Pixels', notes + '<Pixels')
    tifffile.imwrite(tmp_path / 'a.ome.tif', GREY, description=xml, metadata=None)
    assert calibration(tmp_path / 'a.ome.tif') == square(0.25)


def test_entities_are_not_expanded():
    laughs = ''.join(f'<!ENTITY a{i + 1} "{f"&a{i};" * 10}">' for i in range(9))
    for declared in (f'<!ENTITY a0 "ha">{laughs}', '<!ENTITY a9 SYSTEM "file:///etc/hostname">'):
        text = ome(sizes(0.25)).replace('<OME', f'<!DOCTYPE OME [{declared}]><OME', 1).replace('Image:0', '&a9;')
        assert parse_xml(text) is None
        assert own_ome_xml(text, 'a.ome.tif') is None


def test_depth_and_time_are_known_beside_a_pixel_size(tmp_path):
    pixels = np.zeros((2, 3, 48, 64), np.uint8)
    metadata = {
        'axes': 'TZYX',
        'PhysicalSizeX': 0.25,
        'PhysicalSizeY': 0.25,
        'PhysicalSizeZ': 500,
        'PhysicalSizeZUnit': 'nm',
    }
    metadata |= {'TimeIncrement': 2, 'TimeIncrementUnit': 'min'}
    tifffile.imwrite(tmp_path / 'a.ome.tif', pixels, metadata=metadata, photometric='minisblack')
    read = read_pixels(tmp_path / 'a.ome.tif')
    assert read.axes == 'tzyx'
    assert read.scale == pytest.approx((120, 0.5, 0.25, 0.25), rel=1e-12)
    assert read.units == ('second', 'micrometer', 'micrometer', 'micrometer')


@example('1000000000000', 'um')
@example('1000000000001', 'nm')
@given(st.text(max_size=20) | st.floats().map(str), st.text(max_size=20) | st.sampled_from(['um', 'nm', 'inch', 'Å']))
def test_whatever_stands_for_a_size_it_is_plausible_or_left_out(value, unit):
    tags = {'XResolution': SimpleNamespace(value=(4, 1)), 'YResolution': SimpleNamespace(value=(4, 1))}
    file = SimpleNamespace(
        is_ome=False,
        is_imagej=True,
        imagej_metadata={'unit': unit, 'spacing': value},
        pages=SimpleNamespace(first=SimpleNamespace(tags=tags)),
    )
    for size, _ in pixel_sizes(file).values():
        assert 0 < size <= 1e18  # a thousand kilometres in picometres
