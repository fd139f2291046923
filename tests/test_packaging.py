"""What an installed copy holds, and that `mim`, mmengine and napari find it, from whatever folder they are started in.

Everything is built from a copy of the checkout, without network, and installed beside the running environment.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from skimage import data

from unsam_mm import weights

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGES = ('napari_unsam', 'unsam_mm')
# The first needs torchvision, which has no wheel for every torch that this project runs on; the second is for users who have
# it already. The absence of either is a clear error.
BROUGHT_BY_USERS = {'segmentation_refinement', 'supervision'}

PIP = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '--quiet']
OFFLINE = ['--no-deps', '--no-build-isolation', '--no-index']

FIND = """
import mim.utils, mmengine.utils, npe2
root = mim.utils.get_installed_path('unsam_mm')
plugins = npe2.PluginManager()
plugins.discover()
print(__import__('json').dumps([root, mmengine.utils.get_installed_path('unsam_mm'), 'unsam_mm' in plugins]))
"""


def run(*command: object, cwd: Path, python_path: Path | str = '') -> str:
    """Standard output of a command, run in `cwd` without the checkout in reach."""
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=os.environ | {'PYTHONPATH': str(python_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope='module')
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, with what an earlier build may have left behind."""
    source = tmp_path_factory.mktemp('source') / 'unsam'
    kept = {*PACKAGES, 'configs', 'tests', 'tools'}
    for path in CHECKOUT.iterdir():
        if path.name in kept:
            shutil.copytree(path, source / path.name, ignore=shutil.ignore_patterns('__pycache__'))
        elif path.is_file():
            source.mkdir(exist_ok=True)
            shutil.copy2(path, source)
    stale = source / 'build' / 'lib' / 'unsam_mm'
    stale.mkdir(parents=True)
    (stale / 'removed_long_ago.py').touch()
    return source


@pytest.fixture(scope='module')
def shipped(source: Path) -> list[str]:
    """What `mim` needs of the checkout."""
    paths = [source / 'model-index.yml', *source.glob('configs/**/*.*'), *source.glob('tools/*.py')]
    return sorted(path.relative_to(source).as_posix() for path in paths)


@pytest.fixture(scope='module')
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built as `pip install .` builds it."""
    folder = tmp_path_factory.mktemp('wheel')
    run(*PIP, 'wheel', *OFFLINE, '--wheel-dir', folder, source, cwd=folder)
    return next(folder.glob('*.whl'))


@pytest.fixture(scope='module')
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel is installed into, to be put on the path."""
    site = tmp_path_factory.mktemp('installed')
    run(*PIP, 'install', *OFFLINE, '--target', site, wheel, cwd=site)
    copy_compiled_functions(site)
    return site


@pytest.fixture(scope='module')
def editable(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with an editable install, which sees the running environment's packages too."""
    folder = tmp_path_factory.mktemp('editable')
    run(sys.executable, '-m', 'venv', '--without-pip', folder, cwd=folder)
    python = next(path for path in (folder / 'bin' / 'python', folder / 'Scripts' / 'python.exe') if path.exists())
    purelib = Path(run(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))', cwd=folder).strip())
    outer = [path for path in sys.path if Path(path).name in ('site-packages', 'dist-packages')]
    (purelib / 'outer.pth').write_text('\n'.join(outer), encoding='utf-8')
    run(*PIP, '--python', python, 'install', *OFFLINE, '--editable', source, cwd=folder)
    copy_compiled_functions(source)
    return python


def copy_compiled_functions(folder: Path) -> None:
    """Copies numba's cache from the checkout, so that the same functions are not compiled again, which takes seconds.

    Numba takes what is in the cache only if the time and the size of the source file are those of the cached one.
    """
    for package in PACKAGES:
        for cached in (CHECKOUT / package).rglob('__pycache__/*.nb[ci]'):
            copy = folder / cached.relative_to(CHECKOUT)
            copy.parent.mkdir(exist_ok=True)
            shutil.copy2(cached, copy)
            module = Path(cached.parents[1], f'{cached.name.partition(".")[0]}.py')
            shutil.copystat(module, folder / module.relative_to(CHECKOUT))


@pytest.fixture(scope='module')
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of two small photographs; what is computed for them is kept beside it, not in the user's cache."""
    if (vit := weights.cached_path('dinov2_vits14')) is None:
        pytest.skip('the default weights are not there: make install')
    folder = tmp_path_factory.mktemp('images')
    cache = folder / 'cache'
    cache.mkdir()
    (cache / vit.name).symlink_to(vit)
    images = folder / 'my images'
    images.mkdir()
    Image.fromarray(data.chelsea()[40:168, 120:280]).save(images / 'chelsea.png')
    Image.fromarray(data.coffee()[100:228, 200:360]).save(images / 'coffee.png')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('UNSAM_CACHE', str(cache))
        yield images


def read_metadata(wheel: Path) -> metadata.PathDistribution:
    return metadata.PathDistribution(zipfile.Path(wheel, f'{wheel.name.split("-py3")[0]}.dist-info/'))


def requirements(wheel: Path, extra: str = '') -> Iterator[Requirement]:
    """What the wheel needs with an extra, or without any, with extras of its own resolved."""
    for text in read_metadata(wheel).requires or []:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({'extra': extra}):
            continue
        if requirement.name == 'unsam_mm':
            for inner in requirement.extras:
                yield from requirements(wheel, inner)
        elif extra == '' or 'extra' in str(requirement.marker):
            yield requirement


def pinned() -> dict[str, str]:
    """Canonical name -> version of constraints.txt."""
    lines = (CHECKOUT / 'constraints.txt').read_text(encoding='utf-8').splitlines()
    pairs = (line.split('==') for line in lines if line and not line.startswith('#'))
    return {canonicalize_name(name): version for name, version in pairs}


@pytest.mark.slow
class TestWheel:
    def test_first_folder_of_its_record_which_mim_takes_for_the_package_holds_configs_and_tools(
        self, wheel: Path, shipped: list[str]
    ):
        names = sorted(zipfile.ZipFile(wheel).namelist())
        first = names[0].split('/')[0]
        below = f'{first}/.mim/'
        assert [name.removeprefix(below) for name in names if name.startswith(below)] == shipped

    def test_holds_both_packages_with_their_data_and_nothing_of_an_earlier_build(self, wheel: Path, source: Path):
        names = zipfile.ZipFile(wheel).namelist()
        wanted = {
            path.relative_to(source).as_posix()
            for package in PACKAGES
            for pattern in ('**/*.py', '**/*.yaml', '**/*.safetensors')
            for path in (source / package).glob(pattern)
        }
        found = {name for name in names if name.split('/')[0] in PACKAGES and '/.mim/' not in name}
        assert found == wanted

    def test_has_no_console_script_since_mim_would_look_above_site_packages(self, wheel: Path):
        assert {entry.group for entry in read_metadata(wheel).entry_points} == {'napari.manifest'}

    def test_names_the_package_with_the_models_first_which_mmengine_takes(self, wheel: Path):
        assert read_metadata(wheel).read_text('top_level.txt').split() == ['unsam_mm', 'napari_unsam']

    def test_without_extras_needs_neither_mm_nor_napari_nor_dask_nor_opencv(self, wheel: Path):
        names = {requirement.name for requirement in requirements(wheel)}
        assert not [name for name in names if re.match('onedl|mm|napari|dask|distributed|opencv|PyQt', name)]
        assert 'torch' in names

    def test_needs_no_qt_binding_for_the_plugin(self, wheel: Path):
        names = {requirement.name.lower() for requirement in requirements(wheel, 'all')}
        assert 'napari' in names
        assert not names & {'pyqt5', 'pyqt6', 'pyside2', 'pyside6'}

    def test_declares_every_package_that_its_modules_import(self, wheel: Path):
        declared = {canonicalize_name(requirement.name) for requirement in requirements(wheel)}
        declared |= {canonicalize_name(requirement.name) for requirement in requirements(wheel, 'all')}
        homes = metadata.packages_distributions()
        undeclared = {
            f'{path.relative_to(CHECKOUT)}: {module}'
            for package in PACKAGES
            for path in (CHECKOUT / package).rglob('*.py')
            for module in imported_packages(path) - {*PACKAGES, *sys.stdlib_module_names}
            if path.name != '_mim_build.py'
            and module not in BROUGHT_BY_USERS
            and not {canonicalize_name(home) for home in homes.get(module, [])} & declared
        }
        assert undeclared == set()


def imported_packages(path: Path) -> set[str]:
    """Top-level names of the absolute imports in a file, wherever they stand."""
    tree = ast.parse(path.read_text(encoding='utf-8'))
    modules = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    modules |= {
        node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module and not node.level
    }
    return {module.split('.')[0] for module in modules}


@pytest.mark.slow
class TestSdist:
    def test_builds_the_same_wheel_as_the_checkout(self, source: Path, wheel: Path, tmp_path: Path):
        run(sys.executable, '-m', 'build', '--sdist', '--no-isolation', '--outdir', tmp_path, source, cwd=tmp_path)
        sdist = next(tmp_path.glob('*.tar.gz'))
        with tarfile.open(sdist) as archive:
            archive.extractall(tmp_path, filter='data')
        run(
            *PIP,
            'wheel',
            *OFFLINE,
            '--wheel-dir',
            tmp_path,
            tmp_path / sdist.name.removesuffix('.tar.gz'),
            cwd=tmp_path,
        )
        rebuilt = zipfile.ZipFile(next(tmp_path.glob('*.whl')))
        assert sorted(rebuilt.namelist()) == sorted(zipfile.ZipFile(wheel).namelist())

    def test_leaves_no_egg_info_where_python_would_take_it_for_the_installed_package(self, source: Path, wheel: Path):
        assert list(source.glob('*.egg-info')) == []


@pytest.mark.slow
class TestInstalledWheel:
    def test_is_found_from_an_empty_folder(self, installed: Path, shipped: list[str], tmp_path: Path):
        mim_root, mmengine_root, has_plugin = json.loads(
            run(sys.executable, '-c', FIND, cwd=tmp_path, python_path=installed)
        )
        assert Path(mim_root).parent.resolve() == installed.resolve()
        assert all(Path(mim_root, '.mim', name).is_file() for name in shipped)
        assert Path(mmengine_root) == installed / 'unsam_mm'
        assert Path(mmengine_root, '.mim', 'configs', 'unsam.py').is_file()
        assert has_plugin

    def test_mim_lists_the_models_of_the_index(self, installed: Path, tmp_path: Path):
        code = "import mim; print(*mim.get_model_info('unsam_mm').index)"
        assert 'unsam' in run(sys.executable, '-c', code, cwd=tmp_path, python_path=installed).split()

    def test_mim_trains_tests_and_runs_scripts_from_an_empty_folder(
        self, installed: Path, images: Path, tmp_path: Path
    ):
        mim_train(tmp_path, images, sys.executable, python_path=installed)
        checkpoint = Path('work_dirs', 'unsam', 'latest.pth')
        command = [sys.executable, '-m', 'mim', 'test', 'unsam_mm', 'configs/unsam.py', '--checkpoint', checkpoint]
        options = ['--out', 'metrics.json', '--show-dir', 'pictures', '--cfg-options', f'data_root={images}']
        run(*command, *options, cwd=tmp_path, python_path=installed)
        metrics = json.loads((tmp_path / 'metrics.json').read_text(encoding='utf-8'))
        assert 0 <= metrics['unsam/AR@1000'] <= 1
        assert list((tmp_path / 'pictures').iterdir())
        # `mim run` hands its arguments on as they are, so the config has to be named by its full path.
        config = installed / 'unsam_mm' / '.mim' / 'configs' / 'unsam.py'
        command = [sys.executable, '-m', 'mim', 'run', 'unsam_mm', 'test', config, 'none.pth']
        environment = os.environ | {'PYTHONPATH': str(installed)}
        refused = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert 'error: none.pth: no such checkpoint' in refused.stderr


@pytest.mark.slow
class TestEditableInstall:
    def test_is_found_from_an_empty_folder(self, editable: Path, source: Path, shipped: list[str], tmp_path: Path):
        mim_root, _, has_plugin = json.loads(run(editable, '-c', FIND, cwd=tmp_path))
        assert Path(mim_root).resolve() == source.resolve()
        assert all(Path(mim_root, name).is_file() for name in shipped)
        assert has_plugin

    def test_is_found_from_the_checkout_itself(self, editable: Path, source: Path):
        mim_root, _, _ = json.loads(run(editable, '-c', FIND, cwd=source))
        assert Path(mim_root).resolve() == source.resolve()

    def test_mim_trains_from_elsewhere_after_a_training_in_the_checkout(
        self, editable: Path, source: Path, images: Path, tmp_path: Path
    ):
        left_behind = source / 'work_dirs' / 'unsam' / 'unsam.resolved.py'  # as tools/train.py writes it
        left_behind.parent.mkdir(parents=True)
        left_behind.write_text("raise SystemExit('the config of an earlier training was taken')\n", encoding='utf-8')
        mim_train(tmp_path, images, editable)
        assert (tmp_path / 'work_dirs' / 'unsam' / 'latest.pth').is_file()


def mim_train(folder: Path, images: Path, python: Path | str, python_path: Path | str = '') -> None:
    options = [f'data_root={images}', 'train_cfg.max_iters=1', 'train_dataloader.batch_size=1']
    command = [python, '-m', 'mim', 'train', 'unsam_mm', 'configs/unsam.py', '--cfg-options', *options]
    run(*command, cwd=folder, python_path=python_path)


@pytest.mark.slow
class TestConstraints:
    """`make` installs constraints.txt as it stands, so the file has to be complete and consistent by itself."""

    def test_pin_all_that_the_extras_ask_for(self, wheel: Path):
        pins = pinned()
        for requirement in [*requirements(wheel), *requirements(wheel, 'all'), *requirements(wheel, 'dev')]:
            version = pins.get(canonicalize_name(requirement.name))
            assert version, f'{requirement.name} is missing'
            assert version in requirement.specifier, f'{requirement} excludes {version}'

    def test_pin_all_that_the_pinned_packages_ask_for(self):
        pins = pinned()
        for name in pins:
            for text in metadata.requires(name) or []:
                requirement = Requirement(text)
                if requirement.marker and not requirement.marker.evaluate({'extra': ''}):
                    continue
                needed = canonicalize_name(requirement.name)
                if needed == 'opencv-python':  # the headless package has the same modules
                    needed = 'opencv-python-headless'
                assert needed in pins, f'{name} asks for {requirement}'
                assert requirement.specifier.contains(pins[needed], prereleases=True), f'{name} asks for {requirement}'

    def test_leave_out_the_opencv_that_brings_a_qt_of_its_own(self):
        assert [name for name in pinned() if name.startswith('opencv')] == ['opencv-python-headless']


@pytest.mark.parametrize('config', sorted(path.name for path in CHECKOUT.glob('configs/*.py')))
def test_no_other_file_has_the_name_of_a_config_since_mim_searches_by_name(config: str):
    folders = [CHECKOUT / name for name in (*PACKAGES, 'configs', 'tests', 'tools')]
    found = [path.relative_to(CHECKOUT).as_posix() for folder in folders for path in folder.rglob(config)]
    assert found == [f'configs/{config}']


def test_plugin_manifest_has_the_name_of_the_distribution_as_napari_demands():
    manifest = (CHECKOUT / 'napari_unsam' / 'napari.yaml').read_text(encoding='utf-8')
    settings = ConfigParser()
    settings.read(CHECKOUT / 'setup.cfg')
    assert re.search(r'^name: *(\S+)$', manifest, re.MULTILINE).group(1) == settings['metadata']['name']


def test_compiled_functions_use_nothing_of_other_modules():
    """Numba's cache is renewed where the file of a function changes, not where one changes that it calls from there."""
    wrong = []
    for path in [path for package in ('unsam_mm', 'napari_unsam') for path in (CHECKOUT / package).rglob('*.py')]:
        tree = ast.parse(path.read_text(encoding='utf-8'))
        ours = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or '').startswith(('unsam_mm', 'napari_unsam'))
            for alias in node.names
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and any('njit' in ast.unparse(mark) for mark in node.decorator_list):
                used = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
                wrong += [f'{path.name}: {node.name} uses {name}' for name in sorted(used & ours)]
    assert not wrong
