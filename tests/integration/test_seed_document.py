"""What the README of mindone's DreamBooth example tells people to run, runs (seed_document.py).

The ids of models and pictures stay as they are: a hub on loopback has tiny ones under these names.
Only sizes are changed, numbers of steps, and the mode. The first command is run by test_script.py.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jobs
import numpy as np
import pytest
import random_adapter
import seed_document as document
import stand_in_hub
from PIL import Image
from tiny_sdxl import write_tiny_pipeline, write_tiny_refiner

DOCUMENT = Path(os.environ.get("MINDONE_README", ""))
SMALLER = {
    "resolution": "32", "max_train_steps": "1", "gradient_accumulation_steps": "2",
    "num_validation_images": "1", "mode": "pynative",
}  # fmt: skip
COMMANDS = {
    "EDM": document.TRAIN | document.ADD_EDM,
    "Playground": document.TRAIN_PLAYGROUND,
    "text encoders": document.TRAIN | document.ADD_TEXT_ENCODERS,
}
TOLD = {
    "EDM": "objective: EDM by Euler, ",
    "Playground": "objective: EDM, ",
    "text encoders": "numbers in 96 tensors",
}
# As in examples/inference: the operators that the CPU lacks come before mindone.
START = """
from mindbooth.trainer.__main__ import keep_torch_out
keep_torch_out()
from mindbooth.ranktable.placement import Placement
from mindbooth.trainer import device
device.start(Placement.from_environ({}), target="CPU")
"""


class Hub(stand_in_hub.Hub):
    """Has datasets as well."""

    def answer(self, method: str, path: str, body: bytes, user: str | None) -> stand_in_hub.Answer:
        path = path.replace("/api/datasets/", "/api/models/").removeprefix("/datasets")
        return super().answer(method, path, body, user)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, mini_sdxl: Path) -> Iterator[Hub]:
    base = tmp_path_factory.mktemp("hub")
    tiny = write_tiny_pipeline(base / "sdxl")
    dataset = Path(shutil.copytree(mini_sdxl / "instance", base / "dog"))
    (dataset / ".gitattributes").write_text("*.png filter=lfs\n")
    served = Hub(
        repositories={
            document.MODEL: tiny,
            document.VAE: tiny / "vae",
            document.REFINER: half(write_tiny_refiner(base / "refiner")),
            document.PLAYGROUND: playground(Path(shutil.copytree(tiny, base / "playground"))),
            document.DATASET: dataset,
            "someone/lora": lora(base / "lora"),
        }
    )
    with stand_in_hub.serving(served):
        yield served


def half(model: Path) -> Path:
    """Its weights are those of the variant fp16."""
    for path in model.rglob("*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    return model


def playground(model: Path) -> Path:
    """With the scheduler of Playground v2.5, and a VAE with statistics a channel."""
    scheduler = {"_class_name": "EDMDPMSolverMultistepScheduler", "num_train_timesteps": 1000}
    (model / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = json.loads((model / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    (model / "model_index.json").write_text(json.dumps(index))
    config = json.loads((model / "vae" / "config.json").read_text())
    config |= {"latents_mean": [-1.6, 1.1, 0.3, -0.1], "latents_std": [8.4, 5.9, 5.0, 4.8],
               "scaling_factor": 0.5}  # fmt: skip
    (model / "vae" / "config.json").write_text(json.dumps(config))
    return model


def lora(folder: Path) -> Path:
    from mindbooth.trainer import export

    tensors = {k: v for k, v in random_adapter.tensors(2).items() if k.startswith("unet.")}
    about = {
        "peft_type": "LORA", "r": 2, "lora_alpha": 2, "rank_pattern": {}, "alpha_pattern": {},
        "target_modules": list(random_adapter.TARGETS["unet"]),
    }  # fmt: skip
    folder.mkdir()
    (folder / "README.md").write_text(f"---\nbase_model: {document.MODEL}\n---\n")
    export.adapter(folder, tensors, {"unet": about})
    return folder


@dataclass(frozen=True, kw_only=True)
class Here:
    """A folder in which all is run, one after the other, and what the hub is asked with."""

    folder: Path
    environ: dict[str, str]


@pytest.fixture(scope="module")
def here(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Here:
    base = tmp_path_factory.mktemp("here")
    environ = stand_in_hub.environ(hub, base / "home", XDG_CACHE_HOME=str(base / "cache"))
    return Here(folder=base / "work", environ=environ)


@pytest.fixture(scope="module")
def downloaded(here: Here) -> Path:
    job = jobs.run([sys.executable, "-c", document.DOWNLOAD], here.folder, **here.environ)
    assert job.process.returncode == 0, job.told
    return here.folder / "dog"


def test_the_pictures_are_downloaded(downloaded: Path, mini_sdxl: Path) -> None:
    expected = {path.name for path in (mini_sdxl / "instance").iterdir()}
    assert {path.name for path in downloaded.iterdir()} == {*expected, ".cache"}


@pytest.fixture(scope="module")
def trained(here: Here, downloaded: Path) -> dict[str, jobs.Ended]:
    """Each of COMMANDS in a process for all; its pictures are those that were downloaded, with what
    the download leaves beside them."""
    runs = [
        small(command | SMALLER | {"output_dir": name}, shown=name == "Playground")
        for name, command in COMMANDS.items()
    ]
    ended = jobs.several(runs, here.folder, **here.environ)
    return dict(zip(COMMANDS, ended, strict=True))


def small(flags: dict[str, str], *, shown: bool) -> list[str]:
    """The command line; without the pictures of it, each of which takes 14 s on a CPU in fp16,
    where the scheduler is the one that test_script.py draws with."""
    return [
        f"--{name}={value}" if value else f"--{name}"
        for name, value in flags.items()
        if shown or "validation" not in name
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_trains_an_adapter(
    command: str, trained: dict[str, jobs.Ended], here: Here
) -> None:
    assert trained[command].status == 0, trained[command].err
    assert "5 pictures." in trained[command].err
    output = here.folder / command
    assert np.isfinite([line["loss"] for line in jobs.metrics(output)]).all()
    assert jobs.learned(output) > 0
    assert TOLD[command] in trained[command].err


def test_pictures_are_drawn_with_playgrounds_scheduler(
    trained: dict[str, jobs.Ended], here: Here
) -> None:
    assert trained["Playground"].status == 0
    (sheet,) = (here.folder / "Playground" / "samples").glob("update-*.png")
    with Image.open(sheet) as picture:
        assert np.asarray(picture).std() > 10


@pytest.fixture(scope="module")
def drawn(here: Here) -> Path:
    source = START + document.PICTURE + document.REFINED
    program = source.replace(document.LORA, "someone/lora")
    job = jobs.run([sys.executable, "-c", program], here.folder, **here.environ)
    assert job.process.returncode == 0, job.told
    return here.folder


@pytest.mark.parametrize("name", ["sks_dog.png", "refined_sks_dog.png"])
def test_the_inference_code_draws(name: str, drawn: Path) -> None:
    with Image.open(drawn / name) as picture:
        assert picture.size == (32, 32)
        assert np.asarray(picture).std() > 10


@pytest.mark.skipif(not DOCUMENT.is_file(), reason="MINDONE_README names no file")
def test_every_code_block_of_the_document_is_recorded_as_it_stands_there() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    blocks = document.blocks(text)
    assert [language for language, _ in blocks] == [language for language, _ in document.BLOCKS]
    for (language, block), (_, recorded) in zip(blocks, document.BLOCKS, strict=True):
        if isinstance(recorded, str):
            assert document.calls(block) == document.calls(recorded)
        elif recorded is not None:
            assert document.flags(block.removeprefix("+")) == recorded, language
    assert all(f"`--{flag}`" in text for flag in document.ADD_TEXT_ENCODERS)
