"""The main job, end to end: real msrun workers, real all-reduces, a tiny pipeline.

Three groups of 1, 2 and 4 workers make all the runs that the tests look at: starting processes and
importing MindSpore takes longer than training.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jobs
import numpy as np
import pytest
import yaml
from jobs import Ended, Flags, Job
from PIL import Image, ImageOps
from safetensors import safe_open

UPDATES = 20
FIRST = "2x2x1-fp32"  # finds the cache empty, and is all that `mindbooth launch` was asked for
# Ranks, batch, accumulation: the same four samples an update.
SPLITS = {"1x4x1": (1, 4, 1), "1x2x2": (1, 2, 2), "2x2x1": (2, 2, 1), "4x1x1": (4, 1, 1)}
AGREEMENT = {"fp32": 1e-4, "fp16": 2e-3}
PROMPT = "a sks robot at the sea"
SECRET = "hf_do-not-write-this-down"


@dataclass(frozen=True, kw_only=True)
class Runs:
    """What was done. Each run's output folder has its name and lies in `folder`.

    cached: the cache's files after the first group.
    """

    folder: Path
    cache: Path
    cached: dict[str, int]
    two: Job
    alone: dict[str, Ended]
    four: Job

    def adapter(self, name: str) -> np.ndarray:
        return jobs.adapter(self.folder / name)

    def distance(self, one: str, other: str) -> float:
        return jobs.distance(self.adapter(one), self.adapter(other), self.adapter("start"))


def split(name: str, wire: str) -> Flags:
    _, batch, accumulation = SPLITS[name]
    return jobs.flags(
        train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        allreduce_dtype=wire,
        output_dir=f"{name}-{wire}",
    )


@pytest.fixture(scope="module")
def runs(
    tiny_pipeline: Path,
    mini_sdxl: Path,
    photographs: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Runs:
    folder = tmp_path_factory.mktemp("jobs")
    cache = folder / "cache"

    def flags(*more: str, pictures: Path = mini_sdxl / "instance") -> Flags:
        usual = jobs.training(
            tiny_pipeline,
            pictures,
            random_flip=True,
            max_train_steps=UPDATES,
            latent_cache_dir=cache,
        )
        return [*usual, *more]

    shown = jobs.flags(validation_prompt=PROMPT, num_validation_images=2, checkpointing_steps=5)
    graph = jobs.flags(mode="graph", max_train_steps=5, output_dir="graph")
    start = jobs.flags(learning_rate=0, max_train_steps=1, output_dir="start")
    photos = jobs.flags(train_batch_size=4, max_train_steps=3, output_dir="photos")
    two = jobs.several_launched(
        2,
        flags("--output_dir", FIRST),
        [
            [*split("2x2x1", "fp32"), *shown],
            split("2x2x1", "fp16"),
            [*split("2x2x1", "fp32"), *graph],
        ],
        folder,
        HF_TOKEN=SECRET,
    )
    assert two.process.returncode == 0, two.told
    cached = jobs.files(cache)
    single = {
        "start": flags(*start),
        **{f"{n}-{w}": flags(*split(n, w)) for n in ("1x4x1", "1x2x2") for w in AGREEMENT},
        "again": ["--config", "1x4x1-fp32/config.yaml", "--output_dir", "again"],
        "photos": flags(*photos, pictures=photographs),
    }
    alone = dict(zip(single, jobs.several(list(single.values()), folder), strict=True))
    four = jobs.several_launched(
        4,
        flags("--output_dir", "4x1x1-fp32"),
        [split("4x1x1", wire) for wire in AGREEMENT],
        folder,
    )
    assert four.process.returncode == 0, four.told
    return Runs(folder=folder, cache=cache, cached=cached, two=two, alone=alone, four=four)


@pytest.mark.parametrize("wire", AGREEMENT)
@pytest.mark.parametrize("name", ["1x2x2", "2x2x1", "4x1x1"])
def test_n_cards_compute_what_one_card_computes(runs: Runs, name: str, wire: str) -> None:
    assert runs.distance(f"{name}-{wire}", f"1x4x1-{wire}") < AGREEMENT[wire]


def test_graph_mode_computes_what_pynative_computes(runs: Runs) -> None:
    assert runs.distance("graph", f"{FIRST}/checkpoint-5") < 1e-4


@pytest.mark.parametrize("wire", AGREEMENT)
@pytest.mark.parametrize("name", SPLITS)
def test_every_update_is_one_collective_and_one_line_of_metrics(
    runs: Runs, name: str, wire: str
) -> None:
    lines = jobs.metrics(runs.folder / f"{name}-{wire}")
    assert [line["step"] for line in lines] == list(range(1, UPDATES + 1))
    several = SPLITS[name][0] > 1
    assert {line["collectives"] for line in lines} == {int(several)}
    one_card = jobs.metrics(runs.folder / f"1x4x1-{wire}")
    for figure, close in (("loss", 2e-3 if wire == "fp16" else 1e-5), ("grad_norm", 1e-3)):
        expected = [line[figure] for line in one_card]
        assert [line[figure] for line in lines] == pytest.approx(expected, rel=close)


def test_two_ranks_share_the_encoding_and_do_nothing_twice(runs: Runs) -> None:
    made = [told(runs.two.out, f"[{rank}] INFO encoding ") for rank in (0, 1)]
    ((total, of),) = [counts for counts in told(runs.two.out, "[0] INFO Encoded ")]
    entries = [name for name in runs.cached if name.endswith(".safetensors")]
    assert all(made)
    assert sum(done for rank in made for done, _ in rank) == total == of == len(entries)


def test_later_runs_encode_nothing_say_so_and_leave_the_cache_alone(runs: Runs) -> None:
    terminals = {**{name: ended.err for name, ended in runs.alone.items()}, "4x1x1": runs.four.out}
    terminals.pop("photos")
    for name, terminal in terminals.items():
        assert "Nothing to encode: all " in terminal, name
        assert "INFO encoding" not in terminal, name
    now = jobs.files(runs.cache)
    assert {name: now.get(name) for name in runs.cached} == runs.cached
