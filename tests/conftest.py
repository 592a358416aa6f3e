"""What holds for all tests: their lanes, their order, their threads."""

from __future__ import annotations

import gc
import os
import signal
import sys
import warnings

import pytest

from tests.lanes import EXHAUSTIVE, SLOW, is_fast, is_stood_for

# Workers side by side keep all cores busy; torch is to compute with one thread in each of them, and
# in the processes that they start. Threads that wait for each other took 8 % more time.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# No test needs its files to survive a power cut, and each flush waits some milliseconds for the
# disk. tests/faults/ checks that files are flushed.
os.fsync = os.fstat

# A shell starts jobs in the background with Ctrl-C ignored, and their children inherit that. Tests
# that interrupt a process need it to be as in a terminal.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--fast``, which ``make check`` uses."""
    parser.addoption("--fast", action="store_true", help="leave out what takes long")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take what is slow first, or not at all, and the tests of a group one after another."""
    groups: dict[object, int] = {}
    places = [groups.setdefault(_group(item), len(groups)) for item in items]
    keys = {item: (not item.nodeid.startswith(SLOW), places[i]) for i, item in enumerate(items)}
    items.sort(key=keys.__getitem__)
    if not EXHAUSTIVE:
        _choose(config, items, [not is_stood_for(_values(item)) for item in items])
    if config.getoption("fast"):
        _choose(config, items, [is_fast(item.nodeid, _values(item)) for item in items])


def _choose(config: pytest.Config, items: list[pytest.Item], chosen: list[bool]) -> None:
    """Deselect the items that are not chosen."""
    pairs = list(zip(items, chosen, strict=True))
    config.hook.pytest_deselected(items=[item for item, kept in pairs if not kept])
    items[:] = [item for item, kept in pairs if kept]


def _group(item: pytest.Item) -> object:
    """What tests have in common that belong together: their group, else their module."""
    marker = item.get_closest_marker("xdist_group")
    return marker.args[0] if marker else item.path


def _values(item: pytest.Item) -> list[object]:
    """What a test is parametrised with."""
    callspec = getattr(item, "callspec", None)
    return list(callspec.params.values()) if callspec else []


def pytest_collection_finish(session: pytest.Session) -> None:
    """Prepare the process for many exports, and check that groups stay together."""
    # The garbage collector took 8 % of the time, most of it to go over what was imported.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
    if "torch" in sys.modules:
        import tests.exporter_cache  # noqa: F401
    _check_groups(session)


def _check_groups(session: pytest.Session) -> None:
    """Warn where tests of a group will not stay together: that takes minutes more.

    pytest-xdist marks groups in the ids of tests, which not every pytest lets it change.
    """
    if not getattr(session.config.option, "loadgroup", False):
        return
    grouped = [item for item in session.items if item.get_closest_marker("xdist_group")]
    if any("@" not in item.nodeid for item in grouped):
        warnings.warn(
            f"pytest {pytest.__version__} and this pytest-xdist do not keep groups together; "
            "the versions of constraints.txt do",
            pytest.PytestWarning,
            stacklevel=1,
        )
