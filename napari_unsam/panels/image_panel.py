"""Which image, which of its channels, and how far the model has got with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from magicgui.widgets import ComboBox
from napari.layers import Image
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QComboBox, QGridLayout, QHBoxLayout, QLabel, QProgressBar, QSizePolicy, QWidget

from napari_unsam._frame import Channels, channel_axes, full_resolution
from napari_unsam.panels.controls import button

if TYPE_CHECKING:
    from napari_unsam._session import ViewerSession

_COLOURS = ('Red', 'Green', 'Blue')
_NONE = 'None'


class ImagePanel(QWidget):
    """The choice of the image and its channels, and what runs in the background.

    Args:
        session: What to control.
    """

    title = 'Image'

    def __init__(self, session: ViewerSession) -> None:
        super().__init__()
        self._session = session
        self.image_choice = ComboBox(choices=self._images, nullable=True, tooltip='The image to segment')
        self.image_choice.native.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.axis_choice = _combo('Which axis of the image holds its channels')
        self.channel_choices = [
            _combo(f'The channel that the model sees as {colour.lower()}; one alone is seen as grey')
            for colour in _COLOURS
        ]
        self.embed_button = button('Embed', 'Find the regions of the plane in view; the first click does it as well')
        self.cancel_button = button('Cancel', 'Stop what runs; prompts are kept')
        self.progress_bar = QProgressBar()
        self.progress_bar.setRange(0, 1000)
        self.progress_bar.setTextVisible(True)
        self._lay_out()
        self._connect()
        self._choose_first_image()
        self.show_state()
        self._show_channels()

    def close_session(self) -> None:
        """Leaves the viewer alone from now on."""
        layers = self._session.viewer.layers.events
        for emitter in (layers.inserted, layers.removed, layers.renamed):
            emitter.disconnect(self._layers_changed)

    def show_state(self) -> None:
        """Shows what the controller is at."""
        controller = self._session.controller
        busy, is_ready = controller.is_busy, controller.plane is not None
        self.embed_button.setEnabled(controller.target is not None and not busy)
        self.embed_button.setText('Embed again' if is_ready else 'Embed')
        self.cancel_button.setEnabled(busy)
        if not busy:
            self.progress_bar.setValue(1000 if is_ready else 0)
            self.progress_bar.setFormat('Ready' if is_ready else '')

    def _lay_out(self) -> None:
        grid = QGridLayout(self)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.addWidget(self.image_choice.native, 0, 0, 1, 2)
        self._channel_row = QWidget()
        row = QHBoxLayout(self._channel_row)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(QLabel('Channels'))
        for combo in (self.axis_choice, *self.channel_choices):
            row.addWidget(combo)
        grid.addWidget(self._channel_row, 1, 0, 1, 2)
        grid.addWidget(self.embed_button, 2, 0)
        grid.addWidget(self.cancel_button, 2, 1)
        grid.addWidget(self.progress_bar, 3, 0, 1, 2)

    def _connect(self) -> None:
        session = self._session
        layers = session.viewer.layers.events
        for emitter in (layers.inserted, layers.removed, layers.renamed):
            emitter.connect(self._layers_changed)
        self.image_choice.changed.connect(session.set_image)
        self.embed_button.clicked.connect(lambda: session.controller.embed())
        self.cancel_button.clicked.connect(lambda: session.controller.cancel())
        self.axis_choice.activated.connect(lambda _: self._choose_axis())
        for combo in self.channel_choices:
            combo.activated.connect(lambda _: self._choose_channels())
        session.controller.state_changed.connect(self.show_state)
        session.controller.progress_changed.connect(self._show_progress)
        session.image_changed.connect(self._show_image)

    def _images(self, _widget: object) -> list[Image]:
        return [layer for layer in self._session.viewer.layers if isinstance(layer, Image)]

    def _choose_first_image(self) -> None:
        """Chooses the selected image, else the topmost one."""
        images, active = self._images(None), self._session.viewer.layers.selection.active
        self.image_choice.value = active if active in images else next(reversed(images), None)

    def _layers_changed(self) -> None:
        self.image_choice.reset_choices()
        if self.image_choice.value is None and self._session.image is None:
            self._choose_first_image()

    def _show_image(self) -> None:
        if self.image_choice.value is not self._session.image:
            self.image_choice.reset_choices()
            self.image_choice.value = self._session.image
        self._show_channels()

    def _show_channels(self) -> None:
        image, channels = self._session.image, self._session.channels
        axes = [] if image is None or image.rgb else channel_axes(image)
        self._channel_row.setVisible(bool(axes))
        self.axis_choice.clear()
        self.axis_choice.addItem('No axis', None)
        for axis in axes:
            self.axis_choice.addItem(f'Axis {image.axis_labels[axis]}', axis)
        self.axis_choice.setCurrentIndex(self.axis_choice.findData(channels.axis) if channels else 0)
        for place, combo in enumerate(self.channel_choices):
            combo.clear()
            combo.setVisible(channels is not None)
            if channels is None:
                continue
            if place:
                combo.addItem(_NONE, None)
            for number in range(full_resolution(image).shape[channels.axis]):
                combo.addItem(str(number), number)
            chosen = channels.chosen[place] if place < len(channels.chosen) else None
            combo.setCurrentIndex(max(combo.findData(chosen), 0))

    def _choose_axis(self) -> None:
        axis = self.axis_choice.currentData()
        self._session.set_channels(None if axis is None else Channels(axis))

    def _choose_channels(self) -> None:
        chosen = [combo.currentData() for combo in self.channel_choices]
        axis = self.axis_choice.currentData()
        self._session.set_channels(Channels(axis, tuple(channel for channel in chosen if channel is not None)))

    def _show_progress(self, fraction: float, message: str) -> None:
        self.progress_bar.setValue(round(1000 * fraction))
        caption = message[:1].upper() + message[1:]
        # A model's first step can be its longest, and 0 % all the while would look stuck.
        self.progress_bar.setFormat(f'{caption}  %p%' if fraction else f'{caption} ...')


def _combo(tooltip: str) -> QComboBox:
    combo = QComboBox()
    combo.setToolTip(tooltip)
    combo.setFocusPolicy(Qt.FocusPolicy.NoFocus)
    combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToContents)
    return combo
