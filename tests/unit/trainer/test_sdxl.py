"""Finding a model's files, and what a tokenizer has no room for."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from mindbooth.trainer import sdxl
from mindbooth.trainer.config import ConfigError, ModelConfig


def locate(folder: Path, **options: str) -> sdxl.Model:
    return sdxl.locate(ModelConfig(pretrained_model_name_or_path=str(folder), **options))


@pytest.fixture
def model(tmp_path: Path, tiny_pipeline: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(tiny_pipeline, tmp_path / "sdxl"))


UNET_FILES = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.non_ema.safetensors",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.bf16-00001-of-00002.safetensors",
    "model.bf16-00002-of-00002.safetensors",
    "model-00001-of-00002.int8.safetensors",
    "diffusion_pytorch_model.bin",
    "config.json",
)


@pytest.mark.parametrize(
    ("files", "variant", "found"),
    [
        (UNET_FILES[:3], None, UNET_FILES[:1]),
        (UNET_FILES[:3], "fp16", UNET_FILES[1:2]),
        (UNET_FILES[:3], "non_ema", UNET_FILES[2:3]),
        (UNET_FILES[3:7], None, UNET_FILES[3:5]),
        (UNET_FILES[3:7], "bf16", UNET_FILES[5:7]),
        (UNET_FILES[3:8], "int8", UNET_FILES[7:8]),
    ],
)
def test_a_variant_chooses_the_weight_files(
    tmp_path: Path, files: tuple[str, ...], variant: str | None, found: tuple[str, ...]
) -> None:
    unet = tmp_path / "unet"
    unet.mkdir()
    for name in files:
        (unet / name).touch()
    model = sdxl.Model(
        name="m", folder=tmp_path, vae=tmp_path / "vae", variant=variant, vae_variant=None
    )
    assert [path.name for path in model.weights("unet")] == list(found)


@pytest.mark.parametrize(
    ("files", "variant", "told"),
    [
        ((), None, "No weights *.safetensors in"),
        (UNET_FILES[1:2], None, "Found: diffusion_pytorch_model.fp16.safetensors"),
        (UNET_FILES[:1], "fp16", "No weights *.fp16.safetensors in"),
        (UNET_FILES[-2:], None, "Found: config.json, diffusion_pytorch_model.bin"),
    ],
)
def test_missing_weights_are_told_with_what_is_there(
    tmp_path: Path, files: tuple[str, ...], variant: str | None, told: str
) -> None:
    (tmp_path / "unet").mkdir()
    for name in files:
        (tmp_path / "unet" / name).touch()
    model = sdxl.Model(
        name="m", folder=tmp_path, vae=tmp_path / "vae", variant=variant, vae_variant=None
    )
    with pytest.raises(ConfigError, match=re.escape(told)):
        model.weights("unet")


def test_a_whole_folder_is_located(tiny_pipeline: Path) -> None:
    model = locate(tiny_pipeline)
    assert (model.folder, model.vae) == (tiny_pipeline, tiny_pipeline / "vae")
    assert {len(model.weights(part)) for part in sdxl.WEIGHTS} == {1}
    assert model.config("scheduler")["prediction_type"] == "epsilon"


@pytest.mark.parametrize("inside", ["", "vae"])
def test_a_vae_of_its_own_takes_the_place_of_the_models(
    tmp_path: Path, tiny_pipeline: Path, inside: str
) -> None:
    shutil.copytree(tiny_pipeline / "vae", tmp_path / "better" / inside)
    model = locate(tiny_pipeline, pretrained_vae_model_name_or_path=str(tmp_path / "better"))
    assert model.vae == tmp_path / "better" / inside
    assert model.weights("vae")[0].parent == model.vae


@pytest.mark.parametrize("part", sdxl.PARTS)
def test_a_lacking_part_is_told(model: Path, part: str) -> None:
    shutil.rmtree(model / part)
    with pytest.raises(ConfigError, match=f"has no folder {part}.*diffusers' layout") as caught:
        locate(model)
    assert "model_index.json" in str(caught.value)


@pytest.mark.parametrize("name", ["no/such/folder", "./missing", "/missing", "~/missing", "sdxl"])
def test_what_is_neither_folder_nor_hub_id_is_told(name: str) -> None:
    told = f"{name}: there is no such folder, and it is no hub id (a/b)"
    with pytest.raises(ConfigError, match=re.escape(told)):
        sdxl.locate(ModelConfig(pretrained_model_name_or_path=name))


def test_a_file_is_no_model(tmp_path: Path) -> None:
    file = tmp_path / "sd_xl_base_1.0.safetensors"
    file.touch()
    with pytest.raises(ConfigError, match="is a file: a folder in diffusers' layout is needed"):
        locate(file)


@pytest.mark.parametrize(
    ("damaged", "content"),
    [
        ("unet/config.json", b"{"),
        ("scheduler/scheduler_config.json", b""),
        ("vae/config.json", b"[]"),
        ("vae/config.json", b"\xff"),
        ("unet/diffusion_pytorch_model.safetensors", b""),
        ("text_encoder_2/model.safetensors", None),
        ("vae/diffusion_pytorch_model.safetensors", b"version https://git-lfs.github.com/spec/v1"),
    ],
)
def test_a_damaged_file_is_named(model: Path, damaged: str, content: bytes | None) -> None:
    path = model / damaged
    path.write_bytes(path.read_bytes()[:-1] if content is None else content)
    with pytest.raises(ConfigError, match=re.escape(f"{path} can't be read")) as caught:
        locate(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("words", [1, 30])
def test_a_prompt_that_fits_loses_nothing(tiny_pipeline: Path, words: int) -> None:
    for tokenizer in sdxl.load_tokenizers(locate(tiny_pipeline)):
        assert tokenizer.model_max_length == 32
        assert len(tokenizer(" ".join(["red"] * words)).input_ids) == words + 2
        assert sdxl.too_long(tokenizer, " ".join(["red"] * words)) is None


def test_the_end_that_has_no_room_is_shown(tiny_pipeline: Path) -> None:
    tokenizer = sdxl.load_tokenizers(locate(tiny_pipeline))[0]
    prompt = " ".join(["red"] * 30 + ["robot"])
    assert sdxl.too_long(tokenizer, prompt) == "robot"
    assert sdxl.too_long(tokenizer, f"{prompt} in the snow").strip() == "robot in the snow"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("index", "zeros"),
    [({}, True), ({"force_zeros_for_empty_prompt": False}, False)],
)
def test_the_empty_prompt_is_zeros_unless_the_model_says_no(
    model: Path, index: dict[str, bool], zeros: bool
) -> None:
    (model / "model_index.json").write_text(json.dumps(index))
    assert sdxl.zeros_for_empty_prompt(locate(model)) is zeros


def test_latents_are_scaled_by_one_factor_or_by_channel() -> None:
    assert sdxl.latent_scale({"scaling_factor": 0.13025}) == (0.13025, 0.0)
    scale, shift = sdxl.latent_scale(
        {"scaling_factor": 0.5, "latents_mean": [1.0, -1.0], "latents_std": [2.0, 4.0]}
    )
    z = np.array([3.0, 3.0]).reshape(2, 1, 1)
    assert ((z - shift) * scale).ravel().tolist() == [0.5, 0.5]


@pytest.mark.parametrize("lacks", ["latents_mean", "latents_std"])
def test_half_of_mean_and_deviation_is_none(lacks: str) -> None:
    config = {"scaling_factor": 0.5, "latents_mean": [1.0], "latents_std": [2.0]}
    assert sdxl.latent_scale({**config, lacks: None}) == (0.5, 0.0)


TEXTS = (
    "",
    "red " * 80,
    "a photo of sks dog, in the snow; it's 1:30 -- really?!",
    "eine Katze im Schnee, größer als jede andere",
    "一张狗的照片 在雪地里",
    "🐶🐶 ﬁne  print\tand\nlines",
    "supercalifragilisticexpialidocious" * 5,
)


@pytest.mark.parametrize("text", TEXTS)
def test_words_counted_one_by_one_are_the_tokens_of_the_text(
    tiny_pipeline: Path, mini_sdxl: Path, text: str
) -> None:
    for model in (tiny_pipeline, mini_sdxl / "model"):
        for tokenizer in sdxl.load_tokenizers(locate(model)):
            ids = tokenizer(text, truncation=False, verbose=False).input_ids
            assert sdxl.token_counter(tokenizer)(text) == len(ids)
