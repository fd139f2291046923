"""CPU time of napari's GUI thread while an object is committed and undone, and while a slider is moved.

The benchmark commits an ellipsoid of 1.7 million voxels into a stack of 64 x 512 x 512, and moves the slider of a stack
that contains 64 objects, with the dock open. It needs a screen, or ``xvfb-run``::

    python -m benchmarks.napari_commit
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
import tracemalloc
from collections.abc import Callable

import napari
import numpy as np
from qtpy.QtWidgets import QApplication

from napari_unsam.controller import SegmentationController
from napari_unsam.qt.gui_thread import in_gui_thread
from napari_unsam.qt.widget import SegmentationWidget
from napari_unsam.viewer.object_write import ObjectWrite
from napari_unsam.viewer.session import ViewerSession

SHAPE = (64, 512, 512)
RADII = (30, 116, 116)
N_OBJECTS = 64


def ellipsoid() -> tuple[tuple[slice, ...], np.ndarray]:
    """The box of the object as slices of the stack, and its bool mask in this box."""
    grids = np.ogrid[tuple(slice(-radius, radius + 1) for radius in RADII)]
    mask = sum((grid / radius) ** 2 for grid, radius in zip(grids, RADII, strict=True)) <= 1
    starts = [(n - length) // 2 for n, length in zip(SHAPE, mask.shape, strict=True)]
    return tuple(slice(start, start + n) for start, n in zip(starts, mask.shape, strict=True)), mask


def milliseconds(call: Callable[[], object]) -> float:
    """CPU time of a call in this thread, in milliseconds."""
    start = time.thread_time()
    call()
    return 1e3 * (time.thread_time() - start)


def measure_commit(session: ViewerSession) -> None:
    """Prints the CPU time of a commit, undo and redo in the GUI thread, and the memory of a commit."""
    box, mask = ellipsoid()
    n_voxels = int(mask.sum())
    session.ensure_objects()
    times: dict[str, list[float]] = {'commit': [], 'undo': [], 'redo': []}
    for _ in range(5):
        writes = [ObjectWrite(box, mask.copy(), session.next_label())]
        times['commit'].append(milliseconds(lambda writes=writes: session.write_objects('commit', writes)))
        times['undo'].append(milliseconds(session.history.undo))
        times['redo'].append(milliseconds(session.history.redo))
        session.history.undo()
    gc.collect()
    tracemalloc.start()
    writes = [ObjectWrite(box, mask.copy(), session.next_label())]
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    session.write_objects('commit', writes)
    peak = tracemalloc.get_traced_memory()[1] - before
    del writes
    gc.collect()
    kept = tracemalloc.get_traced_memory()[0] - before + mask.nbytes  # the caller owns a copy of the mask
    tracemalloc.stop()
    for name, values in times.items():
        print(f'{name} of {n_voxels:,} voxels: {np.median(values):.0f} ms')
    print(f'bytes a voxel besides the layer: {peak / n_voxels:.2f} at peak, {kept / n_voxels:.3f} kept')


def measure_slider(session: ViewerSession, app: QApplication) -> None:
    """Prints the CPU time of a step of the slider while many objects are in the stack."""
    side, depth = 48, 40
    grid = np.ogrid[-1 : 1 : depth * 1j, -1 : 1 : side * 1j, -1 : 1 : side * 1j]
    mask = sum(axis**2 for axis in grid) <= 1
    writes = []
    for number in range(N_OBJECTS):
        row, column = divmod(number, 8)
        box = (slice(10, 10 + depth), *(slice(64 * at + 8, 64 * at + 8 + side) for at in (row, column)))
        writes.append(ObjectWrite(box, mask, session.next_label() + number))
    session.write_objects('commit', writes)
    app.processEvents()
    print(f'slider step, {N_OBJECTS} objects: {slide(session.viewer, app)}')


def slide(viewer: napari.Viewer, app: QApplication) -> str:
    """A text with the median CPU times of a step of a viewer's slider, and of drawing."""
    steps, drawn = [], []
    for step in range(40):
        steps.append(milliseconds(lambda step=step: viewer.dims.set_current_step(0, 10 + step)))
        drawn.append(milliseconds(app.processEvents))
    return f'{np.median(steps):.1f} ms, and {np.median(drawn):.1f} ms to draw'


def main() -> None:
    """Opens a window with the dock, and measures."""
    sys.stdout.reconfigure(line_buffering=True)
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    viewer = napari.Viewer()
    app = QApplication.instance()
    viewer.add_image(np.zeros(SHAPE, np.uint8), contrast_limits=(0, 255))

    viewer.add_labels(np.zeros(SHAPE, np.uint32))
    app.processEvents()
    print(f'slider step, napari alone, an image and labels: {slide(viewer, app)}')
    viewer.layers.pop()

    def embed(target, progress):  # never called, since there are no clicks
        raise NotImplementedError

    dock = SegmentationWidget(viewer, SegmentationController(embed, in_gui_thread))
    viewer.window.add_dock_widget(dock)
    end = time.monotonic() + 10
    while time.monotonic() < end and len(dock.panels) < 5:
        app.processEvents()
    measure_commit(dock.session)
    measure_slider(dock.session, app)
    viewer.close()


if __name__ == '__main__':
    main()
