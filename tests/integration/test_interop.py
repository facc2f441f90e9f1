"""The exported files in other programs: Hugging Face diffusers on torch, and mindone."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_adapter
from safetensors import safe_open
from safetensors.numpy import load_file

RANK = 3
CLOSE = 1e-3  # absolute, of one UNet call in fp32
# Both programs say so, once a text encoder, of every adapter of a UNet alone: not a fault of ours.
TEXT_ENCODERS_HAVE_NONE = "No LoRA keys associated to CLIPTextModel"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An adapter whose B is not 0, on disk, and what the UNet says that it was trained in."""

    path: Path
    model: Path
    given: dict[str, np.ndarray]
    output: np.ndarray


@pytest.fixture(scope="module")
def exported(cpu: Any, tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    import mindspore as ms

    from mindbooth.trainer import export, lora, sdxl
    from mindbooth.trainer.config import ModelConfig

    model = sdxl.locate(ModelConfig(pretrained_model_name_or_path=str(tiny_pipeline)))
    unet = sdxl.load_unet(model, ms.float32)
    lora.inject(unet, rank=RANK)
    adapter = lora.Adapter({"unet": unet}, seed=5)
    generator = np.random.default_rng(1)
    adapter.load(generator.standard_normal(adapter.size) * 0.3)
    path = export.adapter(tmp_path_factory.mktemp("lora"), adapter.arrays(), adapter.metadata)
    given = {
        "noisy": generator.standard_normal((1, 4, 16, 16)),
        "timesteps": np.array([321.0]),
        "prompt_embeds": generator.standard_normal((1, 32, 64)),
        "pooled": generator.standard_normal((1, 32)),
        "time_ids": np.array([[32, 48, 0, 7, 32, 32]]),
    }
    given = {name: array.astype(np.float32) for name, array in given.items()}
    return Exported(path=path, model=tiny_pipeline, given=given, output=call(unet, given))


@pytest.fixture(scope="module")
def in_diffusers(exported: Exported, torch_side: Any) -> dict[str, Any]:
    found = torch_side(
        "adapter", exported.given, model=str(exported.model), adapter=str(exported.path)
    )
    return {**found, "told": json.loads(str(found["told"]))}


def call(unet: Any, given: dict[str, np.ndarray]) -> np.ndarray:
    from mindspore import Tensor

    return np.asarray(
        unet(
            Tensor(given["noisy"]),
            Tensor(given["timesteps"]),
            Tensor(given["prompt_embeds"]),
            added_cond_kwargs={
                "text_embeds": Tensor(given["pooled"]),
                "time_ids": Tensor(given["time_ids"]),
            },
            return_dict=False,
        )[0].asnumpy()
    )


def test_diffusers_takes_every_tensor_without_a_word(in_diffusers: dict[str, Any]) -> None:
    assert unexpected(in_diffusers["told"]["heard"]) == []
    assert in_diffusers["told"]["different"] == []


def test_diffusers_understands_rank_alpha_and_targets(in_diffusers: dict[str, Any]) -> None:
    from mindbooth.trainer import lora

    told = in_diffusers["told"]
    assert (told["rank"], told["alpha"]) == (RANK, RANK)
    assert told["targets"] == sorted(lora.TARGETS["unet"])


def test_the_adapted_unet_computes_in_diffusers_what_it_was_trained_to(
    exported: Exported, in_diffusers: dict[str, Any]
) -> None:
    assert np.abs(in_diffusers["adapted"] - exported.output).max() < CLOSE
    assert np.abs(in_diffusers["adapted"] - in_diffusers["bare"]).max() > 100 * CLOSE


def test_mindone_loads_it_and_computes_what_diffusers_computes(
    exported: Exported, in_diffusers: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    from mindone.diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(str(exported.model))
    assert np.abs(call(pipeline.unet, exported.given) - in_diffusers["bare"]).max() < CLOSE
    log = logging.getLogger("mindone")  # does not propagate
    log.addHandler(caplog.handler)
    try:
        pipeline.load_lora_weights(str(exported.path.parent), weight_name=exported.path.name)
    finally:
        log.removeHandler(caplog.handler)
    assert unexpected(caplog.messages) == []
    assert np.abs(call(pipeline.unet, exported.given) - in_diffusers["adapted"]).max() < CLOSE


def unexpected(messages: list[str]) -> list[str]:
    """What was said on loading, but for what is said of every adapter of a UNet alone."""
    return [message for message in messages if not message.startswith(TEXT_ENCODERS_HAVE_NONE)]


def test_the_header_says_what_the_adapter_is(exported: Exported) -> None:
    with safe_open(exported.path, "np") as opened:
        header = opened.metadata()
    told = json.loads(header["lora_adapter_metadata"])
    assert header["format"] == "pt"
    assert (told["unet.r"], told["unet.lora_alpha"], told["unet.peft_type"]) == (RANK, RANK, "LORA")
    assert {name.partition(".")[0] for name in told} == {"unet"}


@dataclass(frozen=True, kw_only=True)
class Files:
    """An adapter of UNet and both text encoders as both files, and what diffusers makes of them."""

    ours: Path
    kohyas: Path
    in_diffusers: dict[str, np.ndarray]
    told: dict[str, Any]

    def tensors(self, word: str) -> dict[str, np.ndarray]:
        start = f"{word} "
        found = self.in_diffusers.items()
        return {k.removeprefix(start): array for k, array in found if k.startswith(start)}


@pytest.fixture(scope="module")
def files(tiny_pipeline: Path, torch_side: Any, tmp_path_factory: pytest.TempPathFactory) -> Files:
    from mindone.peft import LoraConfig

    from mindbooth.trainer import export
    from mindbooth.trainer.parse import parse

    config, _ = parse(
        ["--pretrained_model_name_or_path=tiny", "--instance_data_dir=x", "--instance_prompt=sks"]
    )
    tensors = random_adapter.tensors(RANK)
    metadata = {
        part: LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(targets)).to_dict()
        for part, targets in random_adapter.TARGETS.items()
    }
    folder = tmp_path_factory.mktemp("files")
    ours = export.adapter(folder, tensors, metadata)
    kohyas = export.kohya(folder, tensors, metadata, config)
    found = torch_side("files", model=str(tiny_pipeline), ours=str(ours), kohyas=str(kohyas))
    return Files(ours=ours, kohyas=kohyas, in_diffusers=found, told=json.loads(str(found["told"])))


@pytest.mark.parametrize("word", ["ours", "kohyas"])
def test_diffusers_has_the_same_tensors_from_both_files(files: Files, word: str) -> None:
    """And it saves them under the names that we do."""
    expected, found = load_file(files.ours), files.tensors(word)
    assert len(expected) == 2 * 4 * (8 + 2 + 2), "UNet, text encoders"
    assert found.keys() == expected.keys()
    assert not [k for k, array in expected.items() if found[k].tobytes() != array.tobytes()]


@pytest.mark.parametrize("word", ["ours", "kohyas"])
def test_diffusers_takes_all_three_models_without_a_word(files: Files, word: str) -> None:
    assert files.told[word]["heard"] == []
    assert files.told[word]["strengths"] == [1.0]


def test_diffusers_reads_alpha_and_rank_as_equal_in_the_kohya_file(files: Files) -> None:
    assert files.told["alphas"] == [RANK]


def test_the_header_has_the_form_of_diffusers_own(files: Files) -> None:
    with safe_open(files.ours, "np") as opened:
        ours = opened.metadata()
    theirs = files.told["ours"]["header"]
    assert ours.keys() == theirs.keys()
    assert ours["format"] == theirs["format"]
    told, expected = (json.loads(header["lora_adapter_metadata"]) for header in (ours, theirs))
    for part, targets in random_adapter.TARGETS.items():
        for name in ("r", "lora_alpha", "peft_type", "lora_dropout", "use_dora"):
            assert told[f"{part}.{name}"] == expected[f"{part}.{name}"], name
        assert told[f"{part}.target_modules"] == sorted(targets)
    assert {name.partition(".")[0] for name in told} == {*random_adapter.TARGETS}


@pytest.mark.parametrize("which", ["ours", "kohyas"])
def test_mindone_takes_all_three_models_of_either_file(
    files: Files, tiny_pipeline: Path, caplog: pytest.LogCaptureFixture, which: str
) -> None:
    from mindone.diffusers import StableDiffusionXLPipeline

    path: Path = getattr(files, which)
    pipeline = StableDiffusionXLPipeline.from_pretrained(str(tiny_pipeline))
    log = logging.getLogger("mindone")
    log.addHandler(caplog.handler)
    try:
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="x")
    finally:
        log.removeHandler(caplog.handler)
    assert caplog.messages == []
    given = random_adapter.tensors(RANK)
    loaded = {
        f"{part}.{parameter.name.replace('.x.', '.')}": parameter.asnumpy()
        for part in random_adapter.TARGETS
        for parameter in getattr(pipeline, part).get_parameters()
        if ".lora_" in parameter.name
    }
    assert loaded.keys() == given.keys()
    assert not [k for k, array in given.items() if loaded[k].tobytes() != array.tobytes()]
