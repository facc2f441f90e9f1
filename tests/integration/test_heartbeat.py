"""What a launcher can see of its workers: two of them train, and one is stopped for a while."""

import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jobs
import numpy as np
import pytest

from mindbooth.launch import heartbeats, processes
from mindbooth.launch.heartbeats import Beat, Stall, Watch

if TYPE_CHECKING:
    from mindbooth.trainer.device import Comm

UPDATES = 40
QUIET_SECONDS = 2.0  # well below the 30 s after which a collective on CPU gives up
STACKS = "(most recent call first)"
OUTERMOST = "in _run_module_as_main"  # of the main thread, whose stack is the last to be written


@dataclass(frozen=True, kw_only=True)
class Story:
    """stall: what was found while rank 1 was stopped; waiting: rank 0's stacks of that time."""

    stall: Stall
    waiting: str
    status: int
    told: str
    logs: dict[int, str]
    last: dict[int, Beat | None]


@pytest.fixture(scope="module")
def story(tiny_pipeline: Path, mini_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("heartbeat")
    attempt = folder / "out" / "launch" / "attempt-1"
    watch = Watch(folder=attempt, ranks=(0, 1))
    logs = {rank: attempt / f"worker_{rank}.log" for rank in watch.ranks}
    flags = jobs.training(
        tiny_pipeline,
        mini_sdxl / "instance",
        max_train_steps=UPDATES,
        latent_cache_dir="cache",
        output_dir="out",
    )

    def judged() -> Stall | None:
        stats = {r: processes.read(pid, "stat").decode() for r, pid in pids.items()}
        stopped = [r for r, stat in stats.items() if processes.parse_state(stat) == "T"]
        watch.look(time.monotonic())
        return watch.stall(stopped, QUIET_SECONDS)

    def has_begun(rank: int) -> bool:
        beat = heartbeats.read(attempt, [rank])[rank]
        return beat is not None and (beat.updates or 0) >= 2

    with jobs.started([*jobs.launch(2), *flags], folder) as job:
        job.until(lambda: has_begun(0) and has_begun(1))
        pids = jobs.workers(folder / "out")
        assert judged() is None
        processes.send(pids[1], signal.SIGSTOP)
        job.until(lambda: judged() is not None)
        stall = judged()
        assert stall is not None
        for pid in pids.values():
            processes.send(pid, signal.SIGUSR2)
        job.until(lambda: OUTERMOST in logs[0].read_text())
        waiting = logs[0].read_text()
        processes.send(pids[1], signal.SIGCONT)
        status = job.end()
    return Story(
        stall=stall,
        waiting=waiting,
        status=status,
        told=job.told,
        logs={rank: log.read_text() for rank, log in logs.items()},
        last=heartbeats.read(attempt, watch.ranks),
    )


def test_a_worker_that_is_stopped_is_found_and_all_are_told_of(story: Story) -> None:
    assert story.stall.rank == 1
    assert "rank 1: stopped (SIGSTOP) in update" in story.stall.why
    assert f" of {UPDATES}, " in story.stall.why


def test_the_stacks_of_a_worker_in_a_collective_come_at_once(story: Story) -> None:
    stack = story.waiting.partition(STACKS)[2]
    assert "in all_reduce" in stack
    assert "in train" in stack


def test_a_stopped_worker_shows_its_stacks_when_it_goes_on(story: Story) -> None:
    assert STACKS in story.logs[1]


def test_neither_ends_the_training(story: Story) -> None:
    assert story.status == 0, story.told


def test_the_last_record_is_of_the_end(story: Story) -> None:
    for beat in story.last.values():
        assert beat is not None
        assert (beat.phase, beat.updates, beat.done, beat.total) == (
            "finish", UPDATES, UPDATES, UPDATES,
        )  # fmt: skip
        assert beat.began
        assert set(beat.figures) == {"loss", "lr"}


def test_each_denoising_step_is_a_beat(cpu: "Comm", tiny_pipeline: Path) -> None:
    import mindspore as ms

    from mindbooth.trainer import sdxl
    from mindbooth.trainer.config import ModelConfig
    from mindbooth.trainer.heartbeat import Heart
    from mindbooth.trainer.sample import Sampler

    class Counted(Heart):
        beats = 0

        def beat(self) -> None:
            self.beats += 1

    model = sdxl.locate(ModelConfig(pretrained_model_name_or_path=str(tiny_pipeline)))
    heart = Counted()
    sampler = Sampler(model, sdxl.load_unet(model, ms.float32), ms.float32, heart)
    nothing = {
        "prompt_embeds": np.zeros((77, 64), np.float32), "pooled": np.zeros(32, np.float32)
    }  # fmt: skip
    sampler.pictures(nothing, nothing, [1], size=(32, 32), steps=3)
    assert heart.beats == 3
