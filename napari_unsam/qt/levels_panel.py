"""The section for levels, similar objects, classes and review."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qtpy.QtWidgets import QGroupBox, QLabel, QLineEdit

from napari_unsam.keys import KEYS
from napari_unsam.levels.cuts import RegionFilter
from napari_unsam.levels.edits import ObjectEdits, Reviewing
from napari_unsam.levels.selector import PreviewMode, RegionSelector
from napari_unsam.model.text import counted
from napari_unsam.qt.controls import MAX_AREA_PX, Panel, group, move, wrapping_label


class LevelsPanel(Panel):
    """Objects of the whole image, from any level of its region tree."""

    title = 'Levels'

    def build(self) -> None:
        session = self._session
        self.selector = RegionSelector(session)
        self.edits = ObjectEdits(self.selector)
        self.reviewing = Reviewing(session)
        self.key_actions = {
            'split': self.edits.split,
            'merge': self.edits.merge,
            'find_similar': self.selector.find_similar,
            'review': self.reviewing.next,
        }
        self.lay_out([self._level_group()], [self._similar_group()], [self._classes_group()], [self._review_group()])
        self.subscribe(self._show, self.selector.changed)
        self.subscribe(self._show_review, self.reviewing.changed)
        self._show()
        self._show_review()

    def close_session(self) -> None:
        """Removes the preview and disconnects from the session."""
        super().close_session()
        self.selector.close()
        self.reviewing.close()

    def _level_group(self) -> QGroupBox:
        selector, limits = self.selector, RegionFilter()
        self.level_slider = self.make_slider('Level, from fine (left) to coarse (right)', selector.show_level)
        self.level_label = QLabel()
        self.propose_button = self.make_button(
            'Propose', 'Move the slider to the level with the most high-score objects', selector.propose_level
        )
        self.best_button = self.make_button(
            'Auto', 'Show the regions with the best scores, from all levels', selector.show_best
        )
        self.brightness_choice = self.make_brightness_choice(limits.brightness, self._limit)
        self.min_area_box = self.make_number(
            1, MAX_AREA_PX, limits.min_area_px, 'Smaller regions are left out', self._limit, ' px'
        )
        self.max_share_box = self.make_number(
            0.01, 100, 100 * limits.max_share, 'Larger regions are left out', self._limit, ' % of image'
        )
        self.accept_button = self.make_button('Accept all shown', 'Save all shown regions as objects', selector.accept)
        self.hide_button = self.make_button('Hide', 'Hide the regions', selector.hide)
        return group(
            'Level of the whole image',
            [self.level_slider],
            [self.level_label],
            [self.propose_button, self.best_button],
            ['Objects are', self.brightness_choice],
            ['At least', self.min_area_box],
            ['At most', self.max_share_box],
            [self.accept_button, self.hide_button],
            [self.make_key_button('split'), self.make_key_button('merge')],
        )

    def _similar_group(self) -> QGroupBox:
        self.clear_examples_button = self.make_button(
            'New examples', 'Clear the examples', self.selector.clear_examples
        )
        self.similarity_slider = self.make_slider('Minimum similarity', self.selector.set_min_similarity)
        self.similar_label = QLabel()
        return group(
            'Similar objects',
            [self.make_key_button('find_similar')],
            [self.similarity_slider],
            [self.similar_label],
            [self.clear_examples_button],
        )

    def _classes_group(self) -> QGroupBox:
        self.name_box = QLineEdit()
        self.name_box.setPlaceholderText('nuclei')
        self.name_box.setToolTip('Class of the shown objects')
        self.class_button = self.make_button(
            'Add as class',
            'Add the shown regions as this class, then choose another level',
            lambda: self.selector.add_class(self.name_box.text()),
        )
        self.layers_button = self.make_button(
            'Make layers', 'Make one layer per class, with parts linked to their wholes', self.selector.make_layers
        )
        self.classes_label = wrapping_label()
        return group('Parts and wholes', [self.name_box, self.class_button], [self.classes_label], [self.layers_button])

    def _review_group(self) -> QGroupBox:
        self.next_button = self.make_key_button('review')
        self.right_button = self.make_button(
            'Right', 'Mark the object as correct and go to the next', self.reviewing.accept
        )
        self.wrong_button = self.make_button('Wrong', 'Delete the object and go to the next', self.reviewing.reject)
        self.review_label = QLabel()
        return group('Review', [self.next_button, self.right_button, self.wrong_button], [self.review_label])

    def _limit(self, _value: Any) -> None:
        self.selector.set_region_filter(
            replace(
                self.selector.region_filter,
                brightness=self.brightness_choice.currentData(),
                min_area_px=self.min_area_box.value(),
                max_share=self.max_share_box.value() / 100,
            )
        )

    def _show(self) -> None:
        selector = self.selector
        move(self.level_slider, selector.level)
        move(self.similarity_slider, selector.min_similarity)
        count, mode = len(selector.selection), selector.mode
        self.level_label.setText(
            {
                PreviewMode.LEVEL: f'Level {selector.level:.2f}: {counted(count, "object")}',
                PreviewMode.BEST: f'Auto: {counted(count, "object")}',
            }.get(mode, 'Drag the slider or press Auto')
        )
        self.similar_label.setText(
            f'{counted(count, "match")} (similarity ≥ {selector.min_similarity:.2f})'
            if mode is PreviewMode.SIMILAR
            else f'Point at an object and press {KEYS["find_similar"].key}'
        )
        for needs_choice in (self.accept_button, self.hide_button, self.class_button):
            needs_choice.setEnabled(mode is not PreviewMode.NOTHING)
        self.clear_examples_button.setEnabled(bool(selector.examples))
        self.similarity_slider.setEnabled(bool(selector.examples))
        self.layers_button.setEnabled(bool(selector.classes))
        self.classes_label.setText(
            ', '.join(f'{one.name}: {len(one.features)}' for one in selector.classes) or 'No class yet'
        )

    def _show_review(self) -> None:
        queue = self.reviewing.queue
        self.review_label.setText(f'{len(queue.done)} done, {queue.left} left')
        self.next_button.setEnabled(queue.left > 0)
        for needs_object in (self.right_button, self.wrong_button):
            needs_object.setEnabled(queue.current is not None)
