"""``fxelastic serve``, from each of its sources."""

from __future__ import annotations

import io
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fxelastic.cli import main
from fxelastic.cli.serve_sources import parse_address
from fxelastic.edge.array_bytes import write_arrays, write_npy
from fxelastic.edge.bundle import Bundle
from fxelastic.edge.pool import PoolEntry, SubnetPool
from fxelastic.edge.serving.runtime import Runtime
from fxelastic.errors import ServingError, UsageError
from fxelastic.report.trace import read_trace
from tests.cli.commands import ROOT, environment
from tests.edge.serving.tiny_bundle import reference, write_bundle

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("cli-serve") / "bundle")


def arguments(bundle: Bundle, *more: str) -> list[str]:
    pool = bundle.path.with_name("pool.json")
    SubnetPool.of(bundle.digest, [PoolEntry(bundle.space.original, 5.0, 0.9)]).save(pool)
    return ["serve", str(bundle.path), "--pool", str(pool), "--budget-ms", "1000", *more]


def image(n: int = 1) -> np.ndarray[Any, Any]:
    return RNG.standard_normal((n, 8, 8, 8)).astype(np.float32)


def test_a_folder_is_answered_file_by_file(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = {"b": image(2), "a": image()}
    (tmp_path / "in").mkdir()
    for name, x in images.items():
        np.save(tmp_path / "in" / f"{name}.npy", x)
    (tmp_path / "in" / "named.npz").write_bytes(write_arrays({"x": images["a"]}))
    (tmp_path / "in" / "notes.txt").write_text("not an input")
    folders = ("--inputs", str(tmp_path / "in"), "--outputs", str(tmp_path / "out"))
    files = ("--trace", str(tmp_path / "t.jsonl"), "--metrics", str(tmp_path / "m.prom"))
    code = main(arguments(bundle, *folders, *files, "--repeat", "3", "--json", "--mode", "paged"))
    report = json.loads(capsys.readouterr().out)
    assert code == 0
    assert report["n_requests"] == 9
    assert report["refused"] == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("a.npy", "b.npy", "named.npy"),
    ]
    for name, x in images.items():
        expected = reference(bundle, bundle.space.original, {"x": x})
        found = np.load(tmp_path / "out" / f"{name}.npy")
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    trace = read_trace(tmp_path / "t.jsonl")
    told = [kind for _, kind, _ in trace.events]
    assert (told[0], told[-1]) == ("started", "closed")
    families = text_string_to_metric_families((tmp_path / "m.prom").read_text())
    assert {"fxelastic_requests"} <= {family.name for family in families}


def test_what_is_refused_is_named_and_the_rest_is_answered(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "good.npy", image())
    np.save(tmp_path / "bad.npy", image()[0])
    code = main(arguments(bundle, "--inputs", str(tmp_path), "--mode", "paged"))
    err = capsys.readouterr().err
    assert code == 1
    assert "bad.npy is refused" in err
    assert "pass an array of" in err
    assert "1 requests" in err
    assert main(arguments(bundle, "--inputs", str(tmp_path), "--mode", "paged", "--quiet")) == 1
    err = capsys.readouterr().err
    assert "bad.npy is refused" in err
    assert "requests" not in err


def test_a_request_that_no_subnet_answers_does_not_end_the_others(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    for name in "abc":
        np.save(tmp_path / f"{name}.npy", image())
    infer = Runtime.infer
    n_calls = [0]

    def sometimes(self: Runtime, /, *args: Any, **kwargs: Any) -> Any:
        n_calls[0] += 1
        if n_calls[0] == 2:
            raise ServingError("no subnet could answer")
        return infer(self, *args, **kwargs)

    monkeypatch.setattr(Runtime, "infer", sometimes)
    out = tmp_path / "out"
    main(arguments(bundle, "--inputs", str(tmp_path), "--outputs", str(out), "--mode", "paged"))
    assert "b.npy is not answered" in capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == ["a.npy", "c.npy"]


def test_two_results_do_not_go_to_one_file(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "a.npy", image())
    (tmp_path / "a.npz").write_bytes(write_arrays({"x": image()}))
    folders = ("--inputs", str(tmp_path), "--outputs", str(tmp_path / "out"))
    assert main(arguments(bundle, *folders, "--mode", "paged")) == 2
    assert "a.npy and a.npz" in capsys.readouterr().err
    assert main(arguments(bundle, *folders[:2], "--mode", "paged", "--quiet")) == 0


def test_the_trace_and_the_metrics_have_the_last_requests(bundle: Bundle, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", image())
    trace, metrics = tmp_path / "t.jsonl", tmp_path / "m.prom"
    files = ("--trace", str(trace), "--metrics", str(metrics), "--quiet")
    assert main(arguments(bundle, "--inputs", str(tmp_path), *files, "--memory-mb", "nan")) == 2
    # What failed at the start does not stand in the way.
    code = main(arguments(bundle, "--inputs", str(tmp_path), *files, "--repeat", "20"))
    assert code == 0
    rows = [json.loads(line) for line in trace.read_text().splitlines()]
    assert sum(row["type"] == "request" for row in rows) == 20
    text = metrics.read_text()
    assert re.search(r"^fxelastic_up 0", text, re.MULTILINE)
    assert re.search(r"^fxelastic_request_seconds_count 20", text, re.MULTILINE)


@pytest.mark.parametrize("other", [".", "../in", "link"])
def test_results_do_not_replace_requests(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], other: str
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    np.save(folder / "a.npy", image())
    before = (folder / "a.npy").read_bytes()
    (folder / "link").symlink_to(folder)
    folders = ("--inputs", str(folder), "--outputs", str(folder / other))
    assert main(arguments(bundle, *folders, "--mode", "paged")) == 2
    assert "would replace the requests" in capsys.readouterr().err
    assert (folder / "a.npy").read_bytes() == before


def test_metrics_replace_nothing_else(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", image())
    metrics = tmp_path / "data.npz"
    metrics.write_bytes(b"PK, samples")
    command = arguments(bundle, "--inputs", str(tmp_path / "in"), "--metrics", str(metrics))
    assert main([*command, "--mode", "paged"]) == 2
    assert "does not contain metrics" in capsys.readouterr().err
    assert metrics.read_bytes() == b"PK, samples"
    for text in ("", None):
        if text is not None:
            metrics.write_text(text)
        assert main([*command, "--mode", "paged"]) == 0
        assert metrics.read_text().startswith("# HELP")


def test_frames_on_stdin_are_answered_on_stdout(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images = [image(), image(3)]
    stdin = io.BytesIO(b"".join(map(write_npy, images)))
    stdout = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stdin))
    monkeypatch.setattr(
        sys, "stdout", SimpleNamespace(buffer=stdout, flush=lambda: None, write=lambda _: 0)
    )
    assert main(arguments(bundle, "--stdin", "--quiet", "--mode", "paged")) == 0
    stdout.seek(0)
    for x in images:
        expected = reference(bundle, bundle.space.original, {"x": x})
        np.testing.assert_allclose(np.load(stdout), expected, rtol=1e-4, atol=1e-4)
    assert stdout.read() == b""


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--stdin", "--json"], "both write to stdout"),
        (["--stdin", "--outputs", "x"], "--outputs needs --inputs"),
        (["--inputs", "nowhere"], "nothing to serve"),
        (["--inputs", ".", "--repeat", "0"], "--repeat: must be at least 1, got 0"),
        (["--stdin", "--threads", "-1"], "--threads: must be at least 0, got -1"),
        (["--stdin", "--limit", "weight_bytes"], "--limit must be RESOURCE=BOUND"),
        (["--stdin", "--limit", "watts=5"], "unknown resource 'watts'"),
        (["--stdin", "--limit", "weight_bytes=1"], "no subnet of the pool keeps the limits"),
        (["--stdin", "--max-body-mb", "0"], "--max-body-mb"),
        (["--stdin", "--mode", "fast"], "unknown mode 'fast'"),
        (["--http", "port", "--mode", "paged"], "--http must be a port or an address"),
        (["--http", "99999", "--mode", "paged"], "--http must be a port or an address"),
        (["--stdin", "--memory-mb", "0.000001"], "memory_bytes is too small"),
    ],
)
def test_bad_options_are_usage_errors(
    bundle: Bundle, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(bundle, *more)) == 2
    assert message in capsys.readouterr().err


def test_one_source_is_needed(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(bundle)) == 2
    assert main(arguments(bundle, "--stdin", "--http", "80")) == 2
    assert "not allowed with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("8765", ("127.0.0.1", 8765)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("[::1]:80", ("::1", 80)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "x", "1:2:", "localhost", "70000", "-1", "٣"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="must be a port or an address"):
        parse_address(text)


def test_a_port_in_use_is_told(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(arguments(bundle, "--http", str(port), "--mode", "paged")) == 2
    err = capsys.readouterr().err
    assert "can't listen" in err
    assert "choose another port" in err


_CHILD = """
import sys
from fxelastic.cli import main
assert "torch" not in sys.modules
code = main(sys.argv[1:])
assert "torch" not in sys.modules
sys.exit(code)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_http_is_served_until_the_process_is_told_to_end(
    bundle: Bundle, tmp_path: Path, number: signal.Signals
) -> None:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, *arguments(bundle, "--http", "0", "--json")],
        env={**environment(), "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None
    url = ""
    for line in child.stderr:
        found = re.search(r"listening on (http://127\.0\.0\.1:\d+)", line)
        if found:
            url = found[1]
            break
    x = image()
    kind = {"Content-Type": "application/x-npy"}
    request = urllib.request.Request(f"{url}/infer", write_npy(x), kind, method="POST")
    with urllib.request.urlopen(request, timeout=20) as response:
        found_y = np.load(io.BytesIO(response.read()))
    expected = reference(bundle, bundle.space.original, {"x": x})
    np.testing.assert_allclose(found_y, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(
            urllib.request.Request(f"{url}/infer", b"no", kind, method="POST"), timeout=20
        )
    child.send_signal(number)
    out, err = child.communicate(timeout=30)
    assert child.returncode == 0, err
    assert json.loads(out)["n_requests"] == 1
    assert list(scratch.glob("fxelastic*")) == []
