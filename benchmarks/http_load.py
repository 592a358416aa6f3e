"""Attack the HTTP endpoint of ``fxelastic serve`` over loopback, and see what others notice.

    python benchmarks/http_load.py --out result.json

For a minute, at once: 64 clients that check every answer, 100 connections that send a byte now and
then, malformed requests one after the other (5,000 mutations of a good one), and files that claim
or unpack to far more than they are. Meanwhile `/livez` is asked every 20 ms. Then the same load on
a bare uvicorn, whose application reads bodies and sends them back.

Bars: no wrong answer; no status of 500 or more but 503; the 99th percentile of `/livez` at most 5
times that of the bare server; the resident memory grows by at most 64 MB and the bodies in flight.
Takes about two and a half minutes. The machine must be otherwise idle.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import random
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fxelastic import edge
from fxelastic.edge.array_bytes import read_npy, write_npy

N_CLIENTS, N_SLOW, N_MALFORMED = 64, 100, 5000
MAX_LIVE_RATIO, MAX_GROWTH = 5.0, 64 * 2**20
WIDTH = 64
#: A request that has no answer by then counts as refused.
PATIENCE_S = 30.0
_SLICE_S = 0.5

BARE = """
import sys, uvicorn

async def app(scope, receive, send):
    body, more = b"", scope["method"] == "POST"
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})

class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        print("listening on http://127.0.0.1:%d" % self.servers[0].sockets[0].getsockname()[1],
              file=sys.stderr, flush=True)

Server(uvicorn.Config(app, port=0, http="h11", ws="none", lifespan="off", access_log=False,
                      log_level="critical")).run()
"""


@dataclass
class Seen:
    """What the load saw.

    Attributes:
        statuses: How many answers had each status; "closed" for no answer.
        n_checked: Answers to good requests that were compared.
        n_wrong: Those that were not right.
        live_s: The times that `/livez` took.
        peak_bytes: The most resident memory of the server.
        in_flight: The most bytes of bodies that were sent and not answered.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    n_checked: int = 0
    n_wrong: int = 0
    live_s: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    in_flight: int = 0
    _now: int = 0

    @contextlib.contextmanager
    def body(self, n_bytes: int) -> Iterator[None]:
        """Count a body in flight."""
        self._now += n_bytes
        self.in_flight = max(self.in_flight, self._now)
        try:
            yield
        finally:
            self._now -= n_bytes


def main() -> int:
    """Load both servers, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle, pool, examples = _served(Path(folder))
        command = [
            *(sys.executable, "-m", "fxelastic.cli", "serve", str(bundle), "--pool", str(pool)),
            *("--budget-ms", "1000", "--http", "0", "--max-body-mb", "4"),
        ]
        ours = run(command, examples, args.seconds)
        unknown = [Example(example.x, None) for example in examples]
        bare = run([sys.executable, "-c", BARE], unknown, args.seconds)
    result = {"ours": _figures(ours), "bare": _figures(bare), "seconds": args.seconds}
    figures = result["ours"]
    refused = [s for s in figures["statuses"] if s.isdigit() and int(s) >= 500 and s != "503"]
    figures["live_ratio"] = figures["live_p99_ms"] / result["bare"]["live_p99_ms"]
    result["met"] = {
        "answers": not figures["n_wrong"] and figures["n_checked"] > 0,
        "statuses": not refused,
        "live": figures["live_ratio"] <= MAX_LIVE_RATIO,
        "memory": figures["growth_mb"] * 1e6 <= MAX_GROWTH + figures["in_flight_mb"] * 1e6,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n")
    return 0 if all(result["met"].values()) else 1


@dataclass(frozen=True)
class Example:
    """A request of a client, and the right answer; None for any."""

    x: np.ndarray
    y: np.ndarray | None


def _served(folder: Path) -> tuple[Path, Path, list[Example]]:
    """A small bundle, its pool, and requests with what the original computes."""
    import torch
    from torch import nn

    import fxelastic

    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(6):
        layers += [nn.Linear(WIDTH, WIDTH), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(WIDTH, 10)).eval()
    supernet = fxelastic.expand(model, 0.25, example_inputs=torch.zeros(2, WIDTH), kinds=["merged"])
    bundle = folder / "bundle"
    fxelastic.export(supernet, bundle)
    x = np.random.default_rng(0).standard_normal((32, WIDTH)).astype(np.float32)
    loaded = edge.load(bundle)
    table = edge.profile(loaded, n_samples=10, n_subnets=0, n_held_out=0)
    pool = folder / "pool.json"
    found = edge.search(loaded, table, x, budget="200%", max_subnets=1, path=pool, force=True)
    assert found.best.arch == supernet.space.original

    inputs = [torch.randn(1 + i % 4, WIDTH) for i in range(N_CLIENTS)]
    with torch.no_grad():
        examples = [Example(value.numpy(), model(value).numpy()) for value in inputs]
    return bundle, pool, examples


def run(command: list[str], examples: list[Example], seconds: float) -> tuple[Seen, int]:
    """Start a server and load it; what was seen, and its resident memory before."""
    with tempfile.TemporaryFile("w+") as messages:
        process = subprocess.Popen(command, stderr=messages)
        try:
            return _run(process, messages, examples, seconds)
        finally:
            process.terminate()
            process.wait(20)


def _run(process: Any, messages: Any, examples: list[Example], seconds: float) -> tuple[Seen, int]:
    port = _port(process, messages)
    server = psutil.Process(process.pid)
    asyncio.run(_warm(port, Seen(), examples))
    before = _resident(server)
    seen = Seen(peak_bytes=before)
    asyncio.run(_load(port, server, seen, examples, seconds))
    if process.poll() is not None:
        raise RuntimeError("the server ended under load")
    return seen, before


def _port(process: Any, messages: Any) -> int:
    """Wait until the server listens."""
    while process.poll() is None:
        messages.seek(0)
        for line in messages:
            if "listening on" in line:
                return int(line.strip().rpartition(":")[2])
        time.sleep(0.1)
    raise RuntimeError("the server did not start")


async def _warm(port: int, seen: Seen, examples: list[Example]) -> None:
    end_s = time.monotonic() + 2
    await asyncio.gather(*(_client(port, seen, end_s, example) for example in examples[:8]))


async def _load(
    port: int, server: Any, seen: Seen, examples: list[Example], seconds: float
) -> None:
    end_s = time.monotonic() + seconds
    await asyncio.gather(
        *(_client(port, seen, end_s, example) for example in examples),
        *(_slow(port, end_s, i) for i in range(N_SLOW)),
        _malformed(port, seen, end_s, round(N_MALFORMED * seconds / 60), seconds),
        _bombs(port, seen, end_s),
        _live(port, seen, end_s),
        _watch(server, seen, end_s),
    )


async def _client(port: int, seen: Seen, end_s: float, example: Example) -> None:
    """Send a request again and again, and check every answer."""
    body = write_npy(example.x)
    while time.monotonic() < end_s:
        with seen.body(len(body)):
            status, answer = await _ask(port, _post(body))
        seen.statuses[status] += 1
        if status == "200" and example.y is not None:
            found = read_npy(io.BytesIO(answer), 2**20)
            seen.n_checked += 1
            seen.n_wrong += found is None or not np.allclose(found, example.y, atol=1e-4)
        elif status != "200":
            await asyncio.sleep(0.1)


async def _slow(port: int, end_s: float, number: int) -> None:
    """Send a byte now and then; begin again when closed."""
    data = _post(bytes(200))
    while time.monotonic() < end_s:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                for at in range(number % 40, len(data)):
                    writer.write(data[at : at + 1])
                    await writer.drain()
                    await asyncio.sleep(_SLICE_S)
                    if reader.at_eof() or time.monotonic() > end_s:
                        break
            finally:
                writer.close()
        await asyncio.sleep(_SLICE_S)


async def _malformed(port: int, seen: Seen, end_s: float, n: int, seconds: float) -> None:
    """Send mutations of a good request, all of them, even if that takes longer."""
    rng = random.Random(0)
    good = _post(write_npy(np.ones((2, WIDTH), np.float32)))
    for i in range(n):
        data = bytearray(good)
        for _ in range(rng.randint(1, 8)):
            at = rng.randrange(len(data))
            data[at : at + rng.randint(0, 3)] = rng.randbytes(rng.randint(0, 3))
        status, _ = await _ask(port, bytes(data), half_closed=True)
        seen.statuses[status] += 1
        # Evenly over the time, as far as the server keeps up.
        ahead_s = end_s - seconds * (1 - (i + 1) / n) - time.monotonic()
        if ahead_s > 0:
            await asyncio.sleep(ahead_s)


async def _bombs(port: int, seen: Seen, end_s: float) -> None:
    """Send files that claim more than they hold, or unpack to far more."""
    members = io.BytesIO()
    with zipfile.ZipFile(members, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("input.npy", write_npy(np.zeros((2**20, WIDTH), np.float32)))
    claims = write_npy(np.ones((1, WIDTH), np.float32)).replace(b"(1, 64)", b"(9**9,)")
    many = io.BytesIO()
    with zipfile.ZipFile(many, "w") as archive:
        for i in range(20_000):
            archive.writestr(f"{i}.npy", b"")
    while time.monotonic() < end_s:
        for body in (members.getvalue(), claims, many.getvalue()):
            with seen.body(len(body)):
                status, _ = await _ask(port, _post(body))
            seen.statuses[status] += 1
        await asyncio.sleep(0.2)


async def _live(port: int, seen: Seen, end_s: float) -> None:
    """Ask whether the server is alive, every 20 ms."""
    request = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    while time.monotonic() < end_s:
        began_s = time.monotonic()
        status, _ = await _ask(port, request)
        seen.live_s.append(time.monotonic() - began_s if status == "200" else PATIENCE_S)
        await asyncio.sleep(0.02)


async def _watch(server: Any, seen: Seen, end_s: float) -> None:
    while time.monotonic() < end_s:
        seen.peak_bytes = max(seen.peak_bytes, _resident(server))
        await asyncio.sleep(0.1)


def _resident(server: Any) -> int:
    processes = [server, *server.children(recursive=True)]
    found = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            found += process.memory_info().rss
    return found


def _post(body: bytes) -> bytes:
    return (
        b"POST /infer HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Type: application/octet-stream\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    ) + body


async def _ask(port: int, data: bytes, *, half_closed: bool = False) -> tuple[str, bytes]:
    """Send a request on a connection of its own: the status and the body."""

    async def ask() -> bytes:
        async with _connected(port) as (reader, writer):
            writer.write(data)
            await writer.drain()
            if half_closed:
                writer.write_eof()
            return await reader.read()

    try:
        answer = await asyncio.wait_for(ask(), PATIENCE_S)
    except (OSError, asyncio.TimeoutError):
        return "closed", b""
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    return (words[1].decode("ascii", "replace"), body) if len(words) > 1 else ("closed", b"")


@contextlib.asynccontextmanager
async def _connected(
    port: int,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()


def _figures(found: tuple[Seen, int]) -> dict[str, Any]:
    seen, before = found
    live_ms = 1e3 * np.array(seen.live_s)
    return {
        "statuses": dict(sorted(seen.statuses.items())),
        "n_checked": seen.n_checked,
        "n_wrong": seen.n_wrong,
        "n_live": len(live_ms),
        "live_p50_ms": float(np.percentile(live_ms, 50)),
        "live_p99_ms": float(np.percentile(live_ms, 99)),
        "growth_mb": (seen.peak_bytes - before) / 1e6,
        "in_flight_mb": seen.in_flight / 1e6,
    }


if __name__ == "__main__":
    raise SystemExit(main())
