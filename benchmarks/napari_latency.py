"""How quickly the napari plugin answers in a window, by default with the engine that users get.

Run it where there is a screen, or under Xvfb::

    xvfb-run -a -s "-screen 0 1280x1024x24" python -m benchmarks.napari_latency

It prints the time from opening the dock to the first committed object of an image, the times from a click to the
outline and of a step of granularity, and the longest pauses of the event loop meanwhile. With ``--bare`` it prints the
pauses of napari alone while layers of each kind are added, and while Python collects garbage.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import napari

    from napari_unsam.controller import SegmentationController
    from napari_unsam.qt.widget import SegmentationWidget
    from napari_unsam.viewer.session import ViewerSession


class PauseTimer:
    """A timer in the GUI's event loop that measures the longest pause between two of its events."""

    def __init__(self) -> None:
        from qtpy.QtCore import QTimer

        self._timer = QTimer()
        self._timer.timeout.connect(self._tick)
        self._timer.start(2)
        self._last_s, self.longest_s = time.perf_counter(), 0.0

    def reset(self) -> float:
        """Resets the longest pause; returns the previous one in milliseconds."""
        self._tick()
        longest_s, self.longest_s = self.longest_s, 0.0
        return longest_s * 1000

    def _tick(self) -> None:
        now_s = time.perf_counter()
        self.longest_s = max(self.longest_s, now_s - self._last_s)
        self._last_s = now_s


def wait_until(condition: Callable[[], bool], timeout_s: float = 300.0) -> None:
    """Runs the event loop until a condition is true.

    Raises:
        TimeoutError: If it is not true after `timeout_s`.
    """
    from qtpy.QtWidgets import QApplication

    end_s = time.perf_counter() + timeout_s
    while not condition():
        if time.perf_counter() > end_s:
            raise TimeoutError(f'waited for {timeout_s:.0f} s')
        QApplication.processEvents()
        time.sleep(0.001)


def percentile_ms(times_s: list[float], percent: float) -> float:
    """A percentile of times, in milliseconds."""
    return float(np.percentile(times_s, percent)) * 1000


def rest(duration_s: float) -> None:
    """Runs the event loop for a while."""
    end_s = time.perf_counter() + duration_s
    wait_until(lambda: time.perf_counter() > end_s)


def window() -> napari.Viewer:
    """A window with a photograph, after all events are processed."""
    import napari
    from skimage import data

    viewer = napari.Viewer(show=True)
    viewer.window.resize(1200, 900)
    viewer.add_image(np.ascontiguousarray(data.astronaut()), name='Astronaut')
    rest(2.0)
    return viewer


def measure_bare() -> None:
    """Prints the pauses of napari without the plugin."""
    from napari.layers import Labels, Points, Shapes, Vectors

    layers = {
        'Points': lambda: Points(ndim=2),
        'Vectors': lambda: Vectors(np.zeros((0, 2, 2)), ndim=2, vector_style='line'),
        'Labels': lambda: Labels(np.zeros((512, 512), np.uint32)),
        'Shapes': lambda: Shapes(ndim=2),
    }
    viewer = window()
    pause_timer = PauseTimer()
    for again in ('first', 'second'):
        for name, make in layers.items():
            pause_timer.reset()
            layer = make()
            rest(0.5)
            made_ms = pause_timer.reset()
            viewer.add_layer(layer)
            rest(0.5)
            print(
                f'bare napari, {again} {name}: {made_ms:.0f} ms to make, {pause_timer.reset():.0f} ms to add and draw'
            )
    gc.collect()
    start_s = time.perf_counter()
    gc.collect()
    print(f'bare napari: {(time.perf_counter() - start_s) * 1000:.0f} ms to collect garbage')
    viewer.close()


def segmentation_widget(viewer: napari.Viewer, engine: str) -> SegmentationWidget:
    """The content of the dock; embeddings are not stored."""
    from napari_unsam.engine.inference import InferenceSettings
    from napari_unsam.engine.planes import PlaneEmbedder
    from napari_unsam.qt.widget import SegmentationController, SegmentationWidget, in_gui_thread

    embedder = PlaneEmbedder(InferenceSettings(engine=engine))
    return SegmentationWidget(viewer, SegmentationController(embedder, in_gui_thread, embedder.load))


def measure(engine: str, n_clicks: int) -> None:
    """Prints the figures of one engine."""
    from qtpy.QtWidgets import QApplication

    viewer = window()
    pause_timer = PauseTimer()
    opened_s = time.perf_counter()
    from napari_unsam.qt.dock import UnSAMDock

    dock = UnSAMDock(viewer, lambda viewer: segmentation_widget(viewer, engine))
    viewer.window.add_dock_widget(dock, name='UnSAM')
    wait_until(lambda: dock.content is not None and dock.content.isVisible())
    QApplication.processEvents()
    print(f'{engine}: dock open after {time.perf_counter() - opened_s:.2f} s')
    widget, controller = dock.content, dock.content.controller
    opening_ms = pause_timer.reset()
    wait_until(lambda: 'UnSAM objects' in viewer.layers)
    layers_ms = pause_timer.reset()
    widget.session.click((100, 230))
    wait_until(lambda: controller.proposal is not None)
    widget.session.commit()
    print(f'{engine}: first object committed after {time.perf_counter() - opened_s:.2f} s')
    wait_until(lambda: not controller.is_busy and len(widget.panels) > 4)
    print(
        f'{engine}: longest pause of the GUI while the dock opens {opening_ms:.0f} ms, while its layers are made '
        f'{layers_ms:.0f} ms, while the model is loaded and answers for the first time {pause_timer.reset():.0f} ms'
    )

    pause_timer.reset()
    for what, times_s in click_times_s(controller, widget.session, n_clicks).items():
        print(
            f'{engine}: {what}, median {percentile_ms(times_s, 50):.1f} ms, 95th percentile {percentile_ms(times_s, 95):.1f} ms, '
            f'longest {max(times_s) * 1000:.1f} ms ({len(times_s)} times)'
        )
    print(f'{engine}: longest pause of the GUI while clicking {pause_timer.longest_s * 1000:.0f} ms')
    viewer.window.remove_dock_widget(dock)
    viewer.close()


def click_times_s(controller: SegmentationController, session: ViewerSession, n_clicks: int) -> dict[str, list[float]]:
    """Times from random clicks until the outline is set and drawn, and from granularity steps until it is set."""
    from qtpy.QtWidgets import QApplication

    rng = np.random.default_rng(0)
    times_s: dict[str, list[float]] = {'click to outline': [], '... and drawn': [], 'J/K step': [], 'slide': []}
    for _ in range(n_clicks):
        controller.clear_prompts()
        QApplication.processEvents()
        start_s = time.perf_counter()
        session.click(rng.integers(20, 490, 2))
        wait_until(lambda: controller.proposal is not None)
        times_s['click to outline'].append(time.perf_counter() - start_s)
        QApplication.processEvents()
        times_s['... and drawn'].append(time.perf_counter() - start_s)
        for what, act in (('J/K step', controller.larger_mask), ('slide', lambda: controller.step_region(-1))):
            start_s = time.perf_counter()
            act()
            times_s[what].append(time.perf_counter() - start_s)
            QApplication.processEvents()
    return times_s


def main() -> None:
    """Measures one engine, or napari alone."""
    sys.stdout.reconfigure(line_buffering=True)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--engine', choices=('model', 'tree'), default='model')
    parser.add_argument('--clicks', type=int, default=100)
    parser.add_argument('--bare', action='store_true', help='napari without the plugin')
    arguments = parser.parse_args()
    if arguments.bare:
        measure_bare()
    else:
        measure(arguments.engine, arguments.clicks)


if __name__ == '__main__':
    main()
