"""Image files as arrays of their own numbers."""

import numpy as np
import pytest
import tifffile
from PIL import Image
from skimage import data

from unsam_mm.errors import ImageError
from unsam_mm.image_io.reader import read_pixels

STACK = np.random.default_rng(0).integers(0, 60_000, (3, 20, 30)).astype(np.uint16)


@pytest.mark.parametrize(
    ('pixels', 'options', 'shape', 'axes', 'channels'),
    [
        pytest.param(STACK[0], {}, (20, 30), 'yx', [''], id='grey'),
        pytest.param(STACK, {}, (3, 20, 30), 'zyx', [''], id='pages'),
        pytest.param(STACK, {'metadata': {'axes': 'CYX'}, 'ome': True}, (20, 30), 'yx', ['0', '1', '2'], id='channels'),
        pytest.param(
            np.stack([STACK] * 2, 1), {'metadata': {'axes': 'ZCYX'}, 'ome': True}, (3, 20, 30), 'zyx', ['0', '1'], id='both'
        ),
        pytest.param(
            data.astronaut()[:20, :30], {'photometric': 'rgb'}, (20, 30), 'yx', ['red', 'green', 'blue'], id='colour'
        ),
        pytest.param(
            STACK, {'metadata': {'axes': 'TYX'}, 'imagej': True}, (3, 20, 30), 'tyx', [''], id='movie'
        ),
    ],
)  # fmt: skip
def test_tiffs_keep_their_numbers_axes_and_channels(tmp_path, pixels, options, shape, axes, channels):
    tifffile.imwrite(tmp_path / 'a.tif', pixels, **({'photometric': 'minisblack'} | options))
    image = read_pixels(tmp_path / 'a.tif')
    assert (image.shape, image.axes, list(image.channels)) == (shape, axes, channels)
    assert next(iter(image.channels.values())).dtype == pixels.dtype
    assert image.is_rgb == (channels[0] == 'red')


def test_the_size_of_pixels_is_read(tmp_path):
    metadata = {
        'axes': 'YX',
        'PhysicalSizeX': 0.2,
        'PhysicalSizeXUnit': 'µm',
        'PhysicalSizeY': 0.3,
        'PhysicalSizeYUnit': 'µm',
    }
    tifffile.imwrite(tmp_path / 'a.ome.tif', STACK[0], metadata=metadata)
    image = read_pixels(tmp_path / 'a.ome.tif')
    assert (image.scale, image.units) == ((0.3, 0.2), ('micrometer', 'micrometer'))


def test_without_metadata_pixels_have_the_size_one(tmp_path):
    tifffile.imwrite(tmp_path / 'a.tif', STACK[0])
    assert (read_pixels(tmp_path / 'a.tif').scale, read_pixels(tmp_path / 'a.tif').units) == (
        (1.0, 1.0),
        ('pixel',) * 2,
    )


def test_grey_pngs_keep_16_bits_and_photographs_are_turned_upright(tmp_path):
    Image.fromarray(STACK[0]).save(tmp_path / 'a.png')
    assert np.array_equal(read_pixels(tmp_path / 'a.png').channels[''], STACK[0])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(data.astronaut()[:20, :30]).save(tmp_path / 'a.jpg', exif=exif)
    assert read_pixels(tmp_path / 'a.jpg').picture().shape == (30, 20, 3)


def test_planes_come_with_their_place(tmp_path):
    tifffile.imwrite(tmp_path / 'a.tif', STACK, photometric='minisblack')
    planes = dict(read_pixels(tmp_path / 'a.tif').planes())
    assert list(planes) == [(0,), (1,), (2,)]
    assert np.array_equal(planes[2,], STACK[2])


def test_a_channel_that_is_not_there_is_told(tmp_path):
    tifffile.imwrite(tmp_path / 'a.tif', STACK[0])
    with pytest.raises(ImageError, match='no channel 1; the image has 1'):
        read_pixels(tmp_path / 'a.tif').picture(channel=1)


@pytest.mark.parametrize(
    ('name', 'content', 'words'),
    [('a.png', b'', 'is empty'), ('a.tif', b'II*\x00\x08', 'cannot be read'), ('b.png', None, 'no such file')],
)
def test_broken_files_are_told_by_name(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=f'{name}.*{words}'):
        read_pixels(tmp_path / name)
