"""A run that is killed in the middle of an update and resumed ends with the very same bits.

Twelve updates in fp32. Each case runs straight, is ended by SIGKILL in its sixth update, after the
checkpoint of the fifth, and is resumed from there.
"""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import jobs
import numpy as np
import pytest
from jobs import Ended, Flags

UPDATES, CUT = 12, 5


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained, and how."""

    optimizer: str
    text_encoders: bool
    mode: str

    @property
    def name(self) -> str:
        return f"{self.optimizer}-{'text-' * self.text_encoders}{self.mode}"

    @property
    def flags(self) -> Flags:
        prodigy = self.optimizer == "prodigy"
        return jobs.flags(
            optimizer=self.optimizer,
            learning_rate=1.0 if prodigy else 1e-3,
            lr_scheduler="cosine",
            lr_warmup_steps=2,
            text_encoder_lr=None if prodigy or not self.text_encoders else 1e-3,
            train_text_encoder=self.text_encoders,
            ema_decay=0.9 if prodigy else None,
            mode=self.mode,
        )


CASES = tuple(
    Case(optimizer=optimizer, text_encoders=text_encoders, mode=mode)
    for mode in ("pynative", "graph")
    for optimizer in ("AdamW", "prodigy")
    for text_encoders in (False, True)
    # Each with each other, but not all three: a case takes a minute or more.
    if text_encoders == ((optimizer == "prodigy") == (mode == "pynative"))
)
NAMES = [case.name for case in CASES]


@dataclass(frozen=True, kw_only=True)
class Story:
    folder: Path
    killed: dict[str, tuple[int, int]]  # the status, and how many updates were done
    ended: dict[str, Ended]


def flags(pipeline: Path, pictures: Path, cache: Path, **options: object) -> Flags:
    usual: dict[str, object] = {
        "max_train_steps": UPDATES,
        "train_batch_size": 2,
        "allreduce_dtype": "fp32",
        "checkpointing_steps": CUT,
        "latent_cache_dir": cache,
        "report_to": "none",
        "learning_rate": None,
        "mode": None,
    }
    return jobs.training(pipeline, pictures, **usual | options)


@pytest.fixture(scope="module")
def story(tiny_pipeline: Path, mini_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("stop-and-go")

    def common(output: str, **options: object) -> Flags:
        pictures, cache = mini_sdxl / "instance", folder / "cache"
        return flags(tiny_pipeline, pictures, cache, output_dir=output, **options)

    killed = {}
    for case in CASES:
        name = f"killed-{case.name}"
        (folder / "runs.json").write_text(json.dumps([[*common(name), *case.flags]]))
        job = jobs.run([sys.executable, jobs.FAULTY, "runs.json"], folder)
        killed[case.name] = (job.process.returncode, jobs.updates(folder / name))
    shutil.copytree(folder / f"killed-{NAMES[0]}", folder / "on-two")

    straight = {name: [*common(name), *case.flags] for name, case in zip(NAMES, CASES, strict=True)}
    resumed = {
        f"killed-{name}": [
            *common(f"killed-{name}", resume_from_checkpoint="latest"), *case.flags
        ]
        for name, case in zip(NAMES, CASES, strict=True)
    }  # fmt: skip
    other = {"wrong optimizer": [*resumed[f"killed-{NAMES[0]}"], "--optimizer=prodigy"]}
    runs = straight | other | resumed
    ended = dict(zip(runs, jobs.several(list(runs.values()), folder), strict=True))

    two = [
        *common("on-two", resume_from_checkpoint="latest", train_batch_size=1),
        *CASES[0].flags,
    ]
    job = jobs.run([*jobs.launch(2), *two], folder)
    ended["on-two"] = Ended(status=job.process.returncode, out=job.out, err=job.err)
    return Story(folder=folder, killed=killed, ended=ended)


@pytest.mark.parametrize("name", NAMES)
def test_the_run_was_killed_in_its_sixth_update(story: Story, name: str) -> None:
    assert story.killed[name] == (-9, CUT)
    told = story.ended[f"killed-{name}"].err
    assert f"Updates {CUT + 1} to {UPDATES}" in told, told


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_run_that_is_resumed_ends_with_the_same_bits(story: Story, name: str) -> None:
    for ended in (story.ended[name], story.ended[f"killed-{name}"]):
        assert ended.status == 0, ended.err
    straight, resumed = (jobs.adapter(story.folder / f) for f in (name, f"killed-{name}"))
    assert jobs.learned(story.folder / name) > 0
    assert np.array_equal(straight, resumed)


@pytest.mark.parametrize("name", NAMES)
def test_the_figures_of_a_resumed_run_are_those_of_the_straight_one(
    story: Story, name: str
) -> None:
    figures = [
        [{k: v for k, v in line.items() if k != "seconds"} for line in jobs.metrics(folder)]
        for folder in (story.folder / name, story.folder / f"killed-{name}")
    ]
    assert figures[0] == figures[1]


def test_the_text_encoders_are_trained_at_their_own_rate(story: Story) -> None:
    tensors = jobs.load_file(story.folder / "AdamW-text-graph" / jobs.LORA)
    for part in ("unet", "text_encoder", "text_encoder_2"):
        ups = [tensor for name, tensor in tensors.items() if name.startswith(f"{part}.")
               and name.endswith(".up.weight")]  # fmt: skip
        assert max(np.abs(tensor).max() for tensor in ups) > 1e-4, part


def test_one_rank_can_be_resumed_on_two(story: Story) -> None:
    assert story.ended["on-two"].status == 0, story.ended["on-two"].err
    straight, two = (jobs.adapter(story.folder / f) for f in (NAMES[0], "on-two"))
    assert np.linalg.norm(two - straight) <= 1e-5 * np.linalg.norm(straight)


def test_another_optimizer_than_the_checkpoints_is_refused(story: Story) -> None:
    ended = story.ended["wrong optimizer"]
    assert ended.status == 2
    assert "was made with AdamW, and --optimizer is Prodigy now" in ended.err
