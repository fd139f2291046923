"""Analysed planes, and how they are made."""

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
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from napari_unsam.engine.embeddings import EmbeddingStore, StackReport, embed_stack, plane_key
from napari_unsam.engine.inference import InferenceSettings, ProgressCallback, report_progress, reporting
from napari_unsam.model.mask import BoxMask, found_mask
from napari_unsam.model.plane_prompts import PlanePrompt
from napari_unsam.model.targets import Target
from unsam_mm.errors import ImageError, StoreError, UnSAMError
from unsam_mm.images import as_rgb_uint8
from unsam_mm.masks.granularity import area_granularity
from unsam_mm.masks.hierarchy import MaskHierarchy

if TYPE_CHECKING:
    from unsam_mm import PseudoMaskGenerator
    from unsam_mm.prompting.engine import Engine
    from unsam_mm.prompting.windows import MaskCrop
    from unsam_mm.student import RegionTokenizer, RegionTokens
    from unsam_mm.student.clicks import ClickableImage

logger = logging.getLogger(__name__)

TILED_FROM_PX = 2048
"""Planes with a longer side are analysed in windows."""

_TILE_PX = 1024
_MAX_WINDOWS = 8  # of 40 to 80 MB each
_CACHED_PX = 64_000_000  # of planes kept in memory: about 15 bytes a pixel
_TILED_CACHED_PX = _MAX_WINDOWS * _TILE_PX**2
_MAX_MASKS = 6
_STEPS_PER_DECADE = 8  # sizes of masks that a turn of the wheel tells apart in a factor of ten, as planes in windows do
_SPECK_HW = (16, 128)  # the ViT sees every image as long as another, so a narrow one is quick
_NO_STORE = 'The folder for embeddings has size 0; set a size in Preferences > UnSAM, then reopen the dock.'
_NOT_IN_WINDOWS = f'Slices above {TILED_FROM_PX} px are analysed in windows around clicks and cannot be precomputed.'
_LARGEST_LIBRARY = ('libtorch_cpu.so', 'libtorch_cpu.dylib')  # of torch, on Linux and macOS
_LAZY_PARTS = ('leaf_labels', 'first_leaf', 'last_leaf', 'area', 'granularity', 'boxes_xyxy', 'border_share')


class EmbeddedPlane:
    """One analysed plane.

    Args:
        engine: Has analysed the plane and analyses no other.
        hierarchy: Of the plane; None if the plane is analysed in windows, which have one each.
    """

    def __init__(self, engine: Engine, hierarchy: MaskHierarchy | None) -> None:
        self._engine, self.hierarchy = engine, hierarchy
        # Now, so that the first click need not wait for them.
        for part in _LAZY_PARTS if hierarchy is not None else ():
            getattr(hierarchy, part)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self._engine.size_hw

    @property
    def kept_px(self) -> int:
        """How many pixels it takes memory for."""
        return int(np.prod(self.size_hw)) if self.hierarchy is not None else _TILED_CACHED_PX

    def answer(
        self,
        points_xy: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        box_xyxy: np.ndarray | None = None,
        area_px: float | None = None,
        mask: np.ndarray | None = None,
        max_masks: int = _MAX_MASKS,
    ) -> list[BoxMask]:
        """The masks that a prompt may mean, best first, at most six; call it in the inference thread.

        Args:
            points_xy: (N, 2) pixels, x before y.
            labels: (N,) 1 for positive, 0 for negative points.
            box_xyxy: (4,) pixels.
            area_px: Only the mask nearest to that area.
            mask: (H, W) bool mask that the answer is like, or (256, 256) float logits as engines give them.
            max_masks: 1 is quicker where a plane is analysed in windows.

        Raises:
            UnSAMError: If there is neither a positive point nor a box, or something lies outside the plane.
        """
        from unsam_mm.prompting import TiledEngine
        from unsam_mm.prompting.prompt import Prompt, low_resolution_logits
        from unsam_mm.prompting.windows import MaskCrop

        if mask is not None and mask.dtype == bool:
            mask = low_resolution_logits(mask[None])[0]
        prompt = Prompt.checked(self.size_hw, points_xy, labels, box_xyxy, mask)
        if isinstance(self._engine, TiledEngine):
            if area_px is None:
                crops, scores = self._engine.crops(prompt, max_masks > 1, None)
            else:
                crops, scores = self._engine.crops_near(prompt, area_px)
        else:
            granularity = None if area_px is None else float(area_granularity(area_px, np.prod(self.size_hw)))
            masks, scores = self._engine.answer(prompt, max_masks > 1, granularity)
            order = np.argsort(-scores, kind='stable')  # the engine 'tree' gives the smallest first
            crops, scores = [MaskCrop.from_mask(masks[i]) for i in order], scores[order]
        kept = [(crop, score) for crop, score in zip(crops, scores, strict=True) if crop.bitmap.any()]
        return [self._found(crop, float(score)) for crop, score in kept[:max_masks]]

    def beyond(self, prompt: PlanePrompt, area_px: int, steps: int, progress: ProgressCallback) -> list[BoxMask]:
        """The next mask for a prompt that is larger than an area for positive steps, or smaller for negative ones, if any.

        For planes in windows, which have no tree to slide along; call it in the inference thread.
        """
        wanted_px: float = area_px
        while 1 <= wanted_px <= np.prod(self.size_hw):
            progress(0.0, 'Searching this size')  # raises if other prompts are asked for
            wanted_px *= 10 ** (steps / _STEPS_PER_DECADE)
            found = self.answer(*prompt.parts, wanted_px)
            if not found or (found[0].area_px - area_px) * steps > 0:
                return found
        return []

    def chain(
        self, points_xy: np.ndarray | None, labels: np.ndarray | None, box_xyxy: np.ndarray | None = None
    ) -> np.ndarray:
        """(K,) nodes of the main tree that agree with a prompt, else those under its first object click, finest first."""
        from unsam_mm.prompting import candidate_nodes

        if self.hierarchy is None:
            return np.empty(0, np.int64)
        nodes = candidate_nodes(self.hierarchy, points_xy, labels, box_xyxy)
        if len(nodes) == 0 and labels is not None and (labels == 1).any():
            x, y = points_xy[np.flatnonzero(labels == 1)[0]]
            nodes = self.hierarchy.path(int(y), int(x))
        return nodes

    def _found(self, crop: MaskCrop, score: float) -> BoxMask:
        if self.hierarchy is not None:
            return found_mask(self.hierarchy, crop.bitmap, crop.left, crop.top, score)
        return BoxMask(crop.box_xyxy, crop.bitmap, float(area_granularity(crop.area, np.prod(self.size_hw))), score)


Embed = Callable[[Target, ProgressCallback], EmbeddedPlane]
"""Analyses a plane; called in the inference thread, and stopped by its second argument raising."""


class PlaneCache:
    """Analysed planes in memory, up to a limit; any thread may ask.

    Args:
        max_px: Pixels of all planes together; the one that was not used for longest goes first.
    """

    def __init__(self, max_px: int = _CACHED_PX) -> None:
        self._max_px, self._lock = max_px, threading.Lock()
        self._planes: OrderedDict[Target, EmbeddedPlane] = OrderedDict()
        self._versions: Counter[Hashable] = Counter()
        self._n_cleared = 0

    def version(self, source: Hashable) -> int:
        """How often an image was forgotten; ask before its pixels are read."""
        with self._lock:
            return self._versions[source] + self._n_cleared

    def get(self, target: Target | None) -> EmbeddedPlane | None:
        """What is known of a plane, if anything."""
        with self._lock:
            if target in self._planes:
                self._planes.move_to_end(target)
            return self._planes.get(target)

    def put(self, target: Target, plane: EmbeddedPlane, version: int) -> None:
        """Keeps a plane; older ones make room. Not if its image was forgotten since `version` was asked for."""
        with self._lock:
            if version != self._versions[target.source] + self._n_cleared:
                return
            self._planes[target] = plane
            self._planes.move_to_end(target)
            while len(self._planes) > 1 and sum(kept.kept_px for kept in self._planes.values()) > self._max_px:
                self._planes.popitem(last=False)

    def forget(self, target: Target) -> None:
        """Drops a plane."""
        with self._lock:
            self._planes.pop(target, None)

    def clear(self) -> None:
        """Drops all planes, also those that are being made now."""
        with self._lock:
            self._n_cleared += 1
            self._planes.clear()

    def forget_source(self, source: Hashable) -> None:
        """Drops all planes of an image."""
        with self._lock:
            self._versions[source] += 1
            for target in [target for target in self._planes if target.source == source]:
                del self._planes[target]


class PlaneEmbedder:
    """Analyses planes with an engine of `unsam_mm`, which is built at the first call.

    Args:
        settings: Which engine, where it runs, and where what it finds is kept.
    """

    def __init__(self, settings: InferenceSettings) -> None:
        self._settings = settings
        self._weights: Path | None = None
        self._engine: Engine | None = None
        self._engine_signature: str | None = None
        self._store: EmbeddingStore | None = None
        self._no_store = _NO_STORE
        if settings.store is not None:
            size_bytes = int(settings.store_gb * 1e9)
            self._store = EmbeddingStore(settings.store / 'planes', size_bytes, settings.store / 'windows')

    def __call__(self, target: Target, progress: ProgressCallback) -> EmbeddedPlane:
        """From the store, or made now and stored.

        Raises:
            UnSAMError: If the image cannot be segmented or the weights cannot be had.
        """
        with reporting(progress):
            if self._engine is None:
                progress(0.0, 'Loading the model')
            engine = self._copy()
            if _is_in_windows(target):
                return self._tiled(engine, target)
            return self._whole(engine, target)

    def stack(self, targets: Sequence[Target], progress: ProgressCallback, kept: Callable[[int], None]) -> StackReport:
        """Analyses planes that the store lacks, and keeps them only there, see `embed_stack`.

        Raises:
            UnSAMError: If nothing is kept on disk, or the planes are analysed in windows.
            StoreError: If the disk is full.
        """
        if self._store is None:
            raise UnSAMError(self._no_store)
        if any(_is_in_windows(target) for target in targets):
            raise UnSAMError(_NOT_IN_WINDOWS)
        with reporting(progress):
            engine = self._copy()

        def embed(rgb: np.ndarray, on_progress: ProgressCallback) -> dict[str, np.ndarray]:
            with reporting(on_progress):
                engine.set_image(rgb)
            return engine.embedding()

        reads = [partial(_rgb_of, target) for target in targets]
        return embed_stack(reads, embed, self._signature(), self._store, progress, kept)

    def use_weights(self, path: Path | None) -> None:
        """Analyses later planes with other weights of the model; None: those of the package. Call it in the inference thread.

        What is stored of planes does not depend on these weights, so it stays of use.

        Raises:
            UnSAMError: If the engine is another one.
            WeightsError: If the file cannot be read or is of another model.
        """
        if self._settings.engine != 'model':
            raise UnSAMError(
                f"adapted weights are for the engine 'model'; the preferences of the plugin say {self._settings.engine!r}"
            )
        before, self._weights = self._weights, path
        try:
            self._engine = self._build()
        except UnSAMError:
            self._weights = before
            raise
        self._engine_signature = None

    def load(self) -> None:
        """Loads the engine and asks it about a speck of noise, which also loads and compiles what it uses."""
        engine = self._copy()
        report_progress(0.0, 'Loading the model')  # a click that waits goes before the speck
        engine.set_image(np.random.default_rng(0).integers(0, 256, (*_SPECK_HW, 3), np.uint8))
        EmbeddedPlane(engine, engine.hierarchy).answer(np.array([_SPECK_HW[::-1]]) // 2, np.ones(1, int))

    def _copy(self) -> Engine:
        if self._engine is None:
            self._engine = self._build()
        return copy.copy(self._engine)

    def _whole(self, engine: Engine, target: Target) -> EmbeddedPlane:
        rgb = _rgb_of(target)
        key = plane_key(rgb, self._signature()) if self._store is not None else ''
        arrays = self._store.load(key) if self._store is not None else None
        if arrays is None or not _takes(engine, arrays):
            engine.set_image(rgb)
            if self._store is not None:
                self._keep(key, engine)
        return EmbeddedPlane(engine, engine.hierarchy)

    def _tiled(self, engine: Engine, target: Target) -> EmbeddedPlane:
        from unsam_mm.prompting import TiledEngine
        from unsam_mm.prompting.planes import LazyPlane

        tiled = TiledEngine(engine, _TILE_PX, _MAX_WINDOWS)
        plane = LazyPlane(target.pixels(), (0.0, 255.0), target.name)
        if self._store is None:
            tiled.set_plane(plane)
        else:
            tiled.set_plane(plane, self._store.windows / self._signature(), self._store.used)
        return EmbeddedPlane(tiled, None)

    def _keep(self, key: str, engine: Engine) -> None:
        try:
            self._store.save(key, engine.embedding())
        except StoreError as error:
            logger.warning('embeddings are no longer stored: %s', error)
            self._store, self._no_store = None, f'Embeddings are no longer stored: {error}'

    def _signature(self) -> str:
        """All that decides what is found in given pixels: these come with the contrast limits that the user chose."""
        from unsam_mm import __version__

        if self._engine_signature is None:
            self._engine_signature = self._copy().signature
        return f'{self._settings.engine}-{__version__}-{self._engine_signature}'

    def _build(self) -> Engine:
        torch = import_torch()
        device = self._settings.device
        if device == 'auto':
            device = 'cuda' if torch.cuda.is_available() else 'cpu'
        if self._settings.threads:
            torch.set_num_threads(self._settings.threads)  # holds for the calling thread, which is the inference thread
        return make_engine(self._settings.engine, device, self._weights)


def _is_in_windows(target: Target) -> bool:
    return max(target.plane.size_hw) > TILED_FROM_PX and target.pixels is not None


def _takes(engine: Engine, arrays: dict[str, np.ndarray]) -> bool:
    """Whether an engine can use a kept embedding; one of another version is made again."""
    try:
        engine.set_embedding(arrays)
    except UnSAMError as error:
        logger.warning('a stored slice is computed again: %s', error)
        return False
    return True


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
    """The engine of `unsam_mm` of that name, which calls `report_progress` while it analyses an image.

    Args:
        name: 'model' or 'tree'.
        device: Torch device.
        weights: Of the model; those of the package if not given.

    Raises:
        UnSAMError: If there is no such engine.
        WeightsError: If its weights cannot be had.
    """
    from unsam_mm import PseudoMaskGenerator
    from unsam_mm.prompting.predictor import DEFAULT_MODEL, ENGINES
    from unsam_mm.prompting.tree_engine import TreeEngine

    if name not in ENGINES:
        raise UnSAMError(
            f'the engine must be one of {", ".join(ENGINES)}, got {name!r}; see the preferences of the plugin'
        )
    if name == 'tree':
        generator = PseudoMaskGenerator.from_preset('default', device=device)
        return TreeEngine(_ReportingGenerator(generator), device)
    from unsam_mm.prompting.model import RegionEngine
    from unsam_mm.student import RegionTokenizer
    from unsam_mm.student.tokenizer import tokens_signature
    from unsam_mm.student.weights import load_weights, packaged_weights

    trained = load_weights(weights or packaged_weights(DEFAULT_MODEL))

    @cache  # copies of the engine share it, and with it the ViT
    def tokenizer(device: str) -> _ReportingTokenizer:
        return _ReportingTokenizer(RegionTokenizer(trained.settings, trained.n_tokens, device))

    return RegionEngine(trained.net, tokenizer, device, partial(tokens_signature, trained.settings, trained.n_tokens))


def import_torch() -> ModuleType:
    """Imports torch; other threads go on while its largest library is loaded.

    An import holds Python's lock while the system links a library of 400 MB, half a second or so. A call of the system's
    own loader does not, and the import finds the library loaded. Where there is no such file this is a plain import.
    """
    spec = find_spec('torch')
    for name in _LARGEST_LIBRARY if spec is not None and os.name == 'posix' else ():
        path = Path(spec.submodule_search_locations[0], 'lib', name)
        if path.is_file():
            load = ctypes.CDLL(None).dlopen
            load.argtypes, load.restype = [ctypes.c_char_p, ctypes.c_int], ctypes.c_void_p
            load(os.fsencode(path), os.RTLD_NOW)
    import torch

    return torch


class _ReportingGenerator:
    """A generator that reports progress; the engine calls it without a callback."""

    def __init__(self, generator: PseudoMaskGenerator) -> None:
        self._generator = generator

    @property
    def signature(self) -> str:
        return self._generator.signature

    def __call__(self, rgb: np.ndarray) -> MaskHierarchy:
        return self._generator(rgb, progress=report_progress)


class _ReportingTokenizer:
    """A tokenizer that reports progress; the engine calls it without a callback."""

    def __init__(self, tokenizer: RegionTokenizer) -> None:
        self._tokenizer = tokenizer

    def with_trees(
        self, rgb: np.ndarray, read: Callable[[RegionTokens], ClickableImage]
    ) -> tuple[ClickableImage, MaskHierarchy]:
        return self._tokenizer.with_trees(rgb, read, report_progress)
