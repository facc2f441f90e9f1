"""Which model adapters belong to, and which tensors a model has a place for."""

from pathlib import Path

import pytest
from mindspore import mint, nn

from mindbooth.trainer.adapters import Adapter, base_model, misfits
from mindbooth.trainer.config import ConfigError


def adapters(**bases: str | None) -> list[Adapter]:
    return [Adapter(name=n, path=Path(n), base_model=base) for n, base in bases.items()]


def test_the_model_is_what_the_cards_agree_on() -> None:
    assert base_model(adapters(one="a/b", other="a/b", cardless=None), None) == "a/b"


def test_one_folder_by_two_names_is_one_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sdxl").mkdir()
    monkeypatch.chdir(tmp_path)
    assert base_model(adapters(one="sdxl", other=str(tmp_path / "sdxl")), None) == "sdxl"


def test_the_given_model_is_taken_in_any_case() -> None:
    assert base_model(adapters(one="a/b", other="c/d"), "e/f") == "e/f"
    assert base_model([], "e/f") == "e/f"


@pytest.mark.parametrize(
    ("bases", "words"),
    [
        ({"one": "a/b", "other": "c/d"}, ["--lora one", "a/b", "--lora other", "c/d"]),
        ({"one": None}, ["No card names that of one"]),
        ({}, ["There is no --lora"]),
    ],
)
def test_without_one_model_it_is_asked_for(bases: dict[str, str | None], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        base_model(adapters(**bases), None)
    assert all(word in str(caught.value) for word in words)
    assert "--pretrained_model_name_or_path" in str(caught.value)


LAYERS: dict[str, nn.Cell] = {"linear": mint.nn.Linear(6, 4), "conv": mint.nn.Conv2d(3, 8, 3)}


@pytest.mark.parametrize(
    ("key", "shape", "fits"),
    [
        ("linear.lora_A.weight", (2, 6), True),
        ("linear.lora_B.weight", (4, 2), True),
        ("linear.lora_A.weight", (6, 2), False),
        ("linear.lora_B.weight", (6, 2), False),
        ("conv.lora_A.weight", (2, 3, 3, 3), True),
        ("conv.lora_B.weight", (8, 2, 1, 1), True),
        ("conv.lora_A.weight", (2, 4, 3, 3), False),
        ("other.lora_A.weight", (2, 6), False),
        ("linear.weight", (4, 6), False),
        ("linear.lora_magnitude_vector", (4, 6), False),
        ("", (1, 1), False),
    ],
)
def test_a_tensor_fits_a_layer_of_its_width(key: str, shape: tuple[int, ...], fits: bool) -> None:
    import numpy as np

    assert (misfits({key: np.zeros(shape)}, LAYERS) == []) is fits
