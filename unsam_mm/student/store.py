"""A cache of region tokens on disk: one file for each image, written by several processes and read in training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

from tqdm import tqdm

from unsam_mm.errors import DamagedError, ImageError, StoreError, TargetError, UnSAMError, image_errors
from unsam_mm.files import check_writable, fitting_name
from unsam_mm.fingerprints import image_stamp, is_current
from unsam_mm.generator import settings_signature
from unsam_mm.images import read_image
from unsam_mm.processes import available_cores, in_processes
from unsam_mm.pseudo_masks.region_trees import GeneratorSettings
from unsam_mm.pseudo_masks.vit import check_device
from unsam_mm.student.tokenizer import ALGORITHM, RegionTokenizer
from unsam_mm.student.tokens import MAX_TOKENS, RegionTokens, TokenMasks, read_notes
from unsam_mm.weights import cache_dir

_LOST = '{}: the worker process ended twice while processing it, perhaps for lack of memory; use fewer prepare_workers'
_MAX_DEFAULT_WORKERS = 8  # each takes about 1 GB


@dataclass(frozen=True)
class ImageLocation:
    """Location of an image.

    Attributes:
        root: The folder that the name is relative to.
        name: Path below that folder, with forward slashes.
    """

    root: str
    name: str

    @property
    def path(self) -> Path:
        """The image file."""
        return Path(self.root, self.name)


@dataclass(frozen=True)
class RegionStore:
    """Tokens and training masks by image. Files are written atomically, so processes may share a store.

    Each image folder and each set of parameters has its own subfolder. Tokens are computed again if the parameters or
    the image file change.

    Attributes:
        folder: Root of the store; by default the folder ``region_tokens`` in the cache ($UNSAM_CACHE).
        settings: Settings of the generator.
        n_tokens: Maximum number of regions of an image.
        max_masks: Maximum number of pseudo-masks of an image.
        device: Torch device of the ViT.

    Raises:
        UnSAMError: If a number is out of range.
    """

    folder: str | None = None
    settings: GeneratorSettings = field(default_factory=GeneratorSettings)
    n_tokens: int = 768
    max_masks: int = 300
    device: str = 'cpu'

    def __post_init__(self) -> None:
        # Checked here: the error message of a worker process that fails at its start would be lost.
        if not 1 <= self.n_tokens <= MAX_TOKENS or self.max_masks < 1:
            raise UnSAMError(
                f'n_tokens={self.n_tokens} must lie in 1..{MAX_TOKENS}, and max_masks={self.max_masks} must be positive'
            )

    @cached_property
    def signature(self) -> str:
        """Twelve hexadecimal digits, a hash of the parameters on which tokens and masks depend.

        The weights of the ViT are downloaded if needed, but not loaded.
        """
        described = [settings_signature(self.settings), self.n_tokens, self.max_masks, ALGORITHM]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:12]

    def path_of(self, location: ImageLocation) -> Path:
        """The path of the file with the tokens of an image."""
        root = Path(location.root).resolve()
        digest = hashlib.blake2b(str(root).encode('utf-8', 'surrogateescape'), digest_size=6).hexdigest()
        return self._base / f'{root.name}-{digest}' / self.signature / fitting_name(location.name, '.npz')

    def has(self, location: ImageLocation) -> bool:
        """True if the store contains tokens of the current version of the image file."""
        try:
            return self._is_current(location)
        except (OSError, StoreError):
            return False

    def read(self, location: ImageLocation) -> tuple[RegionTokens, TokenMasks]:
        """Tokens and training masks of an image.

        Raises:
            StoreError: If there is no such file, or it is damaged or was made from another version of the image file.
        """
        path = self.path_of(location)
        if not self._is_current(location):
            raise StoreError(
                f'{path}: the tokens were made from an earlier version of {location.path}; make them again'
            )
        tokens, masks = RegionTokens.load(path), TokenMasks.load(path)
        if masks.shares.shape[1] != len(tokens) or (masks.areas_px > tokens.labels.size).any():
            raise DamagedError(f'{path}: tokens and masks are of different images; remove the file and make it again')
        return tokens, masks

    def make(self, location: ImageLocation, tokenizer: RegionTokenizer) -> tuple[RegionTokens, TokenMasks]:
        """Computes the tokens of an image and stores them.

        Raises:
            ImageError: If the image cannot be read or segmented.
            TargetError: If the file system does not accept the file name.
            StoreError: If the folder cannot be written or the disk is full.
        """
        with image_errors(location.path):
            stamp = image_stamp(location.path)
            tokens, masks = tokenizer.with_masks(read_image(location.path), max_masks=self.max_masks)
        tokens.save(self.path_of(location), masks, json.dumps(stamp))
        return tokens, masks

    @property
    def _base(self) -> Path:
        return Path(self.folder).expanduser() if self.folder else cache_dir() / 'region_tokens'

    def _is_current(self, location: ImageLocation) -> bool:
        path = self.path_of(location)
        try:
            stamp = json.loads(read_notes(path) or 'null')
        except ValueError as error:
            raise StoreError(f'{path}: its notes are damaged; remove it and make it again') from error
        return is_current(path, location.path, stamp)

    def tokenizer(self) -> RegionTokenizer:
        """A tokenizer with the parameters of the store; loads the ViT."""
        return RegionTokenizer(self.settings, n_tokens=self.n_tokens, device=self.device)

    def prepare(
        self, locations: Sequence[ImageLocation], workers: int | None = None, progress: bool = True
    ) -> dict[ImageLocation, str]:
        """Computes the missing tokens. An interrupted run is resumed by the next call.

        Args:
            locations: The images.
            workers: Number of processes, about 1 GB each; None for one per core, at most eight. Devices other than the
                CPU use one process.
            progress: True to show a progress bar.

        Returns:
            The error message for each image that failed: it cannot be read or segmented, its file cannot be written, or
            its worker process ended twice.

        Raises:
            StoreError: If the store cannot be written.
            WeightsError: If the weights of the ViT are not available.
        """
        check_device(self.device)
        waiting = [location for location in locations if not self.has(location)]
        failed = {}
        if not waiting:
            return failed
        check_writable(self._base)  # checked before the run, which does not end when a single image fails
        bar = tqdm(
            total=len(locations),
            initial=len(locations) - len(waiting),
            desc='region tokens',
            unit='image',
            disable=not progress,
        )
        with bar, closing(self._results(waiting, workers or min(available_cores(), _MAX_DEFAULT_WORKERS))) as results:
            for location, failure in results:
                if failure is not None:
                    failed[location] = failure
                bar.update()
        return failed

    def _results(self, locations: list[ImageLocation], workers: int) -> Iterator[tuple[ImageLocation, str | None]]:
        """Each image with its error message, or None, in the order of completion."""
        workers = min(workers, len(locations)) if self.device == 'cpu' else 1
        if workers == 1:
            make = _Maker(self)
            yield from ((location, make(location)) for location in locations)
            return
        advice = f'finished images are kept; run again with fewer prepare_workers than {workers}'
        yield from in_processes(
            partial(_Maker, self), locations, workers, advice, lambda location: _LOST.format(location.path)
        )


class _Maker:
    """Computes the tokens of one image after another with one ViT."""

    def __init__(self, store: RegionStore) -> None:
        self._store, self._tokenizer = store, store.tokenizer()

    def __call__(self, location: ImageLocation) -> str | None:
        try:
            self._store.make(location, self._tokenizer)
        except (ImageError, TargetError) as error:  # concerns this image only
            return str(error)
        return None
