"""Stand-ins for what is slow or needs a window: region trees without a trained model, an event loop without Qt."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from napari.layers import Vectors
from napari.utils import interactions
from napari.utils._proxies import ReadOnlyWrapper
from napari.utils.key_bindings import KeymapHandler
from scipy.cluster.hierarchy import linkage
from skimage.color import gray2rgb, rgb2lab
from skimage.segmentation import slic

from napari_unsam.engine.inference import ProgressCallback
from napari_unsam.engine.planes import Embed, EmbeddedPlane
from napari_unsam.model.mask import BoxMask, node_mask
from napari_unsam.model.plane import Plane
from napari_unsam.model.targets import Target
from unsam_mm.masks.hierarchy import MaskHierarchy

needs_screen = pytest.mark.skipif(
    os.environ.get('QT_QPA_PLATFORM') == 'offscreen', reason='needs OpenGL: run under a desktop or xvfb-run'
)

ON_CUP, ON_TABLE = (150, 300), (20, 20)
"""Row and column in the photo of the coffee cup."""

PATCHES = np.array([[0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [2, 2, 2, 2, 3, 3], [2, 2, 2, 2, 3, 3]])
"""A picture of four regions, 4 x 6 px: 0 and 1 join to node 4, 2 and 3 to node 5, all to node 6."""


def patches_tree() -> MaskHierarchy:
    """The tree over `PATCHES`; the two halves look most like objects."""
    return MaskHierarchy.from_merges(
        PATCHES,
        parent=np.array([4, 4, 5, 5, 6, 6, -1]),
        height=np.array([0, 0, 0, 0, 0.2, 0.3, 1.0]),
        score=np.array([0.1, 0.2, 0.3, 0.1, 0.9, 0.8, 0.0]),
    )


def colour_tree(image: np.ndarray, progress: Callable[[float, str], None]) -> MaskHierarchy:
    """Superpixels merged by mean colour and place: a quick stand-in for the model, in ten steps of progress."""
    rgb = image if image.ndim == 3 else gray2rgb(image)
    labels = slic(rgb, n_segments=300, compactness=10, start_label=0)
    lab = rgb2lab(rgb)
    n_leaves = labels.max() + 1
    area = np.bincount(labels.ravel(), minlength=n_leaves)
    rows, columns = np.indices(labels.shape)
    channels = [*np.moveaxis(lab, -1, 0), rows / 4, columns / 4]
    means = np.stack([np.bincount(labels.ravel(), channel.ravel()) / area for channel in channels], axis=1)
    merges = linkage(means, 'ward')
    parent = np.full(2 * n_leaves - 1, -1)
    for i, (left, right) in enumerate(merges[:, :2].astype(int)):
        parent[left] = parent[right] = n_leaves + i
    for step in range(10):
        progress((step + 1) / 10, 'Merging regions')
    return MaskHierarchy.from_merges(labels, parent, np.r_[np.zeros(n_leaves), merges[:, 2]])


def nested_nodes(tree: MaskHierarchy, points_xy: np.ndarray, point_labels: np.ndarray) -> np.ndarray:
    """The nodes that hold every point labelled 1 and none labelled 0, finest first."""
    paths = [set(tree.path(int(y), int(x)).tolist()) for x, y in points_xy]
    wanted = [path for path, label in zip(paths, point_labels, strict=True) if label == 1]
    unwanted = [path for path, label in zip(paths, point_labels, strict=True) if label == 0]
    return np.array(sorted(set.intersection(*wanted) - set().union(*unwanted)), np.int64)


class NestedPlane(EmbeddedPlane):
    """Answers with the nested regions of a tree under the clicks, the one with the best score first; there is no model."""

    def __init__(self, tree: MaskHierarchy) -> None:
        super().__init__(engine=None, hierarchy=tree)

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.hierarchy.size_hw

    def answer(self, points_xy=None, labels=None, box_xyxy=None, area_px=None, mask=None, max_masks=6) -> list[BoxMask]:
        nodes = self.chain(points_xy, labels, box_xyxy)
        ranked = nodes[np.argsort(-self.hierarchy.score[nodes], kind='stable')]
        return [node_mask(self.hierarchy, node) for node in ranked[:max_masks]]

    def chain(self, points_xy=None, labels=None, box_xyxy=None) -> np.ndarray:
        if box_xyxy is not None:
            x0, y0, x1, y1 = box_xyxy
            boxes = self.hierarchy.boxes_xyxy
            inside = (boxes[:, :2] <= (x0, y0)).all(axis=1) & (boxes[:, 2:] >= (x1, y1)).all(axis=1)
            return np.flatnonzero(inside)
        return nested_nodes(self.hierarchy, points_xy, labels)


def planes_of(make_tree: Callable[[np.ndarray, ProgressCallback], MaskHierarchy]) -> Embed:
    """Makes planes ready with something that makes trees of images."""
    return lambda target, progress: NestedPlane(make_tree(target.read(), progress))


def patches_target(source: str = 'patches', plane: Plane | None = None) -> Target:
    """A target whose pixels are `PATCHES`."""
    plane = plane or Plane(shape=(4, 6), axes=(0, 1), index=(0, 0))
    return Target(source=source, plane=plane, name='Patches', pixels=lambda: [PATCHES])


def drawn_mask(outline: Vectors, size_hw: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: what the segments of an outline enclose in the last two axes."""
    height, width = size_hw
    crossed = np.zeros((height, width + 1), int)
    for start, step in np.asarray(outline.data)[..., -2:]:
        row, column = np.rint(start + 0.5).astype(int)
        crossed[row : row + round(step[0]), column] += 1
    return crossed.cumsum(axis=1)[:, :-1] % 2 == 1


class Mailbox:
    """Stands in for the GUI's event loop: keeps what another thread delivers until the test opens it."""

    def __init__(self) -> None:
        self._calls: list[Callable[[], None]] = []
        self._arrived = threading.Condition()

    def __call__(self, call: Callable[[], None]) -> None:
        with self._arrived:
            self._calls.append(call)
            self._arrived.notify()

    def open_until(self, condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Makes the calls delivered so far and those to come, until a condition holds."""
        end_s = time.monotonic() + timeout_s
        while not condition():
            with self._arrived:
                assert self._arrived.wait_for(lambda: self._calls, max(end_s - time.monotonic(), 0)), 'nothing arrived'
                calls, self._calls = self._calls, []
            for call in calls:
                call()


class Mouse:
    """Presses, drags, releases and turns the wheel; each event goes to the viewer and its active layer, as from a canvas of
    napari's. Then the answer is waited for."""

    def __init__(self, viewer, session, settle):
        self.viewer, self.session, self.settle = viewer, session, settle

    def __call__(self, world, button=1, modifiers=(), travel_px=0, moves=True):
        self._click(world, button, modifiers, travel_px, moves)
        self.settle(self.session.controller)

    def double_click(self, world, button=1, modifiers=()):
        self._click(world, button, modifiers)
        self._send(interactions.mouse_double_click_callbacks, 'mouse_double_click', world, button, modifiers)
        self._send(interactions.mouse_release_callbacks, 'mouse_release', world, button, modifiers)
        self.settle(self.session.controller)

    def press(self, world, button=1, modifiers=()):
        self._send(interactions.mouse_press_callbacks, 'mouse_press', world, button, modifiers)

    def release(self, world, button=1, modifiers=(), travel_px=0):
        self._send(interactions.mouse_release_callbacks, 'mouse_release', world, button, modifiers, travel_px)

    def wheel(self, turned, modifiers=('Alt',)):
        return self._send(
            interactions.mouse_wheel_callbacks, 'mouse_wheel', (0, 0), 0, modifiers, turned=turned
        ).handled

    def _click(self, world, button, modifiers, travel_px=0, moves=True):
        self.press(world, button, modifiers)
        if travel_px and moves:
            self._send(interactions.mouse_move_callbacks, 'mouse_move', world, button, modifiers, travel_px)
        self.release(world, button, modifiers, travel_px)

    def _send(self, callbacks, kind, world, button, modifiers, travel_px=0, turned=0):
        event = SimpleNamespace(
            type=kind,
            position=tuple(world),
            button=button,
            modifiers=modifiers,
            pos=np.array([50 + travel_px, 50]),
            delta=(0, turned),
            handled=False,
            is_dragging=kind == 'mouse_move',
            native=SimpleNamespace(inverted=lambda: False),
            view_direction=None,
            dims_displayed=list(self.viewer.dims.displayed),
        )
        for receiver in (self.viewer, self.viewer.layers.selection.active):
            if receiver is not None:
                callbacks(receiver, ReadOnlyWrapper(event, exceptions=('handled',)))
        return event


def world(session, pixel):
    return session.image.data_to_world(pixel)


def is_problem(session, words):
    return session.controller.status.is_problem and words in session.controller.status.text


def press(receiver, key):
    """Presses a key as napari does for a layer or a viewer; returns whether it does anything."""
    handler = KeymapHandler()
    handler.keymap_providers = [receiver]
    return handler.press_key(key)
