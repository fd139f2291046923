"""Settings of the generator that were renamed, and their names in files of earlier versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ORIGINAL_NAMES = {
    'superpixel_spacing_px': 'leaf_spacing_px',
    'max_superpixels': 'max_leaves',
    'merge_weights': 'growths',
    'cross_tree_consensus': 'company',
    'max_decay': 'repetition',
    'iou_power': 'sharpness',
}
"""Original name by current name; generator signatures and files of earlier versions contain the original names."""


def renamed_settings(settings: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Renames settings, nested settings included; names that are not in `names` are unchanged.

    Args:
        settings: Values by name, as from `dataclasses.asdict` or read from a file.
        names: New name by old name.
    """
    return {
        names.get(name, name): renamed_settings(value, names) if isinstance(value, Mapping) else value
        for name, value in settings.items()
    }


def current_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings read from a file of any version, under their current names."""
    return renamed_settings(settings, {original: name for name, original in ORIGINAL_NAMES.items()})
