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
        self._watched: set[Image] = set()

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
        self._channels[image] = channels
        self._watch()

    def remove(self, layer: Image) -> list[Image]:
        """Forgets a layer that was removed; returns the images of which it was a channel, which have none now."""
        self._channels.pop(layer, None)
        lacking = [image for image, channels in self._channels.items() if layer in layers_of(channels)]
        for image in lacking:
            self._channels[image] = None
        self._watch()
        return lacking

    def close(self) -> None:
        """Watches nothing any more."""
        self._channels.clear()
        self._watch()

    def _watch(self) -> None:
        now = {*self._channels, *(layer for channels in self._channels.values() for layer in layers_of(channels))}
        before, self._watched = self._watched, now
        for layers, act in ((before - now, 'disconnect'), (now - before, 'connect')):
            for layer in layers:
                getattr(layer.events.data, act)(self._tell_pixels)
                getattr(layer.events.contrast_limits, act)(self._tell_contrast)

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
