"""The frozen ViT with its convolutional branch."""

import copy

import pytest
import torch
import transformers

from unsam_mm.errors import UnSAMError, WeightsError
from unsam_mm.models import UnSAMViTBackbone
from unsam_mm.models.vit_backbone import TINY_VIT


@pytest.fixture
def backbone() -> UnSAMViTBackbone:
    return UnSAMViTBackbone(out_channels=16, stem_channels=8, pretrained=False)


def test_four_levels_at_strides_4_8_16_and_32(backbone):
    levels = backbone(torch.randn(2, 3, 64, 96))
    assert [tuple(level.shape) for level in levels] == [(2, 16, 16, 24), (2, 16, 8, 12), (2, 16, 4, 6), (2, 16, 2, 3)]


def test_one_token_covers_16_px_in_reading_order(backbone):
    image = torch.zeros(1, 3, 64, 96)
    image[:, :, 16:32, 64:80] = 3.0
    change = (backbone._tokens(image) - backbone._tokens(torch.zeros_like(image))).norm(dim=1)[0]
    assert divmod(int(change.argmax()), 6) == (1, 4)


SIZES = {'hidden_size': 32, 'num_hidden_layers': 1, 'num_attention_heads': 4, 'patch_size': 16, 'image_size': 32}


@pytest.mark.parametrize(
    ('family', 'config', 'options'),
    [
        ('ViT', SIZES | {'patch_size': 8}, {'add_pooling_layer': False}),  # DINO
        ('Dinov2', SIZES, {}),
        ('Dinov2WithRegisters', SIZES | {'num_register_tokens': 4}, {}),
        ('DINOv3ViT', SIZES | {'num_register_tokens': 4}, {}),
    ],
)
def test_every_family_of_vits_gives_its_patches_at_sizes_other_than_its_own(tmp_path, family, config, options):
    """Class and register tokens are left out: a change of one patch shows where the patch is."""
    vit = getattr(transformers, f'{family}Model')(getattr(transformers, f'{family}Config')(**config), **options)
    vit.save_pretrained(tmp_path)
    backbone = UnSAMViTBackbone(vit=str(tmp_path), out_channels=16, stem_channels=8)
    image = torch.zeros(1, 3, 64, 96)
    image[:, :, 16:32, 64:80] = 3.0
    change = (backbone._tokens(image) - backbone._tokens(torch.zeros_like(image))).norm(dim=1)[0]
    assert change.shape == (4, 6)
    assert divmod(int(change.argmax()), 6) == (1, 4)
    backbone.load_state_dict(backbone.state_dict())  # the picture that tells ViTs apart suits each of them


def test_an_image_that_is_not_padded_is_refused_with_the_setting_to_change(backbone):
    with pytest.raises(UnSAMError, match=r'multiples of 32, got 60 x 96; set pad_size_divisor=32'):
        backbone(torch.zeros(1, 3, 60, 96))


def test_channels_that_the_norm_cannot_group_are_refused():
    with pytest.raises(UnSAMError, match='out_channels must be a multiple of 8, got 20'):
        UnSAMViTBackbone(out_channels=20, pretrained=False)


def test_a_frozen_vit_is_seen_by_no_optimizer_and_no_checkpoint(backbone):
    parameters = {id(parameter) for parameter in backbone.parameters()}
    assert not any(id(weight) in parameters for weight in backbone.vit.parameters())
    assert not any('vit' in name for name in backbone.state_dict() if name != 'vit_probe')


def test_a_frozen_vit_stays_in_evaluation_mode_and_gets_no_gradient(backbone):
    backbone.train()
    sum(level.sum() for level in backbone(torch.randn(1, 3, 32, 32))).backward()
    assert not backbone.vit.training
    assert all(weight.grad is None for weight in backbone.vit.parameters())
    assert all(weight.grad is not None for weight in backbone.parameters())


def test_a_vit_that_is_not_frozen_is_trained_and_stored():
    backbone = UnSAMViTBackbone(out_channels=16, stem_channels=8, pretrained=False, frozen=False)
    sum(level.sum() for level in backbone(torch.randn(1, 3, 32, 32))).backward()
    assert backbone.vit.embeddings.patch_embeddings.projection.weight.grad is not None
    assert any(name.startswith('registered_vit.') for name in backbone.state_dict())


def test_a_frozen_vit_follows_the_backbone_to_another_dtype(backbone):
    assert next(backbone.double().vit.parameters()).dtype == torch.float64


def test_weights_trained_with_the_same_vit_load(backbone):
    other = copy.deepcopy(backbone)
    torch.nn.init.zeros_(other.project16[0].weight)
    other.load_state_dict(backbone.state_dict())
    assert torch.equal(other.project16[0].weight, backbone.project16[0].weight)


@pytest.mark.parametrize('config', [TINY_VIT, TINY_VIT | {'hidden_size': 48}], ids=['other weights', 'other width'])
def test_weights_trained_with_another_vit_are_refused(backbone, config):
    other = UnSAMViTBackbone(out_channels=16, stem_channels=8, pretrained=False, vit_config=config)
    with pytest.raises(WeightsError, match='another frozen ViT'):
        other.load_state_dict(backbone.state_dict())
