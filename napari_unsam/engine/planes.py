"""Analysed planes in memory and on disk, and the engines that analyse them."""

from __future__ import annotations

import copy
import ctypes
import logging
import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

from napari_unsam.engine.embeddings import EmbeddingStore, StackReport, embed_stack, plane_key
from napari_unsam.engine.inference import InferenceSettings, ProgressCallback, report_progress, reporting
from napari_unsam.model.mask import BoxMask, predicted_mask
from napari_unsam.model.plane_prompts import PlanePrompt
from napari_unsam.model.targets import Target
from unsam_mm.errors import ImageError, StoreError, UnSAMError
from unsam_mm.images import as_rgb_uint8
from unsam_mm.masks.granularity import area_granularity
from unsam_mm.masks.hierarchy import MaskHierarchy

if TYPE_CHECKING:
    from unsam_mm.prompting.engine import Engine
    from unsam_mm.prompting.tile_pyramid import MaskCrop

logger = logging.getLogger(__name__)

MAX_WHOLE_PX = 2048
"""Planes with a longer side are analysed in tiles."""
MAX_MASKS = 6
"""Maximum number of masks for a prompt."""

_TILE_PX = 1024
_MAX_TILES = 8  # in memory, 40 to 80 MB each
_CACHED_PX = 64_000_000  # limit for all planes in memory, which need about 25 bytes per pixel and 30 MB each
_STEPS_PER_DECADE = 8  # steps to a larger or smaller mask for a factor of ten in area, on planes in tiles
_WARM_UP_HW = (16, 128)  # the ViT scales every image to the same longer side, so a narrow image is fast
_NO_STORE = 'The folder for embeddings has size 0; set a size in Preferences > UnSAM, then reopen the dock.'
_CANNOT_PRECOMPUTE = f'Slices above {MAX_WHOLE_PX} px are analysed in tiles around clicks and cannot be precomputed.'
_TORCH_LIBRARIES = ('libtorch_cpu.so', 'libtorch_cpu.dylib')  # the largest one, on Linux and macOS
_LAZY_PARTS = ('leaf_labels', 'first_leaf', 'end_leaf', 'area', 'granularity', 'boxes_xyxy', 'border_share')


class EmbeddedPlane:
    """One analysed plane.

    Args:
        engine: An engine that contains the embedding of the plane; it must not be used for another plane.
        hierarchy: The region trees of the plane; None if it is analysed in tiles, which have their own.
    """

    def __init__(self, engine: Engine, hierarchy: MaskHierarchy | None) -> None:
        self._engine, self.hierarchy = engine, hierarchy
        # Computed now, so that the first click is fast.
        for part in _LAZY_PARTS if hierarchy is not None else ():
            getattr(hierarchy, part)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self._engine.size_hw

    @property
    def cached_px(self) -> int:
        """Number of pixels in memory; for planes in tiles, the maximum."""
        return int(np.prod(self.size_hw)) if self.hierarchy is not None else _MAX_TILES * _TILE_PX**2

    def answer(
        self,
        points_xy: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        box_xyxy: np.ndarray | None = None,
        area_px: float | None = None,
        mask: np.ndarray | None = None,
        max_masks: int = MAX_MASKS,
    ) -> list[BoxMask]:
        """The masks for a prompt, best first; call it in the inference thread.

        Args:
            points_xy: (N, 2) pixels, x before y.
            labels: (N,) 1 for positive, 0 for negative points.
            box_xyxy: (4,) pixels.
            area_px: If given, only the mask whose area is nearest to this area in pixels is returned.
            mask: Mask input: (H, W) bool, or (256, 256) float logits.
            max_masks: Maximum number of masks; 1 is faster if the plane is analysed in tiles.

        Raises:
            UnSAMError: If there is neither a positive point nor a box, or something lies outside the plane.
        """
        from unsam_mm.prompting.prompt import Prompt, low_resolution_logits
        from unsam_mm.prompting.tile_pyramid import MaskCrop

        if mask is not None and mask.dtype == bool:
            mask = low_resolution_logits(mask[None])[0]
        prompt = Prompt.checked(self.size_hw, points_xy, labels, box_xyxy, mask)
        if self.hierarchy is None and area_px is None:
            crops, scores = self._engine.crops(prompt, max_masks > 1, None)
        elif self.hierarchy is None:
            crops, scores = self._engine.crop_of_area(prompt, area_px)
        else:
            granularity = None if area_px is None else float(area_granularity(area_px, np.prod(self.size_hw)))
            masks, scores = self._engine.answer(prompt, max_masks > 1, granularity)
            order = np.argsort(-scores, kind='stable')  # the engine 'tree' returns the smallest mask first
            crops, scores = [MaskCrop.from_mask(masks[i]) for i in order], scores[order]
        found = [(crop, float(score)) for crop, score in zip(crops, scores, strict=True) if crop.bitmap.any()]
        return [self._box_mask(crop, score) for crop, score in found[:max_masks]]

    def next_by_area(self, prompt: PlanePrompt, area_px: int, steps: int, progress: ProgressCallback) -> list[BoxMask]:
        """The next mask for a prompt that is larger than an area (positive steps) or smaller (negative steps), if any.

        For prompts without nodes of a tree, as on planes in tiles; call it in the inference thread.
        """
        wanted_px: float = area_px
        while 1 <= wanted_px <= np.prod(self.size_hw):
            progress(0.0, 'Searching this size')  # raises if the prompts have changed
            wanted_px *= 10 ** (steps / _STEPS_PER_DECADE)
            found = self.answer(*prompt.parts, wanted_px)
            if not found or (found[0].area_px - area_px) * steps > 0:
                return found
        return []

    def chain(
        self, points_xy: np.ndarray | None, labels: np.ndarray | None, box_xyxy: np.ndarray | None = None
    ) -> np.ndarray:
        """(K,) nodes of the main tree that agree with a prompt, or else with its first positive point, finest first."""
        from unsam_mm.prompting import candidate_nodes

        if self.hierarchy is None:
            return np.empty(0, np.int64)
        nodes = candidate_nodes(self.hierarchy, points_xy, labels, box_xyxy)
        if len(nodes) == 0 and labels is not None and (labels == 1).any():
            x, y = points_xy[np.flatnonzero(labels == 1)[0]]
            nodes = self.hierarchy.path(int(y), int(x))
        return nodes

    def _box_mask(self, crop: MaskCrop, score: float) -> BoxMask:
        if self.hierarchy is not None:
            return predicted_mask(self.hierarchy, crop.bitmap, crop.left, crop.top, score)
        return BoxMask(crop.box_xyxy, crop.bitmap, float(area_granularity(crop.area, np.prod(self.size_hw))), score)


Embed = Callable[[Target, ProgressCallback], EmbeddedPlane]
"""Analyses a plane; called in the inference thread. The progress callback raises an exception to stop it."""


class PlaneCache:
    """Analysed planes in memory; the least recently used are dropped. Thread-safe.

    Args:
        embedder: Analyses a plane.
        max_px: Maximum number of pixels of all planes; the latest plane always stays.
    """

    def __init__(self, embedder: Embed, max_px: int = _CACHED_PX) -> None:
        self.embedder = embedder
        self._max_px, self._lock = max_px, threading.RLock()
        self._planes: OrderedDict[Target, EmbeddedPlane] = OrderedDict()
        self._versions: Counter[Hashable] = Counter()
        self._n_cleared = 0

    def version(self, source: Hashable) -> int:
        """How often the planes of an image were dropped; a plane that was read at a lower number is outdated."""
        with self._lock:
            return self._versions[source] + self._n_cleared

    def get(self, target: Target | None) -> EmbeddedPlane | None:
        """A plane; None if it is not in memory."""
        with self._lock:
            if target in self._planes:
                self._planes.move_to_end(target)
            return self._planes.get(target)

    def get_or_embed(self, target: Target, progress: ProgressCallback) -> EmbeddedPlane:
        """A plane, from memory or analysed now; call it in the inference thread."""
        plane = self.get(target)
        if plane is not None:
            return plane
        version = self.version(target.source)
        plane = self.embedder(target, progress)
        with self._lock:
            if version == self.version(target.source):
                self._planes[target] = plane
            while len(self._planes) > 1 and sum(one.cached_px for one in self._planes.values()) > self._max_px:
                self._planes.popitem(last=False)
        return plane

    def forget(self, target: Target) -> None:
        """Drops a plane."""
        with self._lock:
            self._planes.pop(target, None)

    def clear(self) -> None:
        """Drops all planes, also those that are being analysed."""
        with self._lock:
            self._n_cleared += 1
            self._planes.clear()

    def forget_source(self, source: Hashable) -> None:
        """Drops all planes of an image, also those that are being analysed."""
        with self._lock:
            self._versions[source] += 1
            for target in [target for target in self._planes if target.source == source]:
                del self._planes[target]


class PlaneEmbedder:
    """Analyses planes with an engine of `unsam_mm`, which is built at the first call.

    Args:
        settings: The engine, its device, and the folder of embeddings.
    """

    def __init__(self, settings: InferenceSettings) -> None:
        self._settings = settings
        self._engine: Engine | None = None
        self._engine_signature: str | None = None
        self._store: EmbeddingStore | None = None
        self._no_store = _NO_STORE
        if settings.store is not None:
            size_bytes = int(settings.store_gb * 1e9)
            self._store = EmbeddingStore(settings.store / 'planes', size_bytes, settings.store / 'windows')

    def __call__(self, target: Target, progress: ProgressCallback) -> EmbeddedPlane:
        """An analysed plane, from the store, or analysed now and stored.

        Raises:
            UnSAMError: If the image cannot be segmented or the weights are not available.
        """
        with reporting(progress):
            if self._engine is None:
                progress(0.0, 'Loading the model')
            engine = self._copy()
            return self._embed_tiled(engine, target) if _is_in_tiles(target) else self._embed_whole(engine, target)

    def stack(
        self, targets: Sequence[Target], progress: ProgressCallback, on_stored: Callable[[int], None]
    ) -> StackReport:
        """Analyses planes that are not stored, and stores them; see `embed_stack`.

        Raises:
            UnSAMError: If there is no store, or a plane is analysed in tiles or cannot be segmented.
            StoreError: If an embedding cannot be stored.
        """
        if self._store is None:
            raise UnSAMError(self._no_store)
        if any(_is_in_tiles(target) for target in targets):
            raise UnSAMError(_CANNOT_PRECOMPUTE)
        with reporting(progress):
            engine = self._copy()

        def embed(rgb: np.ndarray, on_progress: ProgressCallback) -> dict[str, np.ndarray]:
            with reporting(on_progress):
                engine.set_image(rgb)
            return engine.embedding()

        reads = [partial(_rgb_of, target) for target in targets]
        return embed_stack(reads, embed, self._signature(), self._store, progress, on_stored)

    def use_weights(self, path: Path | None) -> None:
        """Uses other weights of the model from now on, None for those of the package; call it in the inference thread.

        Stored embeddings do not depend on these weights.

        Raises:
            UnSAMError: If the engine is not 'model'.
            WeightsError: If the file cannot be read or belongs to another model.
        """
        if self._settings.engine != 'model':
            raise UnSAMError(
                f"adapted weights are for the engine 'model'; the preferences of the plugin say {self._settings.engine!r}"
            )
        self._engine, self._engine_signature = self._build(path), None

    def load(self) -> None:
        """Loads the engine and runs it on a small image, which compiles its functions."""
        engine = self._copy()
        report_progress(0.0, 'Loading the model')  # lets a waiting click go first
        engine.set_image(np.random.default_rng(0).integers(0, 256, (*_WARM_UP_HW, 3), np.uint8))
        EmbeddedPlane(engine, engine.hierarchy).answer(np.array([_WARM_UP_HW[::-1]]) // 2, np.ones(1, int))

    def _copy(self) -> Engine:
        if self._engine is None:
            self._engine = self._build(weights=None)
        return copy.copy(self._engine)

    def _embed_whole(self, engine: Engine, target: Target) -> EmbeddedPlane:
        rgb = _rgb_of(target)
        if self._store is None:
            engine.set_image(rgb)
            return EmbeddedPlane(engine, engine.hierarchy)
        key = plane_key(rgb, self._signature())
        arrays = self._store.load(key)
        if arrays is not None:
            try:
                engine.set_embedding(arrays)
                return EmbeddedPlane(engine, engine.hierarchy)
            except UnSAMError as error:
                logger.warning('a stored slice is analysed again: %s', error)
        engine.set_image(rgb)
        try:
            self._store.save(key, engine.embedding())
        except StoreError as error:
            logger.warning('embeddings are no longer stored: %s', error)
            self._store, self._no_store = None, f'Embeddings are no longer stored: {error}'
        return EmbeddedPlane(engine, engine.hierarchy)

    def _embed_tiled(self, engine: Engine, target: Target) -> EmbeddedPlane:
        from unsam_mm.prompting import TiledEngine
        from unsam_mm.prompting.planes import LazyPlane

        tiled = TiledEngine(engine, _TILE_PX, _MAX_TILES)
        plane = LazyPlane(target.pixels(), (0.0, 255.0), target.name)
        if self._store is None:
            tiled.set_plane(plane)
        else:
            tiled.set_plane(plane, self._store.tiles / self._signature(), self._store.mark_used)
        return EmbeddedPlane(tiled, None)

    def _signature(self) -> str:
        """The settings that an embedding depends on; the contrast limits are already applied to the pixels."""
        from unsam_mm import __version__

        if self._engine_signature is None:
            self._engine_signature = self._copy().signature
        return f'{self._settings.engine}-{__version__}-{self._engine_signature}'

    def _build(self, weights: Path | None) -> Engine:
        torch = import_torch()
        device = self._settings.device
        if device == 'auto':
            device = 'cuda' if torch.cuda.is_available() else 'cpu'
        if self._settings.threads:
            torch.set_num_threads(self._settings.threads)  # applies to the current thread only
        return make_engine(self._settings.engine, device, weights)


def _is_in_tiles(target: Target) -> bool:
    return max(target.plane.size_hw) > MAX_WHOLE_PX


def _rgb_of(target: Target) -> np.ndarray:
    pixels = target.read()
    value = pixels.flat[0]
    if pixels.ndim == 2 and value in (0, 255) and (pixels == value).all():
        raise ImageError(
            f'"{target.name}" is all {"white" if value else "black"} at its contrast limits; move the limits in the '
            'layer controls, or choose another slice or channel'
        )
    return as_rgb_uint8(pixels, target.name)


def make_engine(name: str, device: str, weights: Path | None = None) -> Engine:
    """An engine of `unsam_mm` that calls `report_progress`.

    Args:
        name: 'model' or 'tree'.
        device: Torch device.
        weights: File with the weights of the model; by default those of the package. Not used by 'tree'.

    Raises:
        UnSAMError: If there is no such engine.
        WeightsError: If its weights are not available.
    """
    from unsam_mm import PseudoMaskGenerator
    from unsam_mm.prompting.predictor import DEFAULT_MODEL, ENGINES
    from unsam_mm.prompting.tree_engine import TreeEngine

    if name not in ENGINES:
        raise UnSAMError(
            f'the engine must be one of {", ".join(ENGINES)}, got {name!r}; see the preferences of the plugin'
        )
    # Engines pass no progress callback to generators and tokenizers, so it is bound here.
    if name == 'tree':
        generator = PseudoMaskGenerator.from_preset('default', device=device)
        reporting_generator = partial(generator, progress=report_progress)
        reporting_generator.signature = generator.signature
        return TreeEngine(reporting_generator, device)
    from unsam_mm.prompting.model import RegionEngine
    from unsam_mm.student import RegionTokenizer
    from unsam_mm.student.tokenizer import tokens_signature
    from unsam_mm.student.weights import load_weights, packaged_weights

    trained = load_weights(weights or packaged_weights(DEFAULT_MODEL))

    @cache  # copies of the engine share the ViT
    def tokenizer(device: str) -> SimpleNamespace:
        made = RegionTokenizer(trained.settings, trained.n_tokens, device)
        return SimpleNamespace(with_trees=partial(made.with_trees, progress=report_progress))

    return RegionEngine(trained.net, tokenizer, device, partial(tokens_signature, trained.settings, trained.n_tokens))


def import_torch() -> ModuleType:
    """Imports torch, without blocking other threads while its largest library is loaded.

    An import holds the GIL for about half a second while the system links that library of 400 MB. A call of `dlopen`
    through ctypes does not, and the import then finds the library loaded. Without such a file, this is a plain import.
    """
    spec = find_spec('torch')
    for name in _TORCH_LIBRARIES if spec is not None and os.name == 'posix' else ():
        path = Path(spec.submodule_search_locations[0], 'lib', name)
        if path.is_file():
            load = ctypes.CDLL(None).dlopen
            load.argtypes, load.restype = [ctypes.c_char_p, ctypes.c_int], ctypes.c_void_p
            load(os.fsencode(path), os.RTLD_NOW)
    import torch

    return torch
