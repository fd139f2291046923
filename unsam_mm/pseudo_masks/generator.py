"""The pseudo-mask generator: one image in, one tree of regions out, no label anywhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np

from unsam_mm import weights
from unsam_mm.errors import UnSAMError
from unsam_mm.hierarchy import MaskHierarchy
from unsam_mm.images import as_rgb_uint8
from unsam_mm.pseudo_masks.conquer import conquer
from unsam_mm.pseudo_masks.features import PatchFeatureExtractor
from unsam_mm.pseudo_masks.leaves import find_leaves

ProgressCallback = Callable[[float, str], None]
"""Called with the finished share in [0, 1] and what comes next; an exception raised inside stops the work."""

_ALGORITHM = 2
"""Raised when the same settings give other masks than before, so that stored masks are not mixed."""


@dataclass(frozen=True)
class GeneratorSettings:
    """Everything that decides which masks are found.

    Attributes:
        vit: Name of the ViT in `unsam_mm.weights.TABLE`.
        facet: What is read from its last layer: 'key', 'query', 'value' or 'token'.
        long_side_px: Size of the image that the ViT sees.
        leaf_spacing_px: Distance between the seeds of the leaves.
        max_leaves: The spacing grows on images that would have more.
        colour_weight: Length of the colour part of a region's description relative to its feature part.
    """

    vit: str = 'dinov2_vits14'
    facet: str = 'key'
    long_side_px: int = 714
    leaf_spacing_px: float = 6.0
    max_leaves: int = 20_000
    colour_weight: float = 0.2

    def __post_init__(self) -> None:
        positive = ('long_side_px', 'leaf_spacing_px', 'max_leaves')
        wrong = [name for name in positive if not 0 < getattr(self, name) < float('inf')]
        if not 0 <= self.colour_weight < float('inf'):
            wrong.append('colour_weight')
        if wrong:
            raise UnSAMError(
                f'{wrong[0]}={getattr(self, wrong[0])} is out of range; it must be positive and finite (colour_weight may be 0)'
            )


PRESETS: dict[str, GeneratorSettings] = {'default': GeneratorSettings()}


class PseudoMaskGenerator:
    """Finds regions at every scale in an image, without labels.

    Args:
        settings: What to compute.
        device: Torch device for the ViT; the rest runs on the CPU.

    Raises:
        WeightsError: If the ViT's weights cannot be had.
    """

    def __init__(self, settings: GeneratorSettings | None = None, device: str = 'cpu') -> None:
        self.settings = settings or GeneratorSettings()
        self._extract = PatchFeatureExtractor(
            self.settings.vit, self.settings.facet, self.settings.long_side_px, device
        )

    @classmethod
    def from_preset(cls, preset: str = 'default', device: str = 'cpu', **changes) -> PseudoMaskGenerator:
        """A generator with named settings.

        Args:
            preset: A key of `PRESETS`.
            device: Torch device for the ViT.
            changes: Single settings to replace, by their names in `GeneratorSettings`.

        Raises:
            UnSAMError: If the preset or a setting is unknown.
        """
        return cls(preset_settings(preset, **changes), device)

    @property
    def signature(self) -> str:
        """Twelve hexadecimal digits that differ whenever the masks may differ: settings, weights, algorithm."""
        return settings_signature(self.settings)

    def __call__(self, image: np.ndarray, progress: ProgressCallback | None = None) -> MaskHierarchy:
        """The region tree of one image.

        Args:
            image: (H, W) or (H, W, 3 or 4) array; see `unsam_mm.images.as_rgb_uint8` for dtypes.
            progress: Told what happens; raise inside it to stop.

        Raises:
            ImageError: If the array is not one image that can be segmented.
        """
        report = progress or _silent
        image = as_rgb_uint8(image)
        report(0.0, 'finding patch features')
        features = self._extract(image, lambda done: report(0.8 * done, 'finding patch features'))
        report(0.8, 'finding leaves')
        leaves = find_leaves(image, self.settings.leaf_spacing_px, self.settings.max_leaves)
        report(0.9, 'merging regions')
        hierarchy = conquer(leaves, features, self.settings.colour_weight)
        report(1.0, 'done')
        return hierarchy


def preset_settings(preset: str, **changes) -> GeneratorSettings:
    """The settings of a preset with single values replaced.

    Raises:
        UnSAMError: If the preset or a setting is unknown.
    """
    if preset not in PRESETS:
        raise UnSAMError(f'no preset is called {preset!r}; choose from {", ".join(PRESETS)}')
    try:
        return replace(PRESETS[preset], **changes)
    except TypeError as error:
        known = ', '.join(asdict(PRESETS[preset]))
        raise UnSAMError(f'unknown setting among {", ".join(changes)}; known are {known}') from error


def settings_signature(settings: GeneratorSettings) -> str:
    """See `PseudoMaskGenerator.signature`; fetches the weights, since files of different sources may differ."""
    described = {**asdict(settings), 'weights': weights.origin(weights.fetch(settings.vit)), 'algorithm': _ALGORITHM}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]


def _silent(done: float, message: str) -> None:
    """Reports to nobody."""
