"""The sections of the dock: nothing in them is cut off, whatever comes to be shown."""

import pytest
from qtpy.QtWidgets import QLabel, QVBoxLayout, QWidget
from superqt import QCollapsible

from napari_unsam.panels.sections import Sections


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
