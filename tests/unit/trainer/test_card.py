"""The model card: its front matter, its table, its code, whatever the prompts are."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from mindbooth.trainer import card
from mindbooth.trainer.card import Facts, Samples
from mindbooth.trainer.config import TrainConfig
from mindbooth.trainer.parse import parse

BASE = "stabilityai/stable-diffusion-xl-base-1.0"
FACTS = Facts(
    seed=7,
    updates=500,
    samples_per_update=4,
    pictures=5,
    captioned=0,
    objective="epsilon",
    repository=None,
)
SAMPLES = Samples(
    pictures=[
        ("a sks dog: in a bucket", "samples/update-000500/0-0.png"),
        ("a sks dog on the moon", "samples/update-000500/1-0.png"),
    ],
    grid="samples/update-000500.png",
)
ODD = {
    "quotes": """it's "sks" \\n""",
    "lines": "a dog\n---\n# not a heading",
    "bar": "a | b || c",
    "chinese": "一张 sks 狗的照片，🐶",
    "dashes": "--- sks",
    "backticks": "`sks` ``` dog `",
    "yaml": "key: [sks, {dog: 1}] # no",
    "a word of yaml": "no",
    "a number": "1e5",
    "markup": "<b>sks</b> ![x](y)",
}


def config(*argv: str, prompt: str = "a photo of sks dog", model: str = BASE) -> TrainConfig:
    return parse(
        [
            f"--pretrained_model_name_or_path={model}",
            "--instance_data_dir=dog",
            f"--instance_prompt={prompt}",
            *argv,
        ]
    )[0]


def made(options: TrainConfig, samples: Samples | None = None, **facts: Any) -> str:
    return card.text(options, dataclasses.replace(FACTS, **facts), samples)


def front(text: str) -> dict[str, Any]:
    """As huggingface_hub reads it, for the inference examples among others."""
    found: dict[str, Any] = ModelCard(text).data.to_dict()
    assert found == yaml.safe_load(text.split("---\n")[1])
    return found


def table(text: str) -> dict[str, str]:
    """The rows of the only table, cut at bars that Markdown takes for ends of cells."""
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [re.split(r"(?<!\\)\|", row.strip("|")) for row in rows]
    assert all(len(row) == 2 for row in cells), rows
    return {name.strip(): value.strip() for name, value in cells if name.strip()}


def blocks(text: str) -> list[str]:
    return re.findall("```python\n(.*?\n)```\n", text, re.DOTALL)


def test_the_front_matter_is_what_hubs_read() -> None:
    found = front(made(config(), SAMPLES))
    assert found["base_model"] == BASE
    assert found["library_name"] == "diffusers"
    assert found["instance_prompt"] == "a photo of sks dog"
    assert {"lora", "text-to-image", "stable-diffusion-xl", "dreambooth"} <= {*found["tags"]}


def test_each_picture_is_a_widget_with_its_prompt() -> None:
    assert front(made(config(), SAMPLES))["widget"] == [
        {"text": "a sks dog: in a bucket", "output": {"url": "samples/update-000500/0-0.png"}},
        {"text": "a sks dog on the moon", "output": {"url": "samples/update-000500/1-0.png"}},
    ]


def test_the_body_shows_all_pictures_in_one() -> None:
    assert "](samples/update-000500.png)" in made(config(), SAMPLES)


def test_a_card_without_pictures_shows_none() -> None:
    text = made(config())
    assert "widget" not in front(text)
    assert "![" not in text


@pytest.mark.parametrize(
    ("model", "licence"),
    [(BASE, "openrail++"), ("somebody/else", None)],
)
def test_the_licence_is_named_only_where_it_is_known(model: str, licence: str | None) -> None:
    assert front(made(config(model=model))).get("license") == licence


def test_a_folder_is_the_base_model_here_but_not_on_the_hub(tmp_path: Path) -> None:
    options = config(model=str(tmp_path))
    assert front(made(options))["base_model"] == str(tmp_path)
    assert "base_model" not in front(made(options, repository="me/dog"))


@pytest.mark.parametrize(
    ("flags", "facts", "row", "told"),
    [
        ("", {}, "trained", "UNet; text encoders not trained"),
        ("--train_text_encoder", {}, "trained", "UNet and both text encoders"),
        ("--rank=8", {}, "rank and alpha", "8"),
        ("", {}, "updates", "500 of 4 pictures each"),
        ("", {"objective": "EDM, v_prediction"}, "objective", "EDM, v_prediction"),
        ("", {}, "optimizer", "AdamW"),
        ("--optimizer=prodigy --learning_rate=1", {}, "optimizer", "Prodigy"),
        ("--lr_scheduler=cosine", {}, "learning rate", "0.0001, cosine"),
        ("--scale_lr", {}, "learning rate", "0.0004, constant"),
        ("--train_text_encoder", {}, "learning rate", "0.0001 (text encoders 5e-06), constant"),
        ("--resolution=768", {}, "resolution", "768"),
        ("", {}, "captions", "all 5 pictures have the instance prompt"),
        ("", {"captioned": 3}, "captions", "3 of 5 pictures have their own"),
        ("", {}, "VAE for training", "the model's own"),
        ("--pretrained_vae_model_name_or_path=a/vae", {}, "VAE for training", "`a/vae`"),
        ("--ema_decay=0.99", {}, "moving average", "decay 0.99"),
        ("--lora_dropout=0.1", {}, "LoRA dropout", "0.1"),
        ("--caption_dropout=0.1", {}, "caption dropout", "0.1"),
        ("--noise_offset=0.05", {}, "noise offset", "0.05"),
        ("--mixed_precision=fp16", {}, "precision of the frozen models", "fp16"),
        ("--revision=v2", {}, "revision", "`v2`"),
        ("", {}, "seed", "7"),
        (
            "--with_prior_preservation --class_data_dir=dogs --class_prompt=dog",
            {},
            "prior preservation",
            "100 pictures of `dog`, weight 1",
        ),
        (
            "--validation_prompt sks|cat --validation_prompt sks",
            {},
            "validation prompts",
            "`sks\\|cat`, `sks`",
        ),
    ],
)  # fmt: skip
def test_the_table_tells_how_it_was_trained(
    flags: str, facts: dict[str, Any], row: str, told: str
) -> None:
    assert table(made(config(*flags.split()), **facts))[row] == told


def test_what_was_left_out_has_no_row() -> None:
    assert list(table(made(config()))) == [
        "trained", "rank and alpha", "updates", "objective", "optimizer", "learning rate",
        "resolution", "captions", "VAE for training", "seed",
    ]  # fmt: skip


@pytest.mark.parametrize("prompt", ODD.values(), ids=ODD.keys())
def test_odd_prompts_break_neither_front_matter_nor_table_nor_code(prompt: str) -> None:
    options = config(
        "--with_prior_preservation", "--class_data_dir=dogs", f"--class_prompt={prompt}",
        "--validation_prompt", prompt, prompt=prompt,
    )  # fmt: skip
    text = made(options, Samples(pictures=[(prompt, "samples/0.png")], grid="samples/all.png"))
    assert front(text)["instance_prompt"] == prompt
    assert front(text)["widget"] == [{"text": prompt, "output": {"url": "samples/0.png"}}]
    assert "seed" in table(text)
    for block in blocks(text):
        compile(block, "card", "exec")
        assert repr(prompt) in block


@pytest.mark.parametrize("prompt", ODD.values(), ids=ODD.keys())
def test_a_prompt_in_a_line_is_code_as_a_whole(prompt: str) -> None:
    heading = next(line for line in made(config(prompt=prompt)).splitlines() if line[:2] == "# ")
    ticks, inside, end = re.fullmatch(r"[^`]*(`+)(.*?)(?<!`)(`+)", heading).groups()  # type: ignore[union-attr]
    assert ticks == end
    assert ticks not in re.findall("`+", inside)
    assert inside.strip() == " ".join(prompt.split())


def test_the_code_loads_it_from_the_hub_or_from_the_folder() -> None:
    options = config("--output_dir=out/dog")
    for block in blocks(made(options)):
        assert "load_lora_weights('out/dog', weight_name=\"pytorch_lora_weights.saf" in block
    for block in blocks(made(options, repository="me/dog")):
        assert "load_lora_weights('me/dog'" in block


def test_there_is_code_for_diffusers_and_for_mindone() -> None:
    imports = [block.splitlines()[0] for block in blocks(made(config()))]
    assert imports == [
        "from diffusers import DiffusionPipeline",
        "from mindone.diffusers import DiffusionPipeline",
    ]


def test_the_kohya_file_is_named_where_there_is_one() -> None:
    assert "pytorch_lora_weights_kohya" in made(config("--output_kohya_format"))
    assert "pytorch_lora_weights_kohya" not in made(config())


def test_no_token_is_on_the_card() -> None:
    assert "s3cret" not in made(config("--push_to_hub", "--hub_token=s3cret"), repository="a/b")
