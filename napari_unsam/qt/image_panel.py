"""The section for the image: layer, channels, analysis and its progress."""

from __future__ import annotations

from typing import TYPE_CHECKING

from magicgui.widgets import ComboBox
from napari.layers import Image
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QComboBox, QGridLayout, QLabel, QProgressBar, QSizePolicy, QWidget

from napari_unsam.model.frame import Channels, LayerChannels, axis_label, channel_axes, full_resolution
from napari_unsam.model.targets import Level
from napari_unsam.qt.controls import button
from unsam_mm.errors import ImageError

if TYPE_CHECKING:
    from napari_unsam.viewer.session import ViewerSession

CONTRAST_RESTS_MS = 500
"""How long a slider of contrast limits has to rest before the model looks at the image as it is shown then."""

_COLOURS = ('Red', 'Green', 'Blue')
_NONE, _LAYERS = 'None', 'layers'
_CHANNEL_CHARACTERS = 4  # of a layer's name are shown at least; longer ones must not widen the dock


class ImagePanel(QWidget):
    """Image, channels, and the job that runs.

    Args:
        session: What to control.
    """

    title = 'Image'

    def __init__(self, session: ViewerSession) -> None:
        super().__init__()
        self._session = session
        self.image_choice = ComboBox(choices=self._images, nullable=True, tooltip='The image to segment')
        self.image_choice.native.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.axis_choice = _combo('Channel axis of the image, or channels in separate layers')
        self.channel_choices = [
            _combo(f'Channel used as {colour.lower()}; a single channel is used as grey') for colour in _COLOURS
        ]
        self.embed_button = button('Analyse slice', 'Run the model on this slice; the first click does so too')
        self.cancel_button = button('Cancel', 'Stop all jobs; prompts and analysed slices are kept')
        self.stack_button = button(
            'Precompute all slices',
            'Analyse all slices of the stack or movie and store the results; a cancelled run resumes where it stopped',
        )
        self.progress_bar = QProgressBar()
        self.progress_bar.setRange(0, 1000)
        self.progress_bar.setTextVisible(True)
        self._contrast_rests = QTimer(self, singleShot=True, interval=CONTRAST_RESTS_MS)
        self._lay_out()
        self._connect()
        self._choose_first_image()
        self.show_state()
        self._show_channels()

    def close_session(self) -> None:
        """Disconnects from the viewer."""
        self._contrast_rests.stop()
        layers = self._session.viewer.layers.events
        for emitter in (layers.inserted, layers.removed, layers.renamed):
            emitter.disconnect(self._layers_changed)

    def show_state(self) -> None:
        """Shows the state of the controller."""
        controller = self._session.controller
        busy, is_ready = controller.is_busy, controller.plane is not None
        self.embed_button.setEnabled(controller.target is not None and not busy)
        self.embed_button.setText('Analyse again' if is_ready else 'Analyse slice')
        self.cancel_button.setEnabled(busy)
        self.stack_button.setVisible(self._session.stack.is_stack)
        self.stack_button.setEnabled(not busy)
        if not busy:
            self.progress_bar.setValue(1000 if is_ready else 0)
            self.progress_bar.setFormat('Ready' if is_ready else '')

    def _lay_out(self) -> None:
        grid = QGridLayout(self)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.addWidget(self.image_choice.native, 0, 0, 1, 2)
        self._channel_row = QWidget()
        rows = QGridLayout(self._channel_row)
        rows.setContentsMargins(0, 0, 0, 0)
        rows.addWidget(QLabel('Channels'), 0, 0)
        rows.addWidget(self.axis_choice, 0, 1, 1, 2)
        for column, combo in enumerate(self.channel_choices):
            rows.addWidget(combo, 1, column)
        grid.addWidget(self._channel_row, 1, 0, 1, 2)
        grid.addWidget(self.embed_button, 2, 0)
        grid.addWidget(self.cancel_button, 2, 1)
        grid.addWidget(self.stack_button, 3, 0, 1, 2)
        grid.addWidget(self.progress_bar, 4, 0, 1, 2)

    def _connect(self) -> None:
        session = self._session
        layers = session.viewer.layers.events
        for emitter in (layers.inserted, layers.removed, layers.renamed):
            emitter.connect(self._layers_changed)
        self.image_choice.changed.connect(session.set_image)
        self.embed_button.clicked.connect(lambda: session.controller.embed())
        self.cancel_button.clicked.connect(lambda: session.controller.cancel())
        reporting = session.controller.reporting
        self.stack_button.clicked.connect(reporting(lambda *_: session.stack.precompute()))
        self.axis_choice.activated.connect(reporting(lambda _: self._choose_axis()))
        for combo in self.channel_choices:
            combo.activated.connect(lambda _: self._choose_channels())
        session.controller.state_changed.connect(self.show_state)
        session.controller.progress_changed.connect(self._show_progress)
        session.image_changed.connect(self._show_image)
        self._contrast_rests.timeout.connect(lambda: session.reanalyse())
        session.contrast_changed.connect(self._contrast_changed)

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
        self._show_channels()

    def _contrast_changed(self) -> None:
        self._contrast_rests.start()

    def _show_image(self) -> None:
        if self.image_choice.value is not self._session.image:
            self.image_choice.reset_choices()
            self.image_choice.value = self._session.image
        self._show_channels()

    def _show_channels(self) -> None:
        image, channels = self._session.image, self._session.channels
        axes = [] if image is None or image.rgb else channel_axes(image)
        others = [] if image is None or image.rgb else self._other_layers()
        self._channel_row.setVisible(bool(axes or others))
        self.axis_choice.clear()
        self.axis_choice.addItem('No axis', None)
        for axis in axes:
            self.axis_choice.addItem(f'Axis {axis_label(image, axis) or axis + 1}', axis)
        if others:
            self.axis_choice.addItem('Layers', _LAYERS)
        kind = None if channels is None else _LAYERS if channels.axis is None else channels.axis
        self.axis_choice.setCurrentIndex(max(self.axis_choice.findData(kind), 0))
        for place, combo in enumerate(self.channel_choices):
            combo.clear()
            combo.setVisible(channels is not None)
            if channels is None:
                continue
            if place:
                combo.addItem(_NONE, None)
            if channels.axis is None:
                chosen, options = channels.layers, {layer: layer.name for layer in [image, *others]}
            else:
                length = full_resolution(image).shape[channels.axis]
                chosen, options = channels.chosen, {number: str(number) for number in range(length)}
            for value, text in options.items():
                combo.addItem(text, value)
            if place < len(chosen):
                combo.setCurrentIndex(list(options).index(chosen[place]) + bool(place))

    def _choose_axis(self) -> None:
        axis = self.axis_choice.currentData()
        if axis == _LAYERS:
            self._session.set_channels(LayerChannels((self._session.image,)))
        else:
            self._session.set_channels(None if axis is None else Channels(axis))

    def _choose_channels(self) -> None:
        chosen = tuple(combo.currentData() for combo in self.channel_choices if combo.currentData() is not None)
        axis = self.axis_choice.currentData()
        try:
            self._session.set_channels(LayerChannels(chosen) if axis == _LAYERS else Channels(axis, chosen))
        except ImageError as error:
            self._session.controller.say(str(error), Level.PROBLEM)
            self._show_channels()

    def _other_layers(self) -> list[Image]:
        """What may be channels besides the image; whether they lie on it is said when they are chosen."""
        return [layer for layer in self._images(None) if layer is not self._session.image and not layer.rgb]

    def _show_progress(self, fraction: float, message: str) -> None:
        self.progress_bar.setValue(round(1000 * fraction))
        caption = message[:1].upper() + message[1:]
        # A model's first step can be its longest, and 0 % all the while would look stuck.
        self.progress_bar.setFormat(f'{caption}  %p%' if fraction else f'{caption} ...')


def _combo(tooltip: str) -> QComboBox:
    combo = QComboBox()
    combo.setToolTip(tooltip)
    combo.setFocusPolicy(Qt.FocusPolicy.NoFocus)
    combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    combo.setMinimumContentsLength(_CHANNEL_CHARACTERS)
    return combo
