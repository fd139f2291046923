"""Resumable downloads: partial files are continued, and files are verified before they get their final name."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path

from tqdm import tqdm

from unsam_mm.errors import StoreError, WeightsError
from unsam_mm.files import read_json, sync
from unsam_mm.fingerprints import file_sha256

_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 20


def download(url: str, target: Path, sha256: str | None) -> Path:
    """Downloads `url` to `target`, going on from ``target.part`` if an earlier try left one of the same file.

    What the file is, its entity tag or date, is kept beside in ``target.part.json``. The server is asked for the rest
    of that very file, and sends all of it if it has another one now.

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
    note = target.with_name(target.name + '.part.json')
    began = partial.exists()
    is_whole = _fetch_rest(url, partial, note, target.name, began, sha256 is not None)
    if began and not (is_whole and sha256 in (None, file_sha256(partial))):  # what was there is of another file
        _fetch_rest(url, partial, note, target.name, False, sha256 is not None)
    if sha256 is not None and (found := file_sha256(partial)) != sha256:
        partial.unlink()
        note.unlink(missing_ok=True)
        raise WeightsError(
            f'{target.name}: the download has SHA-256 {found}, expected {sha256}; it was removed, try again or another network'
        )
    with partial.open('rb+') as file:  # Windows refuses to sync a file that is open for reading
        sync(file.fileno())  # a power cut after the renaming would leave an empty file
    partial.replace(target)
    note.unlink(missing_ok=True)
    return target


def _fetch_rest(url: str, partial: Path, note: Path, label: str, may_resume: bool, is_verified: bool) -> bool:
    """Completes the partial file; False if the server's answer does not continue it, so that it has to begin anew.

    Without a checksum a mix of two files would go unnoticed, so only the same file is resumed.
    """
    done_bytes = partial.stat().st_size if may_resume else 0
    validator = _noted(note, url) if done_bytes else None
    headers = {'Range': f'bytes={done_bytes}-'} if validator or (done_bytes and is_verified) else {}
    headers |= {'If-Range': validator} if validator else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S) as response:
            resumed, start = bool(headers) and response.status == 206, f'bytes {done_bytes}-'
            if resumed and not response.headers.get('Content-Range', start).startswith(start):
                return False
            if not resumed:
                noted = {'url': url, 'validator': _validator(response.headers)}
                note.write_text(json.dumps(noted), encoding='utf-8')  # one that is cut short counts for nothing
            _copy(response, partial, done_bytes if resumed else 0, label)
    except urllib.error.HTTPError as error:
        # 416: the server has no more of it; the partial file is whole if it is as long as the server's.
        if error.code != 416 or not headers:
            raise
        return is_verified or error.headers.get('Content-Range') == f'bytes */{done_bytes}'
    return True


def _validator(headers: Message) -> str | None:
    """What `If-Range` may name: a strong entity tag, else the date of the last change."""
    tag = headers.get('ETag', '')
    return tag if tag.startswith('"') else headers.get('Last-Modified')


def _noted(note: Path, url: str) -> str | None:
    """The validator of the file that was begun; None if it came from elsewhere or has none."""
    try:
        noted = read_json(note)
    except StoreError:
        return None
    return noted.get('validator') if isinstance(noted, dict) and noted.get('url') == url else None


def _copy(response, partial: Path, start: int, label: str) -> None:
    length = response.headers.get('Content-Length')
    total = start + int(length) if length else None
    progress = tqdm(total=total, initial=start, unit='B', unit_scale=True, desc=label, disable=None)
    with partial.open('ab' if start else 'wb') as file, progress:
        while block := response.read(_CHUNK_BYTES):
            file.write(block)
            progress.update(len(block))
    if total is not None and partial.stat().st_size != total:
        raise OSError(
            f'{label}: the connection broke after {partial.stat().st_size} of {total} bytes; run again to go on'
        )


def wheel_url(requirement: str) -> str:
    """The address from which the configured pip would fetch a pinned wheel, for example ``'name==1.0'``.

    pip's configuration selects the index; nothing is installed.

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
