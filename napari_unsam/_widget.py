"""The dock: layout and connections only; what the buttons do stands in the controller and the session."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from magicgui.widgets import ComboBox
from napari.layers import Image
from qtpy.QtCore import QEvent, Qt, QTimer
from qtpy.QtWidgets import (
    QButtonGroup,
    QCheckBox,
    QGridLayout,
    QGroupBox,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QRadioButton,
    QVBoxLayout,
    QWidget,
)
from superqt.utils import ensure_main_thread

from napari_unsam import _settings
from napari_unsam._controller import Level, SegmentationController
from napari_unsam._inference import GeneratorEmbed
from napari_unsam._layers import COLOURS
from napari_unsam._prompts import Polarity
from napari_unsam._session import ViewerSession

if TYPE_CHECKING:
    import napari


class SegmentationWidget(QWidget):
    """Click on an image, step through the nested masks under the click, commit the one you mean.

    Args:
        viewer: The viewer to work in.
        controller: What to control; by default a new one with the model of `unsam_mm`. Its `deliver` must lead to the
            GUI thread, as `in_gui_thread` does.
    """

    def __init__(self, viewer: napari.viewer.Viewer, controller: SegmentationController | None = None) -> None:
        super().__init__()
        self.controller = controller or SegmentationController(GeneratorEmbed(_settings.inference()), in_gui_thread)
        self.session = ViewerSession(viewer, self.controller)
        self._docked = False
        self._build()
        self._connect()
        self._choose_first_image()
        self._show_state()
        self._show_proposal()

    def event(self, event: QEvent) -> bool:
        """Ends the session when napari takes the dock away; it only unparents this widget, without closing it."""
        if event.type() == QEvent.Type.ParentChange:
            if self._docked and self.parent() is None:
                self._end()
            self._docked = self.parent() is not None
        return super().event(event)

    def _build(self) -> None:
        self.image_choice = ComboBox(choices=self._images, nullable=True, tooltip='The image to segment')
        self.embed_button = _button('Embed', 'Find the regions of the plane in view; the first click does it as well')
        self.cancel_button = _button('Cancel', 'Stop finding regions; clicks are kept')
        self.progress_bar = QProgressBar()
        self.progress_bar.setRange(0, 1000)
        self.progress_bar.setTextVisible(True)

        self.prompting_box = QCheckBox('Click on the image to prompt')
        self.prompting_box.setChecked(self.session.prompting)
        self.prompting_box.setToolTip('Works while the selected layer is in pan/zoom mode')
        self.polarity_buttons = {
            polarity: QRadioButton(text)
            for polarity, text in ((Polarity.POSITIVE, 'Object'), (Polarity.NEGATIVE, 'Not this'))
        }
        self.undo_button = _button('Undo click  [U]', 'Take back the last change to the clicks')
        self.clear_button = _button('Clear  [Q]', 'Remove all clicks on this plane')

        self.coarser_button = _button('Coarser  [J]', 'Show the next larger mask')
        self.finer_button = _button('Finer  [K]', 'Show the next smaller mask')
        self.proposal_label = QLabel()
        self.keep_box = QCheckBox('Keep existing objects')
        self.keep_box.setChecked(self.session.keep_existing)
        self.keep_box.setToolTip('Leave pixels alone that belong to another object already')
        self.commit_button = _button('Commit object  [N]', 'Give the mask a label of its own; Ctrl-Z takes it back')
        self.status_label = QLabel()
        self.status_label.setWordWrap(True)
        self.status_label.setMinimumHeight(3 * self.status_label.fontMetrics().lineSpacing())
        self.status_label.setAlignment(Qt.AlignmentFlag.AlignTop | Qt.AlignmentFlag.AlignLeft)

        layout = QVBoxLayout(self)
        layout.addWidget(self._image_group())
        layout.addWidget(self._prompt_group())
        layout.addWidget(self._mask_group())
        layout.addWidget(self.status_label)
        layout.addStretch()

    def _image_group(self) -> QGroupBox:
        group = QGroupBox('1  Image')
        grid = QGridLayout(group)
        grid.addWidget(self.image_choice.native, 0, 0, 1, 2)
        grid.addWidget(self.embed_button, 1, 0)
        grid.addWidget(self.cancel_button, 1, 1)
        grid.addWidget(self.progress_bar, 2, 0, 1, 2)
        return group

    def _prompt_group(self) -> QGroupBox:
        group = QGroupBox('2  Clicks')
        grid = QGridLayout(group)
        grid.addWidget(self.prompting_box, 0, 0, 1, 2)
        row = QHBoxLayout()
        self._polarity_group = QButtonGroup(self)
        for polarity, mark in ((Polarity.POSITIVE, '●'), (Polarity.NEGATIVE, '◆')):
            swatch = QLabel(mark)
            swatch.setStyleSheet(f'color: {COLOURS[polarity]}; font-size: 15px; background: white; border-radius: 3px;')
            swatch.setFixedWidth(20)
            swatch.setAlignment(Qt.AlignmentFlag.AlignCenter)
            self._polarity_group.addButton(self.polarity_buttons[polarity])
            self.polarity_buttons[polarity].setToolTip(
                'What a click says; G switches. Shift- or right-click: the other'
            )
            row.addWidget(swatch)
            row.addWidget(self.polarity_buttons[polarity])
            row.addSpacing(8)
        row.addWidget(QLabel('[G]'))
        row.addStretch()
        grid.addLayout(row, 1, 0, 1, 2)
        grid.addWidget(self.undo_button, 2, 0)
        grid.addWidget(self.clear_button, 2, 1)
        return group

    def _mask_group(self) -> QGroupBox:
        group = QGroupBox('3  Mask')
        grid = QGridLayout(group)
        grid.addWidget(self.coarser_button, 0, 0)
        grid.addWidget(self.finer_button, 0, 1)
        grid.addWidget(self.proposal_label, 1, 0, 1, 2)
        grid.addWidget(self.keep_box, 2, 0, 1, 2)
        grid.addWidget(self.commit_button, 3, 0, 1, 2)
        return group

    def _connect(self) -> None:
        controller, session = self.controller, self.session
        # napari takes a second for its first Points and Labels layers; it must not be in the midst of adding the image.
        self._soon = QTimer(self, singleShot=True, interval=0)
        self._soon.timeout.connect(lambda: session.make_prompt_layers())
        session.image_changed.connect(lambda: self._soon.start())
        layers = session.viewer.layers.events
        for emitter in (layers.inserted, layers.removed, layers.renamed):
            emitter.connect(self._layers_changed)
        self.image_choice.changed.connect(session.set_image)
        self.embed_button.clicked.connect(lambda: controller.embed())
        self.cancel_button.clicked.connect(lambda: controller.cancel())
        self.undo_button.clicked.connect(lambda: controller.undo_prompt())
        self.clear_button.clicked.connect(lambda: controller.clear_prompts())
        self.coarser_button.clicked.connect(lambda: controller.coarser())
        self.finer_button.clicked.connect(lambda: controller.finer())
        self.commit_button.clicked.connect(lambda: session.commit())
        for polarity, button in self.polarity_buttons.items():
            button.clicked.connect(lambda _checked, chosen=polarity: controller.set_polarity(chosen))
        self.prompting_box.toggled.connect(lambda checked: setattr(session, 'prompting', checked))
        self.keep_box.toggled.connect(lambda checked: setattr(session, 'keep_existing', checked))
        controller.state_changed.connect(self._show_state)
        controller.proposal_changed.connect(self._show_proposal)
        controller.progress_changed.connect(self._show_progress)
        session.image_changed.connect(self._show_image)

    def _end(self) -> None:
        layers = self.session.viewer.layers.events
        for emitter in (layers.inserted, layers.removed, layers.renamed):
            emitter.disconnect(self._layers_changed)
        self.session.close()

    def _images(self, _widget: object) -> list[Image]:
        return [layer for layer in self.session.viewer.layers if isinstance(layer, Image)]

    def _choose_first_image(self) -> None:
        """Chooses the selected image, else the topmost one."""
        images, active = self._images(None), self.session.viewer.layers.selection.active
        self.image_choice.value = active if active in images else next(reversed(images), None)

    def _layers_changed(self) -> None:
        self.image_choice.reset_choices()
        if self.image_choice.value is None and self.session.image is None:
            self._choose_first_image()

    def _show_image(self) -> None:
        if self.image_choice.value is not self.session.image:
            self.image_choice.reset_choices()
            self.image_choice.value = self.session.image

    def _show_state(self) -> None:
        controller = self.controller
        has_target, busy = controller.target is not None, controller.is_busy
        self.embed_button.setEnabled(has_target and not busy)
        self.embed_button.setText('Embed again' if controller.hierarchy is not None else 'Embed')
        self.cancel_button.setEnabled(busy)
        if not busy:
            self.progress_bar.setValue(1000 if controller.hierarchy is not None else 0)
            self.progress_bar.setFormat('Ready' if controller.hierarchy is not None else '')
        self.polarity_buttons[controller.polarity].setChecked(True)
        self.undo_button.setEnabled(controller.can_undo_prompt)
        self.clear_button.setEnabled(bool(controller.prompts))
        problem = controller.status.level is Level.PROBLEM
        self.status_label.setText(('⚠ ' if problem else '') + controller.status.text)
        self.status_label.setStyleSheet('font-weight: bold;' if problem else '')

    def _show_proposal(self) -> None:
        proposal, candidates = self.controller.proposal, self.controller.candidates
        self.coarser_button.setEnabled(candidates.position < len(candidates) - 1)
        self.finer_button.setEnabled(candidates.position > 0)
        self.commit_button.setEnabled(proposal is not None)
        self.proposal_label.setText(
            'No mask yet\n'
            if proposal is None
            else f'Mask {proposal.rank} of {proposal.count}, finest first\n'
            f'{proposal.area_px:,} px, granularity {proposal.granularity:.2f}'
        )

    def _show_progress(self, fraction: float, message: str) -> None:
        self.progress_bar.setValue(round(1000 * fraction))
        caption = message[:1].upper() + message[1:]
        # A model's first step can be its longest, and 0 % all the while would look stuck.
        self.progress_bar.setFormat(f'{caption}  %p%' if fraction else f'{caption} ...')


def _button(text: str, tooltip: str) -> QPushButton:
    button = QPushButton(text)
    button.setToolTip(tooltip)
    # Otherwise the button would keep the keyboard, and the keys shown on the buttons would go nowhere.
    button.setFocusPolicy(Qt.FocusPolicy.NoFocus)
    return button


@ensure_main_thread
def in_gui_thread(call: Callable[[], None]) -> None:
    """Runs a function in the thread of the GUI, soon if called from another thread, else at once."""
    call()
