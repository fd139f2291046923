"""Where an image's layers lie: as the image, with its channels, if it has an axis of them, taken for one thick plane.

All positions, planes and layers of the plugin are in this frame. So an object drawn on one channel belongs to all of them
and is shown whichever the sliders stand at.
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

PLACING = ('scale', 'translate', 'rotate', 'shear', 'affine', 'units', 'axis_labels')
"""What places a layer in the world."""

_MAX_CHANNELS = 16  # a longer axis is hardly one of channels
_MAX_SHOWN = 3


@dataclass(frozen=True)
class Channels:
    """Which channels of an image the model sees.

    Attributes:
        axis: The axis of the layer that they lie along.
        chosen: One to three of them; three are taken for red, green and blue.

    Raises:
        ImageError: If there are none or more than three.
    """

    axis: int
    chosen: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        _check_count(self.chosen)


@dataclass(frozen=True)
class LayerChannels:
    """Layers that the model sees as the channels of one image, each at its own contrast limits.

    Attributes:
        layers: One to three of them; three are taken for red, green and blue. Whatever their colormaps, only their
            values count.

    Raises:
        ImageError: If there are none or more than three, or they do not lie on each other.
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
        """No axis of the layers is of channels."""
        return None


def layers_of(channels: Channels | LayerChannels | None) -> tuple[Image, ...]:
    """The layers that are channels; none if channels lie along an axis."""
    return channels.layers if isinstance(channels, LayerChannels) else ()


def check_aligned(image: Image, other: Image) -> None:
    """Makes sure that each pixel of one layer lies on the same pixel of the other.

    Raises:
        ImageError: If it does not.
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
    """The axes of a layer that may be of channels: short ones besides the last two."""
    shape = full_resolution(image).shape[: image.ndim]
    return [axis for axis, length in enumerate(shape[:-2]) if 2 <= length <= _MAX_CHANNELS]


def axis_label(image: Image, axis: int) -> str | None:
    """What an axis of a layer is called; None if it has no name but the number that napari gives it."""
    label = str(image.axis_labels[axis])
    return None if label.lstrip('-').isdigit() else label


def labelled_channels(image: Image) -> Channels | None:
    """The first channel of the axis that is called one of channels, if one is."""
    for axis in channel_axes(image):
        if str(image.axis_labels[axis]).lower() in ('c', 'ch', 'channel', 'channels'):
            return Channels(axis)
    return None


def _check_count(chosen: Sequence[object]) -> None:
    if not 1 <= len(chosen) <= _MAX_SHOWN:
        raise ImageError(f'choose one to {_MAX_SHOWN} channels, got {len(chosen)}')


def full_resolution(image: Image) -> Any:
    """The array of an image layer, the finest of a pyramid."""
    return image.data[0] if image.multiscale else image.data


class Frame:
    """The frame of one image.

    Args:
        image: The layer.
        channels: Its channels, if one of its axes is of such; at the time.
        world_units: Of the axes of the viewer, as its `dims` give them; by default those of the image. napari makes them
            the smallest of all layers, so those of the image may be larger.
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
        """Pixels along each axis."""
        shape = list(full_resolution(self.image).shape[: self.image.ndim])
        if self.channels is not None:
            shape[self.channels.axis] = 1
        return tuple(shape)

    def check_axes(self) -> None:
        """Makes sure that objects of the image can be measured and exported.

        Raises:
            ImageError: If it has too many axes.
        """
        ndim = len(self.shape) - (self.channels is not None)
        if ndim > MAX_AXES:
            raise ImageError(
                f'"{self.image.name}" has {ndim} axes, and objects can have {MAX_AXES} at most; crop it, or choose its '
                'channel axis.'
            )

    @property
    def placed(self) -> dict[str, Any]:
        """What places a layer of that shape in the world just as the image is."""
        image = self.image
        placed = {name: getattr(image, name) for name in PLACING}
        if self.channels is None:
            return placed
        axis, count = self.channels.axis, self._n_channels
        linear = Affine(scale=image.scale, rotate=image.rotate, shear=image.shear, ndim=image.ndim).linear_matrix
        scale = np.array(image.scale, float)
        scale[axis] *= count
        return placed | {'scale': scale, 'translate': image.translate + linear[:, axis] * (count - 1) / 2}

    def placed_at(self, origin: Sequence[float]) -> dict[str, Any]:
        """What places a layer of any size in the world such that its first pixel lies at a position in the frame."""
        placed = self.placed
        linear = Affine(
            scale=placed['scale'], rotate=placed['rotate'], shear=placed['shear'], ndim=self.image.ndim
        ).linear_matrix
        return placed | {'translate': placed['translate'] + linear @ np.asarray(origin, float)}

    def to_data(self, world: Sequence[float]) -> tuple[float, ...]:
        """The position in the frame of one in the world."""
        ndim = self.image.ndim
        world = np.concatenate([np.zeros(ndim), world])[
            -ndim:
        ]  # napari pads where a layer has more axes than the world
        position = [float(value) for value in self.image.world_to_data(world * self._world_unit)]
        if self.channels is not None:
            axis, count = self.channels.axis, self._n_channels
            position[axis] = (position[axis] - (count - 1) / 2) / count
        return tuple(position)

    def to_world(self, position: Sequence[float]) -> np.ndarray:
        """The position in the world, one number per axis of the image, of one in the frame."""
        position = np.array(position, float)
        if self.channels is not None:
            axis, count = self.channels.axis, self._n_channels
            position[axis] = position[axis] * count + (count - 1) / 2
        return np.asarray(self.image.data_to_world(position)) / self._world_unit

    def displayed(self, dims: Dims) -> tuple[int, int]:
        """The two axes of the image that a 2D view shows, ascending.

        Raises:
            ImageError: If the view is 3D, or shows an axis that the image lacks or that is of its channels.
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
    def _world_unit(self) -> np.ndarray:
        """(N,) the unit of each axis of the world in that of the image."""
        units, world_units = self.image.units, self._world_units
        if world_units is None or len(world_units) < len(units):
            return np.ones(len(units))
        in_base = pint.get_application_registry().get_base_units
        pairs = zip(world_units[-len(units) :], units, strict=True)
        return np.array([in_base(world)[0] / in_base(own)[0] for world, own in pairs])

    @property
    def _n_channels(self) -> int:
        return full_resolution(self.image).shape[self.channels.axis]
