"""The shipped mini SDXL, read as files: complete, half precision, finite, and as its card says."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


def test_the_index_names_the_folders_that_are_there(mini_sdxl: Path) -> None:
    index = json.loads((mini_sdxl / "model" / "model_index.json").read_text())
    named = {name for name, value in index.items() if isinstance(value, list)}
    assert named == {path.name for path in (mini_sdxl / "model").iterdir() if path.is_dir()}


@pytest.mark.parametrize("part", PARTS)
def test_weights_are_finite_half_precision(mini_sdxl: Path, part: str) -> None:
    weights = load_weights(mini_sdxl, part)
    assert {value.dtype for value in weights.values()} == {np.dtype(np.float16)}
    assert all(np.isfinite(value).all() for value in weights.values())


@pytest.mark.parametrize("part", PARTS)
def test_the_card_tells_the_number_of_parameters(mini_sdxl: Path, part: str) -> None:
    count = sum(value.size for value in load_weights(mini_sdxl, part).values())
    card = (mini_sdxl / "README.md").read_text()
    assert re.search(rf"^\| `{part}` \|.*\| {count:,} \|$", card, flags=re.MULTILINE)


def test_the_model_is_small(mini_sdxl: Path) -> None:
    sizes = [path.stat().st_size for path in (mini_sdxl / "model").rglob("*") if path.is_file()]
    assert sum(sizes) < 12_000_000


def load_weights(mini_sdxl: Path, part: str) -> dict[str, np.ndarray]:
    (path,) = (mini_sdxl / "model" / part).glob("*.safetensors")
    return load_file(path)
