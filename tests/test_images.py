"""Any common image becomes (H, W, 3) uint8 RGB, and what cannot be segmented is refused in one clear line."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from unsam_mm.errors import ImageError
from unsam_mm.images import as_rgb_uint8, list_images, read_image


def test_colour_bytes_are_left_alone(coffee):
    assert as_rgb_uint8(coffee) is coffee


def test_grey_becomes_three_equal_channels(coins):
    rgb = as_rgb_uint8(coins)
    assert rgb.shape == (*coins.shape, 3)
    assert (rgb == coins[..., None]).all()


def test_alpha_is_dropped(coffee):
    rgba = np.dstack([coffee, np.full(coffee.shape[:2], 7, np.uint8)])
    assert (as_rgb_uint8(rgba) == coffee).all()


def test_colour_floats_between_0_and_1_are_scaled_not_stretched(coffee):
    assert (as_rgb_uint8(coffee / 255 * 0.5) == np.rint(coffee * 0.5)).all()


@pytest.mark.parametrize(('dtype', 'factor'), [(np.uint16, 100), (np.int32, 1000), (np.float32, 0.003)])
def test_microscopy_values_are_stretched_to_full_contrast(coins, dtype, factor):
    rgb = as_rgb_uint8((coins.astype(float) * factor).astype(dtype))
    assert rgb.min() == 0
    assert rgb.max() == 255
    assert np.corrcoef(rgb[..., 0].ravel(), coins.ravel())[0, 1] > 0.99


def test_a_hot_pixel_does_not_set_the_contrast(coins):
    hot = coins.astype(np.uint16)
    hot[0, 0] = 65535
    assert np.median(as_rgb_uint8(hot)) > 50


def test_a_few_bright_pixels_on_an_even_ground_can_still_be_seen():
    image = np.zeros((100, 100), np.uint16)
    image[3, 4] = 9
    assert as_rgb_uint8(image)[3, 4, 0] == 255


@pytest.mark.parametrize(
    ('image', 'message'),
    [
        pytest.param(np.zeros((5, 64, 64)), 'one plane of a stack', id='stack'),
        pytest.param(np.zeros((3, 64, 64)), 'leading channel axis', id='channels first'),
        pytest.param(np.zeros((2, 2, 64, 64)), 'one plane of a stack', id='four axes'),
        pytest.param(np.ones((1, 1)), 'at least 8 px', id='one pixel'),
        pytest.param(np.full((32, 48), 7.5), 'every pixel has the value 7.5', id='constant'),
        pytest.param(np.where(np.eye(16) > 0, np.nan, 1.0), '16 values are NaN', id='NaN'),
        pytest.param(np.zeros((16, 16), complex), 'complex128 is not a number', id='complex'),
        pytest.param(np.array([['a'] * 16] * 16), 'is not a number', id='text'),
    ],
)
def test_what_cannot_be_segmented_is_refused(image, message):
    with pytest.raises(ImageError, match=message):
        as_rgb_uint8(image, 'picture.tif')


def test_files_of_many_kinds_are_read_alike(tmp_path, coffee):
    Image.fromarray(coffee).save(tmp_path / 'a.png')
    Image.fromarray(coffee).convert('P', palette=Image.Palette.ADAPTIVE).save(tmp_path / 'b.png')
    Image.fromarray(coffee).convert('CMYK').save(tmp_path / 'c.jpg')
    tifffile.imwrite(tmp_path / 'd.tif', coffee.astype(np.uint16) * 257)
    for path in list_images(tmp_path):
        image = read_image(path)
        assert image.shape == coffee.shape
        assert np.abs(image.astype(int) - coffee).mean() < 12


def test_a_sixteen_bit_png_keeps_its_detail(tmp_path):
    ramp = np.linspace(1000, 1255, 64 * 64).astype(np.uint16).reshape(64, 64)
    Image.fromarray(ramp).save(tmp_path / 'ramp.png')
    assert len(np.unique(read_image(tmp_path / 'ramp.png'))) > 200


def test_an_all_but_black_colour_image_is_stretched(coffee):
    assert as_rgb_uint8(coffee / 255 * 0.001).max() == 255


def test_broken_files_are_named(tmp_path, coffee):
    Image.fromarray(coffee).save(tmp_path / 'whole.png')
    whole = (tmp_path / 'whole.png').read_bytes()
    for name, content, message in (
        ('empty.jpg', b'', 'is empty'),
        ('text.jpg', b'not an image', 'cannot be read as an image'),
        ('short.png', whole[: len(whole) // 2], 'cannot be read as an image'),
        ('short.tif', b'II*\x00', 'cannot be read as an image'),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=f'{name}.*{message}'):
            read_image(tmp_path / name)


def test_a_stack_in_a_file_is_refused_by_name(tmp_path):
    tifffile.imwrite(tmp_path / 'stack.tif', np.zeros((5, 64, 64), np.uint8))
    with pytest.raises(ImageError, match='stack.tif.*one plane'):
        read_image(tmp_path / 'stack.tif')


def test_folders_are_searched_at_any_depth_in_a_fixed_order(tmp_path, coffee):
    for name in ('in/b/2.PNG', 'in/a.jpg', 'in/b/c/1.tiff', 'in/.hidden/3.png', 'in/notes.txt', 'far/4.png'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / 'in' / 'link').symlink_to(tmp_path / 'far')
    (tmp_path / 'in' / 'b' / 'loop').symlink_to(tmp_path / 'in')
    (tmp_path / 'in' / 'itself').symlink_to(tmp_path / 'in' / 'itself')
    found = [path.relative_to(tmp_path / 'in').as_posix() for path in list_images(tmp_path / 'in')]
    assert found == ['a.jpg', 'b/2.PNG', 'b/c/1.tiff', 'link/4.png']


def test_a_subfolder_that_cannot_be_read_is_left_out_with_a_warning(tmp_path, monkeypatch, caplog):
    for name in ('a/1.png', 'locked/2.png', 'z/3.png'):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    scandir, locked = os.scandir, [tmp_path / 'locked']

    def refuse(folder):
        if Path(folder) in locked:
            raise PermissionError(errno.EACCES, 'Permission denied', str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, 'scandir', refuse)
    assert [path.name for path in list_images(tmp_path)] == ['1.png', '3.png']
    assert f'{tmp_path / "locked"}: the folder cannot be read (Permission denied)' in caplog.text
    locked.append(tmp_path)
    with pytest.raises(ImageError, match='the folder cannot be read'):
        list_images(tmp_path)


def test_results_beside_images_are_no_images_and_images_of_such_names_are(tmp_path):
    for name in ('a.png', 'a.png.objects.tif', f'b~{"0" * 16}.objects.tif', 'c.objects.png', 'd.objects.tif'):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ['a.png', 'c.objects.png', 'd.objects.tif']


def test_a_file_that_a_folder_would_not_list_is_no_image_by_itself_either(tmp_path, coffee):
    Image.fromarray(coffee).save(tmp_path / 'coffee.gif')
    with pytest.raises(ImageError, match=r'coffee.gif: expected a file ending in .jpg'):
        list_images(tmp_path / 'coffee.gif')


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(ImageError, match='no images found'):
        list_images(tmp_path)
    with pytest.raises(ImageError, match='no such folder'):
        list_images(tmp_path / 'missing')
