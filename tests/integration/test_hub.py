"""A hub id instead of a folder: downloaded from a server here that answers as the hub does."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from stand_in_hub import Hub, environ, serving

# Each line in: the options of a model. Each line out: its weight files, or the error.
LOCATE = """
import json, sys
from mindbooth.trainer.config import ConfigError, ModelConfig
from mindbooth.trainer.sdxl import WEIGHTS, locate
for line in sys.stdin:
    try:
        model = locate(ModelConfig(**json.loads(line)))
        print(*(path.name for part in WEIGHTS for path in model.weights(part)))
    except ConfigError as err:
        print(f"ConfigError: {err}")
"""
TINY = {"pretrained_model_name_or_path": "someone/tiny"}
ASKED = {
    "plain": TINY,
    "variant, revision, separate VAE": TINY
    | {"variant": "fp16", "revision": "v2"}
    | {"pretrained_vae_model_name_or_path": "someone/better-vae"},
    "no such model": {"pretrained_model_name_or_path": "someone/nothing"},
    "no such revision": TINY | {"revision": "v9"},
    "no such variant": TINY | {"variant": "bf16"},
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, tiny_pipeline: Path) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    model = folder / "tiny"
    shutil.copytree(tiny_pipeline, model)
    for weights in list(model.rglob("*.safetensors")):
        shutil.copy(weights, weights.with_name(f"{weights.stem}.fp16.safetensors"))
    (model / "unet" / "model.onnx").write_bytes(b"not for us")
    vae = folder / "vae"
    shutil.copytree(tiny_pipeline / "vae", vae)
    served = Hub(repositories={"someone/tiny": model, "someone/better-vae": vae})
    with serving(served):
        yield served


@pytest.fixture(scope="module")
def located(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What came of each of ASKED, all asked by one process."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOCATE],
        input="".join(json.dumps(options) + "\n" for options in ASKED.values()),
        env={**os.environ, **environ(hub, tmp_path_factory.mktemp("home"))},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(ASKED, done.stdout.splitlines(), strict=True))


def test_a_hub_id_brings_the_plain_weights(located: dict[str, str]) -> None:
    assert len(located["plain"].split()) == 4
    assert "fp16" not in located["plain"]


def test_a_variant_a_revision_and_a_separate_vae(hub: Hub, located: dict[str, str]) -> None:
    names = located["variant, revision, separate VAE"].split()
    assert [name.count(".fp16.") for name in names] == [1, 0, 1, 1], "the separate VAE has none"
    assert any("/revision/v2" in path for path in hub.asked)


def test_other_programs_files_stay_on_the_hub(hub: Hub, located: dict[str, str]) -> None:
    taken = [path for path in hub.asked if "/resolve/" in path]
    assert taken
    assert not [path for path in taken if path.endswith(".onnx")]


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("no such model", "someone/nothing"),
        ("no such revision", "someone/tiny"),
        ("no such variant", "*.bf16.safetensors"),
    ],
)
def test_what_the_hub_lacks_is_told_in_one_line(
    located: dict[str, str], case: str, told: str
) -> None:
    assert located[case].startswith("ConfigError: ")
    assert told in located[case]
