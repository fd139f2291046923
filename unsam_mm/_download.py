"""Resumable downloads: partial downloads are continued, and files are verified before they get their final name."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path
from typing import Any

from tqdm import tqdm

from unsam_mm.errors import StoreError, WeightsError
from unsam_mm.files import flush_to_disk, read_json
from unsam_mm.fingerprints import file_sha256

_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 20


def download(url: str, target: Path, sha256: str | None) -> Path:
    """Downloads `url` to `target`; ``target.part`` of an interrupted download of the same file is continued.

    The entity tag or date of the file is stored in ``target.part.json``. The server is asked for the rest of this
    version, and sends the whole file if the file has changed.

    Args:
        url: http(s) or file URL.
        target: Path that the file gets once it is complete and verified; its folder is made.
        sha256: Expected checksum; None if the publisher gives none.

    Raises:
        WeightsError: If the checksum differs; the partial file is removed then.
        OSError: If the source cannot be reached or the disk cannot be written; the partial file is kept.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + '.part')
    version_file = target.with_name(target.name + '.part.json')
    partial_existed = partial.exists()
    is_whole = _fetch_rest(url, partial, version_file, sha256 is not None)
    if partial_existed and not (is_whole and sha256 in (None, file_sha256(partial))):  # it was of another version
        partial.unlink()
        _fetch_rest(url, partial, version_file, sha256 is not None)
    if sha256 is not None and (found := file_sha256(partial)) != sha256:
        partial.unlink()
        version_file.unlink(missing_ok=True)
        raise WeightsError(
            f'{target.name}: the download has SHA-256 {found}, expected {sha256}; it was removed, try again or another network'
        )
    with partial.open('rb+') as file:  # Windows refuses to sync a file that is open for reading
        flush_to_disk(file.fileno())  # otherwise a power failure after the renaming would leave an empty file
    partial.replace(target)
    version_file.unlink(missing_ok=True)
    return target


def _fetch_rest(url: str, partial: Path, version_file: Path, is_verified: bool) -> bool:
    """Completes the partial file; False if the server's answer does not continue it.

    Without a checksum, a mix of two versions would not be noticed, so a file is then continued only if the server
    confirms its version.
    """
    done_bytes = partial.stat().st_size if partial.exists() else 0
    validator = _stored_validator(version_file, url) if done_bytes else None
    headers = {'Range': f'bytes={done_bytes}-'} if validator or (done_bytes and is_verified) else {}
    headers |= {'If-Range': validator} if validator else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S) as response:
            resumed, start = bool(headers) and response.status == 206, f'bytes {done_bytes}-'
            if resumed and not response.headers.get('Content-Range', start).startswith(start):
                return False
            if not resumed:
                version = {'url': url, 'validator': _validator(response.headers)}
                version_file.write_text(json.dumps(version), encoding='utf-8')  # ignored if it is truncated
            _copy(response, partial, done_bytes if resumed else 0)
    except urllib.error.HTTPError as error:
        # 416: the server has no more bytes; the partial file is complete if it has the length of the server's file.
        if error.code != 416 or not headers:
            raise
        return is_verified or error.headers.get('Content-Range') == f'bytes */{done_bytes}'
    return True


def _validator(headers: Message) -> str | None:
    """The value for `If-Range`: a strong entity tag, else the date of the last change."""
    tag = headers.get('ETag', '')
    return tag if tag.startswith('"') else headers.get('Last-Modified')


def _stored_validator(version_file: Path, url: str) -> str | None:
    """The validator of the partial file; None if there is none, or the file came from another address."""
    try:
        version = read_json(version_file)
    except StoreError:
        return None
    return version.get('validator') if isinstance(version, dict) and version.get('url') == url else None


def _copy(response: Any, partial: Path, start: int) -> None:
    label, length = partial.stem, response.headers.get('Content-Length')
    total = start + int(length) if length else None
    progress = tqdm(total=total, initial=start, unit='B', unit_scale=True, desc=label, disable=None)
    with partial.open('ab' if start else 'wb') as file, progress:
        while block := response.read(_CHUNK_BYTES):
            file.write(block)
            progress.update(len(block))
    if total is not None and partial.stat().st_size != total:
        raise OSError(
            f'{label}: the connection broke after {partial.stat().st_size} of {total} bytes; run again to continue'
        )


def wheel_url(requirement: str) -> str:
    """The address of a pinned wheel, for example ``'name==1.0'``, in the index that pip is configured for.

    Nothing is installed.

    Raises:
        OSError: If pip does not find the wheel, for example offline.
    """
    command = [sys.executable, '-m', 'pip', 'install', '--quiet', '--dry-run', '--no-deps', '--ignore-installed']
    finished = subprocess.run(
        [*command, '--report', '-', requirement], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if finished.returncode != 0:
        reason = (finished.stderr.strip().splitlines() or ['no message'])[-1]
        raise OSError(f'pip cannot find {requirement}: {reason}')
    return json.loads(finished.stdout)['install'][0]['download_info']['url']
