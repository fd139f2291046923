"""Images enter a pipeline as region tokens, which are made once, by several processes, and kept on disk."""

import json
import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from tests.conftest import skip_without_weights
from tests.grid_tokens import GridTokenizer, count_files
from unsam_mm.datasets import UnSAMPackRegions, UnSAMRegionFolders, UnSAMRegionTokens
from unsam_mm.datasets.region_tokens import image_location
from unsam_mm.errors import ImageError, StoreError, UnSAMError
from unsam_mm.student.store import ImageLocation, RegionStore

N_READABLE = 4


@pytest.fixture
def tokenizer(monkeypatch):
    """A tokenizer without a ViT, in the place of every store's own."""
    tokenizer = GridTokenizer()
    monkeypatch.setattr(RegionStore, 'tokenizer', lambda store: tokenizer)
    monkeypatch.setattr('unsam_mm.student.store.settings_signature', repr)
    return tokenizer


@pytest.fixture
def coffee_and_coins(tmp_path):
    """Two folders: a photograph, and a micrograph-like picture of the same name."""
    folders = [tmp_path / 'photographs', tmp_path / 'coins']
    for folder, image in zip(folders, (data.coffee()[::4, ::4], data.coins()[::2, ::2]), strict=True):
        folder.mkdir()
        Image.fromarray(image).save(folder / 'a.png')
    return [str(folder) for folder in folders]


def pipeline(tmp_path, pack=(), **arguments):
    step = {'type': 'UnSAMRegionTokens', 'store': str(tmp_path / 'store'), **arguments}
    return [step, {'type': 'UnSAMPackRegions', **dict(pack)}]


def folders(roots, steps, **arguments):
    return UnSAMRegionFolders(data_root=roots, pipeline=steps, prepare_workers=1, **arguments)


def test_all_tokens_are_made_before_the_first_image_is_asked_for_and_broken_images_are_logged(
    image_folder, tmp_path, tokenizer, caplog
):
    dataset = folders(str(image_folder), pipeline(tmp_path))
    assert tokenizer.calls == count_files(tmp_path / 'store') == N_READABLE
    assert len(dataset) == N_READABLE + 1
    for i in range(len(dataset)):  # in the place of the broken image another is drawn
        assert len(dataset[i]['inputs']) == tokenizer.side**2
    assert tokenizer.calls == N_READABLE


def test_a_second_run_makes_nothing_and_a_stopped_one_goes_on(image_folder, tmp_path, tokenizer):
    folders(str(image_folder), pipeline(tmp_path))
    (tmp_path / 'store').rglob('*Coffee*.npz').__next__().unlink()
    folders(str(image_folder), pipeline(tmp_path))
    assert tokenizer.calls == N_READABLE + 1


def test_several_folders_are_one_data_set_and_images_of_one_name_are_told_apart(coffee_and_coins, tmp_path, tokenizer):
    dataset = folders(coffee_and_coins, pipeline(tmp_path))
    samples = [dataset[i]['data_samples'] for i in range(len(dataset))]
    assert [sample.ori_shape for sample in samples] == [(100, 150), (152, 192)]
    assert samples[0].img_id != samples[1].img_id
    assert count_files(tmp_path / 'store') == 2


def test_an_annotation_file_for_several_folders_is_refused(coffee_and_coins, tmp_path, tokenizer):
    with pytest.raises(UnSAMError, match='needs a single folder, data_root has 2; give one'):
        folders(coffee_and_coins, pipeline(tmp_path), ann_file='truth.json')


def test_a_folder_of_broken_images_ends_the_run_at_once(tmp_path, tokenizer):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images' / 'a.png').write_bytes(b'not an image')
    with pytest.raises(ImageError, match=r'none of 1 images can be read; the first: .*a.png'):
        folders(str(tmp_path / 'images'), pipeline(tmp_path))


def test_some_images_are_chosen_from_all_folders(image_folder, coffee_and_coins, tmp_path, tokenizer):
    dataset = folders([str(image_folder), *coffee_and_coins], pipeline(tmp_path), max_images=3)
    roots = [dataset.get_data_info(i)['img_root'] for i in range(len(dataset))]
    assert len(roots) == 3
    assert roots[-1] == coffee_and_coins[-1]


def test_without_preparation_tokens_are_made_at_first_sight_and_kept(coffee_and_coins, tmp_path, tokenizer):
    dataset = UnSAMRegionFolders(data_root=coffee_and_coins, pipeline=pipeline(tmp_path), prepare_workers=0)
    assert tokenizer.calls == 0
    first, again = dataset[0]['inputs'], dataset[0]['inputs']
    assert tokenizer.calls == 1
    torch.testing.assert_close(again.areas_px, first.areas_px)


def test_other_parameters_make_other_tokens(coffee_and_coins, tmp_path, tokenizer):
    for arguments in ({}, {'n_tokens': 500}, {'max_masks': 3}, {'generator': {'lightness_levels': 0}}):
        folders(coffee_and_coins, pipeline(tmp_path, **arguments))
    assert count_files(tmp_path / 'store') == tokenizer.calls == 8


def test_a_file_that_was_cut_short_is_made_again(coffee_and_coins, tmp_path, tokenizer):
    dataset = folders(coffee_and_coins, pipeline(tmp_path))
    for file in (tmp_path / 'store').rglob('*.npz'):
        file.write_bytes(file.read_bytes()[:500])
    assert len(dataset[0]['inputs']) == tokenizer.side**2
    assert tokenizer.calls == 3


@pytest.mark.parametrize('time_s', [0, 2**32], ids=['older', 'younger'])
def test_an_image_that_was_exchanged_is_done_again(coffee_and_coins, tmp_path, tokenizer, time_s):
    dataset = folders(coffee_and_coins, pipeline(tmp_path))
    path = dataset.get_data_info(0)['img_path']
    Image.fromarray(data.astronaut()[:90, :130]).save(path)
    os.utime(path, (time_s, time_s))
    assert dataset[0]['data_samples'].ori_shape == (90, 130)
    assert dataset[0]['data_samples'].ori_shape == (90, 130)
    assert tokenizer.calls == 3


def test_an_image_that_was_exchanged_for_an_older_file_is_prepared_again(coffee_and_coins, tmp_path, tokenizer):
    path = folders(coffee_and_coins, pipeline(tmp_path)).get_data_info(0)['img_path']
    Image.fromarray(data.astronaut()[:90, :130]).save(path)
    os.utime(path, (10**9, 10**9))
    folders(coffee_and_coins, pipeline(tmp_path))
    assert tokenizer.calls == 3


def test_an_image_that_was_copied_again_keeps_its_tokens(coffee_and_coins, tmp_path, tokenizer):
    for _ in range(2):
        dataset = folders(coffee_and_coins, pipeline(tmp_path))
        os.utime(dataset.get_data_info(0)['img_path'], (2**32, 2**32))
        dataset[0]
    assert tokenizer.calls == 2


def test_tokens_of_earlier_versions_are_taken_if_the_image_is_not_younger(coffee_and_coins, tmp_path, tokenizer):
    """Those have no note about the image that they were made of."""
    dataset = folders(coffee_and_coins[:1], pipeline(tmp_path))
    [file] = (tmp_path / 'store').rglob('*.npz')
    with np.load(file) as arrays:
        np.savez(file, **{name: values for name, values in arrays.items() if name != 'notes'})
    dataset[0]
    assert tokenizer.calls == 1
    os.utime(dataset.get_data_info(0)['img_path'], (2**32, 2**32))
    dataset[0]
    assert tokenizer.calls == 2


def test_an_image_that_cannot_be_cut_into_tokens_ends_neither_preparation_nor_training(
    coffee_and_coins, tmp_path, tokenizer, monkeypatch
):
    with_masks = tokenizer.with_masks

    def failing(image, **arguments):
        if image.shape[:2] == (152, 192):
            raise ZeroDivisionError('division by zero')
        return with_masks(image, **arguments)

    monkeypatch.setattr(tokenizer, 'with_masks', failing)
    dataset = folders(coffee_and_coins, pipeline(tmp_path))
    assert [dataset[i]['data_samples'].ori_shape for i in range(2)] == [(100, 150)] * 2


def test_a_store_that_cannot_be_written_ends_the_run(coffee_and_coins, tmp_path, tokenizer):
    (tmp_path / 'store').write_text('a file stands where the folder should be')
    with pytest.raises(StoreError, match='store: '):
        folders(coffee_and_coins, pipeline(tmp_path))


def test_a_test_does_without_broken_images_instead_of_ending_at_one(image_folder, tmp_path, tokenizer):
    dataset = folders(str(image_folder), pipeline(tmp_path, {'test_mode': True}, skip_broken=False), test_mode=True)
    names = [dataset[i]['data_samples'].img_path.split('/')[-1] for i in range(len(dataset))]
    assert len(names) == N_READABLE
    assert 'broken.png' not in names


def test_a_broken_image_that_has_annotations_ends_a_test_before_it_begins(image_folder, tmp_path, tokenizer):
    images = [{'id': i, 'file_name': name} for i, name in enumerate(('broken.png', 'rgba.png'))]
    truth = tmp_path / 'truth.json'
    box = {'bbox': [0, 0, 9, 9], 'segmentation': [[0, 0, 9, 0, 9, 9]], 'area': 40, 'iscrowd': 0, 'category_id': 1}
    truth.write_text(json.dumps({'images': images, 'annotations': [{'id': 1, 'image_id': 0, **box}]}))
    with pytest.raises(ImageError, match=r'1 of 2 images with annotations cannot be read; the first: .*broken.png'):
        folders(str(image_folder), pipeline(tmp_path, skip_broken=False), ann_file=str(truth), test_mode=True)


def test_unprepared_a_test_pipeline_does_not_exchange_a_broken_image(image_folder, tmp_path, tokenizer):
    steps = pipeline(tmp_path, skip_broken=False)
    dataset = UnSAMRegionFolders(data_root=str(image_folder), pipeline=steps, prepare_workers=0, test_mode=True)
    names = [dataset.get_data_info(i)['img_name'] for i in range(len(dataset))]
    with pytest.raises(ImageError, match='broken.png'):
        dataset[names.index('broken.png')]


def test_a_test_sample_has_its_tokens_and_the_pseudo_masks_to_compare_with(coffee_and_coins, tmp_path, tokenizer):
    sample = folders(coffee_and_coins, pipeline(tmp_path, {'test_mode': True}), test_mode=True)[0]['data_samples']
    left_half = sample.gt_instances.masks.masks[0].astype(bool)
    assert len(sample.gt_instances) == tokenizer.n_masks
    assert left_half[:, :75].all()
    assert not left_half[:, 75:].any()
    assert sample.region_tokens.labels.shape == sample.ori_shape == (100, 150)


def test_an_image_without_pseudo_masks_is_not_trained_on_but_tested(coffee_and_coins, tmp_path, tokenizer):
    tokenizer.n_masks = 0
    results = UnSAMRegionTokens(store=str(tmp_path / 'store'))({'img_path': f'{coffee_and_coins[0]}/a.png'})
    assert UnSAMPackRegions()(results) is None
    assert len(UnSAMPackRegions(test_mode=True)(results)['data_samples'].gt_instances) == 0


def test_a_mirrored_image_has_mirrored_inputs_and_the_same_masks(coffee_and_coins, tmp_path, tokenizer):
    results = UnSAMRegionTokens(store=str(tmp_path / 'store'))({'img_path': f'{coffee_and_coins[0]}/a.png'})
    plain, mirrored = (UnSAMPackRegions(flip_prob=prob)(dict(results)) for prob in (0.0, 1.0))
    assert [one['data_samples'].flip for one in (plain, mirrored)] == [False, True]
    expected = plain['inputs'].flipped()
    for name, value in vars(mirrored['inputs']).items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, getattr(expected, name))
    assert any(
        isinstance(value, torch.Tensor) and not value.equal(getattr(plain['inputs'], name))
        for name, value in vars(mirrored['inputs']).items()
    )
    masks = [one['data_samples'].token_masks.shares for one in (plain, mirrored)]
    np.testing.assert_array_equal(*masks)


@pytest.mark.parametrize('prob', [-0.1, 1.5])
def test_a_probability_out_of_range_is_refused(prob):
    with pytest.raises(UnSAMError, match=r'flip_prob must lie in \[0, 1\]'):
        UnSAMPackRegions(flip_prob=prob)


@pytest.mark.parametrize('arguments', [{'n_tokens': 0}, {'n_tokens': 5000}, {'max_masks': 0}])
def test_numbers_out_of_range_are_refused_before_any_process_starts(arguments):
    with pytest.raises(UnSAMError, match='must lie in 1..4096, and max_masks=.* must be positive'):
        UnSAMRegionTokens(**arguments)


def test_cuda_in_a_worker_is_refused_with_the_remedy(coffee_and_coins, tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr('unsam_mm.datasets.region_tokens.get_worker_info', object)
    step = UnSAMRegionTokens(store=str(tmp_path / 'store'), device='cuda:0')
    with pytest.raises(UnSAMError, match='cannot run in a dataloader worker.*prepare the data set first'):
        step({'img_path': f'{coffee_and_coins[0]}/a.png'})


def test_a_transform_can_be_sent_to_another_process_after_it_was_used(coffee_and_coins, tmp_path, tokenizer):
    step = UnSAMRegionTokens(store=str(tmp_path / 'store'))
    results = step({'img_path': f'{coffee_and_coins[0]}/a.png'})
    copy = pickle.loads(pickle.dumps(step))
    again = copy({'img_path': f'{coffee_and_coins[0]}/a.png'})
    np.testing.assert_array_equal(again['region_tokens'].labels, results['region_tokens'].labels)


@pytest.mark.slow
def test_two_processes_prepare_a_folder_with_the_real_tokenizer(coffee_and_coins, tmp_path):
    skip_without_weights()
    store = RegionStore(str(tmp_path / 'store'), n_tokens=100, max_masks=20)
    places = [ImageLocation(root, 'a.png') for root in coffee_and_coins] + [
        ImageLocation(coffee_and_coins[0], 'gone.png')
    ]
    failed = store.prepare(places, workers=2, progress=False)
    assert [place.name for place in failed] == ['gone.png']
    for place in places[:2]:
        tokens, masks = store.read(place)
        assert masks.shares.shape == (len(masks), len(tokens))
        assert 0 < len(tokens) <= 100
        assert 0 < len(masks) <= 20


def test_data_sets_of_other_packages_give_the_path_alone(tmp_path):
    assert image_location({'img_path': str(tmp_path / 'a.png')}) == ImageLocation(str(tmp_path), 'a.png')
