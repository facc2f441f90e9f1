"""Gradients that become infinite on one of two ranks: applied on none, repeated, or told."""

import json
from dataclasses import dataclass
from pathlib import Path

import jobs
import numpy as np
import pytest
from jobs import Flags, Job
from safetensors.numpy import load_file

UPDATES = 6
BAD = 3  # the update, from 0, and rank 1, as workers/faulty.py has them


@dataclass(frozen=True, kw_only=True)
class Story:
    folder: Path
    job: Job


@pytest.fixture(scope="module")
def story(tiny_pipeline: Path, mini_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Three runs by one group of two ranks: undisturbed, infinite once, infinite always."""
    folder = tmp_path_factory.mktemp("overflow")
    common = jobs.training(
        tiny_pipeline,
        mini_sdxl / "instance",
        max_train_steps=UPDATES,
        train_batch_size=2,
        allreduce_dtype="fp32",
        checkpointing_steps=2,
        latent_cache_dir=folder / "cache",
        report_to="none",
    )
    runs: list[Flags] = [jobs.flags(output_dir=name) for name in ("undisturbed", "once", "always")]
    (folder / "always").mkdir()
    (folder / "always" / jobs.LORA).write_bytes(b"of an earlier run")
    job = jobs.several_launched(2, common, runs, folder, program=jobs.LAUNCH_FAULTY)
    return Story(folder=folder, job=job)


def test_the_update_is_repeated_at_half_the_scale(story: Story) -> None:
    lines = jobs.metrics(story.folder / "once")
    assert [line["skipped"] for line in lines] == [1 if u == BAD else 0 for u in range(UPDATES)]
    scales = [line["loss_scale"] for line in lines]
    assert scales == [scales[0]] * BAD + [scales[0] / 2] * (UPDATES - BAD)
    assert [line["collectives"] for line in lines] == [1 + line["skipped"] for line in lines]


def test_it_was_applied_on_no_rank(story: Story) -> None:
    """With the infinite gradients applied, or half the ranks ahead, losses would differ."""
    once, undisturbed = (jobs.metrics(story.folder / name) for name in ("once", "undisturbed"))
    assert [line["loss"] for line in once] == [line["loss"] for line in undisturbed]


def test_the_run_ends_where_the_undisturbed_one_does(story: Story) -> None:
    once, undisturbed = (jobs.adapter(story.folder / name) for name in ("once", "undisturbed"))
    assert np.array_equal(once, undisturbed)  # half the scale is exact


def test_gradients_that_stay_infinite_end_the_run_in_one_line(story: Story) -> None:
    assert story.job.process.returncode == 1, story.job.told
    assert "Traceback" not in story.job.told
    told = [line for line in story.job.told.splitlines() if "is not finite even with loss" in line]
    assert told
    assert all(f"Update {BAD + 1} is not finite even with loss scale 1" in line for line in told)


def test_the_rank_with_the_bad_samples_names_them(story: Story) -> None:
    (log,) = story.folder.rglob("worker_1.log")
    (line,) = [line for line in log.read_text().splitlines() if "is not finite even" in line]
    assert "those without finite gradients: " in line
    samples = range(4 * BAD + 2, 4 * BAD + 4)  # rank 1's
    assert all(f"{k} (0" in line for k in samples), line


def test_the_last_checkpoint_and_the_adapter_are_as_they_were(story: Story) -> None:
    always, undisturbed = (story.folder / name for name in ("always", "undisturbed"))
    assert {path.name for path in always.glob("*checkpoint*")} == {"checkpoint-2"}
    kept, expected = (
        load_file(folder / "checkpoint-2" / "state.safetensors") for folder in (always, undisturbed)
    )
    assert all((kept[name] == expected[name]).all() for name in expected)
    assert json.loads((always / "checkpoint-2" / "state.json").read_text())["update"] == 2
    assert (always / "earlier-1" / jobs.LORA).read_bytes() == b"of an earlier run"
