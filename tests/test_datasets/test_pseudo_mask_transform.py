"""Pseudo-masks enter an MMDetection pipeline, are kept on disk, and stay aligned with the image."""

import json
import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from PIL import Image
from skimage import data, segmentation
from torch.utils.data import DataLoader

from unsam_mm.datasets import RleMasks, UnSAMImageFolder, UnSAMPseudoMasks, prepare_pseudo_masks
from unsam_mm.errors import ImageError, StoreError, UnSAMError
from unsam_mm.fingerprints import image_stamp
from unsam_mm.folders.store import PseudoMaskStore
from unsam_mm.images import read_image
from unsam_mm.masks.hierarchy import MaskHierarchy
from unsam_mm.masks.mask_set import MaskSet

N_READABLE = 4


class SlicGenerator:
    """Stands in for the real generator, which needs weights: superpixels below one root. Counts its calls."""

    def __init__(self, n_segments=8):
        self.signature = f'slic{n_segments}'
        self.n_segments = n_segments
        self.calls = 0

    def __call__(self, image):
        self.calls += 1
        _, labels = np.unique(segmentation.slic(image, self.n_segments), return_inverse=True)
        labels = labels.reshape(image.shape[:2])
        n_leaves = int(labels.max()) + 1
        height = np.r_[np.zeros(n_leaves), 1.0]
        # The largest regions score best and the whole image worst, so a cap shows which masks are kept.
        score = np.r_[np.bincount(labels.ravel()) / labels.size, 1e-6]
        return MaskHierarchy.from_merges(labels, np.r_[np.full(n_leaves, n_leaves), -1], height, score)


def pipeline(tmp_path, *after, **arguments):
    step = {'type': 'UnSAMPseudoMasks', 'store': str(tmp_path / 'store'), **arguments}
    return [{'type': 'UnSAMLoadImage'}, step, *after]


def folder(image_folder, steps):
    return UnSAMImageFolder(data_root=str(image_folder), pipeline=steps, serialize_data=False)


def test_it_sets_the_fields_of_an_annotated_image(image_folder, tmp_path):
    sample = folder(image_folder, pipeline(tmp_path, generator=SlicGenerator()))[0]
    masks = sample['gt_masks']
    height, width = sample['img_shape']
    assert isinstance(masks, RleMasks)
    assert (masks.height, masks.width, masks.masks.dtype) == (height, width, np.uint8)
    assert (
        masks.masks[:-1].sum(axis=0).max() == masks.masks[:-1].sum(axis=0).min() == 1
    )  # the superpixels tile the image
    assert masks.masks[-1].all()  # the root
    np.testing.assert_array_equal(sample['gt_bboxes'].tensor, masks.get_bboxes('hbox').tensor)
    assert sample['gt_bboxes_labels'].tolist() == [0] * len(masks)
    assert not sample['gt_ignore_flags'].any()


def test_masks_are_found_once_and_kept(image_folder, tmp_path):
    first, second = SlicGenerator(), SlicGenerator()
    found = folder(image_folder, pipeline(tmp_path, generator=first))[0]
    kept = folder(image_folder, pipeline(tmp_path, generator=second))[0]
    assert (first.calls, second.calls) == (1, 0)
    np.testing.assert_array_equal(found['gt_masks'].masks, kept['gt_masks'].masks)


def test_other_parameters_find_masks_again(image_folder, tmp_path):
    coarse, fine = SlicGenerator(4), SlicGenerator(30)
    n_coarse = len(folder(image_folder, pipeline(tmp_path, generator=coarse))[0]['gt_masks'])
    n_fine = len(folder(image_folder, pipeline(tmp_path, generator=fine))[0]['gt_masks'])
    assert (coarse.calls, fine.calls) == (1, 1)
    assert n_coarse < n_fine


def test_images_of_one_name_in_two_folders_are_told_apart(image_folder, tmp_path):
    other = tmp_path / 'other'
    image_folder.rename(other)
    image_folder.mkdir()
    (image_folder / 'rgba.png').write_bytes((other / 'Coffee.JPG').read_bytes())
    generator = SlicGenerator()
    widths = [
        sample['gt_masks'].width
        for root in (other, image_folder)
        for sample in [folder(root, pipeline(tmp_path, generator=generator))[-1]]
    ]
    assert widths == [130, 160]
    assert generator.calls == 2


def test_an_image_that_was_exchanged_for_one_of_another_size_is_done_again(image_folder, tmp_path):
    generator = SlicGenerator()
    dataset = folder(image_folder, pipeline(tmp_path, generator=generator))
    dataset[0]
    (image_folder / 'Coffee.JPG').write_bytes((image_folder / 'rgba.png').read_bytes())
    assert dataset[0]['gt_masks'].masks.shape[1:] == (90, 130)
    assert generator.calls == 2


@pytest.mark.parametrize('years', [-1, 1], ids=['older', 'younger'])
def test_an_image_that_was_exchanged_for_one_of_the_same_size_is_done_again(image_folder, tmp_path, years):
    generator = SlicGenerator()
    dataset = folder(image_folder, pipeline(tmp_path, generator=generator))
    before = dataset[0]['gt_masks'].masks
    pixels = read_image(image_folder / 'Coffee.JPG')
    Image.fromarray(np.ascontiguousarray(pixels[::-1])).save(image_folder / 'Coffee.JPG')
    set_age(image_folder / 'Coffee.JPG', years)
    assert not np.array_equal(dataset[0]['gt_masks'].masks, before)
    dataset[0]
    assert generator.calls == 2


def test_an_image_that_was_copied_again_keeps_its_masks(image_folder, tmp_path):
    generator = SlicGenerator()
    dataset = folder(image_folder, pipeline(tmp_path, generator=generator))
    dataset[0]
    set_age(image_folder / 'Coffee.JPG', 1)
    dataset[0]
    assert generator.calls == 1


def test_masks_of_earlier_versions_are_taken_if_the_image_is_not_younger(image_folder, tmp_path):
    """Those have no note about the image that they were made of."""
    generator = SlicGenerator()
    dataset = folder(image_folder, pipeline(tmp_path, generator=generator))
    dataset[0]
    (file,) = (tmp_path / 'store').rglob('*.json')
    content = json.loads(file.read_text())
    del content['image']['made_of']
    file.write_text(json.dumps(content))
    dataset[0]
    assert generator.calls == 1
    set_age(image_folder / 'Coffee.JPG', 1)
    dataset[0]
    assert generator.calls == 2


def set_age(path, years):
    os.utime(path, (path.stat().st_mtime + years * 365 * 86400,) * 2)


def test_a_file_that_was_cut_short_is_made_again(image_folder, tmp_path):
    generator = SlicGenerator()
    dataset = folder(image_folder, pipeline(tmp_path, generator=generator))
    dataset[0]
    (file,) = (tmp_path / 'store').rglob('*.json')
    file.write_text(file.read_text()[:100])
    dataset[0]
    assert generator.calls == 2
    assert json.loads(file.read_text())['image']['file_name'] == 'Coffee.JPG'


def test_training_goes_on_where_masks_cannot_be_kept(image_folder, tmp_path):
    (tmp_path / 'store').write_text('a file stands where the folder should be')
    assert len(folder(image_folder, pipeline(tmp_path, generator=SlicGenerator()))[0]['gt_masks']) > 2


def test_the_best_masks_are_kept_and_small_ones_left_out(image_folder, tmp_path):
    all_masks = folder(image_folder, pipeline(tmp_path, generator=SlicGenerator(30)))[0]['gt_masks'].masks
    capped = folder(image_folder, pipeline(tmp_path, generator=SlicGenerator(30), max_masks=5))[0]['gt_masks'].masks
    np.testing.assert_array_equal(capped, all_masks[:5])
    large = folder(image_folder, pipeline(tmp_path, generator=SlicGenerator(30), min_area_px=900))[0]['gt_masks'].masks
    assert 0 < len(large) < len(all_masks)
    assert large.sum(axis=(1, 2)).min() >= 900


def test_an_image_without_masks_passes_through_the_stock_pipeline(image_folder, tmp_path):
    steps = pipeline(
        tmp_path,
        {'type': 'RandomFlip', 'prob': 1.0},
        {'type': 'PackDetInputs'},
        generator=SlicGenerator(),
        min_area_px=10**9,
    )
    instances = folder(image_folder, steps)[0]['data_samples'].gt_instances
    assert len(instances.masks) == len(instances.bboxes) == len(instances.labels) == 0


@pytest.mark.parametrize('direction', ['horizontal', 'vertical'])
def test_flips_and_crops_keep_masks_on_the_image(image_folder, tmp_path, direction):
    """A mask of the red channel's bright pixels must select bright pixels whatever was done to both."""

    class Bright(SlicGenerator):
        def __call__(self, image):
            bright = image[..., 0] > 150
            return MaskHierarchy.from_merges(
                bright.astype(int), np.array([2, 2, -1]), np.array([0, 0, 1.0]), np.array([0, 1, 0.5])
            )

    steps = pipeline(
        tmp_path,
        {'type': 'RandomFlip', 'prob': 1.0, 'direction': direction},
        {'type': 'RandomCrop', 'crop_size': (90, 70)},
        {'type': 'PackDetInputs'},
        generator=Bright(),
        max_masks=1,
    )
    sample = folder(image_folder, steps)[0]
    mask = sample['data_samples'].gt_instances.masks.masks[0].astype(bool)
    red = sample['inputs'][2].numpy()  # BGR: the last channel
    assert sample['data_samples'].flip
    assert mask.shape == (70, 90)
    np.testing.assert_array_equal(mask, red > 150)


def test_it_must_come_before_geometric_steps(image_folder, tmp_path):
    load, masks = pipeline(tmp_path, generator=SlicGenerator())
    for step in ({'type': 'Resize', 'scale': (64, 64)}, {'type': 'RandomFlip', 'prob': 1.0}):
        with pytest.raises(UnSAMError, match='before the geometric transforms'):
            folder(image_folder, [load, step, masks])[0]


def test_a_test_pipeline_gets_masks_of_the_original_size(image_folder, tmp_path):
    load, masks = pipeline(tmp_path, generator=SlicGenerator(), at_original_size=True)
    sample = folder(image_folder, [load, {'type': 'Resize', 'scale': (64, 64), 'keep_ratio': True}, masks])[0]
    assert sample['img'].shape[:2] == (48, 64)
    assert sample['gt_masks'].masks.shape[1:] == sample['ori_shape'] == (120, 160)


def test_two_workers_fill_one_store(image_folder, tmp_path):
    steps = pipeline(tmp_path, {'type': 'PackDetInputs'}, generator=SlicGenerator())
    loader = DataLoader(folder(image_folder, steps), batch_size=1, num_workers=2, collate_fn=pseudo_collate)
    for _ in range(2):
        assert sum(len(batch['data_samples']) for batch in loader) == N_READABLE + 1  # the broken one was exchanged
    assert len(list((tmp_path / 'store').rglob('*.json'))) == N_READABLE


def test_cuda_in_a_worker_is_refused_with_the_remedy(image_folder, tmp_path, monkeypatch):
    # No real worker: one that has failed takes five seconds to end.
    monkeypatch.setattr('unsam_mm.datasets.pseudo_mask_transform.get_worker_info', object)
    transform = UnSAMPseudoMasks(store=str(tmp_path), device='cuda:0')
    transform.signature = 'fixed'  # the real one would ask for weights
    with pytest.raises(UnSAMError, match=r'cannot run in a dataloader worker.*call prepare_pseudo_masks first'):
        folder(image_folder, [{'type': 'UnSAMLoadImage'}, transform])[0]


def test_a_generator_is_built_in_the_process_that_needs_it(monkeypatch, tmp_path):
    built = []
    monkeypatch.setattr(
        'unsam_mm.datasets.pseudo_mask_transform.PseudoMaskGenerator.from_preset',
        lambda **arguments: built.append(arguments) or SlicGenerator(),
    )
    transform = UnSAMPseudoMasks(store=str(tmp_path), generator={'preset': 'default', 'long_side_px': 224})
    transform.signature = 'fixed'
    assert built == []
    results = {'img_path': str(tmp_path / 'a.png'), 'ori_shape': (512, 512), 'img_shape': (512, 512)}
    Image.fromarray(data.astronaut()).save(results['img_path'])
    transform(results)
    assert built == [{'preset': 'default', 'device': 'cpu', 'long_side_px': 224}]
    assert pickle.loads(pickle.dumps(transform))._built is None


def test_precomputed_masks_are_read_and_images_without_them_skipped(image_folder, tmp_path):
    store = PseudoMaskStore(tmp_path / 'made')
    for name in ('rgba.png', 'micro/deep/cell.png'):
        store.write(name, SlicGenerator()(read_image(image_folder / name)).select())
    dataset = folder(
        image_folder, [{'type': 'UnSAMLoadImage'}, {'type': 'UnSAMPseudoMasks', 'precomputed': str(tmp_path / 'made')}]
    )
    assert {dataset[i]['img_name'] for i in range(len(dataset))} == {'rgba.png', 'micro/deep/cell.png'}


class TestDataSetOfAnotherPackage:
    """Its entries have paths alone, and two of its folders hold images of one name."""

    @pytest.fixture
    def images(self, tmp_path):
        for part, photograph in {'a': data.coffee(), 'b': data.astronaut()}.items():
            (tmp_path / 'images' / part).mkdir(parents=True)
            Image.fromarray(photograph[:40, :50]).save(tmp_path / 'images' / part / 'one.png')
        return tmp_path / 'images'

    @pytest.fixture
    def made(self, tmp_path):
        """Labels of both; those of b are twice as many."""
        store = PseudoMaskStore(tmp_path / 'made')
        masks = np.arange(40)[:, None] // np.array([20, 10])[:, None, None] == np.arange(4)[:, None, None, None]
        for part, count, bands in zip('ab', (2, 4), masks.swapaxes(0, 1), strict=True):
            store.write(f'{part}/one.png', MaskSet.from_bitmaps(np.broadcast_to(bands[:count], (count, 40, 50))))
        return store

    @staticmethod
    def entry(images, part):
        return {'img_path': str(images / part / 'one.png'), 'ori_shape': (40, 50)}

    def test_names_are_paths_below_the_folder_that_is_stated(self, images, made, monkeypatch):
        monkeypatch.chdir(images)
        for root in (images, f'{images}/', '.'):
            step = UnSAMPseudoMasks(precomputed=str(made.root), image_root=root)
            assert [len(step.find(self.entry(images, part))) for part in 'ab'] == [2, 4]

    def test_without_that_folder_no_labels_are_guessed(self, images, made):
        made.write('one.png', made.read('a/one.png'))
        step = UnSAMPseudoMasks(precomputed=str(made.root))
        with pytest.raises(
            UnSAMError, match=r'one\.png: its data set does not state the folder .* UnSAMPseudoMasks with image_root'
        ):
            step.find(self.entry(images, 'b'))

    def test_an_image_outside_of_it_is_named_with_it(self, images, made):
        step = UnSAMPseudoMasks(precomputed=str(made.root), image_root=str(images / 'a'))
        with pytest.raises(UnSAMError, match=r'b/one\.png: is not below .*images/a'):
            step.find(self.entry(images, 'b'))

    def test_a_link_that_leads_out_of_the_folder_keeps_its_name(self, images, made, tmp_path):
        (images / 'b').rename(tmp_path / 'elsewhere')
        (images / 'b').symlink_to(tmp_path / 'elsewhere')
        step = UnSAMPseudoMasks(precomputed=str(made.root), image_root=str(images))
        assert len(step.find(self.entry(images, 'b'))) == 4


def test_an_image_with_damaged_precomputed_masks_is_skipped(image_folder, tmp_path):
    store = PseudoMaskStore(tmp_path / 'made')
    dataset = folder(image_folder, [{'type': 'UnSAMLoadImage'}])
    for entry in map(dataset.get_data_info, range(len(dataset))):
        store.write(entry['img_name'], MaskSet.from_bitmaps(np.ones((1, 5, 5), bool)))
        path = store.path_of(entry['img_name'])
        path.write_text(path.read_text().replace('"area":25', '"area":24'))
    step = UnSAMPseudoMasks(precomputed=str(store.root))
    entry = dataset.get_data_info(0)
    assert step.transform({**entry, 'img_shape': (5, 5), 'ori_shape': (5, 5)}) is None


def test_precomputed_masks_of_another_size_are_refused(image_folder, tmp_path):
    PseudoMaskStore(tmp_path / 'made').write('Coffee.JPG', MaskSet.from_bitmaps(np.ones((1, 50, 60), bool)))
    dataset = folder(
        image_folder, [{'type': 'UnSAMLoadImage'}, {'type': 'UnSAMPseudoMasks', 'precomputed': str(tmp_path / 'made')}]
    )
    with pytest.raises(StoreError, match='50 x 60 px, the image is 120 x 160'):
        dataset[0]


def test_masks_that_say_nothing_of_their_image_are_taken_whatever_the_times(image_folder, tmp_path):
    path, made = image_folder / 'Coffee.JPG', PseudoMaskStore(tmp_path / 'made')
    made.write('Coffee.JPG', MaskSet.from_bitmaps(np.ones((1, 120, 160), bool)))
    os.utime(path, (2**32, 2**32))
    step = UnSAMPseudoMasks(precomputed=str(made.root), image_root=str(image_folder))
    assert len(step.find({'img_path': str(path)})) == 1


@pytest.mark.parametrize('time_s', [10**9, 2**32], ids=['older', 'younger'])
def test_an_image_that_was_exchanged_since_its_masks_were_made_is_skipped(image_folder, tmp_path, time_s):
    path, made = image_folder / 'Coffee.JPG', PseudoMaskStore(tmp_path / 'made')
    made.write('Coffee.JPG', MaskSet.from_bitmaps(np.ones((1, 120, 160), bool)), image_stamp(path))
    step = UnSAMPseudoMasks(precomputed=str(made.root), image_root=str(image_folder))
    assert len(step.find({'img_path': str(path)})) == 1
    path.write_bytes(path.read_bytes() + b'x')
    os.utime(path, (time_s, time_s))
    assert step.find({'img_path': str(path)}) is None


def test_an_empty_precomputed_folder_is_refused(image_folder, tmp_path):
    (tmp_path / 'made').mkdir()
    dataset = folder(
        image_folder, [{'type': 'UnSAMLoadImage'}, {'type': 'UnSAMPseudoMasks', 'precomputed': str(tmp_path / 'made')}]
    )
    with pytest.raises(StoreError, match='contains no pseudo-masks'):
        dataset[0]


def test_preparing_fills_the_store_and_names_what_cannot_be_read(image_folder, tmp_path):
    generator = SlicGenerator()
    dataset = folder(image_folder, pipeline(tmp_path, generator=generator))
    assert prepare_pseudo_masks(dataset, progress=False) == (N_READABLE, 1)
    assert prepare_pseudo_masks(dataset, progress=False) == (N_READABLE, 1)
    assert generator.calls == N_READABLE


class Failing(SlicGenerator):
    """Fails at the image that is 90 x 130 px."""

    def __call__(self, image):
        if image.shape[:2] == (90, 130):
            raise ZeroDivisionError('division by zero')
        return super().__call__(image)


def test_an_image_that_no_masks_can_be_found_in_ends_neither_preparation_nor_training(image_folder, tmp_path):
    dataset = folder(image_folder, pipeline(tmp_path, generator=Failing()))
    assert prepare_pseudo_masks(dataset, progress=False) == (N_READABLE - 1, 2)
    assert all(dataset[i]['img_shape'] != (90, 130) for i in range(len(dataset)))
    steps = pipeline(tmp_path, generator=Failing(), at_original_size=True)
    with pytest.raises(
        ImageError, match=r'rgba\.png: ZeroDivisionError: division by zero'
    ):  # a test exchanges no image
        list(folder(image_folder, steps))


def test_preparing_a_data_set_without_the_step_is_refused(image_folder):
    with pytest.raises(UnSAMError, match='no UnSAMPseudoMasks'):
        prepare_pseudo_masks(folder(image_folder, [{'type': 'UnSAMLoadImage'}]))


def test_masks_lie_in_the_cache_unless_a_folder_is_given(image_folder, tmp_path, monkeypatch):
    monkeypatch.setenv('UNSAM_CACHE', str(tmp_path / 'cache'))
    UnSAMImageFolder(
        data_root=str(image_folder), pipeline=[{'type': 'UnSAMLoadImage'}, UnSAMPseudoMasks(generator=SlicGenerator())]
    )[0]
    (file,) = (tmp_path / 'cache' / 'pseudo_masks').rglob('*.json')
    assert file.parent.name == 'slic8'
    assert file.parent.parent.name.startswith('images-')


def test_more_masks_than_are_kept_on_disk_cannot_be_asked_for():
    with pytest.raises(UnSAMError, match='max_masks must lie in 1..1000, got 2000'):
        UnSAMPseudoMasks(max_masks=2000)


def test_targets_go_through_the_data_preprocessor(image_folder, tmp_path):
    """The masks of a batch are padded to one frame, as the head expects."""
    from mmdet.models import DetDataPreprocessor

    dataset = folder(image_folder, pipeline(tmp_path, {'type': 'PackDetInputs'}, generator=SlicGenerator()))
    batch = pseudo_collate([dataset[0], dataset[4]])
    batch = DetDataPreprocessor(mean=[0, 0, 0], std=[1, 1, 1], pad_size_divisor=32, pad_mask=True)(batch, training=True)
    assert batch['inputs'].shape == torch.Size([2, 3, 128, 160])
    assert {sample.gt_instances.masks.masks.shape[1:] for sample in batch['data_samples']} == {(128, 160)}
