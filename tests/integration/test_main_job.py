"""The main job, end to end: real msrun workers, real all-reduces, a tiny pipeline.

Three groups of 1, 2 and 4 workers make all the runs that the tests look at: starting processes and
importing MindSpore takes longer than training.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import jobs
import numpy as np
import pytest
import yaml
from jobs import Ended, Flags, Job
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.numpy import load_file

UPDATES = 10
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
    prodigy = jobs.flags(
        optimizer="prodigy", learning_rate=1, ema_decay=0.9, max_train_steps=3, output_dir="prodigy"
    )
    start = jobs.flags(learning_rate=0, max_train_steps=1, output_dir="start")
    photos = jobs.flags(train_batch_size=4, max_train_steps=3, output_dir="photos")
    two = jobs.several_launched(
        2,
        flags("--output_dir", FIRST),
        [
            [*split("2x2x1", "fp32"), *shown],
            split("2x2x1", "fp16"),
            [*split("2x2x1", "fp32"), *graph],
            [*split("1x2x2", "fp16"), *prodigy],
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


@pytest.mark.parametrize("name", ["graph", "prodigy"])
def test_so_it_is_compiled_and_with_another_optimizer(runs: Runs, name: str) -> None:
    assert jobs.collectives(runs.folder / name) == {1}


@pytest.mark.parametrize("wire", AGREEMENT)
@pytest.mark.parametrize("name", SPLITS)
def test_every_update_is_one_collective_and_one_line_of_metrics(
    runs: Runs, name: str, wire: str
) -> None:
    lines = jobs.metrics(runs.folder / f"{name}-{wire}")
    assert [line["step"] for line in lines] == list(range(1, UPDATES + 1))
    assert jobs.collectives(runs.folder / f"{name}-{wire}") == {int(SPLITS[name][0] > 1)}
    one_card = jobs.metrics(runs.folder / f"1x4x1-{wire}")
    for figure, close in (("loss", 2e-3 if wire == "fp16" else 1e-5), ("grad_norm", 1e-3)):
        expected = [line[figure] for line in one_card]
        assert [line[figure] for line in lines] == pytest.approx(expected, rel=close)


def test_two_ranks_encode_together_and_do_nothing_twice(runs: Runs) -> None:
    shown = [counts(runs.two.out, rf"\[{rank}\] INFO encoding (\d+)/\1,") for rank in (0, 1)]
    total = counts(runs.two.out, r"\[0\] INFO Encoded (\d+) of \1 entries")
    entries = [name for name in runs.cached if name.endswith(".safetensors")]
    assert shown == [total, []], "the first rank tells for all"
    assert total == [len(entries)]


def counts(text: str, pattern: str) -> list[int]:
    return [int(found) for found in re.findall(pattern, text)]


def test_later_runs_encode_nothing_say_so_and_leave_the_cache_alone(runs: Runs) -> None:
    terminals = [ended.err for name, ended in runs.alone.items() if name != "photos"]
    for terminal in [*terminals, runs.four.out]:
        assert "INFO Nothing to encode: all 11 entries are in the cache" in terminal
        assert "INFO encoding" not in terminal
    now = jobs.files(runs.cache)
    assert {name: now.get(name) for name in runs.cached} == runs.cached


def test_a_run_leaves_what_the_design_says_and_nothing_else(runs: Runs) -> None:
    left = set(jobs.files(runs.folder / FIRST))
    (events,) = (name for name in left if name.startswith("logs/events.out.tfevents."))
    checkpoint = (jobs.LORA, "state.json", "state.safetensors")
    logs = ("scheduler.log", "worker_0.log", "worker_1.log", "heartbeat_0", "heartbeat_1")
    assert left == {
        jobs.LORA,
        "README.md",
        "config.yaml",
        "cache_keys.txt",
        "metrics.jsonl",
        "samples/update-000010.png",
        *(f"samples/final/1-a-sks-robot-at-the-sea-seed{seed}.png" for seed in (7, 8)),
        events,
        *(f"checkpoint-{n}/{name}" for n in (5, 10) for name in checkpoint),
        "launch/plan.json",
        "launch/rank_table.json",
        *(f"launch/attempt-1/{name}" for name in logs),
    }
    ours = {"cache", "runs.json", "ended.json"}
    names = {f"{name}-{wire}" for name in SPLITS for wire in AGREEMENT}
    made = {path.name for path in runs.folder.iterdir()}
    assert made - ours == names | {"graph", "prodigy", "start", "again", "photos"}


def test_no_secret_of_the_environment_is_written(runs: Runs) -> None:
    written = [path for path in runs.folder.rglob("*") if path.is_file()]
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
    plan = (runs.folder / FIRST / "launch" / "plan.json").read_text()
    assert "MINDBOOTH_JOB" in plan
    assert "HF_TOKEN" not in plan


def test_config_yaml_starts_the_identical_run(runs: Runs) -> None:
    one, again = (load_file(runs.folder / name / jobs.LORA) for name in ("1x4x1-fp32", "again"))
    assert one.keys() == again.keys()
    assert all(np.array_equal(one[name], again[name]) for name in one)
    first, second = (
        yaml.safe_load((runs.folder / name / "config.yaml").read_text())
        for name in ("1x4x1-fp32", "again")
    )
    assert first | {"output_dir": "again"} == second
    assert {"mindspore", "mindone", "mindbooth"} <= first["versions"].keys()


def test_the_lora_file_tells_its_rank_and_has_the_names_of_diffusers(runs: Runs) -> None:
    with safe_open(runs.folder / FIRST / jobs.LORA, "np") as file:
        names = set(file.keys())
        told = json.loads(file.metadata()["lora_adapter_metadata"])
    assert told["unet.r"] == told["unet.lora_alpha"] == 4
    layers = {name.rpartition(".lora.")[0] for name in names}
    assert names == {f"{layer}.lora.{way}.weight" for layer in layers for way in ("down", "up")}
    assert len(layers) == 32
    assert all(layer.startswith("unet.") for layer in layers)


def test_the_model_card_names_base_model_prompt_and_a_picture_that_exists(
    runs: Runs, tiny_pipeline: Path
) -> None:
    output = runs.folder / FIRST
    _, front, body = (output / "README.md").read_text().split("---\n", 2)
    told = yaml.safe_load(front)
    assert told["base_model"] == str(tiny_pipeline)
    assert told["instance_prompt"] == "a photo of sks cat"
    assert [widget["text"] for widget in told["widget"]] == [PROMPT, PROMPT]
    urls = [widget["output"]["url"] for widget in told["widget"]]
    for url in (*urls, "samples/update-000010.png"):
        with Image.open(output / url) as picture:
            assert len(picture.getcolors(1 << 20) or ()) > 100
    assert "(samples/update-000010.png)" in body


def test_photographs_of_any_size_and_orientation_are_trained_on(runs: Runs) -> None:
    # Six photographs, each as it is and flipped; the prompt is there already.
    assert "INFO Encoded 12 of 13 entries" in runs.alone["photos"].err
    lines = jobs.metrics(runs.folder / "photos")
    assert len(lines) == 3
    for line in lines:
        assert math.isfinite(line["loss"])
        assert line["grad_norm"] > 0.01


def test_sdxl_is_told_the_upright_size_of_a_photograph_and_where_it_is_cropped(
    tiny_pipeline: Path, photographs: Path, tmp_path: Path
) -> None:
    from mindbooth.trainer import run
    from mindbooth.trainer.device import Comm
    from mindbooth.trainer.parse import parse
    from mindbooth.trainer.place import meet

    config, _ = parse(
        jobs.training(
            tiny_pipeline,
            photographs,
            random_flip=True,
            output_dir=tmp_path / "out",
            latent_cache_dir=tmp_path / "cache",
        )
    )
    seen = run.look(config, meet(config, Comm(), {}))
    corners = []
    for example, item in zip(seen.examples, seen.needed.items, strict=True):
        with Image.open(example.image) as photograph:
            width, height = ImageOps.exif_transpose(photograph).size
        plain, flipped = item.variants
        *size, top, left, high, wide = plain.frame.time_ids
        assert (size, high, wide) == ([height, width], 32, 32)
        scale = 32 / min(height, width)
        assert 0 <= top <= height * scale - 32
        assert 0 <= left <= width * scale - 32
        assert flipped.frame.time_ids == plain.frame.time_ids
        assert flipped.latents != plain.latents
        corners.append((top, left))
    assert len(seen.examples) == 6
    assert len(set(corners)) > 3  # crops are random: not all from one corner
