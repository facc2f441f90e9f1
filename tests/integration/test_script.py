"""The well-known script's name and command line, on one card and under msrun.

The flags are those of the first command in the README of mindone's DreamBooth example
(seed_document.py); names, sizes and the number of steps are those of a tiny model. Because fp16 is
slow on a CPU, one validation picture is made instead of four, and nothing is compiled.
"""

import os
import sys
from pathlib import Path

import jobs
import pytest
import seed_document
from jobs import Flags

from mindbooth.launch.surroundings import free_port

SCRIPT = Path(__file__).parents[2] / "train_dreambooth_lora_sdxl.py"
STEPS = 3


@pytest.fixture(scope="module")
def command(tiny_pipeline: Path, mini_sdxl: Path) -> Flags:
    small = {
        "pretrained_model_name_or_path": tiny_pipeline,
        "pretrained_vae_model_name_or_path": tiny_pipeline / "vae",
        "instance_data_dir": mini_sdxl / "instance",
        "resolution": 32,
        "max_train_steps": STEPS,
        "mode": "pynative",
    }
    flags = {
        name: value
        for name, value in (seed_document.TRAIN | small).items()
        if not name.startswith("validation_")
    }
    return [f"--{name}={value}" for name, value in flags.items()]


VALIDATION = [
    f"--{name}={value}"
    for name, value in seed_document.TRAIN.items()
    if name.startswith("validation_")
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose cache is empty in the beginning: the command names none."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def one_card(command: Flags, home: Path) -> Path:
    """The output folder of the command as it stands there."""
    words = [sys.executable, SCRIPT, *command, *VALIDATION, "--num_validation_images=1"]
    job = jobs.run(words, home / "one", XDG_CACHE_HOME=str(home))
    assert job.process.returncode == 0, job.told
    assert "WARNING" not in job.told
    return home / "one" / "lora-trained-xl"


def test_the_first_command_of_the_known_readme_trains_an_adapter(one_card: Path) -> None:
    lines = jobs.metrics(one_card)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert {line["lr"] for line in lines} == {1e-5}
    assert jobs.learned(one_card) > 0
    assert (one_card / "samples" / "update-000003.png").exists()


def test_msrun_runs_the_script_on_two_cards(command: Flags, one_card: Path, home: Path) -> None:
    """The same samples an update as on one card, so the same losses."""
    words = [
        Path(sys.executable).with_name("msrun"),
        "--worker_num=2",
        "--local_worker_num=2",
        f"--master_port={free_port(str(home))}",
        "--log_dir=logs",
        "--join=True",
        SCRIPT,
        "--distributed",
        *command,
        "--gradient_accumulation_steps=2",
    ]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    job = jobs.run(words, home / "two", XDG_CACHE_HOME=str(home), PATH=path)
    assert job.process.returncode == 0, job.told
    lines, alone = jobs.metrics(home / "two" / "lora-trained-xl"), jobs.metrics(one_card)
    assert jobs.collectives(home / "two" / "lora-trained-xl") == {1}
    assert [line["loss"] for line in lines] == pytest.approx([x["loss"] for x in alone], rel=2e-3)
    logs = "".join(path.read_text() for path in (home / "two" / "logs").glob("worker_*.log"))
    assert "Nothing to encode" in logs
