"""The pseudo-mask generator: a region tree of an image, without labels."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from unsam_mm import weights
from unsam_mm.errors import UnSAMError
from unsam_mm.images import as_rgb_uint8
from unsam_mm.masks.hierarchy import MaskHierarchy
from unsam_mm.pseudo_masks.region_trees import GeneratorSettings, ProgressCallback, RegionTrees
from unsam_mm.pseudo_masks.setting_names import ORIGINAL_NAMES, renamed_settings
from unsam_mm.pseudo_masks.vit import vit_folder
from unsam_mm.published import procedure
from unsam_mm.published.procedure import PublishedProcedure, PublishedSettings

_ALGORITHM = 5
"""Version of the algorithm, incremented when the masks for the same settings change: old and new ones are not mixed."""

Settings = GeneratorSettings | PublishedSettings

PRESETS: dict[str, Settings] = {'default': GeneratorSettings(), **procedure.PRESETS}


class PseudoMaskGenerator:
    """Generates pseudo-masks at all scales, without labels.

    Args:
        settings: Settings of the region trees (the default), or of UnSAM's published procedure.
        device: Torch device for the ViT; all other steps run on the CPU.

    Raises:
        WeightsError: If the weights of the ViT are not available.
    """

    def __init__(self, settings: Settings | None = None, device: str = 'cpu') -> None:
        self.settings = settings or GeneratorSettings()
        kind = PublishedProcedure if isinstance(self.settings, PublishedSettings) else RegionTrees
        self._find = kind(self.settings, device)

    @classmethod
    def from_preset(cls, preset: str = 'default', device: str = 'cpu', **changes: Any) -> PseudoMaskGenerator:
        """A generator with named settings.

        Args:
            preset: A key of `PRESETS`.
            device: Torch device for the ViT.
            changes: Settings that replace those of the preset; see `GeneratorSettings` and `PublishedSettings`.

        Raises:
            UnSAMError: If the preset or a setting is unknown.
        """
        return cls(preset_settings(preset, **changes), device)

    @property
    def signature(self) -> str:
        """Twelve hexadecimal digits: a hash of the settings, the weights and the version of the algorithm."""
        return settings_signature(self.settings)

    def __call__(self, image: np.ndarray, progress: ProgressCallback | None = None) -> MaskHierarchy:
        """The region tree of one image.

        Args:
            image: (H, W) or (H, W, 3 or 4) array; see `unsam_mm.images.as_rgb_uint8` for dtypes.
            progress: Called with the finished fraction and the name of the step; an exception raised in it stops the
                work.

        Raises:
            ImageError: If the array is not an image that can be segmented.
        """
        return self._find(as_rgb_uint8(image), progress)


def preset_settings(preset: str, **changes: Any) -> Settings:
    """The settings of a preset, with some of them replaced.

    Raises:
        UnSAMError: If the preset or a setting is unknown.
    """
    if preset not in PRESETS:
        raise UnSAMError(f'preset {preset!r} is unknown; choose from {", ".join(PRESETS)}')
    known = asdict(PRESETS[preset])
    if unknown := changes.keys() - known.keys():
        raise UnSAMError(f'preset {preset!r} has no setting {", ".join(sorted(unknown))}; known are {", ".join(known)}')
    return replace(PRESETS[preset], **changes)


def settings_signature(settings: Settings) -> str:
    """See `PseudoMaskGenerator.signature`.

    Missing weights are downloaded, since the signature depends on the source that they come from.
    """
    # Settings are hashed under their original names, so that masks stay current when a setting is renamed.
    described = renamed_settings(asdict(settings), ORIGINAL_NAMES)
    described |= {'weights': weights_origin(settings), 'algorithm': _ALGORITHM}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]


def weights_origin(settings: Settings) -> str:
    """Source and identity of the weights that the masks depend on; see `unsam_mm.weights.identity`."""
    paths = [vit_folder(settings.vit)]
    if getattr(settings, 'divide', None) == 'cutler':
        paths.append(weights.fetch('cutler_cascade'))
    return ' and '.join(weights.identity(path) for path in paths)
