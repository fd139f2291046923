"""The frame of an image: the coordinates of prompts, planes and objects, and the transform of their layers.

Its coordinates are the data coordinates of the image layer, except along a channel axis: that axis has length 1, and
its only pixel spans all channels. So an object belongs to all channels, and is shown at each slider position of
that axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pint
from napari.utils.transforms import Affine

from napari_unsam.model.label_boxes import MAX_AXES
from unsam_mm.errors import ImageError

if TYPE_CHECKING:
    from napari.components import Dims
    from napari.layers import Image

TRANSFORM = ('scale', 'translate', 'rotate', 'shear', 'affine', 'units', 'axis_labels')
"""The properties of a layer that define its transform."""

_MAX_CHANNELS = 16  # a longer axis is unlikely to be a channel axis
_MAX_CHOSEN = 3


@dataclass(frozen=True)
class Channels:
    """The channels of an image that the model sees.

    Attributes:
        axis: The channel axis of the layer.
        chosen: One to three indices along it: one is grey, two are red and green, three are red, green and blue.

    Raises:
        ImageError: If there are none or more than three.
    """

    axis: int
    chosen: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        _check_count(self.chosen)


@dataclass(frozen=True)
class LayerChannels:
    """Layers that the model sees as the channels of one image, each at its own contrast limits; colormaps are not used.

    Attributes:
        layers: One to three: one is grey, two are red and green, three are red, green and blue.

    Raises:
        ImageError: If there are none or more than three, if one is an RGB image, or if they are not aligned.
    """

    layers: tuple[Image, ...]

    def __post_init__(self) -> None:
        _check_count(self.layers)
        for layer in self.layers:
            if layer.rgb:
                raise ImageError(f'"{layer.name}" is an RGB image and cannot be a channel.')
            check_aligned(self.layers[0], layer)

    @property
    def axis(self) -> None:
        """None: the layers have no channel axis."""
        return None


def layers_of(channels: Channels | LayerChannels | None) -> tuple[Image, ...]:
    """The layers that are the channels; empty if the channels lie along an axis, or if there are none."""
    return channels.layers if isinstance(channels, LayerChannels) else ()


def check_aligned(image: Image, other: Image) -> None:
    """Checks that two layers have the same shape and transform.

    Raises:
        ImageError: If the shapes or transforms differ.
    """
    names, shapes = [f'"{layer.name}"' for layer in (image, other)], []
    for layer in (image, other):
        shapes.append(' x '.join(map(str, full_resolution(layer).shape)))
    if shapes[0] != shapes[1]:
        raise ImageError(f'{names[0]} has {shapes[0]} px and {names[1]} {shapes[1]}; channels must be equal in shape.')
    corners = np.vstack([np.zeros(image.ndim), np.eye(image.ndim) * full_resolution(image).shape[: image.ndim]])
    placed = [np.array([layer.data_to_world(corner) for corner in corners]) for layer in (image, other)]
    smallest = np.abs(np.asarray(image.scale)).min()
    if image.units != other.units or not np.allclose(*placed, rtol=0, atol=smallest / 100):
        raise ImageError(
            f'{names[1]} does not lie on {names[0]}: give both the same scale, translation, rotation and units.'
        )


def channel_axes(image: Image) -> list[int]:
    """The axes of a layer that may be channel axes: those of 2 to 16 pixels, without the last two axes."""
    shape = full_resolution(image).shape[: image.ndim]
    return [axis for axis, length in enumerate(shape[:-2]) if 2 <= length <= _MAX_CHANNELS]


def axis_label(image: Image, axis: int) -> str | None:
    """The label of an axis; None if it is napari's default, a number."""
    label = str(image.axis_labels[axis])
    return None if label.lstrip('-').isdigit() else label


def labelled_channels(image: Image) -> Channels | None:
    """The first channel along the axis with a label such as 'c' or 'channel'; None if there is no such axis."""
    for axis in channel_axes(image):
        if str(image.axis_labels[axis]).lower() in ('c', 'ch', 'channel', 'channels'):
            return Channels(axis)
    return None


def _check_count(chosen: Sequence[object]) -> None:
    if not 1 <= len(chosen) <= _MAX_CHOSEN:
        raise ImageError(f'choose one to {_MAX_CHOSEN} channels, got {len(chosen)}')


def full_resolution(image: Image) -> Any:
    """The array of an image layer; of a pyramid, the array at full resolution."""
    return image.data[0] if image.multiscale else image.data


class Frame:
    """The frame of one image.

    Args:
        image: The layer.
        channels: The channels of the image; only a channel axis changes the frame.
        world_units: Units of the axes of the viewer, `viewer.dims.units`, which are the smallest units of all layers;
            by default the units of the image.
    """

    def __init__(
        self,
        image: Image,
        channels: Channels | LayerChannels | None = None,
        world_units: Sequence[pint.Unit] | None = None,
    ) -> None:
        self.image, self.channels = image, channels if isinstance(channels, Channels) else None
        self._world_units = world_units

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in pixels; a channel axis has length 1."""
        shape = list(full_resolution(self.image).shape[: self.image.ndim])
        if self.channels is not None:
            shape[self.channels.axis] = 1
        return tuple(shape)

    def check_axes(self) -> None:
        """Checks the number of axes.

        Raises:
            ImageError: If objects of the image have too many axes to be measured and exported.
        """
        ndim = len(self.shape) - (self.channels is not None)
        if ndim > MAX_AXES:
            raise ImageError(
                f'"{self.image.name}" has {ndim} axes, and objects can have {MAX_AXES} at most; crop it, or choose its '
                'channel axis.'
            )

    def transform(self, origin: Sequence[float] | None = None) -> dict[str, Any]:
        """The `TRANSFORM` properties of a layer whose pixels are those of the frame.

        Args:
            origin: Position of the first pixel of the layer in the frame; by default the first pixel of the image.
        """
        image = self.image
        origin = np.zeros(image.ndim) if origin is None else origin
        linear = Affine(scale=image.scale, rotate=image.rotate, shear=image.shear, ndim=image.ndim).linear_matrix
        transform = {name: getattr(image, name) for name in TRANSFORM}
        return transform | {
            'scale': image.scale * self._pixel_size,
            'translate': image.translate + linear @ self._to_layer(origin),
        }

    def to_data(self, world: Sequence[float]) -> tuple[float, ...]:
        """Converts a position in the world to the frame; of a longer position, the last axes are used."""
        ndim = self.image.ndim
        # napari pads with zeros if a layer has more axes than the world.
        world = np.concatenate([np.zeros(ndim), world])[-ndim:]
        size = self._pixel_size
        position = (np.array(self.image.world_to_data(world * self._world_unit)) - (size - 1) / 2) / size
        return tuple(position.tolist())

    def to_world(self, position: Sequence[float]) -> np.ndarray:
        """Converts a position in the frame to the world: (N,) floats, one for each axis of the image."""
        return np.asarray(self.image.data_to_world(self._to_layer(position))) / self._world_unit

    def displayed(self, dims: Dims) -> tuple[int, int]:
        """The two axes of the image that a 2D view shows, ascending.

        Raises:
            ImageError: If the view is 3D, or shows an axis that the image lacks or its channel axis.
        """
        if dims.ndisplay != 2:
            raise ImageError('The view is 3D; switch to 2D to click on a plane.')
        axes = tuple(sorted(axis - (dims.ndim - self.image.ndim) for axis in dims.displayed))
        if axes[0] < 0:
            raise ImageError(f'"{self.image.name}" has no axis {dims.displayed[0]}; display its own axes.')
        if self.channels is not None and self.channels.axis in axes:
            raise ImageError('The view shows the channel axis; display the other axes.')
        return axes

    @property
    def _pixel_size(self) -> np.ndarray:
        """(N,) size of a pixel of the frame in pixels of the layer."""
        size = np.ones(self.image.ndim)
        if self.channels is not None:
            size[self.channels.axis] = full_resolution(self.image).shape[self.channels.axis]
        return size

    def _to_layer(self, position: Sequence[float]) -> np.ndarray:
        """Converts a position in the frame to (N,) data coordinates of the layer."""
        size = self._pixel_size
        return np.asarray(position, float) * size + (size - 1) / 2

    @property
    def _world_unit(self) -> np.ndarray:
        """(N,) the viewer's unit of each image axis, as a multiple of the image's unit."""
        units, world_units = self.image.units, self._world_units
        if world_units is None or len(world_units) < len(units):
            return np.ones(len(units))
        in_base = pint.get_application_registry().get_base_units
        pairs = zip(world_units[-len(units) :], units, strict=True)
        return np.array([in_base(world)[0] / in_base(own)[0] for world, own in pairs])
