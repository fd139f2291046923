"""Checks in a config that the channel order of loaded images matches the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from unsam_mm.errors import UnSAMError

_DATALOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
_STOCK_LOADER = 'LoadImageFromFile'
LOADERS = ('UnSAMLoadImage', _STOCK_LOADER)


def check_channel_order(cfg: Mapping[str, Any]) -> None:
    """Checks that pipelines load images in the channel order that the model's preprocessor expects.

    If the preprocessor does not swap channels, both orders are possible, and `UnSAMLoadImage` must state one.

    Args:
        cfg: A config with all options merged, or its parts with the model and dataloaders.

    Raises:
        UnSAMError: If red and blue would be swapped, or the order is not stated.
    """
    preprocessor = (cfg.get('model') or {}).get('data_preprocessor') or {}
    if 'mean' not in preprocessor:
        return  # no image preprocessor
    swap = next((key for key in ('bgr_to_rgb', 'rgb_to_bgr') if preprocessor.get(key)), None)
    for name in _DATALOADERS:
        for step in steps_of_type(cfg.get(name), *LOADERS):
            loader, loaded = type_name(step), loaded_order(step)
            if swap is None:
                if loader != _STOCK_LOADER and step.get('channel_order') is None:
                    raise UnSAMError(
                        f'{name}: {loader} does not state channel_order, and model.data_preprocessor does not swap '
                        "channels; set bgr_to_rgb=True there, or channel_order='rgb' or 'bgr' here, as in the training "
                        'of the backbone'
                    )
            elif loaded != (expected := swap[:3]):
                raise UnSAMError(
                    f'{name}: {loader} gives {loaded.upper()} images, model.data_preprocessor.{swap}=True expects '
                    f'{expected.upper()}; leave channel_order out, or set {swap}=False'
                )


def loaded_order(step: Mapping[str, Any]) -> str:
    """Channel order, 'rgb' or 'bgr', of the images that a pipeline step of one of the types `LOADERS` loads."""
    return 'bgr' if type_name(step) == _STOCK_LOADER else step.get('channel_order') or 'bgr'


def steps_of_type(config: Any, *names: str) -> Iterator[Mapping[str, Any]]:
    """The pipeline steps of a dataloader or data set, at any depth, whose type has one of these names."""
    if isinstance(config, Mapping):
        if type_name(config) in names:
            yield config
        for value in config.values():
            yield from steps_of_type(value, *names)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from steps_of_type(value, *names)


def type_name(step: Mapping[str, Any]) -> str:
    """Class name of a config, whose ``type`` may be a name, a name with a scope ('mmdet.Resize'), or the class."""
    kind = step.get('type')
    return getattr(kind, '__name__', None) or str(kind).rpartition('.')[2]
