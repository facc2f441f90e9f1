"""The LoRA file's names and header, and the model card."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors import safe_open

from mindbooth.trainer import export
from mindbooth.trainer.config import TrainConfig, parse

BLOCK = "unet.up_blocks.0.attentions.1.transformer_blocks.0.attn2"


def config(*argv: str) -> TrainConfig:
    return parse(
        [
            "--pretrained_model_name_or_path=stabilityai/stable-diffusion-xl-base-1.0",
            "--instance_data_dir=dog",
            "--instance_prompt=a photo of sks dog",
            *argv,
        ]
    )[0]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (f"{BLOCK}.to_q.lora_A.weight", f"{BLOCK}.to_q.lora.down.weight"),
        (f"{BLOCK}.to_out.0.lora_B.weight", f"{BLOCK}.to_out.0.lora.up.weight"),
    ],
)
def test_tensors_get_the_names_of_diffusers(ours: str, theirs: str) -> None:
    tensor = np.ones((2, 3), np.float32)
    assert export.diffusers_names({ours: tensor}) == {theirs: tensor}


def test_the_file_holds_tensors_and_configuration(tmp_path: Path) -> None:
    tensors = {
        f"{BLOCK}.to_q.lora_A.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        f"{BLOCK}.to_q.lora_B.weight": np.arange(4, dtype=np.float32).reshape(2, 2),
    }
    metadata = {"unet": {"r": 2, "lora_alpha": 2, "target_modules": {"to_v", "to_q"}}}
    path = export.adapter(tmp_path, tensors, metadata)
    assert path == tmp_path / "pytorch_lora_weights.safetensors"
    with safe_open(path, "np") as opened:
        header = opened.metadata()
        found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    assert {name: array.tolist() for name, array in found.items()} == {
        f"{BLOCK}.to_q.lora.down.weight": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]],
        f"{BLOCK}.to_q.lora.up.weight": [[0.0, 1.0], [2.0, 3.0]],
    }
    assert header["format"] == "pt"
    assert json.loads(header["lora_adapter_metadata"]) == {
        "unet.r": 2,
        "unet.lora_alpha": 2,
        "unet.target_modules": ["to_q", "to_v"],
    }


def test_the_order_within_a_set_does_not_show(tmp_path: Path) -> None:
    targets = [f"to_{letter}" for letter in "qkvabcdefgh"]
    metadata = {"unet": {"target_modules": set(targets)}}
    with safe_open(export.adapter(tmp_path, {}, metadata), "np") as opened:
        told = json.loads(opened.metadata()["lora_adapter_metadata"])
    assert told == {"unet.target_modules": sorted(targets)}


def card(picture: str | None, *argv: str) -> tuple[dict[str, object], str]:
    """Front matter and body."""
    text = export.model_card(
        config(*argv), seed=7, updates=500, samples_per_update=4, picture=picture
    )
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_the_card_has_the_front_matter_that_hubs_read() -> None:
    front, _ = card("samples/update-000500.png", "--validation_prompt=a sks dog: in a bucket")
    assert front["base_model"] == "stabilityai/stable-diffusion-xl-base-1.0"
    assert front["library_name"] == "diffusers"
    assert front["instance_prompt"] == "a photo of sks dog"
    assert {"lora", "text-to-image", "stable-diffusion-xl", "dreambooth"} <= set(front["tags"])  # type: ignore[call-overload]
    assert front["widget"] == [
        {"text": "a sks dog: in a bucket", "output": {"url": "samples/update-000500.png"}}
    ]


def test_a_card_without_pictures_shows_none() -> None:
    front, body = card(None)
    assert "widget" not in front
    assert "![" not in body


def test_the_card_tells_how_it_was_trained() -> None:
    _, body = card(None, "--rank=8", "--pretrained_vae_model_name_or_path=a/vae")
    for words in ("rank | 8", "500 of 4 pictures", "| a/vae |", "seed | 7", "0.0001, constant"):
        assert words in body


@pytest.mark.parametrize("prompt", ['it\'s "sks"', "a | b", "dog\\n"])
def test_the_code_on_the_card_is_python(prompt: str) -> None:
    _, body = card(None, f"--instance_prompt={prompt}")
    code = body.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert repr(prompt) in code
