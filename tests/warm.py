"""Python programs in processes of their own that begin with torch imported.

A program that a user starts imports torch, which takes seconds of each test that starts one. Here
one process imports it (`tests/preloaded.py`), and each program runs in a fork of that process.
Start a program afresh where a test is about what happens until its imports are done.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

from tests.cli.commands import ROOT, environment

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.preloaded"])


def start(program: str, *argv: str, cwd: Path, stdout: int, stderr: int) -> BaseProcess:
    """Start a program that computes with one thread and leads a process group.

    Args:
        program: The path of a Python file, or the name of a module.
        argv: Its arguments.
        cwd: The folder it runs in.
        stdout: The file descriptor that it prints to.
        stderr: The file descriptor that its errors go to.
    """
    with mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):
        _start_server()
        streams = [Connection(os.dup(fd), readable=False) for fd in (stdout, stderr)]
        arguments = (program, argv, cwd, environment(), *streams)
        process = _CONTEXT.Process(target=_run, args=arguments, daemon=True)
        process.start()
    for stream in streams:
        stream.close()
    return process


def _start_server() -> None:
    """Start the process that is forked, in a folder where ``tests`` is this package."""
    here = Path.cwd()
    os.chdir(ROOT)
    try:
        forkserver.ensure_running()
    finally:
        os.chdir(here)


def run(
    program: str, *argv: str, cwd: Path, timeout_s: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, as `subprocess.run` does."""
    (done,) = _run_all([{}], program, argv, cwd, timeout_s)
    return done


def run_together(
    n_processes: int, program: str, *argv: str, cwd: Path, timeout_s: float = 300
) -> list[subprocess.CompletedProcess[str]]:
    """Run a program in several processes that train together, as ``torchrun`` does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(n_processes)}
    variables = [{**group, "RANK": str(rank)} for rank in range(n_processes)]
    return _run_all(variables, program, argv, cwd, timeout_s)


def _run_all(
    variables: Sequence[Mapping[str, str]],
    program: str,
    argv: tuple[str, ...],
    cwd: Path,
    timeout_s: float,
) -> list[subprocess.CompletedProcess[str]]:
    """A process for each set of additional environment variables."""
    with contextlib.ExitStack() as opened:
        files = [
            opened.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2 * len(variables))
        ]
        outputs = list(zip(files[::2], files[1::2], strict=True))
        processes = []
        for added, (stdout, stderr) in zip(variables, outputs, strict=True):
            fds = {"stdout": stdout.fileno(), "stderr": stderr.fileno()}
            with mock.patch.dict(os.environ, added):
                processes.append(start(program, *argv, cwd=cwd, **fds))
        until = time.monotonic() + timeout_s
        for process in processes:
            process.join(max(0.0, until - time.monotonic()))
        running = [process for process in processes if process.exitcode is None]
        for process in running:
            os.killpg(process.pid or 0, signal.SIGKILL)
        if running:
            raise subprocess.TimeoutExpired(program, timeout_s)
        for file in files:
            file.seek(0)
        return [
            subprocess.CompletedProcess(
                [program, *argv], process.exitcode or 0, stdout.read(), stderr.read()
            )
            for process, (stdout, stderr) in zip(processes, outputs, strict=True)
        ]


def _run(
    program: str,
    argv: tuple[str, ...],
    cwd: Path,
    variables: dict[str, str],
    stdout: Connection,
    stderr: Connection,
) -> None:
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    os.dup2(stdout.fileno(), 1)
    os.dup2(stderr.fileno(), 2)
    sys.argv = [program, *argv]
    if program.endswith(".py"):
        sys.path.insert(0, str(Path(program).parent))
        runpy.run_path(program, run_name="__main__")
    else:
        sys.path.insert(0, str(cwd))
        runpy.run_module(program, run_name="__main__", alter_sys=True)
