"""Whether images reach a model with the channels that it was made for, seen in the config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from unsam_mm.errors import UnSAMError

_DATALOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
_LOADER, _STOCK_LOADER = 'UnSAMLoadImage', 'LoadImageFromFile'


def check_channel_order(cfg: Mapping[str, Any]) -> None:
    """Compares the order of channels in which pipelines load images with what the model's preprocessor makes of them.

    Where the preprocessor turns no channels round, both orders make sense, so `UnSAMLoadImage` has to say which.

    Args:
        cfg: A config with all options merged, or the parts of it that hold the model and dataloaders.

    Raises:
        UnSAMError: If the model would see red and blue exchanged, or the order is not stated.
    """
    preprocessor = (cfg.get('model') or {}).get('data_preprocessor') or {}
    if 'mean' not in preprocessor:
        return  # not of images
    wanted = {key: order for key, order in (('bgr_to_rgb', 'bgr'), ('rgb_to_bgr', 'rgb')) if preprocessor.get(key)}
    for name in _DATALOADERS:
        for step in _loaders(cfg.get(name)):
            stated = 'bgr' if step['type'] == _STOCK_LOADER else step.get('channel_order')
            if not wanted and stated is None:
                raise UnSAMError(
                    f'{name}: {_LOADER} does not state channel_order, and model.data_preprocessor turns no channels round; '
                    "set bgr_to_rgb=True there, or channel_order='rgb' or 'bgr' here, as the backbone was trained"
                )
            given = stated or 'bgr'
            for key, order in wanted.items():
                if given != order:
                    raise UnSAMError(
                        f'{name}: {step["type"]} gives {given.upper()} images, model.data_preprocessor.{key}=True expects '
                        f'{order.upper()}; leave channel_order out, or set {key}=False'
                    )


def _loaders(config: Any) -> Iterator[dict]:
    """The steps that load images, in pipelines at any depth."""
    if isinstance(config, dict):
        if config.get('type') in (_LOADER, _STOCK_LOADER):
            yield config
        for value in config.values():
            yield from _loaders(value)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from _loaders(value)
