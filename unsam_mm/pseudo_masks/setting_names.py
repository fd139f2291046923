"""Settings of the generator that were renamed, and their names in files of earlier versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FIRST_NAMES = {
    'superpixel_spacing_px': 'leaf_spacing_px',
    'max_superpixels': 'max_leaves',
    'cross_tree_consensus': 'company',
}
"""Settings that were renamed, with the names that signatures and older files have for them."""


def renamed_settings(settings: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Settings under other names, also those of nested settings; names that are not listed stay.

    Args:
        settings: As from `dataclasses.asdict`, or read from a file.
        names: New name by old name.
    """
    return {
        names.get(name, name): renamed_settings(value, names) if isinstance(value, Mapping) else value
        for name, value in settings.items()
    }


def current_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings read from a file of any version, under the names that they have now."""
    return renamed_settings(settings, {first: name for name, first in FIRST_NAMES.items()})
