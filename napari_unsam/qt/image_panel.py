"""The section for the image: its layer, channels, analysis and progress."""

from __future__ import annotations

from magicgui.widgets import ComboBox
from napari.layers import Image
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QGridLayout, QSizePolicy, QWidget

from napari_unsam.model.frame import Channels, LayerChannels, axis_label, channel_axes, full_resolution
from napari_unsam.qt.controls import SLIDER_STEPS, JobBar, Panel, fill, set_items
from unsam_mm.errors import ImageError

CONTRAST_DELAY_MS = 500
"""Delay after the last change of the contrast limits before the slice is analysed again."""

_ANALYSE, _LAYERS = 'Analyse slice', 'layers'
_CHANNEL_CHARACTERS = 4  # minimum shown; long names of layers must not widen the dock


class ImagePanel(Panel):
    """Shows and sets the image and its channels, and shows the running job."""

    title = 'Image'

    def build(self) -> None:
        self.image_choice = ComboBox(choices=self._images, nullable=True, tooltip='The image to segment')
        self.image_choice.native.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self._build()
        self._contrast_timer = QTimer(self, singleShot=True, interval=CONTRAST_DELAY_MS)
        self._connect()
        self._choose_first_image()
        self.show_state()
        self._show_channels()

    def close_session(self) -> None:
        """Disconnects from the viewer."""
        self._contrast_timer.stop()
        super().close_session()

    def show_state(self) -> None:
        """Shows the state of the controller."""
        controller = self._session.controller
        busy, is_ready = controller.is_busy, controller.plane is not None
        self.embed_button.setEnabled(controller.target is not None and not busy)
        self.embed_button.setText('Analyse again' if is_ready else _ANALYSE)
        self.cancel_button.setEnabled(busy)
        self.stack_button.setVisible(self._session.stack.is_stack)
        self.stack_button.setEnabled(not busy)
        if not busy:
            self.progress_bar.setValue(SLIDER_STEPS if is_ready else 0)
            self.progress_bar.setFormat('Ready' if is_ready else '')

    def _build(self) -> None:
        self.axis_choice = self.make_choice(
            'Channel axis of the image, or channels in separate layers',
            self._choose_axis,
            characters=_CHANNEL_CHARACTERS,
        )
        self.channel_choices = [
            self.make_choice(
                f'Channel used as {colour}; a single channel is used as grey',
                self._choose_channels,
                characters=_CHANNEL_CHARACTERS,
            )
            for colour in ('red', 'green', 'blue')
        ]
        controller = self._session.controller
        self.embed_button = self.make_button(
            _ANALYSE, 'Run the model on this slice; the first click also runs it', controller.embed
        )
        self.cancel_button = self.make_button(
            'Cancel', 'Stop all jobs; prompts and analysed slices are kept', controller.cancel
        )
        self.stack_button = self.make_button(
            'Precompute all slices',
            'Analyse all slices of the stack or movie and store the results; a cancelled run resumes where it stopped',
            self._session.stack.precompute,
        )
        self.progress_bar = JobBar()
        self._channel_row = QWidget()
        grid = fill(QGridLayout(self._channel_row), ['Channels', self.axis_choice], self.channel_choices)
        grid.setContentsMargins(0, 0, 0, 0)
        self.lay_out(
            [self.image_choice.native],
            [self._channel_row],
            [self.embed_button, self.cancel_button],
            [self.stack_button],
            [self.progress_bar],
        )

    def _connect(self) -> None:
        session, layers = self._session, self._session.viewer.layers.events
        self.image_choice.changed.connect(session.set_image)
        self.subscribe(self._layers_changed, layers.inserted, layers.removed, layers.renamed)
        self.subscribe(self.show_state, session.controller.state_changed)
        self.subscribe(self.progress_bar.show_progress, session.controller.progress_changed)
        self.subscribe(self._show_image, session.image_changed)
        self.subscribe(self._contrast_changed, session.contrast_changed)
        self._contrast_timer.timeout.connect(session.reanalyse)

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
        self._contrast_timer.start()

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
        choices = {None: 'No axis', **{axis: f'Axis {axis_label(image, axis) or axis + 1}' for axis in axes}}
        choices |= {_LAYERS: 'Layers'} if others else {}
        kind = None if channels is None else _LAYERS if channels.axis is None else channels.axis
        set_items(self.axis_choice, choices, kind if kind in choices else None)
        if channels is None:
            chosen, choices = (), {}
        elif channels.axis is None:
            chosen, choices = channels.layers, {layer: layer.name for layer in [image, *others]}
        else:
            length = full_resolution(image).shape[channels.axis]
            chosen, choices = channels.chosen, {number: str(number) for number in range(length)}
        for place, combo in enumerate(self.channel_choices):
            combo.setVisible(channels is not None)
            items = {None: 'None', **choices} if place else choices
            set_items(combo, items, chosen[place] if place < len(chosen) else None)

    def _choose_axis(self, axis: int | str | None) -> None:
        if axis == _LAYERS:
            self._session.set_channels(LayerChannels((self._session.image,)))
        else:
            self._session.set_channels(None if axis is None else Channels(axis))

    def _choose_channels(self, _value: object) -> None:
        chosen = tuple(combo.currentData() for combo in self.channel_choices if combo.currentData() is not None)
        axis = self.axis_choice.currentData()
        try:
            self._session.set_channels(LayerChannels(chosen) if axis == _LAYERS else Channels(axis, chosen))
        except ImageError:
            self._show_channels()
            raise

    def _other_layers(self) -> list[Image]:
        """Layers that can be channels in addition to the image; whether they fit is checked when they are chosen."""
        return [layer for layer in self._images(None) if layer is not self._session.image and not layer.rgb]
