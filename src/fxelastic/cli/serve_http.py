"""The HTTP endpoint of ``fxelastic serve``: arrays in, arrays out."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import h11
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from fxelastic.cli.serve_metrics import CONTENT_TYPE, Metrics
from fxelastic.edge.array_bytes import read_arrays, write_arrays, write_npy
from fxelastic.errors import ServingError, UsageError

if TYPE_CHECKING:
    from fxelastic.edge.serving.runtime import Reply, Runtime

NPY = "application/x-npy"
NPZ = "application/x-npz"
#: The types of a request's body. A form of a web page can't send them.
TYPES = (NPY, NPZ, "application/octet-stream")
# Connections for each request that may wait: health checks, and senders that are slow.
_CONNECTIONS = 4
# The share of them that one peer's connections without a whole request may hold.
_IDLE_SHARE = 0.25
# After a refusal for too many requests, a sender waits for so many seconds.
_RETRY_S = 1


@dataclass(frozen=True)
class Endpoint:
    """The endpoint's runtime and limits.

    Attributes:
        runtime: Answers the requests.
        inputs: Names of the model's inputs.
        outputs: Names of the model's flat results.
        metrics: The metrics for ``/metrics``.
        max_body_bytes: The maximum size of a request, packed and unpacked, in bytes.
        body_timeout_s: The time within which a request's bytes must arrive, in seconds.
        concurrency: The number of requests that run at once; others wait.
        max_waiting: The number of whole requests at once; further ones get 503.
        hosts: The names by which the server may be called; empty for any. A web page can make a
            browser call this machine by a name of its own.
    """

    runtime: Runtime
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    metrics: Metrics
    max_body_bytes: int = 64 * 2**20
    body_timeout_s: float = 10.0
    concurrency: int = 1
    max_waiting: int = 64
    hosts: frozenset[str] = frozenset()

    def app(self) -> Starlette:
        """The application.

        It answers ``POST /infer``, ``GET /status`` and ``/metrics``; ``/livez``, 200 while the
        process answers at all; and ``/readyz`` and ``/healthz``, 200 while the runtime serves.
        """
        limiter = anyio.CapacityLimiter(self.concurrency)
        n_waiting = 0

        def check_room() -> None:
            if n_waiting >= self.max_waiting:
                what = f"{n_waiting} requests are waiting already"
                raise HTTPException(503, what, {"Retry-After": str(_RETRY_S)})

        async def infer(request: Request) -> Response:
            nonlocal n_waiting
            check_room()
            self._check_type(request)
            body = await self._body(request)
            # Only now, so that senders of slow bodies don't keep others out.
            check_room()
            n_waiting += 1
            try:
                # Not on the event loop, which answers other requests meanwhile.
                inputs = await anyio.to_thread.run_sync(
                    read_arrays, body, self.inputs, self.max_body_bytes
                )
                reply = await anyio.to_thread.run_sync(
                    lambda: self.runtime.infer(**inputs), limiter=limiter
                )
            finally:
                n_waiting -= 1
            return self._answer(reply)

        async def status(request: Request) -> Response:
            return JSONResponse(self.runtime.status().to_json())

        async def metrics(request: Request) -> Response:
            text = self.metrics.text(self.runtime.status())
            return Response(text, headers={"content-type": CONTENT_TYPE})

        async def live(request: Request) -> Response:
            return JSONResponse({"alive": True})

        async def health(request: Request) -> Response:
            serving = self.runtime.status().state == "serving"
            return JSONResponse({"serving": serving}, status_code=200 if serving else 503)

        return Starlette(
            routes=[
                Route("/infer", infer, methods=["POST"]),
                Route("/status", status, methods=["GET"]),
                Route("/metrics", metrics, methods=["GET"]),
                Route("/livez", live, methods=["GET"]),
                Route("/readyz", health, methods=["GET"]),
                Route("/healthz", health, methods=["GET"]),
            ],
            middleware=[Middleware(OwnPages, self.hosts)],
            exception_handlers={
                HTTPException: _refusal,
                UsageError: _usage_error,
                ServingError: _unavailable,
            },
        )

    def _check_type(self, request: Request) -> None:
        given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if given not in TYPES:
            what = f"the content type must be one of {', '.join(TYPES)}; got {given[:60]!r}"
            raise HTTPException(415, what)

    async def _body(self, request: Request) -> bytes:
        """Read the request's bytes within the limits on size and time."""
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > self.max_body_bytes:
            raise self._too_large()
        body = bytearray()
        try:
            with anyio.fail_after(self.body_timeout_s):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > self.max_body_bytes:
                        raise self._too_large()
        except TimeoutError as e:
            what = f"the request's bytes did not arrive within {self.body_timeout_s:g} s"
            raise HTTPException(408, what) from e
        except ClientDisconnect as e:
            raise HTTPException(400, "the request ends too early") from e
        return bytes(body)

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"a request must have at most {self.max_body_bytes:,} bytes")

    def _answer(self, reply: Reply) -> Response:
        headers = {
            "X-Fxelastic-Arch": str(reply.arch),
            "X-Fxelastic-Latency-Ms": f"{reply.latency_ms:.3f}",
        }
        if reply.estimated_ms is not None:
            headers["X-Fxelastic-Estimated-Ms"] = f"{reply.estimated_ms:.3f}"
        if len(self.outputs) == 1:
            return Response(write_npy(reply.outputs[0]), media_type=NPY, headers=headers)
        named = dict(zip(self.outputs, reply.outputs, strict=True))
        return Response(write_arrays(named), media_type=NPZ, headers=headers)


class OwnPages:
    """Refuses what other sites' pages make a browser send, and calls by unknown names."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        """Wrap an application; ``hosts`` are the names to answer to, empty for any."""
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with 403, or pass the request on."""
        problem = self._problem(Headers(scope=scope)) if scope["type"] == "http" else ""
        app = _error(403, problem) if problem else self._app
        await app(scope, receive, send)

    def _problem(self, headers: Headers) -> str:
        host = headers.get("host", "")
        origin = headers.get("origin")
        try:
            name = urlsplit(f"//{host}").hostname or ""
            page = host if origin is None else urlsplit(origin).netloc
        except ValueError:
            return "the Host or the Origin is malformed"
        if self._hosts and name and name not in self._hosts:
            return f"this server is called {', '.join(sorted(self._hosts))}, not {name[:60]!r}"
        if page != host:
            return f"pages of {(origin or '')[:60]!r} may not use this server"
        return ""


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = {
        404: f"there is no {request.url.path}",
        405: f"{request.url.path} does not support {request.method}",
    }
    return _error(error.status_code, what.get(error.status_code, error.detail), error.headers)


async def _usage_error(request: Request, error: Exception) -> Response:
    return _error(400, str(error))


async def _unavailable(request: Request, error: Exception) -> Response:
    return _error(503, str(error))


def _error(code: int, what: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": what}, status_code=code, headers=headers)


class _Impatient(H11Protocol):
    """Closes connections that send no request in time, or are too many of one peer.

    An open connection counts against the limit even if it is idle. Beyond a quarter of the limit,
    a peer's new connection closes its oldest one without a whole request.
    """

    head_timeout_s = 10.0
    _made_s = 0.0
    _timer: asyncio.TimerHandle | None = None
    _ended = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._made_s = self.loop.time()
        self._watch()
        self._make_room()

    def _make_room(self) -> None:
        """Close the peer's oldest connection without a whole request, if it has too many."""
        limit = self.config.limit_concurrency
        peer = None if self.client is None else self.client[0]
        if limit is None or peer is None:
            return
        own = [
            other
            for other in self.connections
            if isinstance(other, _Impatient) and other.client and other.client[0] == peer
        ]
        idle = sorted((o for o in own if o._is_unfinished()), key=lambda o: o._made_s)
        for other in idle[: max(0, len(idle) - max(1, int(limit * _IDLE_SHARE)))]:
            other.transport.close()

    def _is_unfinished(self) -> bool:
        """Whether there is no whole request to answer."""
        sends = self.conn.their_state is h11.SEND_BODY
        return not self.transport.is_closing() and (self._waits() or sends)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection of a sender that says it has sent everything, for the answer."""
        self._ended = True
        states = (self.conn.their_state, self.conn.our_state)
        if states == (h11.SEND_BODY, h11.SEND_RESPONSE):
            # The body is not whole: this refuses it and closes the connection.
            self.conn.receive_data(b"")
            self.handle_events()
        return not self._waits()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._ended:
            self.transport.close()
        else:
            self._watch()

    def _watch(self) -> None:
        if not self._waits():
            self._forget()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.head_timeout_s, self._give_up)

    def _waits(self) -> bool:
        """Whether no request has begun, or the last one has been answered."""
        return self.cycle is None or self.cycle.response_complete

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if self._waits() and not self.transport.is_closing():
            self.transport.close()


def server(endpoint: Endpoint, host: str, port: int) -> uvicorn.Server:
    """Create a server for an endpoint; its ``run`` serves until the process is interrupted.

    Args:
        endpoint: The endpoint to serve.
        host: The address to listen on.
        port: The port; 0 for any free port.
    """
    return uvicorn.Server(
        uvicorn.Config(
            endpoint.app(),
            host=host,
            port=port,
            # h11 is written in Python and strict about what it accepts.
            http=_Impatient,
            h11_max_incomplete_event_size=16 * 1024,
            ws="none",
            lifespan="off",
            access_log=False,
            log_level="error",
            server_header=False,
            # Requests are counted by the endpoint; this bounds connections that send none.
            limit_concurrency=_CONNECTIONS * endpoint.max_waiting,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=5,
        )
    )
