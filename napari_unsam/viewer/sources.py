"""The channels that the model sees of each image, and the changes of their layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psygnal import Signal

from napari_unsam.model.frame import Channels, LayerChannels, labelled_channels, layers_of

if TYPE_CHECKING:
    from napari.layers import Image


class Sources:
    """The images that were chosen in a session, each with its channels."""

    pixels_changed = Signal(object)
    """Emitted with each image whose pixels have changed."""
    contrast_changed = Signal(object)
    """Emitted with each image whose contrast has changed, at each step of the slider."""

    def __init__(self) -> None:
        self._channels: dict[Image, Channels | LayerChannels | None] = {}
        self._watched: set[Image] = set()

    def __contains__(self, image: Image) -> bool:
        return image in self._channels

    def add(self, image: Image) -> None:
        """Connects to the events of an image."""
        if image not in self._channels:
            self.set_channels(image, labelled_channels(image))

    def channels(self, image: Image | None) -> Channels | LayerChannels | None:
        """The channels of an image that the model sees; None if none were chosen."""
        return self._channels.get(image)

    def set_channels(self, image: Image, channels: Channels | LayerChannels | None) -> None:
        """Chooses the channels of an image."""
        self._channels[image] = channels
        self._watch()

    def remove(self, layer: Image) -> list[Image]:
        """Forgets a removed layer; returns the images that had it as a channel, whose choice of channels is reset."""
        self._channels.pop(layer, None)
        affected = [image for image, channels in self._channels.items() if layer in layers_of(channels)]
        for image in affected:
            self._channels[image] = None
        self._watch()
        return affected

    def close(self) -> None:
        """Disconnects from all images."""
        self._channels.clear()
        self._watch()

    def _watch(self) -> None:
        now = {*self._channels, *(layer for channels in self._channels.values() for layer in layers_of(channels))}
        before, self._watched = self._watched, now
        for layers, act in ((before - now, 'disconnect'), (now - before, 'connect')):
            for layer in layers:
                getattr(layer.events.data, act)(self._emit_pixels)
                getattr(layer.events.contrast_limits, act)(self._emit_contrast)

    def _emit_pixels(self, event: Any) -> None:
        for image in self._images_using(event.source):
            self.pixels_changed.emit(image)

    def _emit_contrast(self, event: Any) -> None:
        for image in self._images_using(event.source):
            if not image.rgb:  # contrast limits do not apply to RGB images
                self.contrast_changed.emit(image)

    def _images_using(self, layer: Image) -> list[Image]:
        """The images whose pixels for the model come from a layer."""
        return [image for image, channels in self._channels.items() if layer in (layers_of(channels) or (image,))]
