"""Reads and writes trained weights of the region model, with the settings of its tokens, as safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from unsam_mm.errors import StoreError, UnSAMError, WeightsError, describe_error
from unsam_mm.files import atomic_writer
from unsam_mm.pseudo_masks.ranking import RankingSettings
from unsam_mm.pseudo_masks.region_trees import GeneratorSettings
from unsam_mm.pseudo_masks.setting_names import current_settings
from unsam_mm.student.network import RegionNet
from unsam_mm.student.pairs import OTHER_DISTANCES
from unsam_mm.student.prompts import EXTRA_CHANNELS
from unsam_mm.student.tokens import MAX_TOKENS

FORMAT = 'unsam-region-model-1'
"""Files of another format cannot be read."""

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A trained network and the tokens that it was trained on.

    Attributes:
        net: The network in evaluation mode, float32, on the CPU.
        settings: Settings of the generator that makes the regions.
        n_tokens: Maximum number of regions of an image.
        notes: Further notes on the origin, by name.
    """

    net: RegionNet
    settings: GeneratorSettings
    n_tokens: int
    notes: dict[str, str]


def save_weights(
    path: str | Path,
    net: RegionNet,
    settings: GeneratorSettings | None = None,
    n_tokens: int = 768,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Writes a network in half precision, atomically.

    Args:
        path: Path of the file, with the suffix .safetensors.
        net: The network.
        settings: Settings of the generator that made the tokens; by default the default settings.
        n_tokens: Maximum number of tokens of the tokenizer.
        notes: Notes on the origin, such as the data and the seed.

    Raises:
        StoreError: If the path has another suffix, the folder cannot be written or the disk is full.
        WeightsError: If a weight is not finite in half precision.
    """
    path = Path(path)
    if path.suffix != '.safetensors':
        raise StoreError(f'{path}: weights are written as .safetensors; choose such a name')
    tensors = {name: values.detach().cpu().half().contiguous() for name, values in net.state_dict().items()}
    if broken := [name for name, values in tensors.items() if not values.isfinite().all()]:
        raise WeightsError(f'{path}: {broken[0]} is not finite in half precision; train again with a lower rate')
    described = {
        'format': FORMAT,
        'net': json.dumps(_net_arguments(net.state_dict())),
        'settings': json.dumps(asdict(settings or GeneratorSettings())),
        'n_tokens': str(n_tokens),
        'notes': json.dumps(dict(notes or {})),
    }
    content = to_bytes(tensors, metadata=described)
    with atomic_writer(path, binary=True) as file:
        file.write(content)


def load_weights(path: str | Path) -> TrainedModel:
    """Reads a file that `save_weights` wrote.

    Raises:
        WeightsError: If the file is missing, damaged or of another model.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f'{path}: no such file; train with configs/unsam_s.py, then run tools/export_regions.py')
    try:
        with safe_open(path, framework='pt') as file:
            described = file.metadata() or {}
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118  it is no mapping
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise WeightsError(f'{path}: not a whole safetensors file ({error}); export or fetch it again') from error
    if described.get('format') != FORMAT:
        raise WeightsError(
            f'{path}: has the format {described.get("format")!r}, expected {FORMAT!r}; export the checkpoint again'
        )
    try:
        net, arguments = _net_of(tensors)
        if json.loads(described['net']) != arguments:
            raise ValueError(f'the tensors belong to a network with {arguments}, the metadata names {described["net"]}')
        settings = current_settings(json.loads(described['settings']))
        settings['merge_weights'] = tuple(tuple(pair) for pair in settings['merge_weights'])
        settings['ranking'] = RankingSettings(**settings['ranking'])
        notes, n_tokens = json.loads(described['notes']), int(described['n_tokens'])
        if not isinstance(notes, dict) or not 1 <= n_tokens <= MAX_TOKENS:
            raise ValueError(f'n_tokens is {n_tokens}, expected 1..{MAX_TOKENS}, or the notes are no dictionary')
        return TrainedModel(net, GeneratorSettings(**settings), n_tokens, notes)
    except _NO_NETWORK as error:
        raise WeightsError(
            f'{path}: the parts do not belong together ({describe_error(error)}); export the checkpoint again'
        ) from error


def packaged_weights(name: str) -> Path:
    """The path of weights that come with the package.

    Raises:
        WeightsError: If the package does not include them.
    """
    path = _FOLDER / f'{name}.safetensors'
    if not path.is_file():
        have = ', '.join(sorted(file.stem for file in _FOLDER.glob('*.safetensors'))) or 'none'
        raise WeightsError(
            f'{name!r} is not among the models of this installation (it has: {have}); install a release that includes it, '
            "or give a file of your own: UnSAMPredictor(engine='model', weights='my.safetensors')"
        )
    return path


def net_of_checkpoint(path: str | Path) -> RegionNet:
    """The network in a checkpoint written by `tools/train.py`.

    Args:
        path: `latest.pth` or `iter_*.pth` of a training with configs/unsam_s.py.

    Raises:
        WeightsError: If the file is missing, damaged, contains other objects than weights, or is of another model.
    """
    path = Path(path)
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError(f'{path}: no such checkpoint') from error
    except Exception as error:
        raise WeightsError(
            f'{path}: cannot be read ({describe_error(error)}); give latest.pth, which contains only weights'
        ) from error
    state = content.get('state_dict', content) if isinstance(content, dict) else {}
    state = {name.removeprefix('net.'): values for name, values in state.items() if name.startswith('net.')}
    if not state:
        raise WeightsError(f'{path}: contains no region model; give a checkpoint of a training with configs/unsam_s.py')
    try:
        return _net_of(state)[0]
    except _NO_NETWORK as error:
        raise WeightsError(
            f'{path}: a region model of another version ({describe_error(error)}); train it again'
        ) from error


def _net_arguments(state: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """The arguments of `RegionNet` for a state dict.

    Raises:
        KeyError: If a tensor is missing.
        UnSAMError: If the shapes of the tensors do not match.
    """
    width = len(state['encoder_norm.weight'])
    encoder_layers, decoder_layers = (
        len({name.split('.')[1] for name in state if name.startswith(f'{part}.')}) for part in ('encoder', 'decoder')
    )
    prompt_channels, pair_channels = state['pair.weight'].shape
    distances = state['pair_bias.0.weight'].shape[1]
    trees = pair_channels - 2 * distances - EXTRA_CHANNELS
    if trees != distances - OTHER_DISTANCES:
        raise UnSAMError(f'{pair_channels} channels of pairs do not match {distances} distances')
    # The first layer has two input channels for each feature, and a fixed number of others.
    smallest = RegionNet(width=1, heads=1, prompt_channels=1, feature_channels=1, trees=1)
    other_channels = smallest.region[0].in_features - 2
    feature_channels = (state['region.0.weight'].shape[1] - other_channels) // 2
    return {
        'width': width,
        'heads': len(state['decoder.0.pair_bias.weight']),
        'encoder_layers': encoder_layers,
        'decoder_layers': decoder_layers,
        'prompt_channels': prompt_channels,
        'feature_channels': feature_channels,
        'trees': trees,
    }


_NO_NETWORK = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
"""Exceptions that tensors and metadata of other models cause."""


def _net_of(tensors: Mapping[str, torch.Tensor]) -> tuple[RegionNet, dict[str, int]]:
    """The network of a state dict in evaluation mode, and its arguments.

    Values and shapes are checked before memory is allocated.

    Raises:
        KeyError: If a tensor that gives an argument is missing.
        ValueError: If another tensor is missing, or a tensor is not finite or of another shape.
    """
    if broken := [name for name, values in tensors.items() if not values.isfinite().all()]:
        raise ValueError(f'{broken[0]} is not finite')
    arguments = _net_arguments(tensors)
    with torch.device('meta'):
        expected = {name: tuple(values.shape) for name, values in RegionNet(**arguments).state_dict().items()}
    found = {name: tuple(values.shape) for name, values in tensors.items()}
    if found != expected:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise ValueError(f'{wrong[0]} has the shape {found.get(wrong[0])}, expected {expected.get(wrong[0])}')
    net = RegionNet(**arguments)
    net.load_state_dict(tensors)
    return net.eval(), arguments
