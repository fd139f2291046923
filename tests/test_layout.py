"""Which module imports which: packages import only from those above them, and no modules import each other in a circle."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import napari_unsam
import unsam_mm

ORDERS = {
    unsam_mm: (
        'errors files threads processes image_io images sample_images npz masks coco_files fingerprints weights checkpoints '
        'pseudo_masks published generator folders next_click student prompting models datasets evaluation engine convert cli'
    ),
    napari_unsam: 'files keys model engine controller viewer levels volumes adapt io folders qt',
}
FOREIGN = {'mmcv', 'mmdet', 'mmengine', 'napari', 'magicgui', 'qtpy', 'vispy', 'superqt'}
WITH_MMDETECTION = ('models', 'datasets', 'evaluation', 'engine', '_mmcv_ops', '_torch_ops')


def imports(package) -> dict[str, set[str]]:
    """The modules of a package with those of its own that each imports, also inside functions and for type checkers."""
    root = Path(package.__file__).parent
    paths = {'.'.join(path.relative_to(root.parent).with_suffix('').parts): path for path in root.rglob('*.py')}
    modules = {name.removesuffix('.__init__'): path for name, path in paths.items()}
    found = {}
    for name, path in modules.items():
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        names = [(node.module or '', f'{node.module}.{alias.name}') for node in nodes for alias in node.names]
        found[name] = {longer if longer in modules else shorter for shorter, longer in names} & modules.keys()
    return found


@pytest.mark.parametrize('package', ORDERS, ids=lambda package: package.__name__)
def test_packages_import_only_from_those_above_them(package):
    order = ORDERS[package].split()
    places = {f'{package.__name__}.{name}': place for place, name in enumerate(order)}
    wrong = [
        (name, other)
        for name, others in imports(package).items()
        for other in others
        if places.get(_package_of(other), -1) > places.get(_package_of(name), len(order))
    ]
    assert wrong == []


@pytest.mark.parametrize('package', ORDERS, ids=lambda package: package.__name__)
def test_no_modules_import_each_other_in_a_circle(package):
    try:
        TopologicalSorter(imports(package)).prepare()
    except CycleError as error:
        pytest.fail(' -> '.join(error.args[1]))


def test_every_package_has_its_place_in_the_order():
    for package, order in ORDERS.items():
        folders = {path.parent.name for path in Path(package.__file__).parent.glob('*/__init__.py')}
        assert folders <= set(order.split())


def test_only_some_packages_need_mmdetection_and_none_needs_napari():
    root = Path(unsam_mm.__file__).parent
    needing = set()
    for path in root.rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ''] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            needing |= {path.relative_to(root) for name in names if name.split('.')[0] in FOREIGN}
    others = {path.as_posix() for path in needing if path.with_suffix('').parts[0] not in WITH_MMDETECTION}
    # A detector as a step of the published procedure, and the export of masks to MMEngine's structure.
    assert others == {'published/cutler.py', 'masks/mask_set.py'}


def _package_of(module: str) -> str:
    return '.'.join(module.split('.')[:2])
