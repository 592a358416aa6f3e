"""The text of an event has the local time."""

from __future__ import annotations

from datetime import datetime

from fxelastic.edge.serving.events import Event, EventLog


def test_an_event_says_when_it_happened_in_local_time() -> None:
    at_s = datetime(2026, 3, 4, 15, 16, 17, 250_000).timestamp()
    events = EventLog(lambda: 12.5, wall_clock=lambda: at_s)
    events.add("switched", "down")
    (event,) = events.snapshot()
    assert event.time_s == 12.5
    assert str(event) == "2026-03-04 15:16:17.250 switched: down"


def test_an_event_without_a_date_has_the_time_of_the_clock() -> None:
    assert str(Event(12.5, "switched", "down")) == "12.500 switched: down"


def test_a_listener_that_fails_is_noted_at_the_same_time() -> None:
    def fail(event: Event) -> None:
        raise ValueError("odd")

    events = EventLog(lambda: 1.0, listener=fail, wall_clock=lambda: 5.0)
    events.add("switched", "down", arch="a")
    _, noted = events.snapshot()
    assert (noted.kind, noted.at_s, noted.details) == ("control_failed", 5.0, {})
