"""The plugin's page in napari's preferences."""

from __future__ import annotations

from napari.settings import get_plugin_settings

from napari_unsam._inference import InferenceSettings

PLUGIN = 'unsam_mm'


def inference() -> InferenceSettings:
    """Where and how models run; the defaults where the plugin is not registered with napari."""
    try:
        chosen = get_plugin_settings(PLUGIN).inference
    except KeyError:
        return InferenceSettings()
    return InferenceSettings(device=str(chosen.device), threads=int(chosen.threads))
