"""--compile_cache: a later run starts with an earlier one's graph, and learns the same numbers.

A process uses the cache for its first training, so a further one in it does without: that is what
one with a cached graph is compared with. Numbers are compared bit for bit.
"""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import jobs
import numpy as np
import pytest
from jobs import Ended, Flags
from tiny_sdxl import write_tiny_pipeline

TAKEN = "The compiled graph is that of an earlier run"


@dataclass(frozen=True, kw_only=True)
class Ground:
    """Where the runs of this file lie, each in a folder of its name. first: how "plain" ended."""

    folder: Path
    pictures: Path
    model: Path
    first: Ended

    def same(self, one: str, other: str) -> bool:
        assert jobs.learned(self.folder / one) > 0
        return np.array_equal(*(jobs.adapter(self.folder / name) for name in (one, other)))

    def graphs(self) -> set[Path]:
        return {path for path in (self.folder / "graphs").iterdir() if path.name[0] != "."}

    def run(self, name: str, *, model: Path | None = None, **options: object) -> Ended:
        chosen = flags(self.folder, model or self.model, self.pictures, name, **options)
        return run(self.folder, chosen)[0]


def flags(folder: Path, model: Path, pictures: Path, name: str, **options: object) -> Flags:
    return jobs.training(
        model,
        pictures,
        **{
            "mode": "graph",
            "train_batch_size": 1,
            "max_train_steps": 3,
            "report_to": "none",
            "profile": True,
            "latent_cache_dir": folder / "latents",
            "compile_cache": folder / "graphs",
            "output_dir": folder / name,
            **options,
        },
    )


def run(folder: Path, *runs: Flags) -> list[Ended]:
    """One after the other in one process."""
    ended = jobs.several(runs, folder)
    assert [some.status for some in ended] == [0] * len(runs), ended[-1].err[-4000:]
    return ended


def seconds(ended: Ended) -> float:
    """How long it took to compile, or to load what was compiled."""
    found = re.search(r"^compile +1 +([\d.]+)", ended.err, re.MULTILINE)
    assert found, ended.err
    return float(found[1])


@pytest.fixture(scope="module")
def ground(
    tiny_pipeline: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Ground:
    folder = tmp_path_factory.mktemp("graphs")
    other = write_tiny_pipeline(folder / "model-other", seed=1)
    first, _ = run(
        folder,
        flags(folder, tiny_pipeline, photographs, "plain", checkpointing_steps=2),
        flags(folder, other, photographs, "other-off", seed=8, compile_cache="off"),
    )
    return Ground(folder=folder, pictures=photographs, model=tiny_pipeline, first=first)


def test_the_second_run_is_quicker_and_learns_the_same(ground: Ground) -> None:
    again = ground.run("again")
    assert (TAKEN in ground.first.err, TAKEN in again.err) == (False, True)
    assert ground.same("again", "plain")
    assert seconds(again) < seconds(ground.first) / 2


def test_other_weights_and_another_seed_are_seen_in_the_same_graph(ground: Ground) -> None:
    ended = ground.run("other", model=ground.folder / "model-other", seed=8)
    assert TAKEN in ended.err
    assert ground.same("other", "other-off")
    assert not ground.same("other", "plain")


def test_a_resumed_run_goes_on_with_an_earlier_graph(ground: Ground) -> None:
    shutil.copytree(ground.folder / "plain" / "checkpoint-2", ground.folder / "at-2/checkpoint-2")
    ended = ground.run("at-2", resume_from_checkpoint="latest")
    assert TAKEN in ended.err
    assert ground.same("at-2", "plain")


def test_a_changed_constant_does_not_meet_a_stale_graph(ground: Ground) -> None:
    """Weights and seed are the same: with the old graph, so would be what is learned."""
    changed = shutil.copytree(ground.model, ground.folder / "model-changed")
    path, before = changed / "unet" / "config.json", ground.graphs()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"norm_eps": 0.1}))
    ended = ground.run("changed", model=changed)
    assert TAKEN not in ended.err
    assert not ground.same("changed", "plain")
    assert len(ground.graphs() - before) == 1


def test_a_changed_batch_size_does_not_meet_a_stale_graph(ground: Ground) -> None:
    before = ground.graphs()
    ended = ground.run("two-samples", train_batch_size=2)
    assert TAKEN not in ended.err
    assert len(ground.graphs() - before) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"lora_dropout": 0.5},
        {"train_text_encoder": True, "mixed_precision": "fp16", "gradient_checkpointing": True,
         "gradient_accumulation_steps": 2},
        {"buckets": True, "resolution": 64, "repeats": 2},
    ],
    ids=["dropout", "text encoders in fp16", "several sizes"],
)  # fmt: skip
def test_with_other_options_the_second_run_learns_the_same(
    options: dict[str, object], ground: Ground, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.id
    first, again = ground.run(name, **options), ground.run(f"{name} again", **options)
    assert (TAKEN in first.err, TAKEN in again.err) == (False, True)
    assert ground.same(name, f"{name} again")


@pytest.mark.slow
def test_two_workers_take_one_graph(ground: Ground) -> None:
    for name, taken in (("two", 0), ("two again", 2)):
        chosen = flags(ground.folder, ground.model, ground.pictures, name)
        job = jobs.run([*jobs.launch(2), *chosen], ground.folder)
        assert job.process.returncode == 0, job.told
        assert (job.out + job.err).count(TAKEN) == taken, job.told
    assert ground.same("two", "two again")


def test_a_folder_that_cannot_be_written_to_is_told_once(ground: Ground, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = ground.run("refused", compile_cache=tmp_path / "file")
    told = [line for line in ended.err.splitlines() if str(tmp_path / "file") in line]
    assert len(told) == 1, ended.err
    assert ground.same("refused", "plain")
