"""A user at the dock: the mouse on the canvas, keys, buttons and sections, all as events of Qt; and what is read there."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from qtpy.QtCore import QEvent, QPoint, QPointF, Qt
from qtpy.QtGui import QMouseEvent
from qtpy.QtTest import QTest
from qtpy.QtWidgets import (
    QAbstractButton,
    QAbstractSpinBox,
    QApplication,
    QComboBox,
    QLabel,
    QOpenGLWidget,
    QSlider,
    QWidget,
)
from superqt import QCollapsible

from tests.test_napari.pictures import Box, Picture

_TIMEOUT_MS = 120_000
_NUMBER = re.compile(r'\d[\d,.]*\d|\d')
_TOLERANCE = 0.15  # other processors round otherwise, and a region may come out a little larger


class User:
    """Works on the first image of a viewer, in places given as row and column of it.

    Args:
        viewer: Has a window.
        dock: The plugin's, in that window.
        qtbot: Turns the event loop.
    """

    def __init__(self, viewer, dock, qtbot):
        self.viewer, self.dock, self.qtbot = viewer, dock, qtbot
        self.image = viewer.layers[0]
        self.canvas = dock.window().findChild(QOpenGLWidget)
        for section in self.sections.values():
            section.setDuration(0)

    @property
    def sections(self) -> dict[str, QCollapsible]:
        return {section.text(): section for section in self.dock.findChildren(QCollapsible)}

    @property
    def status(self) -> str:
        return self.dock.status_label.text()

    def wait(self) -> None:
        """Until nothing runs and the mask on screen is the answer."""
        controller = self.dock.controller
        self.qtbot.waitUntil(lambda: not controller.is_busy and not controller.is_predicting, timeout=_TIMEOUT_MS)

    def click(self, pixel, button=Qt.MouseButton.LeftButton, modifier=Qt.KeyboardModifier.NoModifier) -> None:
        QTest.mouseClick(self.canvas, button, modifier, self._on_canvas(pixel), 20)
        self.wait()

    def point_at(self, pixel) -> None:
        step = 0

        def is_there() -> bool:
            nonlocal step
            step += 1
            QTest.mouseMove(self.canvas, self._on_canvas(pixel) + QPoint(step % 2, 0))
            return np.allclose(self._under_cursor(), pixel, atol=2)

        self.qtbot.waitUntil(is_there, timeout=10_000)

    def drag(self, start, end) -> None:
        """Presses, moves and releases, as for a box."""
        left, none = Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
        corners = [self._on_canvas(pixel) for pixel in (start, end)]
        QTest.mouseMove(self.canvas, corners[0], 20)
        QTest.mousePress(self.canvas, left, none, corners[0], 20)
        for step in range(1, 5):
            at = corners[0] + (corners[1] - corners[0]) * (step / 4)
            # QTest moves the mouse without its buttons.
            places = QPointF(at), QPointF(self.canvas.mapToGlobal(at))
            QApplication.sendEvent(
                self.canvas, QMouseEvent(QEvent.Type.MouseMove, *places, Qt.MouseButton.NoButton, left, none)
            )
            self.qtbot.wait(20)
        QTest.mouseRelease(self.canvas, left, none, corners[1], 20)
        self.wait()

    def press(self, key: str) -> None:
        """Presses a key as docs name it, such as Shift-U, on whatever has the keyboard."""
        modifier = Qt.KeyboardModifier.ShiftModifier if key.startswith('Shift-') else Qt.KeyboardModifier.NoModifier
        QTest.keyClick(self.dock.window().focusWidget() or self.canvas, key[-1].lower(), modifier)
        self.wait()

    def push(self, text: str) -> None:
        """Pushes the button that says so."""
        buttons = [one for one in self.dock.findChildren(QAbstractButton) if one.text() == text and one.isVisible()]
        assert len(buttons) == 1, f'{len(buttons)} buttons in the unfolded sections say {text!r}'
        assert buttons[0].isEnabled(), f'the button {text!r} cannot be pushed now'
        self.scroll_to(buttons[0])
        QTest.mouseClick(buttons[0], Qt.MouseButton.LeftButton, pos=buttons[0].rect().center())
        self.wait()

    def unfold(self, *titles: str) -> None:
        """Unfolds these sections and folds all others, by clicks on their titles."""
        assert set(titles) <= set(self.sections)
        for title, section in self.sections.items():
            if section.isExpanded() != (title in titles):
                self.scroll_to(section.toggleButton())
                QTest.mouseClick(section.toggleButton(), Qt.MouseButton.LeftButton)
        self.qtbot.wait(50)
        self.scroll_to(self.sections[titles[0]].toggleButton())

    def enter(self, box: QAbstractSpinBox, number: float) -> None:
        self.scroll_to(box)
        box.selectAll()
        QTest.keyClicks(box, f'{number:g}')
        QTest.keyClick(box, Qt.Key.Key_Return)
        self.wait()

    def choose(self, choice: QComboBox, text: str) -> None:
        assert choice.findText(text) >= 0, f'{text!r} is not offered'
        choice.setCurrentText(text)
        self.wait()

    def move_slider(self, slider: QSlider, share: float) -> None:
        slider.setValue(round(share * slider.maximum()))
        self.wait()

    def see_all(self) -> None:
        """As the button with the house does."""
        self.viewer.fit_to_view()

    def go_to_slice(self, number: int) -> None:
        self.viewer.dims.set_current_step(0, number)
        self.wait()

    def take_picture(self) -> Picture:
        """Of the whole window, once everything is drawn."""
        self.qtbot.wait(150)
        pixels = self.viewer.screenshot(canvas_only=False, flash=False)[..., :3]
        return Picture(np.ascontiguousarray(pixels), *self._boxes(), tuple(self._words()))

    def scroll_to(self, widget: QWidget) -> None:
        """Brings a control of the dock into view."""
        self.dock._scroll.ensureWidgetVisible(widget, 0, 20)
        self.qtbot.wait(20)

    def _on_canvas(self, pixel) -> QPoint:
        return QPoint(*(round(value) for value in self._xy_on_canvas(pixel)))

    def _xy_on_canvas(self, pixel) -> np.ndarray:
        index = np.array(self.viewer.dims.current_step[: self.image.ndim], float)
        index[-2:] = pixel
        world = np.array(self.image.data_to_world(index))[-2:]
        camera = self.viewer.scene.camera
        return self._canvas_size / 2 + ((world - camera.center[-2:]) * camera.zoom)[::-1]

    @property
    def _canvas_size(self) -> np.ndarray:
        return np.array([self.canvas.width(), self.canvas.height()])

    def _under_cursor(self):
        return self.image.world_to_data(self.viewer.cursor.position)[-2:]

    def _boxes(self) -> tuple[Box, Box]:
        """Left, top, right and bottom of the image and of the canvas in the window."""
        height, width = self.image.data.shape[:2] if self.image.rgb else self.image.data.shape[-2:]
        origin = self.canvas.mapTo(self.canvas.window(), QPoint(0, 0))
        corner = np.array([origin.x(), origin.y()])
        image = [corner + self._xy_on_canvas(pixel) for pixel in ((-0.5, -0.5), (height - 0.5, width - 0.5))]
        canvas = [corner, corner + self._canvas_size]
        return tuple(np.ravel(image).tolist()), tuple(np.ravel(canvas).tolist())

    def _words(self) -> Iterator[str]:
        """What the dock says outside of folded sections, whether scrolled to or not."""
        folded = [section.content() for section in self.sections.values() if not section.isExpanded()]
        for widget in self.dock.findChildren(QWidget):
            is_folded = any(content.isAncestorOf(widget) for content in folded)
            if is_folded or not widget.isVisible() or isinstance(widget.parent(), QAbstractSpinBox | QComboBox):
                continue
            match widget:
                case QLabel() | QAbstractButton() | QAbstractSpinBox():
                    yield widget.text()
                case QComboBox():
                    yield widget.currentText()


def says_about(text: str, expected: str) -> bool:
    """Whether a text is another one but for its numbers, which may be a little off."""
    numbers, wanted = ([float(number.replace(',', '')) for number in _NUMBER.findall(one)] for one in (text, expected))
    same_words = _NUMBER.sub('#', text) == _NUMBER.sub('#', expected)
    return same_words and bool(np.allclose(numbers, wanted, rtol=_TOLERANCE, atol=0))
