"""Downloads that can be interrupted: partial files are continued, finished files are verified, names appear last."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from unsam_mm.errors import WeightsError

_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 20


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def download(url: str, target: Path, sha256: str | None) -> Path:
    """Downloads `url` to `target`, going on from ``target.part`` if an earlier try left one.

    Args:
        url: http(s) or file URL.
        target: Where the file goes once it is complete and verified; its folder is made.
        sha256: Expected checksum; None where the publisher gives none.

    Raises:
        WeightsError: If the checksum differs; the partial file is removed then.
        OSError: If the source cannot be reached or the disk cannot be written; the partial file is kept.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + '.part')
    done_bytes = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={'Range': f'bytes={done_bytes}-'} if done_bytes else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            resumed = response.status == 206 if response.status else False
            _copy(response, partial, done_bytes if resumed else 0, target.name)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: nothing is left to send, the partial file is whole
            raise
    found = sha256_of(partial)
    if sha256 is not None and found != sha256:
        partial.unlink()
        raise WeightsError(
            f'{target.name}: the download has SHA-256 {found}, expected {sha256}; it was removed, try again or another network'
        )
    return partial.replace(target)


def _copy(response, partial: Path, start: int, label: str) -> None:
    length = response.headers.get('Content-Length')
    total = start + int(length) if length else None
    progress = tqdm(total=total, initial=start, unit='B', unit_scale=True, desc=label, disable=None)
    with partial.open('ab' if start else 'wb') as file, progress:
        while block := response.read(_CHUNK_BYTES):
            file.write(block)
            progress.update(len(block))
    if total is not None and partial.stat().st_size < total:
        raise OSError(
            f'{label}: the connection broke after {partial.stat().st_size} of {total} bytes; run again to go on'
        )


def wheel_url(requirement: str) -> str:
    """The address from which the configured pip would fetch a pinned wheel, for example ``'name==1.0'``.

    pip's own settings decide which index is asked, and nothing is installed.

    Raises:
        OSError: If pip cannot resolve it, for example offline.
    """
    command = [sys.executable, '-m', 'pip', 'install', '--quiet', '--dry-run', '--no-deps', '--ignore-installed']
    finished = subprocess.run(
        [*command, '--report', '-', requirement], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if finished.returncode != 0:
        reason = (finished.stderr.strip().splitlines() or ['no message'])[-1]
        raise OSError(f'pip cannot find {requirement}: {reason}')
    return json.loads(finished.stdout)['install'][0]['download_info']['url']
