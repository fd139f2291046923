"""The dock: its sections, the status line and the life of the session; what the buttons do stands in the panels."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from qtpy.QtCore import QEvent, Qt, QTimer
from qtpy.QtWidgets import QFrame, QHBoxLayout, QLabel, QScrollArea, QVBoxLayout, QWidget
from superqt import QCollapsible
from superqt.utils import ensure_main_thread

from napari_unsam import _settings
from napari_unsam._controller import Level, SegmentationController
from napari_unsam._engine import PlaneEmbedder
from napari_unsam._session import ViewerSession
from napari_unsam.panels.controls import button
from napari_unsam.panels.image_panel import ImagePanel
from napari_unsam.panels.mask_panel import MaskPanel
from napari_unsam.panels.prompt_panel import PromptPanel
from napari_unsam.panels.saved_bar import SavedBar
from napari_unsam.state.autosave import Autosave

if TYPE_CHECKING:
    import napari

PANELS = (
    ('levels_panel', 'LevelsPanel'),
    ('volume_panel', 'VolumePanel'),
    ('objects_panel', 'ObjectsPanel'),
    ('files_panel', 'FilesPanel'),
    ('adapt_panel', 'AdaptPanel'),
)
"""Further sections, folded at first: modules of `napari_unsam.panels` and their classes, made once the dock is there."""

_HINT = 'Click on an object. J and K step between masks, N keeps the one you mean, U takes anything back.'


class SegmentationWidget(QWidget):
    """Click on an image, step through the masks under the click, commit the one you mean.

    Args:
        viewer: The viewer to work in.
        controller: What to control; by default a new one with the engine of the preferences. Its `deliver` must lead to
            the GUI thread, as `in_gui_thread` does.
        autosave: Saves the work; by default in the user's folder, where the controller is the default one.
    """

    def __init__(
        self,
        viewer: napari.viewer.Viewer,
        controller: SegmentationController | None = None,
        autosave: Autosave | None = None,
    ) -> None:
        super().__init__()
        if controller is None:
            autosave = autosave or Autosave(_settings.default_store() / 'autosave')
            embedder = PlaneEmbedder(_settings.inference())
            controller = SegmentationController(embedder, in_gui_thread, embedder.load)
        self.controller = controller
        self.session = ViewerSession(viewer, self.controller)
        self._autosave = autosave
        self.panels: dict[str, QWidget] = {}
        self._docked = self._has_ended = False
        self.image_panel = ImagePanel(self.session)
        self.prompt_panel = PromptPanel(self.session)
        self.mask_panel = MaskPanel(self.session)
        self._lay_out()
        self._connect()
        self._show_status()

    def event(self, event: QEvent) -> bool:
        """Ends the session when napari takes the dock away; it only unparents this widget, without closing it."""
        if event.type() == QEvent.Type.ParentChange:
            if self._docked and self.parent() is None:
                self.end()
            self._docked = self.parent() is not None
        return super().event(event)

    def load_panels(self) -> None:
        """Makes the next of the further sections, and comes back for the others once the event loop has had its turn."""
        for module, name in PANELS:
            if name not in self.panels:
                panel = getattr(import_module(f'napari_unsam.panels.{module}'), name)(self.session)
                self.panels[name] = panel
                self.session.add_keys(getattr(panel, 'keys', {}))
                self._sections.insertWidget(self._sections.count() - 1, _section(panel, is_open=False))
                self._fit_width()
                self._panels_soon.start()
                return

    def _lay_out(self) -> None:
        self.status_label = QLabel()
        self.status_label.setWordWrap(True)
        self.status_label.setMinimumHeight(3 * self.status_label.fontMetrics().lineSpacing())
        self.status_label.setAlignment(Qt.AlignmentFlag.AlignTop | Qt.AlignmentFlag.AlignLeft)
        inside = QWidget()
        self._sections = QVBoxLayout(inside)
        self._sections.setSpacing(0)
        for panel in (self.image_panel, self.prompt_panel, self.mask_panel):
            self._sections.addWidget(_section(panel, is_open=True))
        self._sections.addStretch()
        # Sections that are unfolded must not push others off the screen.
        self._scroll = scroll = QScrollArea()
        scroll.setWidget(inside)
        scroll.setWidgetResizable(True)
        scroll.setFrameShape(QFrame.Shape.NoFrame)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        layout = QVBoxLayout(self)
        self.hint = self._make_hint()
        layout.addWidget(self.hint)
        if self._autosave is not None:
            layout.addWidget(SavedBar(self.session, self._autosave))
        layout.addWidget(scroll)
        layout.addWidget(self.status_label)
        self._fit_width()

    def _fit_width(self) -> None:
        """Sections are scrolled down and up, but never sideways."""
        bar = self._scroll.verticalScrollBar().sizeHint().width()
        self._scroll.setMinimumWidth(self._scroll.widget().minimumSizeHint().width() + bar)

    def _make_hint(self) -> QWidget:
        hint = QWidget()
        row = QHBoxLayout(hint)
        row.setContentsMargins(0, 0, 0, 0)
        text = QLabel(_HINT)
        text.setWordWrap(True)
        dismiss = button('Got it', 'Do not show this again')
        dismiss.clicked.connect(lambda: (hint.hide(), _settings.dismiss_hint()))
        row.addWidget(text, 1)
        row.addWidget(dismiss)
        hint.setVisible(_settings.wants_hint())
        return hint

    def _connect(self) -> None:
        session = self.session
        # napari takes a second for its first layers of a kind; it must not be in the midst of adding the image.
        self._soon = QTimer(self, singleShot=True, interval=0)
        self._soon.timeout.connect(self._prepare)
        session.image_changed.connect(self._image_changed)
        if session.image is not None:
            self._soon.start()
        # The canvas tells of its zoom in the midst of being drawn, when no layer may be changed.
        self._zoomed = QTimer(self, singleShot=True, interval=30)
        self._zoomed.timeout.connect(self._fit_outline)
        session.viewer.scene.camera.events.zoom.connect(self._zoom_changed)
        self._panels_soon = QTimer(self, singleShot=True, interval=50)
        self._panels_soon.timeout.connect(self.load_panels)
        self._panels_soon.start()
        self.controller.state_changed.connect(self._show_status)
        # With its window, napari takes the dock away without a word; what still runs must not come back to it.
        controller, autosave = self.controller, self._autosave
        if autosave is not None:
            self.session.exported.connect(lambda: autosave.exported(self.session))
        self.destroyed.connect(lambda: _leave(controller, autosave))

    def _zoom_changed(self) -> None:
        self._zoomed.start()

    def _fit_outline(self) -> None:
        self.session.fit_outline()

    def _image_changed(self) -> None:
        self._soon.start()

    def _prepare(self) -> None:
        if self.session.prepare():
            self._soon.start()
        elif self.session.image is not None:
            self.controller.warm_up()

    def end(self) -> None:
        """Ends the session: the viewer is left alone from now on, and the work is saved."""
        if self._has_ended:
            return
        self._has_ended = True
        for timer in (self._panels_soon, self._soon, self._zoomed):
            timer.stop()
        self.session.viewer.scene.camera.events.zoom.disconnect(self._zoom_changed)
        self.image_panel.close_session()
        for panel in self.panels.values():
            getattr(panel, 'close_session', lambda: None)()
        if self._autosave is not None:
            self._autosave.close()
        self.session.close()

    def _show_status(self) -> None:
        status = self.controller.status
        problem = status.level is Level.PROBLEM
        self.status_label.setText(('⚠ ' if problem else '') + status.text)
        self.status_label.setStyleSheet('font-weight: bold;' if problem else '')


def _leave(controller: SegmentationController, autosave: Autosave | None) -> None:
    controller.close()
    if autosave is not None:
        autosave.close()


def _section(panel: QWidget, is_open: bool) -> QCollapsible:
    section = QCollapsible(panel.title)
    section.setContent(panel)
    (section.expand if is_open else section.collapse)(animate=False)
    return section


@ensure_main_thread
def in_gui_thread(call: Callable[[], None]) -> None:
    """Runs a function in the thread of the GUI, soon if called from another thread, else at once."""
    call()
