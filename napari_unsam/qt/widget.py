"""The dock: its sections, the status line, and the start and end of a session."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING
from weakref import finalize

from napari.utils.notifications import show_warning
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QHBoxLayout, QVBoxLayout, QWidget

from napari_unsam.controller import HINT, SegmentationController
from napari_unsam.engine import settings as _settings
from napari_unsam.engine.planes import PlaneEmbedder
from napari_unsam.io.autosave import Autosave
from napari_unsam.keys import KEYS
from napari_unsam.qt.canvas import CanvasContext
from napari_unsam.qt.controls import Panel, button, wrapping_label
from napari_unsam.qt.docked import DockedWidget, later
from napari_unsam.qt.gui_thread import gui_caller, in_gui_thread
from napari_unsam.qt.image_panel import ImagePanel
from napari_unsam.qt.mask_panel import MaskPanel
from napari_unsam.qt.prompt_panel import PromptPanel
from napari_unsam.qt.saved_bar import SavedBar
from napari_unsam.qt.sections import Sections
from napari_unsam.viewer.session import ViewerSession
from napari_unsam.viewer.workarounds import load_layer_kinds, load_units
from unsam_mm.errors import UnSAMError

if TYPE_CHECKING:
    import napari
    from napari.layers import Image

PANELS = (
    ('levels_panel', 'LevelsPanel'),
    ('volume_panel', 'VolumePanel'),
    ('objects_panel', 'ObjectsPanel'),
    ('files_panel', 'FilesPanel'),
    ('adapt_panel', 'AdaptPanel'),
)
"""Module in `napari_unsam.qt` and class of each section that is folded at first and made after the dock is shown."""

_PAUSE_MS = 20  # pause between steps of preparation, in which clicks are handled and the window is drawn
_NOT_SAVED = 'UnSAM: changes are not saved yet. Keep napari open until saving has finished; errors are in the log.'
_HINT = f'Click on an object. {HINT[:-1]}, {KEYS["undo"].key}: undo.'


class SegmentationWidget(DockedWidget):
    """Click on an image, step through the masks under the click, commit the one you mean.

    Args:
        viewer: The viewer.
        controller: The controller; by default a new one with the engine of the preferences. Its `deliver` must run
            functions in the GUI thread, as `in_gui_thread` does.
        autosave: Saves the work. By default, work is saved in the user's cache folder if the default controller is
            used, and otherwise not at all.
    """

    def __init__(
        self,
        viewer: napari.viewer.Viewer,
        controller: SegmentationController | None = None,
        autosave: Autosave | None = None,
    ) -> None:
        super().__init__()
        gui_caller()  # before the inference thread uses it
        if controller is None:
            embedder = PlaneEmbedder(_settings.inference())
            controller = SegmentationController(embedder, in_gui_thread, embedder.load)
            autosave = autosave or Autosave(
                _settings.autosave_folder(),
                on_problem=lambda text: in_gui_thread(partial(controller.show_problem, text)),
            )
        self.controller = controller
        self.session = ViewerSession(viewer, self.controller, later)
        self._autosave = autosave
        self._context = CanvasContext(self, viewer.layers)
        self.panels: dict[str, Panel] = {}
        self._too_large: Image | None = None  # an image for which no layer of objects can be made
        self._made: list[Panel] = []
        self._panel_steps = self._make_panels()
        self._has_ended = self._has_libraries = False
        self.image_panel = ImagePanel(self.session)
        self.prompt_panel = PromptPanel(self.session)
        self.mask_panel = MaskPanel(self.session)
        self._lay_out()
        self._connect()
        self._show_status()

    def _make_panels(self) -> Iterator[bool]:
        """Makes each of `PANELS` in one step, and adds it to the dock in the next."""
        for module, name in PANELS:
            panel = getattr(import_module(f'napari_unsam.qt.{module}'), name)(self.session)
            self._made.append(panel)
            yield True
            self.panels[name] = panel
            self.session.inputs.add(panel.key_actions)
            self._scroll.add(panel, is_open=False)
            yield True

    def _lay_out(self) -> None:
        self.status_label = wrapping_label()
        self.status_label.setMinimumHeight(3 * self.status_label.fontMetrics().lineSpacing())
        self.status_label.setAlignment(Qt.AlignmentFlag.AlignTop | Qt.AlignmentFlag.AlignLeft)
        self._scroll = Sections()
        for panel in (self.image_panel, self.prompt_panel, self.mask_panel):
            self._scroll.add(panel, is_open=True)
        layout = QVBoxLayout(self)
        self.hint = self._make_hint()
        layout.addWidget(self.hint)
        if self._autosave is not None:
            layout.addWidget(SavedBar(self.session, self._autosave))
        layout.addWidget(self._scroll)
        layout.addWidget(self.status_label)

    def _make_hint(self) -> QWidget:
        hint = QWidget()
        row = QHBoxLayout(hint)
        row.setContentsMargins(0, 0, 0, 0)
        text = wrapping_label(_HINT)
        dismiss = button('Got it', 'Do not show this again', lambda: (hint.hide(), _settings.dismiss_hint()))
        row.addWidget(text, 1)
        row.addWidget(dismiss)
        hint.setVisible(_settings.wants_hint())
        return hint

    def _connect(self) -> None:
        session = self.session
        # napari needs a tenth of a second to add a layer; layers are made only after it has added the image.
        self._step_timer = QTimer(self, singleShot=True, interval=_PAUSE_MS)
        self._step_timer.timeout.connect(self._make_next)
        session.image_changed.connect(self._image_changed)
        load_units()
        self.controller.run_when_idle('Loading the sections', _load_libraries)
        self._step_timer.start()
        # The canvas reports its zoom while it is drawn, when no layer may be changed.
        self._zoom_timer = QTimer(self, singleShot=True, interval=30)
        self._zoom_timer.timeout.connect(session.fit_outline)
        session.viewer.scene.camera.events.zoom.connect(self._zoom_changed)
        self.controller.state_changed.connect(self._show_status)
        # napari deletes the dock with its window and does not report it; running jobs must not call it then.
        controller, autosave = self.controller, self._autosave
        if autosave is not None:
            self.session.exported.connect(lambda: autosave.exported(self.session))
        # No lambda: the garbage collector may clear it before Qt calls it.
        self._stop = finalize(self, _stop, controller, autosave)
        self._stop.atexit = False
        self.destroyed.connect(self._stop)
        self.undocked.connect(self.end)

    def _zoom_changed(self) -> None:
        self._zoom_timer.start()

    def _image_changed(self) -> None:
        self._step_timer.start()

    def _make_next(self) -> None:
        """Prepares the next layer or section, one per turn of the event loop; then loads the model."""
        if self._has_ended:
            return
        if not self._has_libraries:
            self._has_libraries = not self.controller.is_loading
            self._step_timer.start()
        elif self._prepare() or next(self._panel_steps, False):
            self._step_timer.start()
        elif self.session.image is not None:
            self.controller.warm_up()
            if self.controller.is_loading:
                self._step_timer.start()

    def _prepare(self) -> bool:
        """Makes the next layer of the session; returns False if none is left or it cannot be made."""
        if self._too_large is not None and self.session.image is self._too_large:
            return False
        try:
            return self.session.prepare()
        except UnSAMError as error:
            self._too_large = self.session.image
            self.controller.show_problem(str(error))
            return False

    def end(self) -> None:
        """Saves the work and disconnects from the viewer."""
        if self._has_ended:
            return
        self._has_ended = True
        for timer in (self._step_timer, self._zoom_timer):
            timer.stop()
        self.session.viewer.scene.camera.events.zoom.disconnect(self._zoom_changed)
        for panel in (self.image_panel, *self._made):
            panel.close_session()
        if self._autosave is not None and not self._autosave.close():
            show_warning(_NOT_SAVED)
        self.session.close()
        later(self._context.close)  # after the layers are removed, which also happens later

    def _show_status(self) -> None:
        status = self.controller.status
        problem = status.is_problem
        self.status_label.setText(('⚠ ' if problem else '') + status.text)
        self.status_label.setStyleSheet('font-weight: bold;' if problem else '')


def _stop(controller: SegmentationController, autosave: Autosave | None) -> None:
    controller.close()
    if autosave is not None:
        autosave.close()


def _load_libraries() -> None:
    """Imports the modules of the sections and first layers, in the inference thread so that the GUI is not blocked."""
    load_layer_kinds()
    for module, _ in PANELS:
        import_module(f'napari_unsam.qt.{module}')
