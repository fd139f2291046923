"""The channels and layers that the model sees of each image; follows their changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psygnal import Signal

from napari_unsam.model.frame import Channels, LayerChannels, labelled_channels, layers_of

if TYPE_CHECKING:
    from napari.layers import Image


class Sources:
    """The images of a session."""

    pixels_changed = Signal(object)
    """Emitted with an image that the model would see other pixels of."""
    contrast_changed = Signal(object)
    """Emitted with an image that the model would see in another contrast; at each step of the slider."""

    def __init__(self) -> None:
        self._channels: dict[Image, Channels | LayerChannels | None] = {}

    def __contains__(self, image: Image) -> bool:
        return image in self._channels

    def add(self, image: Image) -> None:
        """Watches an image from now on."""
        if image not in self._channels:
            self.set_channels(image, labelled_channels(image))

    def channels(self, image: Image | None) -> Channels | LayerChannels | None:
        """Which channels of an image the model sees; None if it has no choice."""
        return self._channels.get(image)

    def set_channels(self, image: Image, channels: Channels | LayerChannels | None) -> None:
        """Chooses the channels of an image."""
        before = self._layers()
        self._channels[image] = channels
        self._update_watched(before)

    def remove(self, layer: Image) -> list[Image]:
        """Forgets a layer that was removed; returns the images of which it was a channel, which have none now."""
        before = self._layers()
        self._channels.pop(layer, None)
        lacking = [image for image, channels in self._channels.items() if layer in layers_of(channels)]
        for image in lacking:
            self._channels[image] = None
        self._update_watched(before)
        return lacking

    def close(self) -> None:
        """Watches nothing any more."""
        before = self._layers()
        self._channels.clear()
        self._update_watched(before)

    def _layers(self) -> set[Image]:
        return {*self._channels, *(layer for channels in self._channels.values() for layer in layers_of(channels))}

    def _update_watched(self, before: set[Image]) -> None:
        now = self._layers()
        for layer in before - now:
            layer.events.data.disconnect(self._tell_pixels)
            layer.events.contrast_limits.disconnect(self._tell_contrast)
        for layer in now - before:
            self._watch(layer)

    def _watch(self, layer: Image) -> None:
        layer.events.data.connect(self._tell_pixels)
        layer.events.contrast_limits.connect(self._tell_contrast)

    def _tell_pixels(self, event: Any) -> None:
        for image in self._images_using(event.source):
            self.pixels_changed.emit(image)

    def _tell_contrast(self, event: Any) -> None:
        for image in self._images_using(event.source):
            if not image.rgb:  # its colours are seen as they are
                self.contrast_changed.emit(image)

    def _images_using(self, layer: Image) -> list[Image]:
        """The images for which the model looks at a layer."""
        return [image for image, channels in self._channels.items() if layer in (layers_of(channels) or (image,))]
