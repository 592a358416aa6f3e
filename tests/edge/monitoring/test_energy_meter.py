"""The energy meter on recorded trees of system files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fxelastic.edge import EnergyMeter, PowerModel
from fxelastic.edge.monitoring.power_model import PowerPoint, power_model
from fxelastic.errors import UsageError
from tests.edge.monitoring.trees import write_tree

_RAPL = "sys/class/powercap/intel-rapl:"
_ZONES = {
    "0": ("package-0", 1_000_000),
    "0:0": ("core", 400_000),
    "0:1": ("dram", 100_000),
    "1": ("package-1", 2_000_000),
    "2": ("psys", 9_000_000),
}
_LARGEST = 262_143_328_850
_INFO = "".join(
    f"processor\t: {i}\nmodel name\t: Intel(R) Xeon(R) CPU E3-1240 V2 @ 3.40GHz\n\n"
    for i in range(8)
)
_STAT = "cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\n"
_BASE = {"proc/cpuinfo": _INFO, "proc/stat": _STAT.format(busy=100, idle=900)}
RAPL = {
    **_BASE,
    **{f"{_RAPL}{zone}/name": f"{name}\n" for zone, (name, _) in _ZONES.items()},
    **{f"{_RAPL}{zone}/energy_uj": f"{uj}\n" for zone, (_, uj) in _ZONES.items()},
    **{f"{_RAPL}{zone}/max_energy_range_uj": f"{_LARGEST}\n" for zone in _ZONES},
    # The same package, by another interface.
    "sys/class/powercap/intel-rapl-mmio:0/name": "package-0\n",
    "sys/class/powercap/intel-rapl-mmio:0/energy_uj": "1000000\n",
}
_HWMON = "sys/class/hwmon/hwmon3"
INA3221 = {
    **_BASE,
    "sys/class/hwmon/hwmon0/name": "coretemp\n",
    "sys/class/hwmon/hwmon0/power1_input": "99000000\n",
    f"{_HWMON}/name": "ina3221\n",
    f"{_HWMON}/in1_label": "VDD_IN\n",
    f"{_HWMON}/in1_input": "5000\n",
    f"{_HWMON}/curr1_input": "800\n",
    f"{_HWMON}/in2_label": "VDD_CPU\n",
    f"{_HWMON}/in2_input": "5000\n",
    f"{_HWMON}/curr2_input": "300\n",
}
POWER_METER = {
    **_BASE,
    f"{_HWMON}/name": "power_meter\n",
    f"{_HWMON}/power1_average": "42000000\n",
}
_BAT = "sys/class/power_supply/BAT0"
BATTERY = {
    **_BASE,
    "sys/class/power_supply/AC/type": "Mains\n",
    f"{_BAT}/type": "Battery\n",
    f"{_BAT}/status": "Discharging\n",
    f"{_BAT}/current_now": "500000\n",
    f"{_BAT}/voltage_now": "12000000\n",
}


@dataclass
class Device:
    """A recorded tree, whose files and clock a test moves."""

    root: Path
    files: Mapping[str, str]
    now_s: float = 100.0
    process_s: float = 0.0
    meter: EnergyMeter = field(init=False)

    def __post_init__(self) -> None:
        write_tree(self.root, self.files)
        self.meter = EnergyMeter(
            self.root, clock=lambda: self.now_s, process_clock=lambda: self.process_s
        )

    def move(self, seconds: float, **changes: str) -> None:
        """Let time pass, and replace files; ``load`` sets the use of the processor."""
        self.now_s += seconds
        load = float(changes.pop("load", "0.5"))
        ticks = 800 * seconds
        stat = _STAT.format(busy=100 + ticks * load, idle=900 + ticks * (1 - load))
        names = {name.replace("/", "_"): name for name in self.files}
        write_tree(self.root, {"proc/stat": stat} if "proc/stat" in self.files else {})
        for key, text in changes.items():
            write_tree(self.root, {names[key]: text})


def _zone(number: str) -> str:
    return f"{_RAPL}{number}/energy_uj".replace("/", "_")


def test_rapl_adds_packages_and_memory_but_not_their_parts(tmp_path: Path) -> None:
    device = Device(tmp_path, RAPL)
    device.meter.begin()
    moved = {_zone(zone): str(uj + 500_000) for zone, (_, uj) in _ZONES.items()}
    device.move(2.0, **moved)
    energy = device.meter.end()
    assert energy.source == "rapl"
    assert energy.joules == pytest.approx(1.5)  # two packages and the memory of one
    assert energy.band[0] < 1.5 < energy.band[1] < 1.6
    assert energy.watts == pytest.approx(0.75)
    assert energy.load == pytest.approx(0.5)


def test_a_counter_that_starts_again_gives_no_negative_energy(tmp_path: Path) -> None:
    device = Device(tmp_path, RAPL)
    device.meter.begin()
    last = _LARGEST - 2_000_000
    device.move(1.0, **{_zone("0"): f"{last}\n"})
    device.meter.begin()
    device.move(2.0, **{_zone("0"): "500000\n"})
    assert device.meter.end().joules == pytest.approx(2.5)


def test_a_counter_that_starts_again_several_times_follows_the_model(tmp_path: Path) -> None:
    device = Device(tmp_path, RAPL)
    device.meter.power = PowerModel.of(100.0, 100.1)
    device.meter.begin()
    device.move(40_000.0, **{_zone("0"): "2000000\n", _zone("1"): "3000000\n"})
    assert device.meter.end().joules == pytest.approx(4e6, rel=0.15)


def test_without_packages_the_platform_counts(tmp_path: Path) -> None:
    only = {name: text for name, text in RAPL.items() if "rapl" not in name or ":2" in name}
    device = Device(tmp_path, only)
    device.meter.begin()
    device.move(1.0, **{_zone("2"): "9250000\n"})
    assert device.meter.end().joules == pytest.approx(0.25)


def test_a_counter_without_permission_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read = Path.read_text

    def denied(self: Path, *args: object, **kwargs: object) -> str:
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", denied)
    device = Device(tmp_path, RAPL)
    with caplog.at_level(logging.WARNING):
        device.meter.begin()
        device.move(1.0)
        energy = device.meter.end()
    assert energy.source == "model"
    assert "intel-rapl:0/energy_uj" in energy.notes[0]
    assert "permission" in energy.notes[0]
    assert "chmod a+r" in caplog.text
    assert energy.joules > 0
    # A second window does not repeat the message.
    caplog.clear()
    device.meter.begin()
    device.move(2.0)
    device.meter.end()
    assert not caplog.text


def test_a_window_in_which_the_counter_did_not_move_is_not_zero(tmp_path: Path) -> None:
    device = Device(tmp_path, RAPL)
    device.meter.begin()
    device.move(0.0005)
    device.process_s += 0.0005
    energy = device.meter.end()
    assert energy.source == "model"
    assert energy.joules > 0
    assert "did not move" in energy.notes[0]


@pytest.mark.parametrize(
    ("files", "source", "watts"),
    [(INA3221, "hwmon", 4.0), (POWER_METER, "hwmon", 42.0), (BATTERY, "battery", 6.0)],
    ids=["INA3221", "power meter", "battery"],
)
def test_sensors_of_power_are_read_at_both_ends(
    tmp_path: Path, files: Mapping[str, str], source: str, watts: float
) -> None:
    device = Device(tmp_path, files)
    device.meter.begin()
    device.move(3.0)
    energy = device.meter.end()
    assert energy.source == source
    assert energy.joules == pytest.approx(3 * watts)
    assert energy.band[0] < energy.joules < energy.band[1]


def test_a_sensor_that_changes_has_a_wider_band(tmp_path: Path) -> None:
    device = Device(tmp_path, INA3221)
    device.meter.begin()
    device.move(1.0, **{f"{_HWMON}/curr1_input".replace("/", "_"): "1600\n"})
    energy = device.meter.end()
    assert energy.joules == pytest.approx(6.0)
    assert energy.band[0] < 4.0 < 8.0 < energy.band[1]


def test_a_battery_that_is_charged_says_nothing(tmp_path: Path) -> None:
    device = Device(tmp_path, {**BATTERY, f"{_BAT}/status": "Charging\n"})
    device.meter.begin()
    device.move(1.0)
    energy = device.meter.end()
    assert energy.source == "model"
    assert f"{_BAT}/status is Charging" in energy.notes[0]


@pytest.mark.parametrize("load", ["0.0", "1.0"])
def test_without_a_counter_the_load_tells_the_power(tmp_path: Path, load: str) -> None:
    device = Device(tmp_path, _BASE)
    device.meter.begin()
    device.move(2.0, load=load)
    energy = device.meter.end()
    assert energy.source == "model"
    assert energy.watts == pytest.approx(49.5 if load == "1.0" else 5.6)
    assert energy.band[0] < energy.joules < energy.band[1]
    assert any("no counter of energy" in note for note in energy.notes)


def test_without_any_file_the_process_tells_the_load(tmp_path: Path) -> None:
    meter_time = iter((0.0, 2.0))
    process_time = iter((0.0, 2.0))
    meter = EnergyMeter(
        tmp_path,
        threads=4,
        clock=lambda: next(meter_time),
        process_clock=lambda: next(process_time),
    )
    meter.begin()
    energy = meter.end()
    assert energy.load == pytest.approx(0.25)
    assert energy.joules > 0
    assert any("/proc/stat" in note for note in energy.notes)


def test_the_end_needs_a_beginning(tmp_path: Path) -> None:
    device = Device(tmp_path, _BASE)
    with pytest.raises(UsageError, match="no window"):
        device.meter.end()


def test_a_calibration_follows_the_counter(tmp_path: Path) -> None:
    device = Device(tmp_path, RAPL)
    counted = {"uj": 1_000_000, "busy": 100.0, "idle": 900.0}

    def run(watts: float, load: float, seconds: float) -> None:
        device.now_s += seconds
        counted["uj"] += int(watts * seconds * 1e6)
        counted["busy"] += 800 * seconds * load
        counted["idle"] += 800 * seconds * (1 - load)
        write_tree(
            tmp_path,
            {
                f"{_RAPL}0/energy_uj": str(counted["uj"] % _LARGEST),
                "proc/stat": _STAT.format(busy=counted["busy"], idle=counted["idle"]),
            },
        )

    found = device.meter.calibrate(lambda s: run(30.0, 1.0, s), 0.2, lambda s: run(10.0, 0.05, s))
    assert (found.idle.watts, found.full.watts) == pytest.approx((10.0, 30.0))
    assert found.watts(1.0) == pytest.approx(30.0)
    assert PowerModel.from_json(found.to_json()) == found


def test_a_calibration_needs_a_counter(tmp_path: Path) -> None:
    device = Device(tmp_path, _BASE)
    with pytest.raises(UsageError, match="needs a counter"):
        device.meter.calibrate(lambda s: None, 0.0, lambda s: None)


def test_the_power_follows_the_frequency_where_it_is_known() -> None:
    model = PowerModel(PowerPoint(10.0, 0.02, 0.4), PowerPoint(50.0, 1.0, 1.0), 0.2, "test")
    assert model.watts(1.0, 1.0) == pytest.approx(50.0)
    assert model.watts(0.02, 0.4) == pytest.approx(10.0)
    assert 10.0 < model.watts(0.5, 0.5) < model.watts(0.5, 0.9) < 50.0
    assert model.watts(0.0, 0.0) == pytest.approx(10.0)


def test_two_packages_take_twice_the_power() -> None:
    name = "Intel(R) Xeon(R) CPU E5-2620 v3 @ 2.40GHz"
    one, two = power_model(name, 12), power_model(name, 24)
    assert two.full.watts == pytest.approx(2 * one.full.watts)
    assert "CodeCarbon" in one.source


def test_an_unknown_processor_has_a_wider_band() -> None:
    known = power_model("AMD EPYC 7763 64-Core Processor", 128)
    unknown = power_model("a processor", 4)
    assert known.full.watts == pytest.approx(0.67 * 280)
    assert unknown.error > known.error > power_model("AMD EPYC 8024P", 16).error


@pytest.mark.parametrize("powers", [(0.0, 5.0), (5.0, 4.0), (float("nan"), 5.0)])
def test_powers_must_be_above_zero_and_in_order(powers: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="full load"):
        PowerModel.of(*powers)
