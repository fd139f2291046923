"""The section for levels, similar objects, classes and review: layout and connections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from qtpy.QtWidgets import (
    QDoubleSpinBox,
    QGroupBox,
    QLabel,
    QLineEdit,
    QPushButton,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from napari_unsam.keys import KEYS, Actions
from napari_unsam.levels.cuts import RegionFilter
from napari_unsam.levels.edits import ObjectEdits, Reviewing
from napari_unsam.levels.region_properties import Side
from napari_unsam.levels.selector import RegionSelector, Shown
from napari_unsam.model.text import counted
from napari_unsam.qt.controls import SLIDER_STEPS, button, choice_of_side, group, key_button, move, slider

if TYPE_CHECKING:
    from napari_unsam.viewer.session import ViewerSession

_MAX_AREA_PX = 1_000_000


class LevelsPanel(QWidget):
    """Whole images at any level of their regions.

    Args:
        session: Of the viewer.
    """

    title = 'Levels'

    def __init__(self, session: ViewerSession) -> None:
        super().__init__()
        self.work = RegionSelector(session)
        self.edits = ObjectEdits(self.work)
        self.reviewing = Reviewing(session)
        self.key_actions: Actions = {
            'split': self.edits.split,
            'merge': self.edits.merge,
            'find_similar': self.work.find_similar,
            'review': self.reviewing.next,
        }
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        for section in (self._level_group(), self._similar_group(), self._classes_group(), self._review_group()):
            layout.addWidget(section)
        self._connect()
        self._show()
        self._show_review()

    def close_session(self) -> None:
        """Removes the preview and disconnects from the session."""
        self.work.changed.disconnect(self._show)
        self.reviewing.changed.disconnect(self._show_review)
        self.work.close()
        self.reviewing.close()

    def _level_group(self) -> QGroupBox:
        self.level_slider = slider('Level, from fine (left) to coarse (right)')
        self.level_label = QLabel()
        self.propose_button = button('Propose', 'Move the slider to the level with the most high-score objects')
        self.best_button = button('Auto', 'Show the regions with the best scores, from all levels')
        defaults = RegionFilter()
        self.side_choice = choice_of_side(defaults.side)
        self.min_area_box = QSpinBox()
        self.min_area_box.setRange(1, _MAX_AREA_PX)
        self.min_area_box.setSuffix(' px')
        self.min_area_box.setValue(defaults.min_area_px)
        self.min_area_box.setToolTip('Smaller regions are left out')
        self.max_share_box = QDoubleSpinBox()
        self.max_share_box.setRange(0.01, 100)
        self.max_share_box.setSuffix(' % of image')
        self.max_share_box.setValue(100 * defaults.max_share)
        self.max_share_box.setToolTip('Larger regions are left out')
        self.accept_button = button('Accept all shown', 'Save all shown regions as objects')
        self.hide_button = button('Hide', 'Hide the regions')
        self.split_button, self.merge_button = key_button('split'), key_button('merge')
        return group(
            'Level of the whole image',
            [
                [self.level_slider],
                [self.level_label],
                [self.propose_button, self.best_button],
                [QLabel('Objects are'), self.side_choice],
                [QLabel('At least'), self.min_area_box],
                [QLabel('At most'), self.max_share_box],
                [self.accept_button, self.hide_button],
                [self.split_button, self.merge_button],
            ],
        )

    def _similar_group(self) -> QGroupBox:
        self.similar_button = key_button('find_similar')
        self.clear_examples_button = button('New examples', 'Clear the examples')
        self.similarity_slider = slider('Minimum similarity')
        self.similar_label = QLabel()
        return group(
            'Similar objects',
            [[self.similar_button], [self.similarity_slider], [self.similar_label], [self.clear_examples_button]],
        )

    def _classes_group(self) -> QGroupBox:
        self.name_box = QLineEdit()
        self.name_box.setPlaceholderText('nuclei')
        self.name_box.setToolTip('Class of the shown objects')
        self.class_button = button('Add as class', 'Add the shown regions as this class, then choose another level')
        self.layers_button = button('Make layers', 'Make one layer per class, with parts linked to their wholes')
        self.classes_label = QLabel()
        self.classes_label.setWordWrap(True)
        return group(
            'Parts and wholes', [[self.name_box, self.class_button], [self.classes_label], [self.layers_button]]
        )

    def _review_group(self) -> QGroupBox:
        self.next_button = key_button('review')
        self.right_button = button('Right', 'Mark the object as correct and go to the next')
        self.wrong_button = button('Wrong', 'Delete the object and go to the next')
        self.review_label = QLabel()
        return group('Review', [[self.next_button, self.right_button, self.wrong_button], [self.review_label]])

    def _connect(self) -> None:
        work, reviewing = self.work, self.reviewing
        reporting = work.session.controller.reporting
        self.level_slider.valueChanged.connect(reporting(lambda value: work.show_level(value / SLIDER_STEPS)))
        self.similarity_slider.valueChanged.connect(
            reporting(lambda value: work.set_min_similarity(value / SLIDER_STEPS))
        )
        for changed in (
            self.side_choice.currentIndexChanged,
            self.min_area_box.valueChanged,
            self.max_share_box.valueChanged,
        ):
            changed.connect(reporting(lambda _value: self._limit()))
        actions: dict[QPushButton, Callable[[], None]] = {
            self.class_button: lambda: work.add_class(self.name_box.text()),
            self.propose_button: work.propose_level,
            self.best_button: work.show_best,
            self.accept_button: work.accept,
            self.hide_button: work.hide,
            self.split_button: self.edits.split,
            self.merge_button: self.edits.merge,
            self.similar_button: work.find_similar,
            self.clear_examples_button: work.clear_examples,
            self.layers_button: work.make_layers,
            self.next_button: reviewing.next,
            self.right_button: reviewing.accept,
            self.wrong_button: reviewing.reject,
        }
        for pressed, act in actions.items():
            pressed.clicked.connect(reporting(lambda *_, act=act: act()))
        work.changed.connect(self._show)
        reviewing.changed.connect(self._show_review)

    def _limit(self) -> None:
        self.work.set_limits(
            replace(
                self.work.limits,
                side=Side(self.side_choice.currentData()),
                min_area_px=self.min_area_box.value(),
                max_share=self.max_share_box.value() / 100,
            )
        )

    def _show(self) -> None:
        work = self.work
        move(self.level_slider, work.level)
        move(self.similarity_slider, work.min_similarity)
        count, shown = len(work.chosen), work.shown
        self.level_label.setText(
            {
                Shown.LEVEL: f'Level {work.level:.2f}: {counted(count, "object")}',
                Shown.BEST: f'Auto: {counted(count, "object")}',
            }.get(shown, 'Drag the slider or press Auto')
        )
        self.similar_label.setText(
            f'{counted(count, "match")} (similarity ≥ {work.min_similarity:.2f})'
            if shown is Shown.SIMILAR
            else f'Point at an object and press {KEYS["find_similar"].key}'
        )
        for needs_choice in (self.accept_button, self.hide_button, self.class_button):
            needs_choice.setEnabled(shown is not Shown.NOTHING)
        self.clear_examples_button.setEnabled(bool(work.examples))
        self.similarity_slider.setEnabled(bool(work.examples))
        self.layers_button.setEnabled(bool(work.classes))
        self.classes_label.setText(
            ', '.join(f'{kind.name}: {len(kind.features)}' for kind in work.classes) or 'No class yet'
        )

    def _show_review(self) -> None:
        queue = self.reviewing.queue
        self.review_label.setText(f'{len(queue.done)} done, {queue.left} left')
        self.next_button.setEnabled(queue.left > 0)
        for needs_object in (self.right_button, self.wrong_button):
            needs_object.setEnabled(queue.current is not None)
