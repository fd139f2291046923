"""Automatic segmentation: objects of an image, without prompts and without overlaps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from napari_unsam.levels.candidate_table import CandidateTable
from napari_unsam.levels.cuts import RegionFilter
from napari_unsam.levels.region_properties import Brightness
from napari_unsam.model.mask import draw_disjoint
from napari_unsam.volumes.linking import link
from unsam_mm.errors import UnSAMError
from unsam_mm.image_io.reader import ImagePixels
from unsam_mm.images import as_rgb_uint8
from unsam_mm.masks.granularity import area_granularity

if TYPE_CHECKING:
    from unsam_mm.prompting.engine import Engine

ENGINES, SIDES = ('tree', 'model'), tuple(one.name.lower() for one in Brightness)

_MAX_MASKS = 2000
_COLUMNS = ('index', 'granularity', 'score', 'stability')


@dataclass(frozen=True)
class AutomaticSettings:
    """How objects are found.

    Attributes:
        engine: One of `ENGINES`: 'tree' for the regions of merge trees, 'model' for masks of the region model.
        level: For 'tree', in [0, 1]: the objects are regions of the cut at this level; 0 is the finest. None: the
            objects are the best regions that do not overlap, of any size.
        min_area_px: Minimum area in pixels. Objects larger than a quarter of the plane are left out, too.
        side: For 'tree', one of `SIDES`: brightness of objects relative to their surroundings; see `RegionFilter`.
        channel: Index of the channel to segment; ignored if the channels are red, green and blue.
        link: True to link overlapping objects of neighbouring planes or frames; see `napari_unsam.volumes.linking`.
            Objects in only one plane are then left out.
        granularity: For 'model', in [0, 1]: the objects are the largest masks up to this granularity, see
            `unsam_mm.masks.granularity`. None: the objects are the best masks that do not overlap, of any size.

    Raises:
        UnSAMError: If a value is not allowed, or does not belong to the engine.
    """

    engine: str = 'tree'
    level: float | None = None
    min_area_px: int = 16
    side: str = 'guess'
    channel: int = 0
    link: bool = False
    granularity: float | None = None

    def __post_init__(self) -> None:
        for name, known in (('engine', ENGINES), ('side', SIDES)):
            if getattr(self, name) not in known:
                raise UnSAMError(f'{name} must be one of {", ".join(known)}, got {getattr(self, name)!r}')
        for name, engine, other in (('level', 'tree', 'granularity'), ('granularity', 'model', 'level')):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UnSAMError(f'{name} must lie in [0, 1] or be left out, got {value}')
            if value is not None and self.engine != engine:
                raise UnSAMError(f'{name}={value} is for the engine {engine!r}; give {other} for {self.engine!r}')
        if self.min_area_px < 1 or self.channel < 0:
            raise UnSAMError(
                f'min_area_px must be at least 1 and channel at least 0, got {self.min_area_px} and {self.channel}'
            )


class AutomaticObjects:
    """Finds the objects of images.

    Args:
        settings: How objects are found.
        device: Torch device, or 'auto': CUDA if there is one, else the CPU.
    """

    def __init__(self, settings: AutomaticSettings, device: str = 'auto') -> None:
        self._settings, self._device = settings, device
        self._limits = RegionFilter(min_area_px=settings.min_area_px, brightness=Brightness[settings.side.upper()])

    def __call__(self, pixels: ImagePixels, name: str = 'image') -> tuple[np.ndarray, pd.DataFrame]:
        """Returns labels, uint32 of the shape of the image, and a table with index, granularity, score and stability.

        Stacks are processed plane by plane. Unless objects are linked, each lies in one plane. A constant plane of a
        stack has no objects.

        Raises:
            ImageError: If a plane cannot be segmented, or there is no such channel.
        """
        labels = np.zeros(pixels.shape, np.uint32)
        tables = [pd.DataFrame({column: np.zeros(0, int if column == 'index' else float) for column in _COLUMNS})]
        n_objects = 0
        for plane, picture in pixels.planes(self._settings.channel):
            if plane and picture.min() == picture.max():
                continue
            found, table = self._in_plane(as_rgb_uint8(picture, name))
            labels[plane] = np.where(found, found + np.uint32(n_objects), 0)
            tables.append(table.assign(index=table['index'] + n_objects))
            n_objects += len(table)
        found = pd.concat([table for table in tables if len(table)] or tables, ignore_index=True)
        return linked(labels, found) if self._settings.link and labels.ndim > 2 else (labels, found)

    def _in_plane(self, rgb: np.ndarray) -> tuple[np.ndarray, pd.DataFrame]:
        settings, engine = self._settings, self._engine
        engine.set_image(rgb)
        if settings.engine == 'tree':
            found = CandidateTable(engine.hierarchy, rgb).objects(settings.level, self._limits)
            return found.labels, found.features.reindex(columns=list(_COLUMNS))
        masks, stability = engine.all_masks(_MAX_MASKS, settings.min_area_px, points_per_side=32, max_iou=0.9)
        kept = masks.areas <= self._limits.max_share * rgb.shape[0] * rgb.shape[1]
        if settings.granularity is not None:
            kept &= masks.granularity <= settings.granularity
        order = np.flatnonzero(kept)
        if settings.granularity is not None:
            order = order[np.argsort(-masks.areas[order], kind='stable')]
        labels, drawn = draw_disjoint(masks[order])
        taken = order[drawn]
        granularity = area_granularity(np.bincount(labels.ravel(), minlength=len(taken) + 1)[1:], labels.size)
        values = (np.arange(1, len(taken) + 1), granularity, masks.scores[taken], stability[taken])
        return labels, pd.DataFrame(dict(zip(_COLUMNS, values, strict=True)))

    @cached_property
    def _engine(self) -> Engine:
        import torch

        from unsam_mm.prompting.predictor import make_engine

        device = self._device
        if device == 'auto':
            device = 'cuda' if torch.cuda.is_available() else 'cpu'
        return make_engine(self._settings.engine, device=device)


def linked(labels: np.ndarray, table: pd.DataFrame) -> tuple[np.ndarray, pd.DataFrame]:
    """Links objects along the axis before rows and columns.

    Args:
        labels: (..., Z, H, W) uint32, each label in one plane only.
        table: One row for each label, in ascending order from 1.

    Returns:
        New labels of the same shape, and a table with a row for each linked object: the means over its parts. Objects
        in only one plane are left out.
    """
    new = np.zeros(len(table) + 1, np.uint32)
    objects = (parts for front in np.ndindex(*labels.shape[:-3]) for parts in link(list(labels[front])))
    for label, parts in enumerate(objects, start=1):
        new[[part.region for part in parts]] = label
    is_linked = new[1:] > 0
    means = table[is_linked].groupby(new[1:][is_linked]).mean().reset_index(drop=True)
    return new[labels], means.assign(index=np.arange(1, len(means) + 1))
