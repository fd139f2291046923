"""Metadata of TIFF files: pixel size, and the planes of an OME-TIFF that a file contains.

Metadata are written by many programs and are often broken. Broken metadata never prevent reading an image: values that
cannot be read are left out.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile

PixelSizes = dict[str, tuple[float, str]]
"""Axis, a letter of 'XYZT', to the size of a pixel along this axis (for T, the interval in time) and its unit."""

UNKNOWN_SIZE = (1.0, 'pixel')

# Symbols and words that OME, ImageJ and their users write, to the size of the unit as a factor and a standard unit.
_LENGTH_UNITS = {
    symbol: (factor, unit)
    for symbols, factor, unit in (
        ('nm nanometer nanometers nanometre nanometres', 1, 'nanometer'),
        ('μm um micron microns micrometer micrometers micrometre micrometres', 1, 'micrometer'),
        ('mm millimeter millimeters millimetre millimetres', 1, 'millimeter'),
        ('cm centimeter centimeters centimetre centimetres', 1, 'centimeter'),
        ('m meter meters metre metres', 1, 'meter'),
        ('pm picometer picometers', 1e-3, 'nanometer'),
        ('Å A angstrom angstroms ångström', 0.1, 'nanometer'),
        ('thou mil', 25.4, 'micrometer'),
        ('in inch inches "', 25.4, 'millimeter'),
        ('pt point points', 25.4 / 72, 'millimeter'),
        ('dm decimeter', 10, 'centimeter'),
        ('ft foot feet', 0.3048, 'meter'),
        ('yd yard yards', 0.9144, 'meter'),
        ('km kilometer kilometers kilometre', 1000, 'meter'),
        ('mi mile miles', 1609.344, 'meter'),
    )
    for symbol in symbols.split()
}
_TIME_UNITS = {
    symbol: (factor, 'second')
    for symbols, factor in (
        ('s sec secs second seconds', 1),
        ('ns nanosecond nanoseconds', 1e-9),
        ('μs us microsecond microseconds', 1e-6),
        ('ms msec millisecond milliseconds', 1e-3),
        ('min minute minutes', 60),
        ('h hr hour hours', 3600),
        ('d day days', 86400),
    )
    for symbol in symbols.split()
}
_METERS = {'nanometer': 1e-9, 'micrometer': 1e-6, 'millimeter': 1e-3, 'centimeter': 1e-2, 'meter': 1.0, 'second': 1.0}
_PLAUSIBLE_LENGTH = (1e-12, 1e6)  # in meters; the square and cube neither overflow nor underflow
_PLAUSIBLE_TIME = (1e-12, 1e12)


def pixel_sizes(file: tifffile.TiffFile) -> PixelSizes:
    """Pixel sizes in OME or ImageJ metadata; empty if there are none.

    Lengths are returned only if both X and Y are known, and are converted to the unit of X. Sizes that are not
    positive, not finite or implausible, and sizes in units that are not lengths, such as 'pixel', are left out.
    """
    try:
        if file.is_ome:
            sizes = _sizes_in_ome(file.ome_metadata or '', file.pages.first)
        elif file.is_imagej:
            sizes = _sizes_of_imagej(file)
        else:
            return {}
    except Exception:  # noqa: BLE001 (broken metadata raise anything, and must not prevent reading the image)
        return {}
    if not {'X', 'Y'} <= sizes.keys():
        return {axis: size for axis, size in sizes.items() if axis == 'T'}
    return _in_one_unit(sizes)


def scale_and_units(sizes: PixelSizes, axes: Iterable[str]) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """Size of a pixel and unit along each axis; 1 and 'pixel' if they are unknown."""
    known = [sizes.get(axis.upper(), UNKNOWN_SIZE) for axis in axes]
    return tuple(size for size, _ in known), tuple(unit for _, unit in known)


def parse_xml(text: str) -> ElementTree.Element | None:
    """The root of an XML document; None if it is broken or, since entities are unsafe, declares a document type."""
    if '<!DOCTYPE' in text or '<!ENTITY' in text:
        return None
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError):
        return None


def own_ome_xml(text: str, filename: str) -> str | None:
    """OME-XML for the planes in one file of a multi-file set.

    Args:
        text: OME-XML of the file; it may name other files of the set.
        filename: Name of the file, without folders.

    Returns:
        `text` if it names no other file; else OME-XML that describes only the planes in this file. None if the text
        cannot be parsed, or the planes do not form a block of channels, slices and time points.
    """
    root = parse_xml(text)
    if root is None:
        return None
    named = {uuid.text: uuid.get('FileName', '') for uuid in root.iterfind('.//{*}TiffData/{*}UUID')}
    own = root.get('UUID') or next((key for key, name in named.items() if name.lower() == filename.lower()), None)
    if own is None and len(named) == 1:  # a single file, which has been renamed
        (own,) = named
    if not named or (named.keys() == {own} and root.get('UUID')):
        return text
    try:
        for image in root.findall('{*}Image'):
            if not _keep_own_planes(image.find('{*}Pixels'), own):
                root.remove(image)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    if root.find('{*}Image') is None:
        return None
    root.attrib.pop('UUID', None)
    return ElementTree.tostring(root, encoding='unicode')


def _keep_own_planes(pixels: ElementTree.Element, own: str | None) -> bool:
    """Rewrites ``TiffData``, sizes and channels for the planes of one file; False if it contains no plane of `pixels`.

    Raises:
        KeyError, TypeError, ValueError: If the planes cannot be described.
    """
    order = pixels.attrib['DimensionOrder'][2:]  # without X and Y; the axis that varies fastest is first
    channels = pixels.findall('{*}Channel')
    samples = int(channels[0].get('SamplesPerPixel', 1)) if channels else 1
    sizes = {axis: int(pixels.attrib[f'Size{axis}']) // (samples if axis == 'C' else 1) for axis in order}
    shape = tuple(sizes[axis] for axis in order)
    ifds: dict[tuple[int, ...], int] = {}
    for data in pixels.findall('{*}TiffData'):
        uuid = data.find('{*}UUID')
        if uuid is None or uuid.text == own:
            first = np.ravel_multi_index([int(data.get(f'First{axis}', 0)) for axis in order], shape, order='F')
            if not {'IFD', 'PlaneCount'} & data.attrib.keys():
                raise ValueError('the number of planes is not stated')
            for i in range(int(data.get('PlaneCount', 1))):
                position = tuple(int(k) for k in np.unravel_index(first + i, shape, order='F'))
                ifds[position] = int(data.get('IFD', 0)) + i
        pixels.remove(data)
    if not ifds:
        return False
    kept = [sorted(set(along)) for along in zip(*ifds, strict=True)]
    if math.prod(len(along) for along in kept) != len(ifds):
        raise ValueError('the planes form no block')
    for axis, along in zip(order, kept, strict=True):
        pixels.set(f'Size{axis}', str(len(along) * (samples if axis == 'C' else 1)))
        for i, channel in enumerate(channels if axis == 'C' else ()):
            if i not in along:
                pixels.remove(channel)
    namespace = pixels.tag.removesuffix('Pixels')
    for position, ifd in ifds.items():
        first = {f'First{axis}': str(along.index(k)) for axis, along, k in zip(order, kept, position, strict=True)}
        ElementTree.SubElement(pixels, f'{namespace}TiffData', {'IFD': str(ifd), 'PlaneCount': '1', **first})
    return True


def _sizes_in_ome(xml: str, page: tifffile.TiffPage) -> PixelSizes:
    root = parse_xml(xml)
    if root is None:
        return {}
    found = [part.attrib for part in root.iter() if part.tag.endswith('}Pixels') or part.tag == 'Pixels']
    if len(found) > 1:
        side = {'SizeX': str(page.imagewidth), 'SizeY': str(page.imagelength)}
        found = [given for given in found if side.items() <= given.items()]
    if not found:
        return {}
    keys = {'T': 'TimeIncrement'} | {axis: f'PhysicalSize{axis}' for axis in 'XYZ'}
    default = {'T': 's'}
    sizes = {
        axis: _size(found[0].get(key), found[0].get(f'{key}Unit', default.get(axis, 'µm')), axis)
        for axis, key in keys.items()
    }
    return {axis: size for axis, size in sizes.items() if size is not None}


def _sizes_of_imagej(file: tifffile.TiffFile) -> PixelSizes:
    metadata = file.imagej_metadata or {}
    unit, tags = str(metadata.get('unit', '')), file.pages.first.tags
    sizes: dict[str, Any] = {
        'T': _size(metadata.get('finterval'), 's', 'T'),
        'Z': _size(metadata.get('spacing'), unit, 'Z'),
    }
    for axis, tag in (('X', 'XResolution'), ('Y', 'YResolution')):
        steps, length = tags[tag].value if tag in tags else (0, 1)
        sizes[axis] = _size(length / steps, unit, axis) if steps else None
    return {axis: size for axis, size in sizes.items() if size is not None}


def _size(value: Any, unit: str, axis: str) -> tuple[float, str] | None:
    """A size and its unit; None if the size is not a plausible number, or the unit is not a length (for T, a time)."""
    text = str(value).strip()
    try:
        number = float(text.replace(',', '.') if '.' not in text else text)  # some languages have a decimal comma
    except ValueError:
        return None
    known, plausible = (_TIME_UNITS, _PLAUSIBLE_TIME) if axis == 'T' else (_LENGTH_UNITS, _PLAUSIBLE_LENGTH)
    symbol = _symbol(unit)
    factor, name = known.get(symbol) or known.get(symbol.lower() if len(symbol) > 2 else symbol) or (0.0, '')
    # comparisons with NaN are false
    return (number * factor, name) if name and plausible[0] <= number * factor * _METERS[name] <= plausible[1] else None


def _symbol(unit: str) -> str:
    """A unit with uniform spelling of micro and angstrom; ImageJ writes ``\\u00B5`` as six characters."""
    unit = unit.replace('\\u00B5', 'µ').replace('\\u00b5', 'µ').replace('\\u00C5', 'Å').replace('Âµ', 'µ')
    return unicodedata.normalize('NFKC', unit.strip('\0 \t\r\n'))


def _in_one_unit(sizes: PixelSizes) -> PixelSizes:
    unit = sizes['X'][1]
    if {name for axis, (_, name) in sizes.items() if axis != 'T'} == {unit}:
        return sizes
    return {
        axis: (size, name) if axis == 'T' else (size * _METERS[name] / _METERS[unit], unit)
        for axis, (size, name) in sizes.items()
    }
