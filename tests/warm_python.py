"""Processes of Python that find torch and MMDetection imported, which would take each of them six seconds.

`start` and `run` take what follows `python` on a command line. One process a test session imports the packages of
others; each command is a fork of it, with a folder, an environment, streams and an exit status of its own, and can be
killed as any other process. MMEngine's configs are written as they are: yapf, which lays them out, takes seconds. This project's modules are not among what is imported, except for those that make
MMDetection import: each command imports and registers them anew. Where there is no fork, Python is started as usual.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
IS_POSSIBLE = sys.platform == 'linux' and hasattr(os, 'pidfd_open')

_PACKAGES = [
    *('cv2', 'mmcv.transforms', 'mmdet.datasets', 'mmdet.engine', 'mmdet.evaluation', 'mmdet.models'),
    *('mmdet.structures', 'mmdet.visualization', 'mmengine.runner', 'mmengine.visualization', 'numba'),
    *('pycocotools.cocoeval', 'safetensors.torch', 'scipy.ndimage', 'scipy.sparse.linalg', 'skimage.color'),
    *('skimage.data', 'skimage.measure', 'skimage.morphology', 'skimage.segmentation', 'torch.distributed'),
    *('torch.utils.data', 'tqdm', 'transformers.models.dinov2.modeling_dinov2'),
]
_LARGEST_REQUEST = 1 << 20


class Process:
    """A command in a fork; what `subprocess.Popen` has and tests use."""

    def __init__(self, command: list[str], reports: IO[bytes]) -> None:
        self.args = command
        self.returncode: int | None = None
        self._reports = reports
        self.pid = int(reports.readline())

    def poll(self) -> int | None:
        """The exit status, or None as long as there is none."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status; that of a process which a signal ended is negative.

        Raises:
            TimeoutExpired: If there is none after so many seconds.
        """
        if self.returncode is None:
            if not select.select([self._reports], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = os.waitstatus_to_exitcode(int(self._reports.readline()))
            self._reports.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless the process has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Asks the process to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the process without notice."""
        self.send_signal(signal.SIGKILL)


def start(
    *command: object,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdout: IO[Any] | None = None,
    stderr: IO[Any] | None = None,
) -> Process | subprocess.Popen:
    """Starts a script, or ``-m`` and a module, or ``-c`` and code, with its arguments.

    Args:
        command: What follows `python` on a command line.
        cwd: The current folder of the process.
        env: All its environment variables. None: those of this process.
        stdout: A file that takes what it prints; None: where this process prints.
        stderr: The same for errors.
    """
    arguments = [str(part) for part in command]
    environment = dict(os.environ if env is None else env)
    streams = [stdout or sys.__stdout__, stderr or sys.__stderr__]
    if not IS_POSSIBLE:
        return subprocess.Popen([sys.executable, *arguments], cwd=cwd, env=env, stdout=streams[0], stderr=streams[1])
    request = {'arguments': arguments, 'cwd': str(cwd or Path.cwd()), 'environment': environment}
    readable, writable = os.pipe()
    handles = [streams[0].fileno(), streams[1].fileno(), writable]
    socket.send_fds(_server(), [json.dumps(request).encode()], handles)
    os.close(writable)
    return Process(arguments, os.fdopen(readable, 'rb', buffering=0))


def run(
    *command: object, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """What a command printed, once it has ended."""
    with tempfile.TemporaryFile('w+') as stdout, tempfile.TemporaryFile('w+') as stderr:
        process = start(*command, cwd=cwd, env=env, stdout=stdout, stderr=stderr)
        try:
            process.wait(timeout)
        finally:
            process.kill()
        for file in (stdout, stderr):
            file.seek(0)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout.read(), stderr.read())


@cache
def _server() -> socket.socket:
    """The connection to the process that forks, which ends with it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            # One thread: a fork has none but the one that made it.
            env={name: value for name, value in os.environ.items() if name != 'PYTHONPATH'} | {'OMP_NUM_THREADS': '1'},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
    atexit.register(lambda: (ours.close(), process.wait()))
    return ours


# What follows is done in the process that forks.


def _serve(requests: socket.socket) -> dict[str, Any]:
    """Starts and watches processes; returns in each of them what it shall do, and never in the one that forks."""
    running: dict[int, tuple[int, int]] = {}  # handle of a process -> its number, and where its end is reported
    while True:
        ready, _, _ = select.select([requests, *running], [], [])
        for handle in ready:
            if handle is not requests:
                number, reports = running.pop(handle)
                _, status = os.waitpid(number, 0)
                _report(reports, status)
                for each in (handle, reports):
                    os.close(each)
                continue
            message, handles, _, _ = socket.recv_fds(requests, _LARGEST_REQUEST, 3)
            if not message:  # the tests have ended, or were killed
                for number, _ in running.values():
                    os.kill(number, signal.SIGKILL)
                os._exit(0)
            if (number := os.fork()) == 0:
                for stream, given in zip((1, 2), handles[:2], strict=True):
                    os.dup2(given, stream)
                for each in (requests.detach(), *handles, *running, *(reports for _, reports in running.values())):
                    os.close(each)
                return json.loads(message)
            for given in handles[:2]:
                os.close(given)
            running[os.pidfd_open(number)] = number, handles[2]
            _report(handles[2], number)


def _report(reports: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody waits for it
        os.write(reports, f'{number}\n'.encode())


def _become(request: dict[str, Any], path: list[str]) -> tuple[str, str]:
    """Takes over the folder, the environment, the path and the arguments of a command.

    Returns:
        How the command is run: as a `script`, as a module `-m`, or as code `-c`; and which one.
    """
    import multiprocessing.process
    import random
    import warnings

    import numpy as np
    import torch

    os.environ.clear()
    os.environ.update(request['environment'])
    os.chdir(request['cwd'])
    multiprocessing.process.ORIGINAL_DIR = request['cwd']
    arguments, options = request['arguments'], []
    while arguments[0] in ('-P', '-W', '-u'):
        options.append(arguments.pop(0))
        if options[-1] == '-W':
            warnings.simplefilter(arguments.pop(0))
    kind = arguments.pop(0) if arguments[0] in ('-m', '-c') else 'script'
    what = arguments[0]
    is_unbuffered = '-u' in options or 'PYTHONUNBUFFERED' in os.environ
    sys.stdout = open(1, 'w', buffering=1 if is_unbuffered else -1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, 'w', buffering=1, closefd=False, errors='backslashreplace')  # noqa: SIM115
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
    sys.argv = ['-c' if kind == '-c' else what, *arguments[1:]]
    first = {'script': str(Path(what).resolve().parent), '-m': request['cwd'], '-c': ''}[kind]
    outer = [part for part in os.environ.get('PYTHONPATH', '').split(os.pathsep) if part]
    sys.path[:] = [*([] if '-P' in options else [first]), *outer, *path]
    for seed in (random.seed, np.random.seed, torch.seed):  # of processes that are not forks, no two have the same
        seed()
    return kind, what


def _import_packages() -> None:
    import importlib

    sys.path.insert(0, str(ROOT))
    from unsam_mm._mmcv_ops import ensure_mmcv_ops

    ensure_mmcv_ops()
    for name in _PACKAGES:
        importlib.import_module(name)
    yapf_api = importlib.import_module('yapf.yapflib.yapf_api')
    yapf_api.FormatCode = lambda text, style_config: (text, False)
    sys.path.remove(str(ROOT))


if __name__ == '__main__':
    import gc
    import runpy

    PATH = sys.path[1:]
    _import_packages()
    gc.freeze()  # otherwise each fork would copy what it never changes
    KIND, WHAT = _become(_serve(socket.socket(fileno=int(sys.argv[1]))), PATH)
    # Here, outside of all functions, so that Python ends as it does after a script.
    if KIND == '-m':
        runpy.run_module(WHAT, run_name='__main__', alter_sys=True)
    elif KIND == '-c':
        exec(WHAT, {'__name__': '__main__'})
    else:
        runpy.run_path(WHAT, run_name='__main__')
