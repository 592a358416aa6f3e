"""Python programs in processes of their own that begin with torch imported.

A program that a user starts imports torch, which takes seconds of each test that starts one. Here
one process imports it, and each program runs in a fork of that process. Start a program afresh
where a test is about what happens until its imports are done.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

from tests.cli.commands import environment

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "fxelastic.cli.app", "tests.exporter_cache"])


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
        streams = [Connection(os.dup(fd), readable=False) for fd in (stdout, stderr)]
        arguments = (program, argv, cwd, environment(), *streams)
        process = _CONTEXT.Process(target=_run, args=arguments, daemon=True)
        process.start()
    for stream in streams:
        stream.close()
    return process


def run(
    program: str, *argv: str, cwd: Path, timeout_s: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, as `subprocess.run` does."""
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        fds = {"stdout": stdout.fileno(), "stderr": stderr.fileno()}
        process = start(program, *argv, cwd=cwd, **fds)
        process.join(timeout_s)
        if process.exitcode is None:
            os.killpg(process.pid or 0, signal.SIGKILL)
            raise subprocess.TimeoutExpired(program, timeout_s)
        stdout.seek(0)
        stderr.seek(0)
        return subprocess.CompletedProcess(
            [program, *argv], process.exitcode, stdout.read(), stderr.read()
        )


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
