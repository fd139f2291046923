"""The sections of the dock: nothing in them is cut off, whatever comes to be shown."""

import pytest
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QComboBox, QLabel, QLineEdit, QMainWindow, QSpinBox, QVBoxLayout, QWidget
from superqt import QCollapsible

from napari_unsam.qt.sections import Sections


class Growing(QWidget):
    """A panel with a line, and another one that is hidden at first."""

    title = 'Growing'

    def __init__(self):
        super().__init__()
        layout = QVBoxLayout(self)
        self.more = QLabel('A line that is much longer than the other one')
        self.more.hide()
        layout.addWidget(QLabel('A line'))
        layout.addWidget(self.more)


class Fields(QWidget):
    """A panel with one field of each kind."""

    title = 'Fields'

    def __init__(self):
        super().__init__()
        layout = QVBoxLayout(self)
        self.number, self.name, self.choice = QSpinBox(), QLineEdit(), QComboBox()
        self.choice.addItems(['One', 'Two'])
        for field in (self.number, self.name, self.choice):
            layout.addWidget(field)


class Window(QMainWindow):
    """Has keys as napari's window does: those that no widget takes."""

    def __init__(self, panel):
        super().__init__()
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.keys = []
        sections = Sections()
        sections.add(panel, is_open=True)
        self.setCentralWidget(sections)

    def keyPressEvent(self, event):
        self.keys.append(event.text())


@pytest.fixture
def fields(qtbot):
    panel = Fields()
    window = Window(panel)
    qtbot.addWidget(window)
    window.show()
    qtbot.waitExposed(window)
    yield panel
    window.close()


def press(panel, key):
    """On whatever has the keyboard."""
    QTest.keyClick(panel.window().focusWidget() or panel.window(), key)


@pytest.mark.parametrize('end', [Qt.Key.Key_Return, Qt.Key.Key_Escape])
@pytest.mark.parametrize('name', ['number', 'name'])
def test_a_field_gives_the_keyboard_back_when_the_user_is_done_with_it(fields, qtbot, name, end):
    field = getattr(fields, name)
    field.setFocus()
    field.selectAll()
    press(fields, '7')
    assert field.text() == '7'
    assert not fields.window().keys
    press(fields, end)
    qtbot.waitUntil(lambda: fields.window().focusWidget() is not field, timeout=5_000)
    press(fields, 'n')
    assert fields.window().keys[-1] == 'n'
    assert field.text() == '7'


def test_a_click_on_the_arrows_of_a_number_or_a_choice_does_not_keep_the_keyboard(fields, qtbot):
    number, choice = fields.number, fields.choice
    QTest.mouseClick(number, Qt.MouseButton.LeftButton, pos=QPoint(number.width() - 5, 5))
    assert number.value() == 1
    qtbot.waitUntil(lambda: fields.window().focusWidget() is not number, timeout=5_000)
    QTest.mouseClick(choice, Qt.MouseButton.LeftButton)
    choice.hidePopup()
    assert fields.window().focusWidget() is not choice


@pytest.fixture
def sections(qtbot):
    sections = Sections()
    qtbot.addWidget(sections)
    sections.add(Growing(), is_open=True)
    sections.show()
    qtbot.waitExposed(sections)
    return sections


def test_a_section_grows_with_what_it_shows(sections, qtbot):
    panel = sections.findChild(QCollapsible).content()
    before = panel.height()
    panel.more.show()
    qtbot.waitUntil(lambda: panel.height() >= panel.sizeHint().height() > before)


def test_sections_take_the_width_of_what_comes_to_be_shown(sections, qtbot):
    panel = sections.findChild(QCollapsible).content()
    panel.more.show()
    qtbot.waitUntil(lambda: sections.minimumWidth() > panel.minimumSizeHint().width() >= panel.more.sizeHint().width())


def test_a_folded_section_stays_folded_when_it_comes_to_show_more(sections, qtbot):
    section = sections.findChild(QCollapsible)
    section.collapse(animate=False)
    section.content().more.show()
    qtbot.wait(50)
    assert section.content().height() == 0
