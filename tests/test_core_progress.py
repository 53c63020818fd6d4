"""Progress events."""

from __future__ import annotations

import pickle

import pytest

from morphfed.core.progress import Event, silent, tracked


def test_one_event_before_and_one_after_each_item() -> None:
    events: list[Event] = []
    assert list(tracked("abc", events.append, "cache", "decoding")) == ["a", "b", "c"]
    assert [(e.done, e.total) for e in events] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert {(e.task, e.text, e.level) for e in events} == {("cache", "decoding", "progress")}


def test_an_item_counts_only_when_it_is_dealt_with() -> None:
    events: list[Event] = []
    with pytest.raises(RuntimeError, match="second"):  # noqa: PT012
        for item in tracked(iter("abc"), events.append, "cache"):
            if item == "b":
                raise RuntimeError("second")
    assert [(e.done, e.total) for e in events] == [(0, None), (1, None)]


def test_a_given_total_wins_and_an_empty_list_reports_once() -> None:
    events: list[Event] = []
    assert list(tracked([], events.append, "cache", total=7)) == []
    assert events == [Event("cache", 0, 7)]


def test_events_cross_processes_and_silence_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    event = Event("fedavg/seed-0", 3, 10, "round 3/10 · tecom", "warning")
    assert pickle.loads(pickle.dumps(event)) == event
    silent(event)
    assert capsys.readouterr() == ("", "")
