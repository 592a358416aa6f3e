"""The monitor on recorded trees, and its forecast on series."""

from __future__ import annotations

import json
import math
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fxelastic import edge
from fxelastic.cli import main
from fxelastic.edge import sessions
from fxelastic.edge.monitoring.forecast import Forecast, autoregression, extrapolated
from fxelastic.edge.monitoring.portable_files import PortableFiles, files_of
from fxelastic.edge.monitoring.resource_monitor import Resources
from fxelastic.edge.monitoring.system_files import SystemFiles
from fxelastic.errors import UsageError
from tests.edge.monitoring.trees import BARE, CONTAINER_V1, CONTAINER_V2, TREES, write_tree


def monitor(root: Path, **options: object) -> edge.ResourceMonitor:
    seconds = iter(range(10_000))
    return edge.ResourceMonitor(root, clock=lambda: float(next(seconds)), **options)  # type: ignore[arg-type]


def read(root: Path, name: str) -> Resources:
    return monitor(write_tree(root, TREES[name])).read()


def test_a_bare_machine(tmp_path: Path) -> None:
    reader = monitor(write_tree(tmp_path, BARE))
    assert reader.read().cpu is None
    # Between the readings: 30 of 100 ticks busy.
    busier = {**BARE, "proc/stat": "cpu  120 0 110 760 110 0 0 0 0 0\n"}
    write_tree(tmp_path, busier)
    found = reader.read()
    assert found.cpu == pytest.approx(0.3)
    assert found.memory == pytest.approx(0.25)
    assert found.pressure == pytest.approx({"cpu": 0.125, "memory": 0.0, "io": 0.03})
    assert (found.quota_cores, found.memory_limit_bytes, found.gpu) == (None, None, None)
    assert (found.frequency_mhz, found.max_frequency_mhz) == (1800, 3600)
    assert (found.temperature_c, found.n_throttled) == (61.5, 5)
    weights = 0.6 + 0.15 + 0.1
    assert found.load_index == pytest.approx((0.6 * 0.3 + 0.15 * 0.25 + 0.1 * 0.03) / weights)
    assert set(found.missing) == {"quota_used", "gpu", "quota_cores", "memory_limit_bytes"}
    json.dumps(found.to_json())


@pytest.mark.parametrize(
    ("name", "cores", "limit", "memory"),
    [
        ("container v1", 1.5, 1e9, 0.9),
        ("container v2", 0.5, 4e9, 0.75),
        ("nested v2", 0.25, 4e9, 0.25),
        ("bare", None, None, 0.25),
        ("jetson", None, None, 0.25),
        ("broken", None, None, None),
        ("empty", None, None, None),
    ],
)
def test_limits_of_control_groups(
    tmp_path: Path, name: str, cores: float | None, limit: float | None, memory: float | None
) -> None:
    found = read(tmp_path, name)
    assert found.quota_cores == cores
    assert found.memory_limit_bytes == limit
    assert found.memory == (None if memory is None else pytest.approx(memory))


@pytest.mark.parametrize("tree", [CONTAINER_V1, CONTAINER_V2])
def test_the_use_of_a_quota_counts_where_it_is_higher(tmp_path: Path, tree: dict[str, str]) -> None:
    reader = monitor(write_tree(tmp_path, tree))
    reader.read()
    quota = 1.5 if tree is CONTAINER_V1 else 0.5
    used = {"sys/fs/cgroup/cpu,cpuacct/cpuacct.usage": f"{int((5 + 0.8 * quota) * 1e9)}\n"}
    if tree is CONTAINER_V2:
        used = {"sys/fs/cgroup/cpu.stat": f"usage_usec {int((5 + 0.8 * quota) * 1e6)}\n"}
    idle = {"proc/stat": "cpu  101 0 100 799 100 0 0 0 0 0\n"}
    write_tree(tmp_path, {**tree, **used, **idle})
    found = reader.read()
    assert found.cpu == pytest.approx(0.01)
    assert found.quota_used == pytest.approx(0.8)
    assert found.load_index > 0.7


def test_a_graphics_processor_of_a_jetson(tmp_path: Path) -> None:
    found = read(tmp_path, "jetson")
    assert found.gpu == pytest.approx(0.423)
    assert found.temperature_c == 52.0  # a sensor that is switched off says -256


@pytest.mark.parametrize("name", TREES)
def test_every_tree_gives_what_it_can(tmp_path: Path, name: str) -> None:
    reader = monitor(write_tree(tmp_path, TREES[name]))
    for _ in range(3):
        found = reader.read()
        assert 0 <= found.load_index <= 1
        values = [v for v in found.to_json().values() if isinstance(v, float)]
        assert all(math.isfinite(v) for v in values)
    assert ("pressure" in found.missing) == (name not in ("bare",))


def test_threads_follow_the_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.cpu_count", lambda logical=True: 4)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    found = {
        name: sessions.usable_threads(write_tree(tmp_path / name, tree))
        for name, tree in TREES.items()
    }
    assert found["container v1"] == 2  # 1.5 cores
    assert found["container v2"] == found["nested v2"] == 1
    # 0 leaves it to onnxruntime, which counts the cores.
    assert found["bare"] == found["jetson"] == found["broken"] == found["empty"] == 0
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    assert sessions.usable_threads(write_tree(tmp_path / "pinned", BARE)) == 3
    monkeypatch.delattr("os.sched_getaffinity")
    assert sessions.usable_threads(write_tree(tmp_path / "other", BARE)) == 0


@pytest.mark.parametrize("broken", [False, True])
def test_a_system_without_proc(monkeypatch: pytest.MonkeyPatch, broken: bool) -> None:
    """Windows and macOS: psutil tells some, and the rest is missing."""
    times = iter([(1.0, 1.0, 8.0), (2.0, 2.0, 9.0)])
    fields = namedtuple("fields", "user system idle")
    known = {
        "cpu_times": lambda: fields(*next(times)),
        "virtual_memory": lambda: SimpleNamespace(available=3e9, total=4e9),
        "cpu_freq": lambda: SimpleNamespace(current=1200.0, max=2400.0),
    }

    def refused() -> None:
        raise PermissionError("not allowed")

    for name, told in known.items():
        monkeypatch.setattr(f"psutil.{name}", refused if broken else told)
    module = "fxelastic.edge.monitoring.resource_monitor"
    monkeypatch.setattr(f"{module}.files_of", lambda root: PortableFiles(root / "nowhere"))
    reader = edge.ResourceMonitor()
    reader.read()
    found = reader.read()
    assert {"pressure", "gpu", "quota_cores", "temperature_c"} <= set(found.missing)
    if broken:
        assert (found.cpu, found.memory, found.load_index) == (None, None, 0.0)
        return
    assert found.cpu == pytest.approx(2 / 3)
    assert found.memory == 0.25
    assert (found.frequency_mhz, found.max_frequency_mhz) == (1200.0, 2400.0)


def test_recorded_trees_are_read_as_files(tmp_path: Path) -> None:
    assert type(files_of(tmp_path)) is SystemFiles


def test_a_counter_that_goes_back_gives_no_use(tmp_path: Path) -> None:
    reader = monitor(write_tree(tmp_path, BARE))
    reader.read()
    write_tree(tmp_path, {"proc/stat": "cpu  1 0 1 1 1 0 0 0 0 0\n"})
    assert reader.read().cpu is None


@pytest.mark.parametrize("weights", [{}, {"cpu": -1.0}, {"cpu": 0.0}, {"disk": 1.0}])
def test_weights_are_checked(weights: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="weights"):
        edge.ResourceMonitor(weights=weights)
    with pytest.raises(UsageError, match="readings ahead"):
        edge.ResourceMonitor().forecast(3)


def series(name: str, n: int = 300) -> np.ndarray:
    rng, t = np.random.default_rng(0), np.arange(n)
    noise = 0.02 * rng.standard_normal(n)
    made = {
        "constant": np.full(n, 0.4),
        "walk": 0.5 + np.cumsum(0.01 * rng.standard_normal(n)),
        "period": 0.5 + 0.3 * np.sin(2 * np.pi * t / 12) + noise,
        "noise": 0.5 + 10 * noise,
        "steps": 0.2 + 0.6 * (t // 60 % 2) + noise,
    }
    return np.clip(made[name], 0, 1)


@pytest.mark.parametrize("name", ["constant", "walk", "period", "noise", "steps"])
def test_forecasts_are_hardly_ever_worse_than_the_last_value(name: str) -> None:
    forecast, values = Forecast((1, 2, 5)), series(name)
    errors: dict[int, list[tuple[float, float]]] = {1: [], 2: [], 5: []}
    for i, value in enumerate(values[:-5]):
        forecast.add(float(value))
        for n, found in errors.items():
            ahead = forecast.at(n)
            assert ahead is not None
            found.append((abs(ahead - values[i + n]), abs(value - values[i + n])))
    for n, found in errors.items():
        ours, last = np.mean(found, axis=0)
        assert ours <= 1.05 * last + 1e-12
        if name in ("period", "noise"):
            assert ours < (0.85 if name == "noise" else 0.6) * last, n


def test_the_coefficients_are_those_of_the_series() -> None:
    rng, values = np.random.default_rng(1), [0.0, 0.0]
    for _ in range(50_000):
        values.append(0.5 * values[-1] - 0.3 * values[-2] + float(rng.standard_normal()))
    np.testing.assert_allclose(autoregression(np.array(values), 2), [0.5, -0.3], atol=0.02)
    assert len(autoregression(np.full(100, 3.0))) == 0
    assert extrapolated(np.full(10, 3.0), np.zeros(0), 4).tolist() == [3.0] * 4
    assert len(autoregression(np.arange(3.0))) == 0


def test_without_readings_there_is_no_forecast(tmp_path: Path) -> None:
    reader = monitor(write_tree(tmp_path, BARE))
    assert reader.forecast(1) is None
    reader.read()
    assert reader.forecast(1) is None


def test_the_command_prints_a_line_for_each_reading(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["monitor", "--interval", "0.02", "--count", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert main(["monitor", "--interval", "0.02", "--count", "2", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["schema"] for line in lines] == ["fxelastic.monitor/1"] * 2
    for interval in ("0", "inf", "1e10", "nan"):
        assert main(["monitor", "--interval", interval, "--count", "1"]) == 2
