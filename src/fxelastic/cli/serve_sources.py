"""Where ``fxelastic serve`` takes its requests from."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fxelastic.edge.serving.frames import read_arrays, read_npy, write_arrays, write_npy
from fxelastic.errors import ServingError, UsageError
from fxelastic.files import replace_file

if TYPE_CHECKING:
    from fxelastic.cli.interrupts import Interrupts
    from fxelastic.edge.serving.executable import Array
    from fxelastic.edge.serving.metrics import LatencyHistogram
    from fxelastic.edge.serving.runtime import Reply, Runtime

_MAX_FILE_BYTES = 2**34
_LOOPBACK = "127.0.0.1"


def serve_folder(
    runtime: Runtime,
    folder: Path,
    outputs: Path | None,
    names: Sequence[str],
    results: Sequence[str],
    repeat: int,
    complain: Callable[[str], None],
    interrupts: Interrupts,
) -> int:
    """Answer a request for each file of a folder, in the order of their names.

    Args:
        runtime: Answers.
        folder: Holds .npy and .npz files.
        outputs: Where results go, under the files' names; None not to keep them.
        names: Names of the model's inputs.
        results: Names of its flat results.
        repeat: How many times to go through the folder.
        complain: Tells a person of what was refused.
        interrupts: Come between requests.

    Returns:
        How many files were refused; those that no subnet could answer are not among them.

    Raises:
        UsageError: There is no such folder, or nothing in it; results would replace requests, or
            can't be written.
    """
    if outputs is not None and os.path.realpath(outputs) == os.path.realpath(folder):
        raise UsageError(
            "the results would replace the requests",
            expected="another folder for --outputs than for --inputs",
            got=f"{folder} for both",
        )
    files = []
    if folder.is_dir():
        files = sorted(path for path in folder.iterdir() if path.suffix in (".npy", ".npz"))
    if not files:
        raise UsageError(
            f"there is nothing to serve in {folder}",
            expected="a folder with .npy or .npz files",
            got="no such file" if folder.is_dir() else "no folder",
        )
    if outputs is not None and len({path.stem for path in files}) < len(files):
        twice = next(p for p in files if p.suffix == ".npz" and p.with_suffix(".npy") in files)
        raise UsageError(
            f"the results of two files in {folder} would go to one",
            expected="files of different names, apart from .npy and .npz",
            got=f"{twice.stem}.npy and {twice.name}",
        )
    refused = 0
    for turn in range(repeat):
        for path in files:
            try:
                inputs = read_arrays(_bytes(path), names, _MAX_FILE_BYTES)
                with interrupts.request():
                    reply = runtime.infer(**inputs)
            except UsageError as e:
                refused += 1
                complain(f"{path.name} is refused: {e}")
                continue
            except ServingError as e:
                if runtime.status().state != "serving":
                    raise
                complain(f"{path.name} is not answered: {e}")
                continue
            if outputs is not None and turn == repeat - 1:
                _write(reply, outputs / path.stem, results)
    return refused


def serve_stdin(
    runtime: Runtime, names: Sequence[str], max_bytes: int, interrupts: Interrupts
) -> int:
    """Answer requests of .npy arrays, one for each input, until stdin ends.

    The results' arrays follow one another on stdout in the same way.

    Args:
        runtime: Answers.
        names: Names of the model's inputs.
        max_bytes: Most bytes of an array.
        interrupts: Come between requests.

    Returns:
        0: a request that is refused ends the stream, as what follows can't be told apart.

    Raises:
        UsageError: What comes is no array, not the model's input, or ends within a request.
    """
    while True:
        inputs: dict[str, Array] = {}
        for name in names:
            array = read_npy(sys.stdin.buffer, max_bytes)
            if array is None and not inputs:
                return 0
            if array is None:
                raise UsageError(
                    "stdin ends within a request",
                    expected=f"an array for each of {', '.join(names)}",
                    got=", ".join(inputs),
                )
            inputs[name] = array
        with interrupts.request():
            reply = runtime.infer(**inputs)
        for output in reply.outputs:
            sys.stdout.buffer.write(write_npy(output))
        # Whoever sends one frame at a time waits for its result.
        sys.stdout.buffer.flush()


def serve_http(
    runtime: Runtime,
    names: Sequence[str],
    results: Sequence[str],
    latencies: LatencyHistogram,
    address: str,
    max_bytes: int,
    note: Callable[[str], None],
) -> None:
    """Answer HTTP requests until the process is told to stop.

    Args:
        runtime: Answers.
        names: Names of the model's inputs.
        results: Names of its flat results.
        latencies: What ``/metrics`` shows.
        address: ``PORT`` or ``HOST:PORT``.
        max_bytes: Most bytes of a request.
        note: Tells a person where it listens.

    Raises:
        UsageError: The address is none or in use, or the server is not installed.
    """
    host, port = parse_address(address)
    try:
        from fxelastic.cli.serve_http import Endpoint, server
    except ImportError as e:
        raise UsageError(
            "the HTTP endpoint needs starlette and uvicorn",
            expected="both",
            got=str(e),
            fix="pip install 'fxelastic[serve]'",
        ) from e
    endpoint = Endpoint(
        runtime, tuple(names), tuple(results), latencies=latencies, max_body_bytes=max_bytes
    )
    made = server(endpoint, host, port)
    try:
        socket = made.config.bind_socket()
    except SystemExit as e:
        raise UsageError(
            f"can't listen on {address}",
            expected="a free port, and an address of this machine",
            got="one that is in use or not to be had; the line above says which",
            fix="choose another port, or end what listens there",
        ) from e
    with socket:
        # From here on connections wait, also before the server takes them.
        socket.listen()
        where = socket.getsockname()
        note(f"listening on http://{where[0]}:{where[1]}")
        if host != _LOOPBACK:
            note("warning: other machines can reach this, and nobody is asked for a password")
        # To be interrupted is how a server ends.
        with suppress(KeyboardInterrupt):
            made.run(sockets=[socket])


def parse_address(text: str) -> tuple[str, int]:
    """The host and port of ``PORT`` or ``HOST:PORT``; the loopback address without a host.

    Raises:
        UsageError: It is neither.
    """
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < 2**16):
        raise UsageError(
            "--http is no address",
            expected="a port, as in 8765, or a host and a port, as in 0.0.0.0:8765",
            got=repr(text),
        )
    return host.strip("[]") or _LOOPBACK, int(port)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise UsageError(f"{path} can't be read", got=e.strerror or str(e)) from e


def _write(reply: Reply, stem: Path, results: Sequence[str]) -> None:
    """Write a reply's arrays, in one step: .npy for one of them, else .npz."""
    if len(results) == 1:
        target, data = stem.with_name(stem.name + ".npy"), write_npy(reply.outputs[0])
    else:
        named = dict(zip(results, reply.outputs, strict=True))
        target, data = stem.with_name(stem.name + ".npz"), write_arrays(named)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, data)
    except OSError as e:
        raise UsageError(
            f"the result can't be written to {target}", got=e.strerror or str(e)
        ) from e
