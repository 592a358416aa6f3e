"""The HTTP endpoint, over real sockets and under malformed requests."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from fxelastic.edge.array_bytes import read_npy, write_arrays, write_npy
from fxelastic.edge.serving.options import Serving
from fxelastic.edge.serving.preload import Preload
from fxelastic.edge.serving.runtime import Runtime
from fxelastic.edge.signature import BundleSignature
from fxelastic.edge.size_estimates import SizeEstimates
from fxelastic.spec.value_info import ValueInfo
from tests.edge.serving.fakes import FakeLoader, factor, pool
from tests.edge.serving.sized_table import growth, sized_table
from tests.edge.test_signature import signature

# The packages of the extra "serve", which a device may lack.
uvicorn = pytest.importorskip("uvicorn")
parser = pytest.importorskip("prometheus_client.parser")
is_loopback = pytest.importorskip("fxelastic.cli.serve_sources").is_loopback
serve_http = pytest.importorskip("fxelastic.cli.serve_http")
Endpoint, server = serve_http.Endpoint, serve_http.server
Metrics = pytest.importorskip("fxelastic.cli.serve_metrics").Metrics

POOL = pool(1, 2)
MAX = 20_000
HEAD = b"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-npy\r\n"
GOOD = write_npy(np.ones((2, 3), np.float32))


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    called: BundleSignature = signature(ValueInfo("x", "float32", ("N", 3)))
    options = Serving(preload=Preload(limit=0))
    with Runtime(FakeLoader(), called, POOL, 10.0, options) as made:
        yield made


@pytest.fixture(scope="module")
def endpoint(runtime: Runtime) -> Any:
    return Endpoint(runtime, ("x",), ("y",), Metrics(), MAX, body_timeout_s=0.3)


def started(endpoint: Any) -> tuple[Any, threading.Thread, int]:
    made = server(endpoint, "127.0.0.1", 0)
    thread = threading.Thread(target=made.run, daemon=True)
    thread.start()
    while not made.started:
        time.sleep(0.005)
    return made, thread, made.servers[0].sockets[0].getsockname()[1]


@pytest.fixture(scope="module")
def port(endpoint: Any) -> Iterator[int]:
    made, thread, port = started(endpoint)
    yield port
    made.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


def ask(
    port: int,
    method: str,
    path: str,
    body: bytes | None = None,
    extra: dict[str, str] | None = None,
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        headers = {} if body is None else {"Content-Type": "application/x-npy", **(extra or {})}
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def raw(port: int, data: bytes, *, end: bool = True) -> bytes:
    """Send bytes; returns all that comes until the server closes or answers."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        try:
            connection.sendall(data)
            if end:
                connection.shutdown(socket.SHUT_WR)
            received = b""
            while chunk := connection.recv(65536):
                received += chunk
                if not end:
                    break
        except (BrokenPipeError, ConnectionResetError):
            return b""
        return received


def assert_answers(port: int) -> None:
    status, headers, body = ask(port, "POST", "/infer", GOOD)
    assert status == 200
    assert headers["X-Fxelastic-Arch"] == "s2"
    expected = np.ones((2, 3), np.float32) * factor(POOL[1].arch)
    np.testing.assert_array_equal(read_npy(io.BytesIO(body), MAX), expected)


def test_an_array_is_answered(port: int) -> None:
    assert_answers(port)
    status, headers, _ = ask(port, "POST", "/infer", write_arrays({"x": np.ones((1, 3), "f")}))
    assert status == 200
    assert headers["Content-Type"] == "application/x-npy"


def test_several_results_come_as_npz(runtime: Runtime, endpoint: Any) -> None:
    response = replace(endpoint, outputs=("a", "b"))._answer(
        runtime.infer(np.ones((1, 3), "f"))._replace(outputs=[np.ones(2), np.zeros(3)])
    )
    assert sorted(np.load(io.BytesIO(bytes(response.body)))) == ["a", "b"]


def test_status_metrics_and_health(port: int) -> None:
    status, _, body = ask(port, "GET", "/status")
    assert status == 200
    assert json.loads(body)["arch"] == "s2"
    status, headers, body = ask(port, "GET", "/metrics")
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    names = {family.name for family in parser.text_string_to_metric_families(body.decode())}
    assert {"fxelastic_requests", "fxelastic_request_seconds"} <= names
    assert ask(port, "GET", "/healthz")[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "code", "reason"),
    [
        ("GET", "/nowhere", None, 404, "no /nowhere"),
        ("GET", "/infer", None, 405, "does not support GET"),
        ("POST", "/status", b"", 405, "does not support POST"),
        ("POST", "/infer", b"", 400, "request is empty"),
        ("POST", "/infer", b"hello", 400, "not a .npy"),
        ("POST", "/infer", b"PK\x03\x04", 400, "not a .npz"),
        ("POST", "/infer", GOOD[:-1], 400, "too early"),
        ("POST", "/infer", write_npy(np.ones((2, 4), "f")), 400, "float32[N, 3]"),
        ("POST", "/infer", write_npy(np.ones((2, 3))), 400, "float64"),
        ("POST", "/infer", write_arrays({"z": np.ones(1)}), 400, "'z' is not an input"),
        ("POST", "/infer", bytes(MAX + 1), 413, "at most 20,000 bytes"),
    ],
)
def test_what_is_wrong_gets_a_reason(
    port: int, method: str, path: str, body: bytes | None, code: int, reason: str
) -> None:
    status, _, answer = ask(port, method, path, body)
    assert status == code
    assert reason in json.loads(answer)["error"]


@pytest.mark.parametrize(
    ("headers", "code", "reason"),
    [
        ({"Content-Type": "text/plain"}, 415, "content type"),
        ({"Content-Type": ""}, 415, "content type"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415, "content type"),
        ({"Content-Type": "Application/X-NPY; v=1"}, 200, ""),
        ({"Origin": "http://evil.example"}, 403, "http://evil.example"),
        ({"Origin": "null"}, 403, "may not use"),
        ({"Origin": "http://127.0.0.1:PORT"}, 200, ""),
        ({"Host": "evil.example"}, 403, "not 'evil.example'"),
        ({"Host": "localhost:1"}, 200, ""),
        ({"Host": "local[host"}, 403, "malformed"),
        ({"Origin": "http://["}, 403, "malformed"),
        ({"Host": "[::1]:1"}, 200, ""),
    ],
)
def test_a_web_page_can_not_use_a_local_server(
    endpoint: Any, headers: dict[str, str], code: int, reason: str
) -> None:
    local = frozenset({"localhost", "127.0.0.1", "::1"})
    made, thread, port = started(replace(endpoint, hosts=local))
    try:
        sent = {name: value.replace("PORT", str(port)) for name, value in headers.items()}
        status, _, answer = ask(port, "POST", "/infer", GOOD, sent)
        assert status == code
        if code != 200:
            assert reason in json.loads(answer)["error"]
    finally:
        made.should_exit = True
        thread.join(10)


@pytest.mark.parametrize(
    ("host", "local"),
    [("localhost", True), ("127.0.0.1", True), ("127.1.2.3", True), ("::1", True)]
    + [("0.0.0.0", False), ("example.com", False), ("192.168.0.1", False)],
)
def test_loopback_is_recognised(host: str, local: bool) -> None:
    assert is_loopback(host) == local


def test_more_requests_than_may_wait_get_503_and_others_are_alive() -> None:
    called = signature(ValueInfo("x", "float32", ("N", 3)))
    entered, go_on = threading.Semaphore(0), threading.Event()

    class Slow(Runtime):
        def infer(self, *args: Any, **inputs: Any) -> Any:
            entered.release()
            go_on.wait(30)
            return super().infer(*args, **inputs)

    options = Serving(preload=Preload(limit=0))
    with Slow(FakeLoader(), called, POOL, 10.0, options) as runtime:
        endpoint = Endpoint(runtime, ("x",), ("y",), Metrics(), MAX, max_waiting=2)
        made, thread, port = started(endpoint)
        codes: list[int] = []

        def send() -> None:
            # The requests below may come between the two.
            while (code := ask(port, "POST", "/infer", GOOD)[0]) == 503:
                time.sleep(0.01)
            codes.append(code)

        senders = [threading.Thread(target=send) for _ in range(2)]
        try:
            for sender in senders:
                sender.start()
            assert entered.acquire(timeout=30)
            deadline = time.monotonic() + 30
            status = 0
            while status != 503 and time.monotonic() < deadline:
                # The second sender may not have been counted yet.
                status, headers, answer = ask(port, "POST", "/infer", b"")
            assert status == 503
            assert headers["Retry-After"] == "1"
            assert "2 requests are waiting" in json.loads(answer)["error"]
            assert ask(port, "GET", "/livez")[0] == 200
            assert ask(port, "GET", "/readyz")[0] == 200
        finally:
            go_on.set()
            for sender in senders:
                sender.join(30)
            made.should_exit = True
            thread.join(10)
        assert codes == [200, 200]


def test_a_body_without_end_is_cut_off(port: int) -> None:
    head = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    chunk = b"1000\r\n" + bytes(4096) + b"\r\n"
    assert raw(port, head + chunk * 20, end=False).startswith(b"HTTP/1.1 413")


def test_a_body_that_does_not_come_is_not_waited_for(port: int) -> None:
    head = HEAD + b"Content-Length: 100\r\n\r\nabc"
    answer = raw(port, head, end=False)
    assert answer.startswith(b"HTTP/1.1 408")


def test_a_body_that_ends_too_early_is_refused_at_once(endpoint: Any) -> None:
    made, thread, port = started(replace(endpoint, body_timeout_s=60.0))
    try:
        began_s = time.monotonic()
        answer = raw(port, HEAD + b"Content-Length: 500\r\n\r\n" + GOOD)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert time.monotonic() - began_s < 10
    finally:
        made.should_exit = True
        thread.join(10)


def test_a_sender_that_was_refused_may_end_early(endpoint: Any) -> None:
    """Its request is refused before its body is there, so that there is nothing more to say."""
    made, thread, port = started(endpoint)
    try:
        refused = HEAD.replace(b"x-npy", b"other") + b"Content-Length: 500\r\n\r\n" + GOOD
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(refused)
            received = connection.recv(65536)
            connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(65536):
                received += chunk
        assert received.startswith(b"HTTP/1.1 415 ")
        assert received.count(b"HTTP/1.1") == 1
        assert_answers(port)
    finally:
        made.should_exit = True
        thread.join(10)


def test_slow_bodies_take_no_place_from_whole_requests(endpoint: Any) -> None:
    made, thread, port = started(replace(endpoint, body_timeout_s=60.0, max_waiting=8))
    other = ("127.0.0.2", 0)
    with contextlib.ExitStack() as stack:
        try:
            for _ in range(8):
                slow = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10, other))
                slow.sendall(HEAD + b"Content-Length: 500\r\n\r\n" + GOOD[:10])
            time.sleep(0.2)
            assert_answers(port)
        finally:
            made.should_exit = True
    thread.join(10)


def test_a_closed_runtime_is_unavailable() -> None:
    called = signature(ValueInfo("x", "float32", ("N", 3)))
    closed = Runtime(FakeLoader(), called, POOL, 10.0)
    closed.close()
    made, thread, port = started(Endpoint(closed, ("x",), ("y",), Metrics()))
    assert ask(port, "POST", "/infer", GOOD)[0] == 503
    assert ask(port, "GET", "/healthz")[0] == 503
    made.should_exit = True
    thread.join(10)


def malformed(rng: random.Random) -> bytes:
    """A request that is wrong in one of many ways; valid requests are the exception."""
    kind = rng.randrange(8)
    if kind == 0:
        return rng.randbytes(rng.randint(1, 300))
    if kind == 1:
        return (
            HEAD
            + b"Content-Length: "
            + rng.choice((b"-1", b"abc", b"9" * 40, b"1, 2", b"0x10", b""))
            + b"\r\n\r\nabc"
        )
    if kind == 2:
        return b"GET /" + b"a" * rng.randint(17_000, 40_000) + b" HTTP/1.1\r\nHost: x\r\n\r\n"
    if kind == 3:
        chunks = rng.choice((b"zz\r\nabc\r\n", b"-5\r\nabc\r\n", b"5\r\nab", b"ffffffffffff\r\na"))
        return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks
    if kind == 4:
        lines = (b"GET  / HTTP/1.1", b"GET / HTTP/9.9", b"get /\x00 HTTP/1.1", b"\r\n", b"GET /")
        return rng.choice(lines) + b"\r\nHost: x\r\n\r\n"
    if kind == 5:
        header = rng.choice((b"no colon", b": no name", b"A\x00: b", b"A: b\x01", b" folded: x"))
        return b"GET /status HTTP/1.1\r\nHost: x\r\n" + header + b"\r\n\r\n"
    body = bytearray(GOOD if kind == 6 else write_arrays({"x": np.ones((2, 3), "f")}))
    # In the header, or the archive's directory: elsewhere a changed byte is another number.
    for _ in range(3):
        body[rng.randrange(len(body) if kind == 7 else 60)] = rng.randrange(256)
    del body[rng.choice((len(body), rng.randrange(1, len(body)))) :]
    return HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + bytes(body)


def test_malformed_requests_are_refused_and_the_next_one_is_answered(port: int) -> None:
    rng = random.Random(0)
    codes: Counter[str] = Counter()
    # Several at once, since the endpoint waits for the rest of many of them.
    with ThreadPoolExecutor(8) as clients:
        for _ in range(6):
            requests = [malformed(rng) for _ in range(200)]
            for answer in clients.map(partial(raw, port), requests):
                code = answer[9:12].decode("ascii", "replace")
                codes[code] += 1
                if answer and code != "200":
                    assert code[0] == "4", answer[:300]
                    _, _, reason = answer.partition(b"\r\n\r\n")
                    assert reason, answer[:300]
            assert_answers(port)
    assert codes["400"] > 600, codes
    assert codes["200"] < 100, codes


def test_a_connection_that_sends_nothing_is_closed(
    endpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with a half of a head, and after a request on the same connection."""
    monkeypatch.setattr("fxelastic.cli.serve_http._Impatient.head_timeout_s", 0.3)
    made, thread, port = started(endpoint)
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
    try:
        for sent in (b"", request, request + b"\r\n", request + b"\r\n" + request):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                connection.sendall(sent)
                received = b""
                while chunk := connection.recv(4096):
                    received += chunk
                assert received.count(b"200 OK") == sent.count(b"\r\n\r\n")
    finally:
        made.should_exit = True
        thread.join(10)


@pytest.mark.parametrize("sent", [b"", b"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Le"])
def test_idle_connections_of_one_peer_hold_at_most_a_quarter(port: int, sent: bytes) -> None:
    """More than there are places: the oldest ones are closed, and requests are answered."""
    connections = []
    try:
        for _ in range(300):
            connection = socket.create_connection(("127.0.0.1", port), timeout=10)
            connections.append(connection)
            connection.sendall(sent)
        assert_answers(port)
        for connection in connections[:200]:
            # Reset if it is closed before its bytes are read.
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""
    finally:
        for connection in connections:
            connection.close()
    assert_answers(port)


def test_requests_of_any_size_are_answered_with_their_own_estimate() -> None:
    table = sized_table({f"s{ms}": float(ms) for ms in (1, 2)})
    estimates = SizeEstimates(lambda: table, "assembled", ({"seq": 64},), ("seq",))
    called = signature(ValueInfo("x", "float32", ("N", "seq")))
    options = Serving(preload=Preload(limit=0))
    with Runtime(FakeLoader(), called, POOL, 10.0, options, estimates=estimates) as runtime:
        made, thread, port = started(Endpoint(runtime, ("x",), ("y",), Metrics(), MAX))
        for length in (16, 100, 256, 400):
            body = write_npy(np.ones((2, length), np.float32))
            status, headers, data = ask(port, "POST", "/infer", body)
            result = read_npy(io.BytesIO(data), MAX)
            assert status == 200
            assert result is not None
            assert result.shape == (2, length)
            found = headers["X-Fxelastic-Estimated-Ms"]
            if length > 256:
                assert found is None
            else:
                assert float(found) == pytest.approx(2 * growth(length), abs=1e-3)
        made.should_exit = True
        thread.join(10)
