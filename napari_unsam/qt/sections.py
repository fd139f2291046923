"""The sections of the dock: collapsible, scrolled vertically."""

from __future__ import annotations

from qtpy.QtCore import QEvent, QObject, Qt, QTimer
from qtpy.QtWidgets import QAbstractSpinBox, QComboBox, QFrame, QLineEdit, QScrollArea, QVBoxLayout, QWidget
from superqt import QCollapsible

_SPARE_PX = 10  # below what is in a section
_MARGINS_PX, _GAP_PX = (9, 3, 9, 3), 2  # of a title, so that those of folded sections take little room


class Section(QCollapsible):
    """A panel under its title, as high as what it shows.

    Args:
        panel: Its `title` is that of the section.
        is_open: Whether it is unfolded.
    """

    def __init__(self, panel: QWidget, is_open: bool) -> None:
        super().__init__(panel.title, collapsedIcon='▶')
        self.layout().setContentsMargins(*_MARGINS_PX)
        self.layout().setSpacing(_GAP_PX)
        self.setContent(panel)
        panel.installEventFilter(self)
        (self.expand if is_open else self.collapse)(animate=False)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Gives the panel its new height; superqt asks for it only when the section is unfolded."""
        if event.type() == QEvent.Type.LayoutRequest and self.isExpanded():
            self.content().setMaximumHeight(self.content().sizeHint().height() + _SPARE_PX)
        return super().eventFilter(watched, event)


class Sections(QScrollArea):
    """Sections one below the other; those that are unfolded push no others off the screen."""

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
        """Adds a section at the end, whose fields give the keyboard back to the canvas."""
        _lend_keyboard(panel)
        self._column.insertWidget(self._column.count() - 1, Section(panel, is_open))
        self._fit_width()

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Makes room at the side for what has become wider."""
        if event.type() == QEvent.Type.LayoutRequest:
            self._fit_width()
        return super().eventFilter(watched, event)

    def _fit_width(self) -> None:
        bar = self.verticalScrollBar().sizeHint().width()
        self.setMinimumWidth(self.widget().minimumSizeHint().width() + bar)


def _lend_keyboard(panel: QWidget) -> None:
    """Returns the keyboard to the canvas after a field of a section was edited.

    That is with Return or Escape, and after a click on the arrows of a number; choices never take it.
    """
    for field in panel.findChildren(QAbstractSpinBox):
        field.installEventFilter(_Returning(field))
    for field in panel.findChildren(QLineEdit):
        if not isinstance(field.parent(), QAbstractSpinBox | QComboBox):
            field.installEventFilter(_Returning(field))
    for choice in panel.findChildren(QComboBox):
        choice.setFocusPolicy(Qt.FocusPolicy.NoFocus)


class _Returning(QObject):
    """Gives the keyboard of a field back."""

    _KEYS = (Qt.Key.Key_Return, Qt.Key.Key_Enter, Qt.Key.Key_Escape)

    def eventFilter(self, field: QObject, event: QEvent) -> bool:
        """Lets all events go on to the field, and acts after those that end its use."""
        is_key = event.type() == QEvent.Type.KeyPress and event.key() in self._KEYS
        if is_key or (event.type() == QEvent.Type.MouseButtonRelease and isinstance(field, QAbstractSpinBox)):
            QTimer.singleShot(0, self._give_back)
        return False

    def _give_back(self) -> None:
        field, window = self.parent(), self.parent().window()
        if window.focusWidget() is field:
            field.clearFocus()
            window.setFocus()  # napari's windows hand keys on to the canvas
