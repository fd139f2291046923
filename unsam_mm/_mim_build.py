"""setuptools commands, named in setup.cfg, that install ``configs``, ``tools`` and ``model-index.yml`` for `mim`.

setuptools loads this file by its path, so nothing of the package may be imported here.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from setuptools.command.build import build
from setuptools.command.egg_info import egg_info
from setuptools.command.install_lib import install_lib

SHIPPED = ('configs', 'tools', 'model-index.yml')

MIM_HOMES = ('unsam_mm', 'napari_unsam')
"""openmim and mmengine search the first top-level package, onedl-mim the folder that RECORD names first."""


class Build(build):
    """Builds in a temporary folder: no stale ``build/lib`` gets into a wheel, and the source may be read-only."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.build_base = _temporary_folder()


class InstallLib(install_lib):
    """Adds a ``.mim`` folder to the packages of a wheel; an editable install uses the checkout itself."""

    def run(self) -> None:
        super().run()
        checkout = Path(__file__).resolve().parents[1]
        for home in MIM_HOMES:
            for name in SHIPPED:
                _copy(checkout / name, Path(self.install_dir, home, '.mim', name))


class EggInfo(egg_info):
    """Puts the egg-info into ``build`` or a temporary folder, and names the package with the models first in it.

    In the root of the checkout, the egg-info would replace the installed metadata for every Python that is started
    there, and `mim` would read it.
    """

    def finalize_options(self) -> None:
        if self.egg_base is None:
            self.egg_base = 'build' if os.access(os.curdir, os.W_OK) else _temporary_folder()
            Path(self.egg_base).mkdir(exist_ok=True)
        super().finalize_options()

    def run(self) -> None:
        super().run()
        # mmengine takes the first line as the package; setuptools sorts the lines.
        Path(self.egg_info, 'top_level.txt').write_text('\n'.join(MIM_HOMES) + '\n', encoding='utf-8')


def _temporary_folder() -> str:
    folder = tempfile.mkdtemp(prefix='unsam_mm_build_')
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _copy(source: Path, target: Path) -> None:
    """Copies a file or folder without its mode: copies of read-only folders would be read-only and hard to remove."""
    files = [path for path in source.rglob('*') if path.is_file()] if source.is_dir() else [source]
    for file in files:
        if '__pycache__' not in file.parts:
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
