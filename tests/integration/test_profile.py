"""--profile: real workers leave traces and tables, and learn what they learn without."""

import json
import math
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jobs
import numpy as np
import pytest

UPDATES, ACCUMULATION = 5, 2
IN_THE_STEP = ("forward, backward", "pack", "all-reduce", "optimizer", "write layers")
MINDSPORES_PROFILER = """
import logging, sys
from pathlib import Path
import mindspore as ms, numpy as np
from mindbooth.trainer.npu_profile import device_profile
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(message)s")
ms.set_device("CPU")
eye = ms.Tensor(np.eye(8, dtype=np.float32))
with device_profile("Ascend", Path(sys.argv[1])) as profile:
    for update in range(int(sys.argv[2])):
        ms.ops.matmul(eye, eye).asnumpy()
        profile.step()
"""


@dataclass(frozen=True)
class Event:
    """A span in a trace file. Times in microseconds since 1970."""

    name: str
    thread: str
    update: int | None
    began: int
    ended: int


@dataclass(frozen=True)
class Launched:
    """What two workers left. skipped: by update from 1, how often it was repeated."""

    folder: Path
    traces: list[list[Event]]
    skipped: Counter[int | None]

    def log(self, rank: int) -> str:
        return (self.folder / "launch" / "attempt-1" / f"worker_{rank}.log").read_text()


@pytest.fixture(scope="module")
def launched(
    tiny_pipeline: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Launched:
    folder = tmp_path_factory.mktemp("launched")
    flags = jobs.training(
        tiny_pipeline,
        photographs,
        profile=True,
        train_batch_size=1,
        gradient_accumulation_steps=ACCUMULATION,
        max_train_steps=UPDATES,
        output_dir="out",
        latent_cache_dir=folder / "cache",
    )
    job = jobs.run([*jobs.launch(2), *flags], folder)
    assert job.process.returncode == 0, job.told
    output = folder / "out"
    files = sorted(path.name for path in (output / "profile").iterdir())
    assert files == ["trace-rank-0.json", "trace-rank-1.json"]
    metrics = jobs.metrics(output)
    assert jobs.collectives(output) == {1}
    return Launched(
        folder=output,
        traces=[events(output / "profile" / file, rank) for rank, file in enumerate(files)],
        skipped=Counter({int(line["step"]): int(line["skipped"]) for line in metrics}),
    )


def events(path: Path, rank: int) -> list[Event]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["traceEvents"]
    assert {event["pid"] for event in found} == {rank}
    threads = {e["tid"]: e["args"]["name"] for e in found if e["name"] == "thread_name"}
    return [
        Event(
            name=event["name"],
            thread=threads[event["tid"]],
            update=event["args"].get("update"),
            began=event["ts"],
            ended=event["ts"] + event["dur"],
        )
        for event in found
        if event["ph"] == "X"
    ]


def parents(spans: list[Event]) -> list[tuple[Event, Event | None]]:
    """One thread's spans, each with the one that it lies in; they must not overlap otherwise."""
    found, around = [], list[Event]()
    for span in spans:
        while around and around[-1].ended <= span.began:
            around.pop()
        if around:
            assert span.ended <= around[-1].ended, (span, around[-1])
        found.append((span, around[-1] if around else None))
        around.append(span)
    return found


def test_each_update_has_its_spans_and_they_lie_within_each_other(launched: Launched) -> None:
    for spans in launched.traces:
        main = parents([span for span in spans if span.thread == "MainThread"])
        assert sum(span.name == "updates" for span, _ in main) == UPDATES
        for name in IN_THE_STEP:
            times = 1 if name != "forward, backward" else ACCUMULATION
            assert Counter(span.update for span, _ in main if span.name == name) == Counter(
                {u: times * (1 + launched.skipped[u]) for u in range(1, UPDATES + 1)}
            )
            around = {parent and parent.name for span, parent in main if span.name == name}
            assert around == {"updates"}
        waits = [span.update for span, _ in main if span.name == "wait for the batch"]
        assert waits == list(range(1, UPDATES + 1))
        outside = {span.name for span, parent in main if parent is None}
        assert {"look at the input", "encode", "load the models", "finish"} <= outside


def test_the_prefetch_thread_has_a_track_of_its_own(launched: Launched) -> None:
    for spans in launched.traces:
        assert {span.thread for span in spans} == {"MainThread", "prefetch"}
        found = [span for span, _ in parents([s for s in spans if s.thread == "prefetch"])]
        assert [(span.name, span.update) for span in found] == [
            ("assemble", update) for update in range(1, UPDATES + 1)
        ]


def test_nearly_all_of_an_update_lies_in_a_span(launched: Launched) -> None:
    for spans in launched.traces:
        whole = sum(span.ended - span.began for span in spans if span.name == "updates")
        inside = sum(span.ended - span.began for span in spans if span.name in IN_THE_STEP)
        assert 0.5 * whole < inside <= whole


def test_ranks_have_one_clock(launched: Launched) -> None:
    """No rank is out of an all-reduce before the last one is in it."""
    one, other = ([s for s in spans if s.name == "all-reduce"] for spans in launched.traces)
    assert len(one) >= UPDATES
    for span, its_twin in zip(one, other, strict=True):
        assert max(span.began, its_twin.began) <= min(span.ended, its_twin.ended) + 1000


def test_every_rank_tells_the_table(launched: Launched) -> None:
    for rank, spans in enumerate(launched.traces):
        log = launched.log(rank)
        head = log.index("in updates  ")
        assert log.index("look at the input  ") < head
        lines = log[head:].splitlines()
        rows = {line[:30].strip(): line[30:].split() for line in lines if line.endswith("%")}
        assert rows.keys() == {
            "wait for the batch", "each update", *IN_THE_STEP, "assemble (thread prefetch)",
        }  # fmt: skip
        for name in IN_THE_STEP:
            seconds = [(s.ended - s.began) / 1e6 for s in spans if s.name == name]
            times, total, mean, _, _ = rows[name]
            assert int(times) == len(seconds)
            assert float(total) == pytest.approx(sum(seconds), abs=0.006)
            assert float(mean) == pytest.approx(1e3 * math.fsum(seconds) / len(seconds), abs=0.003)
        assert "computes on its own" not in log
    assert str(Path("out") / "profile" / "trace-rank-*.json") in launched.log(0)


@pytest.mark.slow
def test_what_is_learned_is_the_same_bit_by_bit(
    tiny_pipeline: Path, photographs: Path, tmp_path: Path
) -> None:
    runs = {
        f"{mode}-{profile}": jobs.training(
            tiny_pipeline,
            photographs,
            mode=mode,
            profile=profile,
            train_batch_size=2,
            max_train_steps=4,
            ema_decay=0.9,
            output_dir=f"{mode}-{profile}",
            latent_cache_dir=tmp_path / "cache",
        )
        for mode in ("pynative", "graph")
        for profile in (False, True)
    }
    for ended in jobs.several(list(runs.values()), tmp_path):
        assert ended.status == 0, ended.err
    for mode in ("pynative", "graph"):
        without, profiled = tmp_path / f"{mode}-False", tmp_path / f"{mode}-True"
        assert not (without / "profile").exists()
        assert jobs.learned(without) > 0
        assert np.array_equal(jobs.adapter(without), jobs.adapter(profiled))
        spans = events(profiled / "profile" / "trace-rank-0.json", 0)
        assert Counter(s.name for s in spans)["average"] == 4
        assert ("compile" in {span.name for span in spans}) == (mode == "graph")


@pytest.mark.parametrize(("updates", "recorded"), [(8, 3), (4, 2), (1, 0)])
def test_mindspores_profiler_takes_our_settings(
    updates: int, recorded: int, tmp_path: Path
) -> None:
    """As far as a CPU shows it: settings, schedule and folder are the same on Ascend."""
    folder = tmp_path / "profile" / "ascend"
    program = [sys.executable, "-c", MINDSPORES_PROFILER, str(folder), str(updates)]
    job = jobs.run(program, tmp_path)
    assert job.process.returncode == 0, job.told
    told = [line for line in job.out.splitlines() if "MindSpore's profiler" in line]
    assert len(told) == 1, job.told
    if not recorded:
        assert told[0].startswith("WARNING MindSpore's profiler begins after 2 updates")
        return
    assert told[0].startswith(f"INFO MindSpore's profiler recorded {recorded} updates: {folder}")
    (made,) = folder.glob("*_ascend_ms")
    assert any(path.is_file() for path in made.rglob("*"))
