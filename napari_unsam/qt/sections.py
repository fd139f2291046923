"""The sections of the dock: collapsible, scrolled vertically."""

from __future__ import annotations

from qtpy.QtCore import QEvent, QObject, Qt, QTimer
from qtpy.QtWidgets import QAbstractSpinBox, QComboBox, QFrame, QLineEdit, QScrollArea, QVBoxLayout, QWidget
from superqt import QCollapsible

_SPARE_PX = 10  # below the content of a section
_MARGINS_PX, _GAP_PX = (9, 3, 9, 3), 2  # of a title; small, so that folded sections take little space


class Section(QCollapsible):
    """A panel under its title; its height follows the content.

    Args:
        panel: The panel; its `title` is that of the section.
        is_open: True to unfold the section.
    """

    def __init__(self, panel: QWidget, is_open: bool) -> None:
        super().__init__(panel.title, collapsedIcon='▶')
        self.layout().setContentsMargins(*_MARGINS_PX)
        self.layout().setSpacing(_GAP_PX)
        self.setContent(panel)
        panel.installEventFilter(self)
        (self.expand if is_open else self.collapse)(animate=False)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Updates the height of the panel, which superqt does only when the section is unfolded."""
        if event.type() == QEvent.Type.LayoutRequest and self.isExpanded():
            self.content().setMaximumHeight(self.content().sizeHint().height() + _SPARE_PX)
        return super().eventFilter(watched, event)


class Sections(QScrollArea):
    """A scrollable column of sections."""

    def __init__(self) -> None:
        super().__init__()
        inside = QWidget()
        self._column = QVBoxLayout(inside)
        self._column.setSpacing(0)
        self._column.addStretch()
        self.setWidget(inside)
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)

    def add(self, panel: QWidget, is_open: bool) -> None:
        """Adds a section at the end; after an edit, its fields return the keyboard focus to the canvas."""
        _return_focus(panel)
        self._column.insertWidget(self._column.count() - 1, Section(panel, is_open))
        self._fit_width()

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Fits the width when the content has changed."""
        if event.type() == QEvent.Type.LayoutRequest:
            self._fit_width()
        return super().eventFilter(watched, event)

    def _fit_width(self) -> None:
        bar = self.verticalScrollBar().sizeHint().width()
        self.setMinimumWidth(self.widget().minimumSizeHint().width() + bar)


def _return_focus(panel: QWidget) -> None:
    """Makes the fields of a panel return the keyboard focus to the canvas after an edit.

    They do so after Return or Escape, and after a click on the arrows of a spin box. Combo boxes never take the focus.
    """
    for field in panel.findChildren(QAbstractSpinBox):
        field.installEventFilter(_FocusReturner(field))
    for field in panel.findChildren(QLineEdit):
        if not isinstance(field.parent(), QAbstractSpinBox | QComboBox):
            field.installEventFilter(_FocusReturner(field))
    for choice in panel.findChildren(QComboBox):
        choice.setFocusPolicy(Qt.FocusPolicy.NoFocus)


class _FocusReturner(QObject):
    """Returns the keyboard focus of a field to the canvas."""

    _KEYS = (Qt.Key.Key_Return, Qt.Key.Key_Enter, Qt.Key.Key_Escape)

    def eventFilter(self, field: QObject, event: QEvent) -> bool:
        """Returns the focus after events that end an edit; all events are still passed to the field."""
        is_key = event.type() == QEvent.Type.KeyPress and event.key() in self._KEYS
        if is_key or (event.type() == QEvent.Type.MouseButtonRelease and isinstance(field, QAbstractSpinBox)):
            QTimer.singleShot(0, self._return)
        return False

    def _return(self) -> None:
        field, window = self.parent(), self.parent().window()
        if window.focusWidget() is field:
            field.clearFocus()
            window.setFocus()  # napari's window passes keys to the canvas
