"""``fxelastic monitor``: show the use of this device's resources, a line for each reading."""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING, Any

from fxelastic.cli import options
from fxelastic.cli.options import HelpFormatter
from fxelastic.errors import UsageError

if TYPE_CHECKING:
    from fxelastic.edge.monitoring.resource_monitor import Resources

SCHEMA = "fxelastic.monitor/1"

# The longest time between two readings.
_MOST_S = 86_400.0

_DESCRIPTION = """\
Show the use of this device's processor, memory, graphics processor and disks, the load
index (their weighted mean) and its forecast, a line for each reading. What the system
does not report is named at the beginning. Does not need torch."""

_EPILOG = """\
examples:
  fxelastic monitor --count 3
  fxelastic monitor --interval 0.1 --count 20 --json

Ctrl-C ends it.

exit codes: 0 success, 2 usage error, 130 interrupted"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    parser = commands.add_parser(
        "monitor",
        help="show the use of this device's resources",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    options.add_values(
        parser,
        ("--interval", "SECONDS", float, 1.0, "the time between readings"),
        ("--count", "N", int, 0, "readings to make; 0 for no end"),
    )
    options.add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns 0."""
    from fxelastic import edge

    if not 0 < args.interval <= _MOST_S or args.count < 0:
        raise UsageError(
            "--interval must be above 0 and at most a day, and --count at least 0",
            expected="for example --interval 0.5 --count 20",
            got=f"--interval {args.interval} --count {args.count}",
        )
    monitor = edge.ResourceMonitor()
    first = monitor.read()
    if not args.json:
        # The first reading has no use of the processor yet.
        missing = [name for name in first.missing if name not in ("cpu", "quota_used")]
        if missing:
            options.progress(args, "this system does not report " + ", ".join(missing))
        print(header(monitor.read()))
    done = 0
    while not args.count or done < args.count:
        time.sleep(args.interval)
        found = monitor.read()
        ahead = {n: monitor.forecast(n) for n in (1, 2, 5)}
        if args.json:
            print(json.dumps({"schema": SCHEMA, **found.to_json(), "forecast": ahead}), flush=True)
        else:
            print(line(found, ahead[5]), flush=True)
        done += 1
    return 0


_COLUMNS = ("load", "in 5", "cpu", "quota", "memory", "gpu", "waiting for cpu, memory, io", "MHz")


def header(found: Resources) -> str:
    """The names of the columns."""
    return "  ".join(f"{name:>6}" for name in (*_COLUMNS, "deg C"))


def line(found: Resources, ahead: float | None) -> str:
    """A reading as a line; a dash for what the system does not report."""
    waits = " ".join(share(found.pressure.get(name)) for name in ("cpu", "memory", "io"))
    uses = (found.load_index, ahead, found.cpu, found.quota_used, found.memory, found.gpu)
    others = (
        "-" if found.frequency_mhz is None else f"{found.frequency_mhz:.0f}",
        "-" if found.temperature_c is None else f"{found.temperature_c:.0f}",
    )
    cells = [*map(share, uses), f"{waits:>27}", *others]
    return "  ".join(f"{cell:>6}" for cell in cells)


def share(value: float | None) -> str:
    """A share as text."""
    return "-" if value is None else f"{value:.0%}"
