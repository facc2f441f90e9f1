"""Runs that are stopped, killed, continued: statuses, checkpoints, and no trace in the result."""

import json
import re
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import jobs
import pytest
import yaml
from jobs import Ended, Flags

from mindbooth.launch import processes

UPDATES = 20
CHECKPOINT = {jobs.LORA, "state.json", "state.safetensors"}


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """How one stop went. updates: how many were done; saved: the newest checkpoint's number."""

    status: int
    err: str
    updates: int
    saved: int


@dataclass(frozen=True, kw_only=True)
class Story:
    """A run that was stopped on two cards, again on one, and interrupted; and one left in peace.

    folder: holds the output folders `stopped`, `whole`, `start`.
    """

    folder: Path
    on_two_cards: Stopped
    on_one_card: Stopped
    interrupted: Stopped
    ended: dict[str, Ended]


def flags(pipeline: Path, pictures: Path, cache: Path, **options: object) -> Flags:
    usual: dict[str, object] = {
        "max_train_steps": UPDATES,
        "allreduce_dtype": "fp32",
        "latent_cache_dir": cache,
        "output_dir": "stopped",
    }
    return jobs.training(pipeline, pictures, **usual | options)


def stop(command: Flags, cwd: Path, *, after: int, number: signal.Signals) -> Stopped:
    """Start a run in cwd/stopped and send the signal when so many updates are done."""
    output = cwd / "stopped"
    with jobs.started(command, cwd) as job:
        job.until_updates(output, after)
        job.send(number)
        status = job.end()
    saved = max((int(path.name[11:]) for path in output.glob("checkpoint-*")), default=0)
    return Stopped(status=status, err=job.err, updates=jobs.updates(output), saved=saved)


@pytest.fixture(scope="module")
def story(tiny_pipeline: Path, mini_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("story")
    cache = tmp_path_factory.mktemp("cache")

    def changed(**options: object) -> Flags:
        return flags(tiny_pipeline, mini_sdxl / "instance", cache, **options)

    goes_on = {"train_batch_size": 4, "resume_from_checkpoint": "latest"}
    train = [*jobs.MINDBOOTH, "train"]
    two = [*jobs.launch(2), *changed(train_batch_size=2)]
    on_two_cards = stop(two, folder, after=3, number=signal.SIGTERM)
    one = [*train, *changed(**goes_on)]
    on_one_card = stop(one, folder, after=on_two_cards.updates + 3, number=signal.SIGTERM)
    one = [*train, *changed(train_batch_size=2, resume_from_checkpoint="latest")]
    interrupted = stop(one, folder, after=on_one_card.updates + 2, number=signal.SIGINT)
    damaged = shutil.copytree(
        folder / "stopped" / f"checkpoint-{on_one_card.saved}", folder / "damaged"
    )
    state = damaged / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1])
    runs = {
        "resumed": changed(**goes_on),
        "whole": changed(
            train_batch_size=4,
            output_dir="whole",
            checkpointing_steps=3,
            checkpoints_total_limit=2,
        ),
        "start": changed(output_dir="start", learning_rate=0, max_train_steps=1),
        "five samples": changed(output_dir="whole", **goes_on | {"train_batch_size": 5}),
        "rank 8": changed(output_dir="whole", rank=8, **goes_on),
        "damaged": changed(**goes_on | {"resume_from_checkpoint": "damaged"}),
    }
    ended = dict(zip(runs, jobs.several(list(runs.values()), folder), strict=True))
    return Story(
        folder=folder,
        on_two_cards=on_two_cards,
        on_one_card=on_one_card,
        interrupted=interrupted,
        ended=ended,
    )


def test_term_to_the_launcher_saves_and_ends_with_75(story: Story) -> None:
    assert story.on_two_cards.status == 75, story.on_two_cards.err
    assert 3 <= story.on_two_cards.updates == story.on_two_cards.saved < UPDATES
    assert "stopped on request, everything saved" in story.on_two_cards.err
    assert not jobs.left(story.folder / "stopped")


def test_term_to_a_single_process_saves_and_ends_with_75(story: Story) -> None:
    seen = story.on_one_card
    assert seen.status == 75, seen.err
    assert story.on_two_cards.saved < seen.updates == seen.saved < UPDATES
    assert f"Stopped on request after {seen.saved} updates" in seen.err


def test_a_checkpoint_is_complete_and_its_folder_holds_nothing_else(story: Story) -> None:
    output = story.folder / "stopped"
    for saved in (story.on_two_cards.saved, story.on_one_card.saved):
        checkpoint = output / f"checkpoint-{saved}"
        assert set(jobs.files(checkpoint)) == CHECKPOINT
        assert json.loads((checkpoint / "state.json").read_text())["update"] == saved
    assert not list(output.glob(".*"))


def test_ctrl_c_ends_a_single_process_with_130(story: Story) -> None:
    seen = story.interrupted
    assert seen.status == 130, seen.err
    assert "Traceback" not in seen.err
    assert seen.updates > story.on_one_card.updates
    assert seen.saved == story.on_one_card.saved  # nothing was asked to be saved


def test_a_stopped_run_ends_as_if_it_had_not_been_stopped(story: Story) -> None:
    assert story.ended["resumed"].status == 0, story.ended["resumed"].err
    assert story.ended["whole"].status == 0, story.ended["whole"].err
    stopped, whole, start = (
        jobs.adapter(story.folder / name) for name in ("stopped", "whole", "start")
    )
    assert jobs.distance(stopped, whole, start) < 1e-5  # two cards sum in another order
    lines, expected = (jobs.metrics(story.folder / name) for name in ("stopped", "whole"))
    assert [line["step"] for line in lines] == list(range(1, UPDATES + 1))
    assert [line["loss"] for line in lines] == pytest.approx(
        [line["loss"] for line in expected], rel=1e-5
    )


def test_fewer_cards_accumulate_more_and_say_so(story: Story) -> None:
    assert "--gradient_accumulation_steps is 2 now, for 4 samples" in story.interrupted.err


def test_checkpoints_are_made_and_kept_as_asked(story: Story) -> None:
    kept = {path.name for path in (story.folder / "whole").glob("checkpoint-*")}
    assert kept == {"checkpoint-15", "checkpoint-18"}
    saved = re.findall(r"Saved whole/checkpoint-(\d+)", story.ended["whole"].err)
    assert saved == ["3", "6", "9", "12", "15", "18"]


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ("five samples", ["whole/checkpoint-18", "4 samples an update", "--train_batch_size 5"]),
        ("rank 8", ["whole/checkpoint-18", "--rank"]),
        ("damaged", ["checkpoint damaged can't be read"]),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(
    story: Story, run: str, words: list[str]
) -> None:
    ended = story.ended[run]
    assert ended.status == 2
    (error,) = [line for line in ended.err.splitlines() if "mindbooth: error: " in line]
    assert ended.err.endswith(error + "\n")
    assert all(word in error for word in words), error
    assert yaml.safe_load((story.folder / "whole" / "config.yaml").read_text())["rank"] == 4


def test_a_worker_that_is_killed_ends_the_job_soon_and_leaves_no_process(
    tiny_pipeline: Path, mini_sdxl: Path, tmp_path: Path
) -> None:
    options = flags(tiny_pipeline, mini_sdxl / "instance", tmp_path / "cache")
    output = tmp_path / "cwd" / "stopped"
    with jobs.started([*jobs.launch(2), *options], tmp_path / "cwd") as job:
        job.until_updates(output, 2)
        victim = jobs.workers(output)[1]
        killed = time.monotonic()
        processes.send(victim, signal.SIGKILL)
        assert job.end() == 137, job.told
        assert time.monotonic() - killed < 15
        assert not jobs.left(output)
    assert "rank 1 " in job.err.splitlines()[0]
    assert "SIGKILL" in job.err.splitlines()[0]


def test_term_before_the_first_update_ends_with_75_and_saves_nothing(
    tiny_pipeline: Path, mini_sdxl: Path, tmp_path: Path
) -> None:
    """Sent as soon as both workers listen: they look at their input, or encode."""
    options = flags(tiny_pipeline, mini_sdxl / "instance", tmp_path / "cache")
    output = tmp_path / "cwd" / "stopped"

    def both_listen() -> bool:
        if not (output / "launch" / "plan.json").exists():
            return False
        workers = jobs.workers(output).values()
        return len(workers) == 2 and not any(map(processes.ignores_term, workers))

    with jobs.started([*jobs.launch(2), *options], tmp_path / "cwd") as job:
        job.until(both_listen)
        job.send(signal.SIGTERM)
        assert job.end() == 75, job.told
        assert not jobs.left(output)
    assert jobs.updates(output) == 0
    assert not list(output.glob("checkpoint-*"))
    assert not (output / jobs.LORA).exists()
    assert "Traceback" not in job.told


def test_workers_that_heed_nothing_before_training_begins_are_stopped_all_the_same(
    tiny_pipeline: Path, mini_sdxl: Path, tmp_path: Path
) -> None:
    """A stopped process stands for one that compiles."""
    options = flags(tiny_pipeline, mini_sdxl / "instance", tmp_path / "cache")
    output = tmp_path / "cwd" / "stopped"
    command = jobs.launch(2)
    place = len(jobs.MINDBOOTH) + 1
    patience = ["--grace_seconds", "2"]
    beats = [output / "launch" / "attempt-1" / f"heartbeat_{rank}" for rank in (0, 1)]
    with jobs.started([*command[:place], *patience, *command[place:], *options],
                      tmp_path / "cwd") as job:  # fmt: skip
        job.until(lambda: all(beat.exists() and beat.read_bytes() for beat in beats))
        for pid in jobs.workers(output).values():
            processes.send(pid, signal.SIGSTOP)
        job.send(signal.SIGTERM)
        assert job.end() == 75, job.told
        assert not jobs.left(output)
    assert "stopped before training began" in job.err


def test_a_stop_request_does_not_wait_for_pictures(
    tiny_pipeline: Path, mini_sdxl: Path, tmp_path: Path
) -> None:
    options = jobs.training(
        tiny_pipeline,
        mini_sdxl / "instance",
        latent_cache_dir=tmp_path / "cache",
        output_dir="out",
        max_train_steps=3,
        validation_prompt="a photo of sks dog",
        validation_steps=1,
        num_validation_images=1000,
    )
    with jobs.started([*jobs.MINDBOOTH, "train", *options], tmp_path) as job:
        job.until(lambda: jobs.updates(tmp_path / "out") == 1 and "pictures " in job.err)
        job.send(signal.SIGTERM)
        assert job.end() == 75, job.told
    assert "the pictures after update 1 are left out" in job.err
    assert (tmp_path / "out" / "checkpoint-2").is_dir()
    assert not (tmp_path / "out" / "samples").exists()


def test_a_stop_request_while_a_graph_is_compiled_saves_nothing_and_ends_with_75(
    tiny_pipeline: Path, mini_sdxl: Path, tmp_path: Path
) -> None:
    options = [*flags(tiny_pipeline, mini_sdxl / "instance", tmp_path / "cache"),
               "--mode", "graph", "--compile_cache", "off"]  # fmt: skip
    output = tmp_path / "cwd" / "stopped"
    beat = output / "launch" / "attempt-1" / "heartbeat_0"
    with jobs.started([*jobs.launch(1), *options], tmp_path / "cwd") as job:
        job.until(lambda: beat.exists() and b'"compile"' in beat.read_bytes())
        job.send(signal.SIGTERM)
        assert job.end() == 75, job.told
        assert not jobs.left(output)
    assert "Traceback" not in job.told
    assert jobs.updates(output) == 0
    assert not list(output.glob("checkpoint-*"))
