"""Spans: what is recorded of them, the file for a viewer, the table, and what it costs."""

import contextlib
import json
import logging
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mindbooth.trainer.trace import WAIT, Recording, Trace

SECOND = 10**9


def recording(rank: int = 0, **options: Any) -> Recording:
    """Two updates, of which the second one is far slower, in two threads."""
    made = Recording(rank, **options)
    for update in range(2):
        with made.span("updates"):
            with made.span("forward", update):
                time.sleep(0.001 + 0.03 * update)
            with made.span("optimizer", update):
                pass
    thread = threading.Thread(target=made.calls("assemble", str), args=(7,), name="prefetch")
    thread.start()
    thread.join()
    return made


def written(made: Trace, folder: Path, rank: int = 0) -> dict[str, Any]:
    made.write(folder)
    return dict(json.loads((folder / f"trace-rank-{rank}.json").read_text()))


def events(document: dict[str, Any], phase: str = "X") -> list[dict[str, Any]]:
    return [event for event in document["traceEvents"] if event["ph"] == phase]


def rows(made: Trace) -> dict[str, list[str]]:
    """The table's figures by name."""
    head, *lines = made.table().splitlines()
    return {line[:30].strip(): line[30:].split() for line in lines if len(line) == len(head)}


def test_a_span_has_its_thread_its_update_and_the_time_inside_also_where_it_fails() -> None:
    made = Recording(0)
    before = time.perf_counter_ns()
    with contextlib.suppress(KeyError), made.span("forward", 3):
        time.sleep(0.01)
        raise KeyError
    (span,) = made.spans
    assert (span.name, span.thread, span.update) == ("forward", threading.get_native_id(), 3)
    assert before <= span.began <= span.ended - 0.01 * SECOND
    assert span.ended <= time.perf_counter_ns()


def test_calls_and_waits_are_spans_of_their_updates() -> None:
    made = Recording(0)

    def slow() -> Iterator[str]:
        for letter in "ab":
            time.sleep(0.01)
            yield letter

    assert made.calls("assemble", lambda update: update * 2)(4) == 8
    found = []
    for letter in made.waits(slow(), 5):
        found.append(letter)
        time.sleep(0.1)  # is no waiting
    assert found == ["a", "b"]
    assert [(span.name, span.update) for span in made.spans] == [
        ("assemble", 4), (WAIT, 5), (WAIT, 6),
    ]  # fmt: skip
    _, first, second = made.spans
    assert all((span.ended - span.began) / SECOND >= 0.01 for span in (first, second))
    assert (second.began - first.ended) / SECOND >= 0.1


def test_an_error_of_what_is_waited_for_reaches_who_waits() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise KeyError("gone")

    items = iter(Recording(0).waits(broken()))
    assert next(items) == 1
    with pytest.raises(KeyError, match="gone"):
        next(items)


def test_the_null_trace_gives_back_what_it_is_given_and_leaves_nothing(tmp_path: Path) -> None:
    off, items = Trace(), [1, 2]
    with off.span("forward", 1), off.span("inner"):
        pass
    assert off.calls("assemble", abs) is abs
    assert off.waits(items, 3) is items
    assert off.table() == ""
    off.write(tmp_path / "profile")
    assert not (tmp_path / "profile").exists()


def test_the_file_is_a_trace_with_named_tracks(tmp_path: Path) -> None:
    document = written(recording(rank=3), tmp_path / "new" / "profile", rank=3)
    assert {event["pid"] for event in document["traceEvents"]} == {3}
    named = {(e["name"], e.get("tid")): e["args"] for e in events(document, "M")}
    assert named["process_name", None]["name"].startswith("rank 3 on ")
    threads = {
        tid: args["name"] for (name, tid), args in named.items() if name == "thread_name"
    }  # fmt: skip
    assert sorted(threads.values()) == ["MainThread", "prefetch"]
    assert [(threads[e["tid"]], e["name"], e["args"]) for e in events(document)] == [
        ("MainThread", "updates", {}),
        ("MainThread", "forward", {"update": 1}),
        ("MainThread", "optimizer", {"update": 1}),
        ("MainThread", "updates", {}),
        ("MainThread", "forward", {"update": 2}),
        ("MainThread", "optimizer", {"update": 2}),
        ("prefetch", "assemble", {"update": 8}),
    ]
    assert all(type(e["ts"]) is int and type(e["dur"]) is int for e in events(document))


def test_times_are_microseconds_of_the_wall_clock(tmp_path: Path) -> None:
    before = time.time()
    found = events(written(recording(), tmp_path))
    # Half a second, for a clock that is being set meanwhile.
    assert before - 0.5 < found[0]["ts"] / 1e6 < found[-1]["ts"] / 1e6 < time.time() + 0.5
    slow = [event for event in found if event["name"] == "forward"][1]
    assert 31_000 <= slow["dur"] < 1_000_000


def test_parents_stand_before_what_lies_in_them_also_within_one_microsecond(
    tmp_path: Path,
) -> None:
    made = Recording(0)
    for _ in range(300):
        with made.span("outer"), made.span("middle"), made.span("inner"):
            pass
    found = events(written(made, tmp_path))
    assert [event["name"] for event in found] == ["outer", "middle", "inner"] * 300
    for outer, middle, inner in zip(found[::3], found[1::3], found[2::3], strict=True):
        for parent, child in ((outer, middle), (middle, inner)):
            assert parent["ts"] <= child["ts"]
            assert child["ts"] + child["dur"] <= parent["ts"] + parent["dur"]


def test_threads_lose_no_span_and_what_is_beyond_the_most_is_counted(tmp_path: Path) -> None:
    made, each, most = Recording(0, most=6000), 2000, 6000

    def work() -> None:
        for update in range(each):
            with made.span("forward", update):
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made.spans) == most
    assert f" {4 * each} " in made.table().splitlines()[1]
    told = f"the first {most} spans only; {4 * each - most} later ones are but counted."
    assert told in made.table()
    document = written(made, tmp_path)
    assert len(events(document)) == most
    assert told in document["otherData"]["notes"][0]


def test_the_table_adds_up_by_name_in_the_order_of_the_first() -> None:
    made = recording()
    found = rows(made)
    assert list(found) == ["each update", "forward", "optimizer", "assemble (thread prefetch)"]
    whole = sum(s.ended - s.began for s in made.spans if s.name == "updates")
    assert f"Shares are of {whole / SECOND:.2f} s" in made.table()
    for shown, name in zip(found, ("updates", "forward", "optimizer", "assemble"), strict=True):
        each = [span.ended - span.began for span in made.spans if span.name == name]
        assert found[shown] == [
            str(len(each)),
            f"{sum(each) / SECOND:.2f}",
            f"{statistics.mean(each) / 1e6:.3f}",
            f"{statistics.median(each) / 1e6:.3f}",
            f"{sum(each) / whole:.1%}",
        ]
    assert found["each update"][-1] == "100.0%"
    assert float(found["forward"][-1].rstrip("%")) > 50


def test_shares_are_of_the_updates_and_the_waits_for_them() -> None:
    made = Recording(0)
    for update, _ in enumerate(made.waits(iter("ab"))):
        with made.span("updates"), made.span("forward", update):
            time.sleep(0.01)
    shares = [float(found[-1].rstrip("%")) for found in rows(made).values()]
    assert list(rows(made)) == [WAIT, "each update", "forward"]
    assert shares[0] + shares[1] == pytest.approx(100, abs=0.11)


def test_phases_alone_make_no_table() -> None:
    made = Recording(0)
    with made.span("encode"), made.span("updates"):
        pass
    assert made.table() == ""


def test_where_the_device_computes_on_its_own_that_is_said(tmp_path: Path) -> None:
    words = "The device computes on its own: these are the times that the host takes to launch"
    assert words not in recording().table()
    made = recording(asynchronous=True)
    assert words in made.table()
    assert written(made, tmp_path)["otherData"]["notes"][0].startswith(words)


def test_only_rank_0_tells_where_traces_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    recording(1).write(tmp_path)
    assert caplog.records == []
    recording(0).write(tmp_path)
    (record,) = caplog.records
    assert str(tmp_path / "trace-rank-*.json") in record.getMessage()


def test_a_trace_that_can_not_be_written_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "profile").write_text("a file")
    recording().write(tmp_path / "profile")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(tmp_path / "profile" / "trace-rank-0.json") in record.getMessage()
