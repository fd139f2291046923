"""Checks in a config that the channel order of loaded images matches the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from unsam_mm.errors import UnSAMError

_DATALOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
LOADERS = (_LOADER, _STOCK_LOADER) = ('UnSAMLoadImage', 'LoadImageFromFile')


def check_channel_order(cfg: Mapping[str, Any]) -> None:
    """Compares the channel order in which pipelines load images with that which the model's preprocessor expects.

    If the preprocessor does not swap channels, both orders are possible, and `UnSAMLoadImage` must state it.

    Args:
        cfg: A config with all options merged, or its parts with the model and dataloaders.

    Raises:
        UnSAMError: If red and blue would be exchanged, or the order is not stated.
    """
    preprocessor = (cfg.get('model') or {}).get('data_preprocessor') or {}
    if 'mean' not in preprocessor:
        return  # no image preprocessor
    wanted = {key: order for key, order in (('bgr_to_rgb', 'bgr'), ('rgb_to_bgr', 'rgb')) if preprocessor.get(key)}
    for name in _DATALOADERS:
        for step in steps_of_type(cfg.get(name), *LOADERS):
            loader = type_name(step)
            stated = 'bgr' if loader == _STOCK_LOADER else step.get('channel_order')
            if not wanted and stated is None:
                raise UnSAMError(
                    f'{name}: {_LOADER} does not state channel_order, and model.data_preprocessor does not swap channels; '
                    "set bgr_to_rgb=True there, or channel_order='rgb' or 'bgr' here, as the backbone was trained"
                )
            given = loaded_order(step)
            for key, order in wanted.items():
                if given != order:
                    raise UnSAMError(
                        f'{name}: {loader} gives {given.upper()} images, model.data_preprocessor.{key}=True expects '
                        f'{order.upper()}; leave channel_order out, or set {key}=False'
                    )


def loaded_order(step: Mapping[str, Any]) -> str:
    """Channel order, 'rgb' or 'bgr', of the images that a step of one of the types `LOADERS` loads."""
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
