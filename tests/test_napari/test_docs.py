"""The pages about the dock name what is there: its keys, sections and controls, the sample data, and pictures of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from napari.components import ViewerModel
from npe2 import PluginManifest
from PIL import Image
from qtpy.QtWidgets import QAbstractButton, QCheckBox, QComboBox, QGroupBox, QLabel
from superqt import QCollapsible

import napari_unsam
from napari_unsam.controller import SegmentationController
from napari_unsam.io.autosave import Autosave
from napari_unsam.keys import KEYS
from napari_unsam.qt.saved_bar import SavedBar
from napari_unsam.qt.widget import PANELS, SegmentationWidget, in_gui_thread
from napari_unsam.viewer.layers import OBJECTS_NAME, PREVIEW_NAME, PROMPTS_NAME
from tests.test_napari.pictures import MAX_BYTES
from tests.test_napari.stand_ins import colour_tree, planes_of

DOCS = Path(__file__).parents[2] / 'docs'
GUIDES = ('napari_tutorial', 'napari_nuclei', 'napari_em_stack', 'napari_photograph')
PAGES = {path.stem: path.read_text(encoding='utf-8') for path in sorted(DOCS.glob('napari*.md'))}
NAPARI_MENUS = {'Layers > Metadata > Features table widget', 'Plugins > UnSAM', 'Preferences > UnSAM'}
NOT_OF_THE_DOCK = {'Ctrl-Z', OBJECTS_NAME, PREVIEW_NAME, PROMPTS_NAME}


@pytest.fixture
def dock(qtbot, tmp_path):
    """The dock with all of its sections."""
    widget = SegmentationWidget(
        ViewerModel(), SegmentationController(planes_of(colour_tree), in_gui_thread), Autosave(tmp_path)
    )
    qtbot.addWidget(widget)
    qtbot.waitUntil(lambda: len(widget.panels) == len(PANELS), timeout=60_000)
    yield widget
    widget.end()


def rows(page: str, header: str) -> list[list[str]]:
    """The cells of all tables of a page whose first line begins like this."""
    found = []
    for table in re.findall(r'(?:^\|.*\n)+', PAGES[page], flags=re.MULTILINE):
        lines = [[cell.strip() for cell in line.strip('|\n').split('|')] for line in table.splitlines()]
        found += lines[2:] if lines[0][0] == header else []
    return found


def said(text: str) -> str:
    """What a control says, without its key."""
    return re.sub(r'\s*\[.*?\]$', '', text)


def controls(dock) -> set[str]:
    words = {said(one.text()) for one in dock.findChildren(QAbstractButton)}
    words |= {one.text() for kind in (QLabel, QCheckBox, QCollapsible) for one in dock.findChildren(kind)}
    words |= {one.title() for one in dock.findChildren(QGroupBox)}
    return words | {one.itemText(row) for one in dock.findChildren(QComboBox) for row in range(one.count())}


def test_keys_buttons_commands_and_the_page_follow_the_table(dock):
    viewer = dock.session.viewer
    assert {str(key).replace('+', '-') for key in viewer.keymap.keys() - ViewerModel().keymap.keys()} == {
        key.key for key in KEYS.values()
    }
    buttons = {(one.text(), one.toolTip()) for one in dock.findChildren(QAbstractButton) if one.text().endswith(']')}
    assert buttons == {(key.button, key.action) for key in KEYS.values() if key.label}
    assert KEYS['switch_polarity'].button in {one.text() for one in dock.findChildren(QLabel)}
    commands = [(one.id, one.title, one.python_name) for one in manifest().contributions.commands]
    assert [one for one in commands if '.qt.commands:' in one[2]] == [
        (f'unsam_mm.{name}', f'{key.action} [{key.key}]', f'napari_unsam.qt.commands:{name}')
        for name, key in KEYS.items()
    ]
    page = [(key, does, re.findall(r'\*([^*]+)\*', button)[0]) for key, does, button in rows('napari_keys', 'key')]
    assert page == [(f'**{key}**', does, label or 'Object') for key, label, does in KEYS.values()]


def test_the_sections_of_the_page_are_those_of_the_dock(dock):
    titles = [section.text() for section in dock.findChildren(QCollapsible)]
    assert sorted(row[0] for row in rows('napari', 'section')) == sorted(titles)


@pytest.mark.parametrize('page', [*GUIDES, 'napari_keys'])
def test_controls_that_a_page_names_exist(dock, page):
    samples = {sample.display_name for sample in manifest().contributions.sample_data}
    unknown = []
    for name in re.findall(r'(?<![*\w])\*([^*\n]+)\*(?!\*)', PAGES[page]):
        *menu, last = name.split(' > ')
        is_sample = menu == ['File', 'Open Sample', 'UnSAM'] and last in samples
        # napari says in brackets whose an entry is.
        is_entry = re.sub(r' \(.*\)$', '', name) in NAPARI_MENUS
        if not (is_sample or is_entry or name in controls(dock) | NOT_OF_THE_DOCK):
            unknown.append(name)
    assert not unknown


def test_pictures_of_the_dock_are_made_by_the_walks_and_named_by_a_page():
    walks = Path(__file__).with_name('test_screenshots.py').read_text(encoding='utf-8')
    made = set(re.findall(r"\.sees\('(\w+)'\)", walks))
    assert made == {name for page in GUIDES for name in re.findall(r'\]\(images/(\w+)\.png\)', PAGES[page])}
    taken = set()
    for path in (DOCS / 'images').glob('*.png'):
        with Image.open(path) as picture:
            if 'words' in picture.text:
                taken.add(path.stem)
                assert path.stat().st_size < MAX_BYTES, f'{path} is too large'
    assert taken == made


def test_guides_are_short_enough_to_be_read_and_begin_with_their_sample():
    for page in GUIDES:
        lines = PAGES[page].splitlines()
        assert 40 <= len(lines) <= 120, page
        assert 'File > Open Sample > UnSAM > ' in '\n'.join(lines[:30]), page


def test_the_bar_of_lost_work_says_what_the_tutorial_says(dock):
    assert '*Restore*' in PAGES['napari_tutorial']
    assert dock.findChild(SavedBar).restore_button.text() == 'Restore'


def manifest() -> PluginManifest:
    return PluginManifest.from_file(Path(napari_unsam.__file__).with_name('napari.yaml'))
