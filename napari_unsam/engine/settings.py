"""The plugin's page in napari's preferences."""

from __future__ import annotations

import os
from pathlib import Path

from napari.settings import get_plugin_settings

from napari_unsam.engine.inference import InferenceSettings

PLUGIN = 'unsam_mm'


def inference() -> InferenceSettings:
    """The settings of inference in the preferences; the defaults if the plugin is not registered with napari."""
    try:
        chosen = get_plugin_settings(PLUGIN).inference
    except KeyError:
        return InferenceSettings()
    store = Path(chosen.store_folder).expanduser() if chosen.store_folder else default_store()
    return InferenceSettings(
        engine=str(chosen.engine),
        device=str(chosen.device),
        threads=int(chosen.threads),
        store=store if chosen.store_gb > 0 else None,
        store_gb=float(chosen.store_gb),
    )


def autosave_folder() -> Path:
    """The folder of autosaved work, which does not depend on the preferences."""
    return default_store() / 'autosave'


def default_store() -> Path:
    """The default folder for embeddings."""
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache', 'unsam', 'napari')


def wants_hint() -> bool:
    """True if the hint for new users is to be shown."""
    try:
        return bool(get_plugin_settings(PLUGIN).help.hint)
    except KeyError:
        return True


def dismiss_hint() -> None:
    """Saves in the preferences that the hint is not to be shown again."""
    try:
        get_plugin_settings(PLUGIN).help.hint = False
    except KeyError:
        return
