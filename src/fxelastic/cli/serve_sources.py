"""Serve requests from a folder, from stdin or over HTTP, for ``fxelastic serve``."""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fxelastic.edge.array_bytes import read_arrays, read_npy, write_arrays, write_npy
from fxelastic.errors import ServingError, UsageError
from fxelastic.extras import required
from fxelastic.files import read_regular, replace_file

if TYPE_CHECKING:
    from fxelastic.cli.interrupts import Interrupts
    from fxelastic.cli.serve_metrics import Metrics
    from fxelastic.edge.executor import Array
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
        runtime: The runtime.
        folder: A folder of .npy and .npz files.
        outputs: The folder for results, which get the names of the request files; None to discard
            them.
        names: Names of the model's inputs.
        results: Names of its flat results.
        repeat: The number of passes over the folder.
        complain: Called with a message for each file that is invalid or not answered.
        interrupts: Handles interrupts between requests.

    Returns:
        The number of invalid requests; requests that no subnet could answer are not counted.

    Raises:
        UsageError: The folder does not exist or has no .npy and .npz files, or results would
            replace requests or can't be written.
    """
    if outputs is not None and os.path.realpath(outputs) == os.path.realpath(folder):
        raise UsageError(
            "the results would replace the requests",
            expected="different folders for --inputs and --outputs",
            got=f"{folder} for both",
        )
    files = []
    if folder.is_dir():
        files = sorted(path for path in folder.iterdir() if path.suffix in (".npy", ".npz"))
    if not files:
        raise UsageError(
            f"there is nothing to serve in {folder}",
            expected="a folder with .npy or .npz files",
            got="a folder without them" if folder.is_dir() else "no folder",
        )
    if outputs is not None and len({path.stem for path in files}) < len(files):
        twice = next(p for p in files if p.suffix == ".npz" and p.with_suffix(".npy") in files)
        raise UsageError(
            f"two files in {folder} would have the same result file",
            expected="files whose names differ in more than .npy and .npz",
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
    """Answer requests on stdin until it ends; a request is one .npy array for each input.

    The arrays of the results are written to stdout in the same form.

    Args:
        runtime: The runtime.
        names: Names of the model's inputs.
        max_bytes: The maximum size of an array, in bytes.
        interrupts: Handles interrupts between requests.

    Returns:
        0: an invalid request raises an error, since the start of the next request is unknown.

    Raises:
        UsageError: The data is not an array or does not fit the model, or ends within a request.
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
        # The sender may wait for this result before it sends the next array.
        sys.stdout.buffer.flush()


def serve_http(
    runtime: Runtime,
    names: Sequence[str],
    results: Sequence[str],
    metrics: Metrics,
    address: str,
    max_bytes: int,
    note: Callable[[str], None],
) -> None:
    """Answer HTTP requests until the process is interrupted.

    Args:
        runtime: The runtime.
        names: Names of the model's inputs.
        results: Names of its flat results.
        metrics: The metrics for ``/metrics``.
        address: ``PORT`` or ``HOST:PORT``.
        max_bytes: The maximum size of a request, in bytes.
        note: Called with messages such as the address.

    Raises:
        UsageError: The address is invalid or in use, or the server is not installed.
    """
    host, port = parse_address(address)
    required("starlette", "the HTTP endpoint needs starlette and uvicorn", "serve")
    required("uvicorn", "the HTTP endpoint needs starlette and uvicorn", "serve")
    from fxelastic.cli.serve_http import Endpoint, server

    local = is_loopback(host)
    endpoint = Endpoint(
        runtime,
        tuple(names),
        tuple(results),
        metrics,
        max_body_bytes=max_bytes,
        hosts=frozenset({"localhost", "127.0.0.1", "::1", host.lower()}) if local else frozenset(),
    )
    made = server(endpoint, host, port)
    try:
        socket = made.config.bind_socket()
    except SystemExit as e:
        raise UsageError(
            f"can't listen on {address}",
            expected="a free port, and an address of this machine",
            got="an address that is in use or not available; see the line above",
            fix="choose another port, or stop the program that uses it",
        ) from e
    with socket:
        # From here on connections can queue, even before the server accepts them.
        socket.listen()
        where = socket.getsockname()
        note(f"listening on {_url(where[0], where[1])}")
        if not local:
            note("warning: other machines can reach this address, and no password is required")
        # An interrupt is the usual end of a server.
        with suppress(KeyboardInterrupt):
            made.run(sockets=[socket])


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host's address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_address(text: str) -> tuple[str, int]:
    """Parse ``PORT`` or ``HOST:PORT``; the default host is the loopback address.

    Raises:
        UsageError: The text is malformed.
    """
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < 2**16):
        raise UsageError(
            "--http must be a port or an address",
            expected="a port, as in 8765, or a host and a port, as in 0.0.0.0:8765",
            got=repr(text),
        )
    return host.strip("[]") or _LOOPBACK, int(port)


def _bytes(path: Path) -> bytes:
    try:
        return read_regular(path, follow=True)
    except OSError as e:
        raise UsageError(f"{path} can't be read", got=e.strerror or str(e)) from e


def _write(reply: Reply, stem: Path, results: Sequence[str]) -> None:
    """Write a reply's arrays atomically: as .npy if there is one, otherwise as .npz."""
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
