"""An engine for planes of any size, which processes tiles around each prompt at several resolutions.

Every mask comes from a single tile, in which it has a margin to those sides of the tile that lie inside the plane.
Masks of larger objects come from coarser tiles. So no masks have to be stitched, and there are no seams.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import os
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from scipy import ndimage

from unsam_mm.errors import DamagedError, StoreError, UnSAMError
from unsam_mm.images import MIN_SIDE_PX
from unsam_mm.masks.granularity import granularity_area
from unsam_mm.masks.mask_set import MaskSet
from unsam_mm.prompting.embedding_file import load_embedding, save_arrays
from unsam_mm.prompting.engine import Engine, WrappedEngine
from unsam_mm.prompting.planes import LazyPlane
from unsam_mm.prompting.prompt import LOGIT_SIDE_PX, MAX_MASKS_PER_PROMPT, NO_IMAGE, Prompt
from unsam_mm.prompting.tile_pyramid import MaskCrop, Tile, TilePyramid, upsample_mask
from unsam_mm.prompting.tiled_answers import MasksBySize, combine_levels
from unsam_mm.prompting.tiled_masks import PlaneMasks

MIN_TILE_PX = 128
logger = logging.getLogger(__name__)

_MAX_SIDE_PX = 2**31 - 1  # limit for the sides of a plane in an embedding file
_MARGIN = 1 / 8  # least distance between a prompt and the inner sides of a tile, relative to the side of the tile


class TiledEngine(WrappedEngine):
    """Predicts masks on a plane of any size with an engine for images.

    Args:
        engine: The engine for the tiles; its image is replaced.
        tile_px: Side of a tile in its own pixels, at least 128.
        max_windows: Largest number of encoded tiles in memory; the least recently used one is removed first. A tile
            of 1024 px takes 40 to 80 MB.

    Raises:
        UnSAMError: If a number is too small.
    """

    def __init__(self, engine: Engine, tile_px: int = 1024, max_windows: int = 16) -> None:
        if tile_px < MIN_TILE_PX or max_windows < 1:
            raise UnSAMError(
                f'tile_px must be at least {MIN_TILE_PX} and max_windows at least 1, got {tile_px} and {max_windows}'
            )
        super().__init__(engine)
        self._tile_px, self._max_windows = int(tile_px), max_windows
        self._store: Path | None = None
        self.reset_image()

    @property
    def signature(self) -> str | None:
        """The signature of the wrapped engine with the side of the tiles; None if it has none."""
        signature = self._engine.signature
        return None if signature is None else f'{signature} in tiles of {self._tile_px} px'

    @property
    def size_hw(self) -> tuple[int, int] | None:
        """Height and width of the plane in pixels; None if no plane is set."""
        return None if self._pyramid is None else self._pyramid.size_hw

    def set_image(self, rgb: np.ndarray) -> None:
        """Sets a copy of an (H, W, 3) uint8 RGB image; nothing is computed before the first prompt."""
        self.set_plane(LazyPlane(rgb.copy()))  # the caller may overwrite the array

    def set_plane(
        self, plane: LazyPlane, store: str | Path | None = None, used: Callable[[Path], None] = lambda file: None
    ) -> None:
        """Sets a plane; pixels are read when a prompt needs them.

        Args:
            plane: The plane.
            store: Folder in which embeddings of tiles are cached, under a hash of the pixels and of the signature of
                the engine; unused for engines without a signature. Damaged files are replaced. If the folder cannot be
                written, a warning is logged and embeddings are no longer cached.
            used: Called with each file of that folder after it was read or written, so that the caller can limit the
                size of the folder; the engine removes only damaged files.
        """
        self.reset_image()
        self._plane, self._pyramid = plane, TilePyramid(plane.size_hw, self._tile_px)
        self._store, self._used = None if store is None else Path(store), used

    def reset_image(self) -> None:
        """Removes the plane."""
        self._plane: LazyPlane | None = None
        self._pyramid: TilePyramid | None = None
        self._encoded: OrderedDict[Tile, Engine | None] = OrderedDict()
        self._by_size: tuple[tuple, MasksBySize] | None = None  # for the last prompt with a wanted area
        self._engine.reset_image()

    def answer(
        self, prompt: Prompt, multimask_output: bool, granularity: float | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Same as `crops`, but with (C, H, W) bool masks of the size of the plane."""
        crops, scores = self.crops(prompt, multimask_output, granularity)
        masks = np.zeros((len(crops), *self.size_hw), bool)
        for crop, mask in zip(crops, masks, strict=True):
            crop.paste(mask)
        return masks, scores

    def crops(
        self, prompt: Prompt, multimask_output: bool, granularity: float | None
    ) -> tuple[list[MaskCrop], np.ndarray]:
        """C masks, best first, and (C,) float32 scores.

        The first mask comes from the finest level whose best mask fits into its tile. Coarser levels add larger
        masks; they are skipped if one mask is wanted, or there are six already.
        """
        if granularity is not None:
            return self.crop_of_area(prompt, granularity_area(granularity, self.size_hw[0] * self.size_hw[1]))
        answers = ((tile, *self.masks_in(tile, prompt, None)) for tile in self._tiles_for(prompt))
        levels = ((self.crops_in(tile, masks, prompt), scores) for tile, masks, scores in answers if len(masks))
        return combine_levels(levels, MAX_MASKS_PER_PROMPT if multimask_output else 1)

    def crop_of_area(self, prompt: Prompt, area_px: float) -> tuple[list[MaskCrop], np.ndarray]:
        """The mask of the nearest area in pixels of the plane, and its (1,) score; none if no mask agrees with the
        prompt.

        For large planes: most objects there are smaller than a ten-thousandth of the plane, so all have granularity 0.
        """
        if self._by_size is None or self._by_size[0] != prompt.key:
            tiles = self._tiles_for(prompt)
            self._by_size = prompt.key, MasksBySize(self.masks_in, self.crops_in, self._pyramid, tiles, prompt)
        return self._by_size[1].answer(area_px)

    def masks_in(self, tile: Tile, prompt: Prompt, granularity: float | None) -> tuple[np.ndarray, np.ndarray]:
        """(C, h, w) bool masks of a tile for a prompt, and their (C,) float32 scores.

        C is 0 if no mask agrees with the prompt, the tile has a single colour or a side shorter than 8 px, or a
        positive and a negative click fall into one pixel of the tile.
        """
        engine = self._engine_for(tile)
        local = None if engine is None else _in_tile(prompt, tile, self.size_hw)
        if local is None:
            return np.zeros((0, tile.height, tile.width), bool), np.zeros(0, np.float32)
        return engine.answer(local, True, granularity)

    def crops_in(self, tile: Tile, masks: np.ndarray, prompt: Prompt) -> list[MaskCrop | None]:
        """Masks of a tile at the resolution of the plane; None for masks that may extend beyond the tile."""
        return [
            None if tile.reaches_rim(mask) or not mask.any() else self._upsample(tile, mask, prompt) for mask in masks
        ]

    def all_masks(
        self, max_masks: int, min_area_px: int, points_per_side: int, max_iou: float
    ) -> tuple[MaskSet, np.ndarray]:
        """The best masks of all tiles, and their stability; see `PlaneMasks`.

        Every tile is processed once and then released; only RLEs are kept.
        """
        found = PlaneMasks(self._pyramid, max_masks, max_iou)
        for level in range(self._pyramid.n_levels):
            for tile in self._pyramid.tiles(level):
                engine = self._encoded.get(tile) or self._encode(tile)
                if engine is not None:
                    least_px = max(min_area_px // tile.scale**2, 1)
                    found.add(tile, *engine.all_masks(max_masks, least_px, points_per_side, max_iou), min_area_px)
        return found.result()

    def embedding(self) -> dict[str, np.ndarray]:
        """The embeddings of the cached tiles."""
        if self._pyramid is None:
            raise UnSAMError(NO_IMAGE)
        arrays = {'plane': np.array([*self.size_hw, self._tile_px])}
        for tile, engine in self._encoded.items():
            prefix = f'{tile.level}_{tile.top}_{tile.left}'
            known = {} if engine is None else engine.embedding()
            arrays |= {f'{prefix}.{name}': values for name, values in known.items()}
        return arrays

    def set_embedding(self, arrays: dict[str, np.ndarray]) -> None:
        """Restores an embedding that `embedding` returned; prompts in its tiles can be predicted without the plane.

        Raises:
            UnSAMError: If the arrays belong to no plane, or to tiles of another size.
        """
        given = np.ravel(arrays.get('plane', ()))
        plane = given.tolist() if given.dtype.kind in 'iu' else []
        if len(plane) != 3 or plane[2] != self._tile_px or min(plane) < 1 or max(plane) > _MAX_SIDE_PX:
            raise UnSAMError(f'the arrays belong to no plane in tiles of {self._tile_px} px; make the embedding again')
        pyramid = TilePyramid((plane[0], plane[1]), self._tile_px)
        by_tile: dict[str, dict[str, np.ndarray]] = {}
        for name, values in arrays.items():
            prefix, _, rest = name.partition('.')
            if rest:
                by_tile.setdefault(prefix, {})[rest] = values
        ready = {}
        for prefix, known in by_tile.items():
            tile = _named_tile(pyramid, prefix)
            engine = copy.copy(self._engine)
            engine.set_embedding(known)
            if engine.size_hw != (tile.height, tile.width):
                raise UnSAMError(f'a tile of {engine.size_hw} px is stored as {tile}; make the embedding again')
            ready[tile] = engine
        self.reset_image()
        self._encoded.update(ready)
        self._pyramid = pyramid

    def to(self, device: str) -> TiledEngine:
        """Moves the networks to a device; the cache is cleared, so the plane must be set."""
        if str(device) != self.device:
            self._encoded.clear()
            self._engine = self._engine.to(device)
        return self

    def _tiles_for(self, prompt: Prompt) -> list[Tile]:
        """The tiles that contain a prompt with a margin, finest first, at most one for each level.

        The tile around the first positive click is preferred, so that further clicks do not change the tile.
        Negative clicks may lie outside the tile, where its masks are empty anyway.
        """
        corners = prompt.points_xy[prompt.positive].astype(float)
        if prompt.box_xyxy is not None:
            box = prompt.box_xyxy.reshape(2, 2).clip(0, self.size_hw[::-1])
            corners = np.concatenate([box, corners])
        low, high = corners.min(axis=0), corners.max(axis=0)
        first = corners[0] if prompt.box_xyxy is None else (low + high) / 2
        tiles = []
        for level in range(self._pyramid.n_levels):
            for centre in (first, (low + high) / 2):
                tile = self._pyramid.tile_at(level, centre)
                if tile.contains(np.concatenate([low, high]), _MARGIN * self._tile_px):
                    tiles.append(tile)
                    break
        return tiles

    def _upsample(self, tile: Tile, mask: np.ndarray, prompt: Prompt) -> MaskCrop:
        crop = upsample_mask(mask, tile, self.size_hw)
        # Upsampling moves the boundary, so a click may end up on the wrong side; its whole coarse pixel is set.
        for (x, y), positive in zip(prompt.points_xy - (crop.left, crop.top), prompt.positive, strict=True):
            if 0 <= y < crop.bitmap.shape[0] and 0 <= x < crop.bitmap.shape[1]:
                y, x = (int(at) // tile.scale * tile.scale for at in (y, x))
                crop.bitmap[y : y + tile.scale, x : x + tile.scale] = positive
        return crop

    def _engine_for(self, tile: Tile) -> Engine | None:
        """The engine with the embedding of a tile; None if the tile has a single colour or is too small."""
        if tile not in self._encoded:
            while len(self._encoded) >= self._max_windows:
                self._encoded.popitem(last=False)
            self._encoded[tile] = self._encode(tile)
        self._encoded.move_to_end(tile)
        return self._encoded[tile]

    def _encode(self, tile: Tile) -> Engine | None:
        if self._plane is None:
            raise UnSAMError('the embedding has no tile at the position of the prompt; call set_image or set_plane')
        rgb = self._plane.read(tile)
        if min(rgb.shape[:2]) < MIN_SIDE_PX or rgb.min() == rgb.max():
            return None
        path = self._cache_path(rgb)
        if path is None:
            self._engine.set_image(rgb)
        elif not self._load_cached(path):
            self._engine.set_image(rgb)
            self._save_cached(path)
        encoded = copy.copy(self._engine)  # shares the networks
        self._engine.reset_image()
        return encoded

    def _cache_path(self, rgb: np.ndarray) -> Path | None:
        """The path of the cached embedding of an (H, W, 3) tile; None without a cache."""
        if self._store is not None and self._engine.signature is None:
            logger.warning('tiles are not cached in %s: the engine has no signature', self._store)
            self._store = None
        if self._store is None:
            return None
        key = f'{self.name} {self._engine.signature} {rgb.shape} '.encode() + rgb.tobytes()
        return self._store / f'{hashlib.sha256(key).hexdigest()[:32]}.npz'

    def _load_cached(self, path: Path) -> bool:
        """Loads a cached embedding into the engine; False if there is none, or its file is damaged."""
        try:
            load_embedding(path, self._engine)
        except StoreError as error:
            if os.path.lexists(path):
                logger.warning('a cached tile is computed again: %s', error)
            if isinstance(error, DamagedError):
                with suppress(OSError):  # the folder may not be writable
                    path.unlink(missing_ok=True)  # `save_arrays` does not replace a damaged file
            return False
        self._used(path)
        return True

    def _save_cached(self, path: Path) -> None:
        try:
            save_arrays(path, self.name, self._engine.embedding())
        except StoreError as error:
            self._store = None  # prompts still work on a full or read-only disk
            logger.warning('tiles are no longer cached: %s', error)
        else:
            self._used(path)


def _named_tile(pyramid: TilePyramid, name: str) -> Tile:
    """The tile with the name 'level_top_left' in an embedding."""
    parts = name.split('_')
    if len(parts) == 3 and all(part.isdecimal() and len(part) < 11 for part in parts):
        level, top, left = map(int, parts)
        if level < pyramid.n_levels:
            middle = (np.array([left, top]) + pyramid.side_px / 2) * 2**level
            tile = pyramid.tile_at(level, middle)
            if (tile.top, tile.left) == (top, left):
                return tile
    raise UnSAMError(
        f'the arrays belong to a tile {name[:40]!r}, which the plane does not have; make the embedding again'
    )


def _in_tile(prompt: Prompt, tile: Tile, size_hw: tuple[int, int]) -> Prompt | None:
    """A prompt in pixels of a tile; None if a positive and a negative click fall into one of its pixels."""
    points = np.floor(tile.to_local(prompt.points_xy)).astype(np.int64)
    inside = ((points >= 0) & (points < (tile.width, tile.height))).all(axis=1)
    box, mask_input = prompt.box_xyxy, prompt.mask_input
    if box is not None:
        box = tile.to_local(box.reshape(2, 2)).ravel()
    if mask_input is not None:
        mask_input = _logits_of_tile(mask_input, tile, size_hw)
    local = Prompt(points[inside], prompt.positive[inside], box, mask_input)
    return None if local.contradicts_itself else local


def _logits_of_tile(logits: np.ndarray, tile: Tile, size_hw: tuple[int, int]) -> np.ndarray:
    """(256, 256) low-resolution logits of a tile, resampled from those of the plane."""
    per_cell = max(tile.height, tile.width) * tile.scale / LOGIT_SIDE_PX
    scale = LOGIT_SIDE_PX / max(size_hw)
    cells = np.arange(LOGIT_SIDE_PX) + 0.5
    rows, columns = ((start * tile.scale + cells * per_cell) * scale - 0.5 for start in (tile.top, tile.left))
    return ndimage.map_coordinates(logits, np.meshgrid(rows, columns, indexing='ij'), order=1, mode='nearest')
