"""One reader of image files: each kind gives the same numbers to `generate`, to training, to `batch` and to the dock."""

from __future__ import annotations

import os
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from tests.test_image_io.image_kinds import ALPHA, DEEP_GREY, DEEP_RGB, GREY, KINDS, RGB, SHAPE
from tests.test_image_io.image_writers import lzw, png_chunk, write_png, write_tiff
from unsam_mm.errors import ImageError
from unsam_mm.image_io import pictures as picture_files
from unsam_mm.image_io import tiff as tiff_files
from unsam_mm.image_io.reader import open_image, read_pixels
from unsam_mm.images import as_rgb_uint8, read_image

STACK = np.stack([GREY, GREY[::-1], GREY[:, ::-1]])


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture
def path(kind, tmp_path):
    path = tmp_path / f'image{kind.ending}'
    kind.write(path)
    return path


def mean_difference(one, other):
    return np.abs(one.astype(float) - other.astype(float)).mean()


def test_a_file_gives_its_own_numbers_as_its_headers_tell(kind, path):
    with open_image(path) as file:
        told = (file.shape, file.axes, file.n_channels, file.is_rgb)
    pixels = read_pixels(path)
    assert told == (pixels.shape, pixels.axes, len(pixels.channels), pixels.is_rgb)
    assert pixels.is_rgb == (kind.numbers.ndim == 3)
    assert (pixels.shape, pixels.axes) == (SHAPE, 'yx')
    assert pixels.picture().dtype == kind.numbers.dtype
    assert mean_difference(pixels.picture(), kind.numbers) <= kind.tolerance


def test_all_readers_see_the_same_picture(kind, path):
    load_image = pytest.importorskip('unsam_mm.datasets.loading')
    seen = read_image(path)
    assert (seen == as_rgb_uint8(read_pixels(path).picture())).all()
    assert mean_difference(seen, as_rgb_uint8(kind.numbers)) <= kind.tolerance
    loaded = load_image.UnSAMLoadImage(channel_order='rgb', skip_broken=False).transform({'img_path': path})
    assert (loaded['img'] == seen).all()


# What the orientation tag says: which way rows run in the file, and columns.
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}


@pytest.mark.parametrize('orientation', UPRIGHT)
@pytest.mark.parametrize('kind', ['tiff', 'lzw tiff', 'jpeg', 'png', '16 bit png', 'webp'])
def test_images_are_turned_upright(tmp_path, kind, orientation):
    path = tmp_path / f'a.{kind.split()[-1]}'
    exif = Image.Exif()
    exif[0x0112] = orientation
    if kind == 'tiff':
        tifffile.imwrite(path, RGB, photometric='rgb', extratags=[(274, 3, 1, orientation, True)])
    elif kind == '16 bit png':
        write_png(path, DEEP_RGB, 2, chunks=png_chunk(b'eXIf', exif.tobytes().removeprefix(b'Exif\0\0')))
    else:
        options = (
            {'compression': 'tiff_lzw'} if 'lzw' in kind else {'lossless': True} if kind == 'webp' else {'quality': 95}
        )
        Image.fromarray(RGB).save(path, exif=exif, **options)
    expected = UPRIGHT[orientation](DEEP_RGB if '16' in kind else RGB)
    pixels = read_pixels(path).picture()
    assert pixels.shape == expected.shape
    assert mean_difference(pixels, expected) <= (4 if kind == 'jpeg' else 0)
    assert read_image(path).shape == expected.shape


def test_a_turned_image_keeps_its_pixel_size(tmp_path):
    metadata = {'axes': 'YX', 'PhysicalSizeX': 0.2, 'PhysicalSizeY': 0.3}
    tifffile.imwrite(tmp_path / 'a.ome.tif', GREY, metadata=metadata, extratags=[(274, 3, 1, 6, True)])
    pixels = read_pixels(tmp_path / 'a.ome.tif')
    assert (pixels.shape, pixels.scale) == (SHAPE[::-1], (0.2, 0.3))


def write_one_by_one(path, pages):
    for page in pages:
        tifffile.imwrite(path, page, append=True)


def write_pages(path, pages, **options):
    first, *others = [Image.fromarray(page) for page in pages]
    first.save(path, save_all=True, append_images=others, **options)


STACKS = {
    'plain.tif': lambda path: tifffile.imwrite(path, STACK, photometric='minisblack'),
    'zlib.tif': lambda path: tifffile.imwrite(path, STACK, photometric='minisblack', compression='zlib'),
    'imagej.tif': lambda path: tifffile.imwrite(path, STACK, imagej=True, metadata={'axes': 'ZYX'}),
    'movie.ome.tif': lambda path: tifffile.imwrite(path, STACK, ome=True, metadata={'axes': 'TYX'}, photometric='minisblack'),
    'appended.tif': lambda path: write_one_by_one(path, STACK),
    'lzw.tif': lambda path: write_pages(path, STACK, compression='tiff_lzw'),
    'packbits.tif': lambda path: write_pages(path, STACK, compression='packbits'),
    'group4.tif': lambda path: write_pages(path, STACK > 90, compression='group4'),
    'under another name.png': lambda path: write_pages(path, STACK, compression='tiff_lzw', format='TIFF'),
    'colours.tif': lambda path: write_pages(path, [RGB, RGB[::-1], RGB[:, ::-1]], compression='tiff_lzw'),
    'jpeg.tif': lambda path: write_pages(path, [RGB, RGB[::-1], RGB[:, ::-1]], compression='jpeg', quality=95),
    'palette.tif': lambda path: tifffile.imwrite(path, STACK, photometric='palette', colormap=np.tile(np.arange(256, dtype='u2') * 257, (3, 1))),
}  # fmt: skip


@pytest.mark.parametrize('name', STACKS)
def test_a_stack_is_refused_where_one_image_is_meant_and_read_by_plane_where_stacks_are(tmp_path, name):
    STACKS[name](tmp_path / name)
    with pytest.raises(ImageError, match=rf'{name}: expected one image, got a stack .*\(3, 48, 64\); pass one plane'):
        read_image(tmp_path / name)
    pixels = read_pixels(tmp_path / name)
    assert pixels.shape == STACK.shape
    green = list(pixels.channels.values())[1 if pixels.is_rgb else 0]
    expected = STACK > 90 if green.dtype == bool else STACK
    assert mean_difference(green, expected) <= (4 if name == 'jpeg.tif' else 0)


def test_a_stack_is_refused_before_its_pixels_are_read(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / 'a.tif', STACK, photometric='minisblack')
    monkeypatch.setattr(tiff_files.TiffImage, '_decode', lambda self: pytest.fail('pixels were read'))
    with pytest.raises(ImageError, match='got a stack'):
        read_image(tmp_path / 'a.tif')


@pytest.mark.parametrize('name', ['a.png', 'a.webp', 'a.gif'])
def test_animations_are_no_images(tmp_path, name):
    write_pages(tmp_path / name, [RGB, RGB[::-1]])
    for read in (read_image, read_pixels):
        with pytest.raises(ImageError, match=f'{name}: expected one image, got a .* of 2 frames; save each'):
            read(tmp_path / name)


def write_large_imagej_stack(path, n_planes=3):
    """As ImageJ writes stacks of more than 4 GB: the header of the first plane, then the pixels of all."""
    text = f'ImageJ=1.54f\nimages={n_planes}\nslices={n_planes}\n'.encode() + bytes(1)
    write_tiff(path, STACK[:n_planes].tobytes(), SHAPE, tags=[(270, 2, text)])


def header_first(compression):
    return lambda path: tifffile.imwrite(path, RGB, photometric='rgb', compression=compression)


CUT = {
    **STACKS,
    'large imagej.tif': write_large_imagej_stack,
    **{f'{name} header first.tif': header_first(name) for name in ('jpeg', 'zlib', 'packbits', 'jpeg2000')},
    'deep.png': KINDS['png 16 bit RGB'].write,
    'a.jpg': KINDS['RGB.jpg'].write,
    'a.webp': KINDS['RGB.webp'].write,
}


@pytest.mark.parametrize('share', [0.02, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize('name', CUT)
def test_a_file_that_is_cut_short_is_not_taken_for_what_is_left_of_it(tmp_path, capfd, name, share):
    CUT[name](tmp_path / name)
    whole, content = read_pixels(tmp_path / name), (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    message, left = '', None
    try:
        left = read_pixels(tmp_path / name)
    except ImageError as error:
        message = str(error)
    if left is None:
        assert f'{name}: ' in message
        assert 'copy it again' in message
    else:  # nothing but metadata is lost
        assert left.channels.keys() == whole.channels.keys()
        assert all((left.channels[channel] == whole.channels[channel]).all() for channel in whole.channels)
    assert capfd.readouterr().err == ''


def change_tag(path, name, change, page=0):
    with tifffile.TiffFile(path, mode='r+b') as file:
        tag = file.pages[page].aspage().tags[name]
        tag.overwrite(change(tag.value))


OF_PARTS = {
    'strips': {'photometric': 'minisblack', 'rowsperstrip': 8},
    'zlib': {'photometric': 'minisblack', 'rowsperstrip': 8, 'compression': 'zlib'},
    'tiles': {'photometric': 'minisblack', 'tile': (16, 32)},
    'planes': {'photometric': 'rgb', 'planarconfig': 'separate', 'rowsperstrip': 8},
}


@pytest.mark.parametrize('name', OF_PARTS)
def test_a_tiff_with_fewer_strips_or_tiles_than_its_size_needs_is_not_filled_with_black(tmp_path, name):
    pixels = np.moveaxis(RGB, -1, 0) if name == 'planes' else DEEP_GREY
    tifffile.imwrite(tmp_path / 'a.tif', pixels, metadata=None, **OF_PARTS[name])
    change_tag(tmp_path / 'a.tif', 'ImageLength', lambda length: 2 * length)
    for read in (read_image, read_pixels):
        with pytest.raises(ImageError, match=r'a\.tif: has \d+ of the \d+ strips or tiles .* copy it again'):
            read(tmp_path / 'a.tif')


def test_a_later_page_of_a_stack_with_too_few_strips_is_not_filled_with_black(tmp_path):
    tifffile.imwrite(tmp_path / 'a.tif', STACK, photometric='minisblack', rowsperstrip=8, compression='zlib')
    change_tag(tmp_path / 'a.tif', 'StripByteCounts', lambda counts: counts[:-1], page=2)
    with pytest.raises(ImageError, match=r'a\.tif: has 5 of the 6 strips or tiles'):
        read_pixels(tmp_path / 'a.tif')


@pytest.mark.parametrize('compression', [None, 'zlib'])
def test_tiles_that_are_left_out_on_purpose_are_black(tmp_path, compression):
    """GDAL writes offset 0 for them."""
    tiles = [GREY[:16, :32], None, None, GREY[16:32, 32:], None, None]
    tifffile.imwrite(
        tmp_path / 'a.tif', iter(tiles), shape=SHAPE, dtype=np.uint8, tile=(16, 32), compression=compression
    )
    expected = np.zeros_like(GREY)
    expected[:16, :32], expected[16:32, 32:] = tiles[0], tiles[3]
    assert (read_pixels(tmp_path / 'a.tif').picture() == expected).all()


def test_pixels_in_one_piece_are_read_whatever_number_of_rows_a_strip_is_said_to_have(tmp_path):
    write_tiff(tmp_path / 'a.tif', GREY.tobytes(), SHAPE)
    change_tag(tmp_path / 'a.tif', 'RowsPerStrip', lambda rows: 8)
    assert (read_pixels(tmp_path / 'a.tif').picture() == GREY).all()


def test_a_plane_that_was_split_off_an_imagej_stack_is_one_image(tmp_path):
    text = b'ImageJ=1.54f\nimages=3\nslices=3\n\0'
    write_tiff(tmp_path / 'a.tif', GREY.tobytes(), SHAPE, tags=[(270, 2, text)])
    assert (read_pixels(tmp_path / 'a.tif').picture() == GREY).all()


@pytest.mark.parametrize('name', ['RGB.png', 'png 16 bit RGB', 'palette.png', 'png 4 bit'])
def test_a_png_with_a_changed_byte_is_not_read_as_noise(tmp_path, name):
    KINDS[name].write(tmp_path / 'a.png')
    content = bytearray((tmp_path / 'a.png').read_bytes())
    content[content.index(b'IDAT') + 40] ^= 1
    (tmp_path / 'a.png').write_bytes(content)
    for read in (read_image, read_pixels):
        with pytest.raises(ImageError, match=r'a\.png: the file is damaged \(its checksum differs\); copy it again'):
            read(tmp_path / 'a.png')


@pytest.mark.parametrize(('pixels', 'colour_type'), [(RGB, 2), (DEEP_RGB, 2)], ids=['8 bit', '16 bit'])
def test_a_changed_byte_in_the_texts_of_a_png_costs_no_image(tmp_path, pixels, colour_type):
    write_png(tmp_path / 'a.png', pixels, colour_type, chunks=png_chunk(b'tEXt', b'by\0someone'))
    content = (tmp_path / 'a.png').read_bytes()
    (tmp_path / 'a.png').write_bytes(content.replace(b'someone', b'nobody!'))
    channels = read_pixels(tmp_path / 'a.png').channels.values()
    assert (np.stack(list(channels), axis=-1) == pixels).all()


def test_broken_metadata_of_a_microscope_cost_no_image(tmp_path):
    lsm = (34412, 1, 500, b'LI\0\4' + bytes(496), True)
    tifffile.imwrite(tmp_path / 'a.tif', GREY, extratags=[lsm], metadata=None)
    assert (read_pixels(tmp_path / 'a.tif').picture() == GREY).all()


def test_channels_that_are_no_colours_stay_channels(tmp_path):
    four = np.stack([DEEP_GREY + i for i in range(4)], axis=-1)
    files = {
        'samples.tif': lambda path: write_tiff(path, four.tobytes(), SHAPE, bits=16, samples=4, tags=[(338, 3, [0] * 3)]),
        'rgb and infrared.tif': lambda path: write_tiff(path, four.tobytes(), SHAPE, bits=16, samples=4, photometric=2, tags=[(338, 3, [0])]),
        'unmarked.tif': lambda path: write_tiff(path, four.tobytes(), SHAPE, bits=16, samples=4, photometric=2),
        'planes.tif': lambda path: tifffile.imwrite(path, np.moveaxis(four, -1, 0), photometric='minisblack', planarconfig='separate'),
        'ome.tif': lambda path: tifffile.imwrite(path, np.moveaxis(four, -1, 0), ome=True, metadata={'axes': 'CYX'}, photometric='minisblack'),
        'imagej.tif': lambda path: tifffile.imwrite(path, np.moveaxis(four, -1, 0), imagej=True, metadata={'axes': 'CYX'}),
    }  # fmt: skip
    for name, write in files.items():
        write(tmp_path / name)
        with pytest.raises(ImageError, match=f'{name}: expected grey or RGB, got 4 channels .* save one of them'):
            read_image(tmp_path / name)
        pixels = read_pixels(tmp_path / name)
        assert not pixels.is_rgb
        assert list(pixels.channels) == ['0', '1', '2', '3']
        assert (np.stack(list(pixels.channels.values()), axis=-1) == four).all()


def test_channels_of_a_compressed_stack_keep_their_place(tmp_path):
    pages = [np.full(SHAPE, 10 * z + c, np.uint8) for z in range(3) for c in range(2)]
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" '
        'DimensionOrder="XYCZT" Type="uint8" SizeX="64" SizeY="48" SizeC="2" SizeZ="3" SizeT="1">'
        '<Channel ID="Channel:0:0"/><Channel ID="Channel:0:1"/><TiffData/></Pixels></Image></OME>'
    )
    write_pages(tmp_path / 'a.ome.tif', pages, compression='tiff_lzw', description=xml)
    pixels = read_pixels(tmp_path / 'a.ome.tif')
    assert pixels.axes == 'zyx'
    assert [values[:, 0, 0].tolist() for values in pixels.channels.values()] == [[0, 10, 20], [1, 11, 21]]


def test_the_largest_of_a_pyramid_or_beside_thumbnails_is_the_image(tmp_path):
    with tifffile.TiffWriter(tmp_path / 'thumbnail.tif') as file:
        file.write(RGB[::4, ::4], photometric='rgb', metadata=None)
        file.write(RGB, photometric='rgb', metadata=None)
    with tifffile.TiffWriter(tmp_path / 'pyramid.ome.tif') as file:
        file.write(RGB, photometric='rgb', subifds=1)
        file.write(RGB[::2, ::2], photometric='rgb', subfiletype=1)
    for name in ('thumbnail.tif', 'pyramid.ome.tif'):
        assert (read_pixels(tmp_path / name).picture() == RGB).all()
        assert (read_image(tmp_path / name) == RGB).all()


def test_several_images_in_a_file_are_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / 'a.tif') as file:
        file.write(RGB, photometric='rgb', metadata=None)
        file.write(RGB[:, :50], photometric='rgb', metadata=None)
    for read in (read_image, read_pixels):
        with pytest.raises(ImageError, match='a.tif: contains 2 images .*save each in a file of its own'):
            read(tmp_path / 'a.tif')


def ome_set(folder, planes_of_file, sizes, order='XYCZT', own_uuid=True):
    """Writes the files of one OME-TIFF: ``planes_of_file`` lists for each its planes as (c, z, t)."""
    axes = order[2:]
    places = [
        f'<TiffData IFD="{ifd}" FirstC="{c}" FirstZ="{z}" FirstT="{t}" PlaneCount="1">'
        f'<UUID FileName="set_{number}.ome.tif">urn:uuid:{number}</UUID></TiffData>'
        for number, planes in enumerate(planes_of_file)
        for ifd, (c, z, t) in enumerate(planes)
    ]
    size = ' '.join(f'Size{axis}="{sizes[axis]}"' for axis in axes)
    channels = ''.join(f'<Channel ID="Channel:0:{c}" SamplesPerPixel="1"/>' for c in range(sizes['C']))
    for number, planes in enumerate(planes_of_file):
        uuid = f'UUID="urn:uuid:{number}"' if own_uuid else ''
        xml = (
            f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" {uuid}><Image ID="Image:0"><Pixels '
            f'ID="Pixels:0" DimensionOrder="{order}" Type="uint8" SizeX="64" SizeY="48" {size} PhysicalSizeX="0.5" '
            f'PhysicalSizeY="0.5">{channels}{"".join(places)}</Pixels></Image></OME>'
        )
        pages = np.stack([np.roll(GREY, 100 * c + 10 * z + t) for c, z, t in planes])
        tifffile.imwrite(
            folder / f'set_{number}.ome.tif', pages, photometric='minisblack', description=xml, metadata=None
        )


@pytest.mark.parametrize('own_uuid', [True, False])
@pytest.mark.parametrize('is_alone', [False, True])
def test_each_file_of_an_ome_tiff_stands_for_its_own_planes(tmp_path, is_alone, own_uuid):
    ome_set(tmp_path, [[(0, 0, 0)], [(1, 0, 0)]], {'C': 2, 'Z': 1, 'T': 1}, own_uuid=own_uuid)
    if is_alone:
        (tmp_path / 'set_0.ome.tif').unlink()
    pixels = read_pixels(tmp_path / 'set_1.ome.tif')
    assert list(pixels.channels) == ['']
    assert (pixels.picture() == np.roll(GREY, 100)).all()
    assert (pixels.scale, pixels.units) == ((0.5, 0.5), ('micrometer',) * 2)
    assert (read_image(tmp_path / 'set_1.ome.tif')[..., 0] == np.roll(GREY, 100)).all()


def test_a_file_of_several_planes_of_an_ome_tiff_keeps_their_axes(tmp_path):
    planes = [[(c, z, t) for z in range(3) for c in range(2)] for t in range(2)]
    ome_set(tmp_path, planes, {'C': 2, 'Z': 3, 'T': 2})
    pixels = read_pixels(tmp_path / 'set_1.ome.tif')
    assert (pixels.axes, pixels.shape, list(pixels.channels)) == ('zyx', (3, *SHAPE), ['0', '1'])
    for c in range(2):
        for z in range(3):
            assert (pixels.channels[str(c)][z] == np.roll(GREY, 100 * c + 10 * z + 1)).all()


def test_a_renamed_ome_tiff_is_not_black(tmp_path):
    ome_set(tmp_path, [[(0, 0, 0)]], {'C': 1, 'Z': 1, 'T': 1}, own_uuid=False)
    (tmp_path / 'set_0.ome.tif').rename(tmp_path / 'other.tif')
    assert (read_pixels(tmp_path / 'other.tif').picture() == GREY).all()


def test_planes_of_an_ome_tiff_that_form_no_block_are_a_stack(tmp_path):
    ome_set(tmp_path, [[(0, 0, 0), (1, 1, 0)], [(0, 1, 0), (1, 0, 0)]], {'C': 2, 'Z': 2, 'T': 1})
    pixels = read_pixels(tmp_path / 'set_1.ome.tif')
    assert (pixels.axes, pixels.shape) == ('zyx', (2, *SHAPE))
    assert (pixels.picture()[1] == np.roll(GREY, 100)).all()


def test_metadata_of_more_planes_than_there_are_give_those_that_are_there(tmp_path):
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" '
        'DimensionOrder="XYCZT" Type="uint8" SizeX="64" SizeY="48" SizeC="3" SizeZ="1" SizeT="1"><Channel/><Channel/><Channel/>'
        '<TiffData IFD="0" PlaneCount="3"/></Pixels></Image></OME>'
    )
    tifffile.imwrite(tmp_path / 'a.ome.tif', GREY, description=xml, metadata=None)
    assert list(read_pixels(tmp_path / 'a.ome.tif').channels) == ['']
    assert (read_image(tmp_path / 'a.ome.tif')[..., 0] == GREY).all()


@pytest.mark.parametrize(
    ('bits', 'compression', 'what'),
    [(16, 5, 'LZW compression'), (8, 34712, 'JPEG2000 compression'), (10, 1, '10 bits')],
)
def test_what_only_imagecodecs_reads_is_refused_by_its_name_without_it(tmp_path, monkeypatch, bits, compression, what):
    def asarray(series):
        raise ValueError("this requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPageSeries, 'asarray', asarray)
    monkeypatch.setattr(tiff_files.importlib.util, 'find_spec', lambda name: None)
    stored = lzw(DEEP_RGB.tobytes())
    write_tiff(tmp_path / 'a.tif', stored, SHAPE, bits=bits, samples=3, photometric=2, compression=compression)
    with pytest.raises(ImageError, match=rf"a.tif: .*{what}.* run: pip install 'unsam_mm\[codecs\]'"):
        read_pixels(tmp_path / 'a.tif')


def test_a_picture_beyond_the_limit_of_pillow_is_read_and_refused_only_where_it_is_looked_at_as_a_whole(
    tmp_path, monkeypatch
):
    Image.fromarray(RGB).save(tmp_path / 'a.png')
    write_pages(tmp_path / 'a.tif', [RGB], compression='tiff_lzw')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    for name in ('a.png', 'a.tif'):
        assert (read_pixels(tmp_path / name).picture() == RGB).all()
        for read in (read_image, read_pixels):
            with pytest.raises(ImageError, match=rf'{name}: 64 x 48 px are more than .* cut the image into tiles'):
                read(tmp_path / name, max_pixels=3000)
        assert (read_image(tmp_path / name, max_pixels=None) == RGB).all()
    assert Image.MAX_IMAGE_PIXELS == 1000


@pytest.mark.parametrize('is_behind', [False, True])
@pytest.mark.parametrize(('pixels', 'colour_type'), [(RGB, 2), (DEEP_RGB, 2)])
def test_long_texts_in_a_png_cost_no_image(tmp_path, pixels, colour_type, is_behind):
    text = PngInfo()
    text.add_text('notes', 'a' * 3_000_000, zip=True)
    kind, content = next((kind, content) for kind, content, *_ in text.chunks)
    chunk = png_chunk(kind, content)
    write_png(tmp_path / 'a.png', pixels, colour_type, **{'end_chunks' if is_behind else 'chunks': chunk})
    assert (read_pixels(tmp_path / 'a.png').picture() == pixels).all()


@pytest.mark.parametrize('pixels', [RGB, DEEP_RGB], ids=['8 bits', '16 bits'])
@pytest.mark.parametrize('where', ['chunks', 'end_chunks', 'nowhere'])
def test_a_png_is_opened_by_its_headers(tmp_path, monkeypatch, pixels, where):
    """Also where EXIF follows the pixels, or is missing."""
    exif = Image.Exif()
    exif[0x0112] = 6
    chunk = png_chunk(b'eXIf', exif.tobytes().removeprefix(b'Exif\0\0'))
    write_png(tmp_path / 'a.png', pixels, 2, **({} if where == 'nowhere' else {where: chunk}))
    decoded = []
    monkeypatch.setattr(PngImageFile, 'load', lambda file: decoded.append(file))
    with open_image(tmp_path / 'a.png') as file:
        assert file.shape == (SHAPE if where == 'nowhere' else SHAPE[::-1])
        if pixels is DEEP_RGB:
            assert (file.read() == (pixels if where == 'nowhere' else np.rot90(pixels, -1))).all()
    assert not decoded


def test_threads_that_read_images_leave_the_filters_of_warnings_alone(tmp_path, monkeypatch):
    """They are one for all threads, and who changes them puts back what it has found."""
    Image.fromarray(RGB).save(tmp_path / 'a.jpg', exif=b'Exif\0\0MM\0*\0\0\0\x08\0\x09')
    inside, most = [], []

    class Watched(warnings.catch_warnings):
        def __enter__(self):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.002)  # another thread may enter now
            return super().__enter__()

        def __exit__(self, *error):
            super().__exit__(*error)
            inside.pop()

    before = list(warnings.filters)
    monkeypatch.setattr(warnings, 'catch_warnings', Watched)
    with ThreadPoolExecutor(4) as pool:
        pictures = list(pool.map(read_pixels, [tmp_path / 'a.jpg'] * 12))
    assert all((picture.picture() == pictures[0].picture()).all() for picture in pictures)
    assert max(most, default=1) == 1
    assert warnings.filters == before


def test_errors_of_those_who_use_an_open_image_are_not_blamed_on_the_file(tmp_path):
    Image.fromarray(RGB).save(tmp_path / 'a.png')
    with pytest.raises(KeyError, match='mine'), open_image(tmp_path / 'a.png'):
        raise KeyError('mine')


def test_an_image_that_takes_too_much_memory_is_not_called_damaged(tmp_path, monkeypatch):
    def read(picture):
        raise MemoryError

    Image.fromarray(RGB).save(tmp_path / 'a.png')
    monkeypatch.setattr(picture_files.Picture, '_decode', read)
    with pytest.raises(ImageError, match=r'a\.png: needs more memory than is free'):
        read_pixels(tmp_path / 'a.png')


def test_broken_exif_costs_no_image(tmp_path):
    write_png(tmp_path / 'a.png', RGB, 2, chunks=png_chunk(b'eXIf', b'II*\0\xff\xff\xff\xff'))
    Image.fromarray(RGB).save(tmp_path / 'a.webp', exif=b'Exif\0\0MM\0*\0\0\0\x08\0\x09', lossless=True)
    for name in ('a.png', 'a.webp'):
        assert (read_image(tmp_path / name) == RGB).all()


def test_nothing_is_said_of_harmless_oddities(tmp_path, capfd):
    xml = '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image><Pixels SizeX="64"</OME>'
    tifffile.imwrite(tmp_path / 'a.ome.tif', GREY, description=xml, metadata=None)
    Image.fromarray(RGB).quantize(16).save(tmp_path / 'a.png', transparency=b'\1\2\3')
    write_png(tmp_path / 'deep.png', DEEP_RGB, 2, chunks=png_chunk(b'iCCP', b'odd\0\0nothing'))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for name in ('a.ome.tif', 'a.png', 'deep.png'):
            read_image(tmp_path / name)
    assert capfd.readouterr() == ('', '')


def test_what_is_no_image_file_is_told_by_name_and_no_pipe_is_waited_for(tmp_path):
    (tmp_path / 'folder.tif').mkdir()
    os.mkfifo(tmp_path / 'pipe.png')
    (tmp_path / 'link.png').symlink_to(tmp_path / 'gone.png')
    (tmp_path / 'itself.png').symlink_to(tmp_path / 'itself.png')
    (tmp_path / 'page.png').write_text('<!DOCTYPE html><html><body>404</body></html>')
    (tmp_path / 'empty.jpg').touch()
    (tmp_path / 'header.tif').write_bytes(b'II*\0')
    (tmp_path / 'no pages.tif').write_bytes(b'II*\0\0\0\0\0')
    (tmp_path / 'noise.tif').write_bytes(b'II*\0\x08\0\0\0' + np.random.default_rng(0).bytes(500))
    (tmp_path / 'device.png').symlink_to('/dev/zero')
    for name, message in {
        'missing.png': 'no such file',
        'folder.tif': 'expected an image file, got a folder',
        'pipe.png': 'got a device or pipe',
        'device.png': 'got a device or pipe',
        'link.png': 'a link to a file that is not there',
        'itself.png': 'cannot be opened',
        'page.png': 'its content is of no known format.*convert it',
        'empty.jpg': 'the file is empty .0 bytes.; copy it again',
        'header.tif': 'copy it again',
        'no pages.tif': 'copy it again',
        'noise.tif': 'copy it again',
        'page.png/a.png': 'no such file',
        f'{"n" * 300}.png': 'cannot be opened',
    }.items():
        for read in (read_image, read_pixels):
            with pytest.raises(ImageError, match=f'{name}: .*{message}') as caught:
                read(tmp_path / name)
            assert '\n' not in str(caught.value)


def test_a_file_that_may_not_be_opened_is_told_by_name(tmp_path, monkeypatch):
    Image.fromarray(ALPHA).save(tmp_path / 'a.png')

    def refuse(self, *args, **options):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(type(tmp_path), 'open', refuse)  # whoever runs the tests may open all files
    with pytest.raises(ImageError, match=r'a.png: cannot be opened \(Permission denied\); check its permissions'):
        read_image(tmp_path / 'a.png')
