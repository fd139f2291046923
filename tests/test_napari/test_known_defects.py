"""Eight defects that another interactive segmentation plugin for napari has, none of which this one may have."""

import ast
import pickle
from pathlib import Path

import numpy as np
from skimage import data

import napari_unsam
from napari_unsam.engine.embeddings import EmbeddingStore, plane_key
from napari_unsam.model.pixels import plane_pixels
from napari_unsam.model.plane import Plane
from tests.test_napari.stand_ins import NestedPlane, patches_target, patches_tree


def test_1_a_stack_of_which_a_part_is_ready_is_finished_without_looking_at_that_part_again(controller, mailbox):
    looked_at, planes = [], [Plane((4, 4, 6), (1, 2), (z, 0, 0)) for z in range(4)]
    targets = [patches_target('stack', plane) for plane in planes]

    def embed(target, progress):
        looked_at.append(target.plane.index[0])
        return NestedPlane(patches_tree())

    controller.planes.embedder = embed
    for wanted in (targets[:2], targets, targets):
        done = []
        controller.run(
            'Looking',
            lambda progress, wanted=wanted: [controller.planes.get_or_embed(t, progress) for t in wanted],
            done.append,
        )
        mailbox.open_until(lambda done=done: bool(done))
    assert looked_at == [0, 1, 2, 3]


def test_2_an_object_with_nothing_but_points_is_committed(viewer, session, settle):
    session.set_image(viewer.add_image(data.coins()))
    session.click((100, 100))
    settle(session.controller)
    session.commit()
    assert session.objects.data.any()


def test_3_the_least_size_of_masks_is_heeded_by_the_engine():
    from unsam_mm.prompting.tree_engine import TreeEngine

    engine = TreeEngine(lambda rgb: patches_tree())
    engine.set_image(np.zeros((4, 6, 3), np.uint8))
    sizes = [engine.all_masks(10, least, 1, 0.9)[0].areas.min() for least in (1, 5, 9)]
    assert sizes == [4, 8, 12]


def test_4_slices_are_found_by_data_and_not_by_world_coordinates(viewer, session):
    stack = np.stack([np.full((32, 32), z, np.uint8) for z in range(10)])
    session.set_image(viewer.add_image(stack, scale=(2, 1, 1), contrast_limits=(0, 255)))
    viewer.dims.set_point(0, 4.0)
    assert session.controller.target.plane.index == (2, 0, 0)
    assert np.unique(session.controller.target.read()).tolist() == [2]


def test_5_a_hot_pixel_compresses_nothing_and_all_parts_of_a_plane_have_the_same_range(viewer):
    plane = np.tile(np.arange(1000, 1256, dtype=np.uint16), (256, 1))
    calm = viewer.add_image(plane, contrast_limits=(1000, 1255))
    hot = viewer.add_image(plane.copy(), contrast_limits=(1000, 1255))
    hot.data[0, 0] = 65535
    seen_calm, seen_hot = (plane_pixels(layer, Plane((256, 256), (0, 1), (0, 0)))[0] for layer in (calm, hot))
    assert (seen_calm[:, :] == seen_hot[:, :])[1:].all()
    assert (seen_hot[0:64, 64:128] == seen_hot[:, :][0:64, 64:128]).all()


def test_6_every_call_within_the_plugin_names_arguments_that_exist():
    # A mistyped keyword shows only where it is reached. Functions of one name may differ, so any of them may have it.
    trees = [ast.parse(path.read_text()) for path in Path(napari_unsam.__file__).parent.rglob('*.py')]
    known: dict[str, set[str] | None] = {}
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            spec = node.args
            names = {argument.arg for argument in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs)}
            if spec.kwarg or known.get(node.name, names) is None:
                known[node.name] = None
            else:
                known[node.name] = known.get(node.name, set()) | names
    wrong = [
        (node.func.id, keyword.arg)
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and known.get(node.func.id)
        for keyword in node.keywords
        if keyword.arg is not None and keyword.arg not in known[node.func.id]
    ]
    assert wrong == []


def test_7_pickle_is_left_as_it_was_and_never_used_for_files():
    sources = [path.read_text() for path in Path(napari_unsam.__file__).parent.rglob('*.py')]
    assert not any('pickle.' in source or 'import pickle' in source for source in sources)
    assert pickle.Unpickler.__module__ in ('_pickle', 'pickle')


def test_8_a_volume_is_never_read_whole_to_be_recognised(tmp_path):
    class Plane:
        """Zeros that know the largest part that was ever asked for."""

        shape, dtype, largest = (20_000, 4_000), np.dtype(np.uint8), 0

        def __getitem__(self, index):
            part = np.broadcast_to(np.uint8(0), self.shape)[index]
            self.largest = max(self.largest, part.nbytes)
            return part

    plane = Plane()
    key = plane_key(plane, 'tree')
    assert plane.largest <= 4_000_000
    store = EmbeddingStore(tmp_path, 10**9)
    store.save(key, {'values': np.arange(4)})
    assert store.load(plane_key(plane, 'tree'))['values'].tolist() == [0, 1, 2, 3]
    assert store.load(plane_key(plane, 'model')) is None
