"""The LoRA files' names, numbers and headers, and config.yaml."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import random_adapter
import yaml
from safetensors import safe_open
from safetensors.numpy import load_file

from mindbooth.trainer import export
from mindbooth.trainer.config import TrainConfig
from mindbooth.trainer.parse import parse

BLOCK = "unet.up_blocks.0.attentions.1.transformer_blocks.0.attn2"
LAYER = "text_encoder_2.text_model.encoder.layers.31.self_attn"
RANK = 3
METADATA = {
    part: {"r": RANK, "lora_alpha": RANK, "target_modules": set(targets)}
    for part, targets in random_adapter.TARGETS.items()
}


def config(*argv: str) -> TrainConfig:
    return parse(
        [
            "--pretrained_model_name_or_path=stabilityai/stable-diffusion-xl-base-1.0",
            "--instance_data_dir=dog",
            "--instance_prompt=a photo of sks dog",
            *argv,
        ]
    )[0]


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    return random_adapter.tensors(RANK)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (f"{BLOCK}.to_q.lora_A.weight", f"{BLOCK}.to_q.lora.down.weight"),
        (f"{BLOCK}.to_out.0.lora_B.weight", f"{BLOCK}.to_out.0.lora.up.weight"),
        (f"{LAYER}.q_proj.lora_A.weight", f"{LAYER}.q_proj.lora_linear_layer.down.weight"),
        (f"{LAYER}.out_proj.lora_B.weight", f"{LAYER}.out_proj.lora_linear_layer.up.weight"),
    ],
)
def test_tensors_get_the_names_of_diffusers(ours: str, theirs: str) -> None:
    tensor = np.ones((2, 3), np.float32)
    assert export.diffusers_names({ours: tensor}) == {theirs: tensor}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            f"{BLOCK}.to_q.lora_A.weight",
            "lora_unet_up_blocks_0_attentions_1_transformer_blocks_0_attn2_to_q.lora_down.weight",
        ),
        (
            f"{BLOCK}.to_out.0.lora_B.weight",
            "lora_unet_up_blocks_0_attentions_1_transformer_blocks_0_attn2_to_out_0.lora_up.weight",
        ),
        (
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight",
            "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight",
        ),
        (
            f"{LAYER}.out_proj.lora_B.weight",
            "lora_te2_text_model_encoder_layers_31_self_attn_out_proj.lora_up.weight",
        ),
    ],
)
def test_tensors_get_the_names_of_kohya_and_an_alpha(ours: str, theirs: str) -> None:
    tensor = np.ones((2, 3), np.float32)
    found = export.kohya_names({ours: tensor}, METADATA)
    assert found.keys() == {theirs, theirs.split(".")[0] + ".alpha"}
    assert found[theirs] is tensor


def test_the_file_holds_tensors_and_configuration(tmp_path: Path) -> None:
    tensors = {
        f"{BLOCK}.to_q.lora_A.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        f"{BLOCK}.to_q.lora_B.weight": np.arange(4, dtype=np.float32).reshape(2, 2).T,
    }
    metadata = {
        "unet": {"r": 2, "lora_alpha": 2, "target_modules": {"to_v", "to_q"}},
        "text_encoder": {"r": 2, "target_modules": {"q_proj"}},
    }
    path = export.adapter(tmp_path, tensors, metadata)
    assert path == tmp_path / "pytorch_lora_weights.safetensors"
    assert {name: array.tolist() for name, array in load_file(path).items()} == {
        f"{BLOCK}.to_q.lora.down.weight": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]],
        f"{BLOCK}.to_q.lora.up.weight": [[0.0, 2.0], [1.0, 3.0]],
    }
    assert header(path)["format"] == "pt"
    assert json.loads(header(path)["lora_adapter_metadata"]) == {
        "unet.r": 2,
        "unet.lora_alpha": 2,
        "unet.target_modules": ["to_q", "to_v"],
        "text_encoder.r": 2,
        "text_encoder.target_modules": ["q_proj"],
    }


def test_the_order_within_a_set_does_not_show(tmp_path: Path) -> None:
    targets = [f"to_{letter}" for letter in "qkvabcdefgh"]
    metadata = {"unet": {"target_modules": set(targets)}}
    told = json.loads(header(export.adapter(tmp_path, {}, metadata))["lora_adapter_metadata"])
    assert told == {"unet.target_modules": sorted(targets)}


def test_every_kohya_key_maps_back_to_the_diffusers_files_tensor_bit_for_bit(
    tmp_path: Path, tensors: dict[str, np.ndarray]
) -> None:
    ours = load_file(export.adapter(tmp_path, tensors, METADATA))
    kohyas = load_file(export.kohya(tmp_path, tensors, METADATA, config()))
    back = {}
    for name, array in kohyas.items():
        module, _, matrix = name.partition(".")
        if matrix == "alpha":
            assert (array.shape, array.dtype, array.item()) == ((), np.float32, RANK)
            continue
        part, layer = layer_of(module)
        inside = "lora" if part == "unet" else "lora_linear_layer"
        back[f"{part}.{layer}.{matrix.replace('lora_', inside + '.')}"] = array
    assert back.keys() == ours.keys()
    assert all(array.dtype == ours[name].dtype == np.float32 for name, array in back.items())
    assert not [name for name, array in back.items() if array.tobytes() != ours[name].tobytes()]


def layer_of(module: str) -> tuple[str, str]:
    """Part and layer that a kohya name means: looked up among the models' layers, as tools do."""
    word, _, flat = module.removeprefix("lora_").partition("_")
    part = {"unet": "unet", "te1": "text_encoder", "te2": "text_encoder_2"}[word]
    layers = random_adapter.layers(part)
    [layer] = [layer for layer in layers if layer.replace(".", "_") == flat]
    return part, layer


def test_there_is_an_alpha_for_each_layer(tensors: dict[str, np.ndarray]) -> None:
    names = list(export.kohya_names(tensors, METADATA))
    assert sum(name.endswith(".alpha") for name in names) == len(tensors) / 2
    assert len(names) == len(tensors) * 3 / 2


def test_the_kohya_header_names_rank_alpha_and_kind(
    tmp_path: Path, tensors: dict[str, np.ndarray]
) -> None:
    options = config("--output_dir=out/my-dog", "--resolution=768")
    told = header(export.kohya(tmp_path, tensors, METADATA, options))
    assert told == {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "3",
        "ss_network_alpha": "3",
        "ss_base_model_version": "sdxl_base_v1-0",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "my-dog",
        "modelspec.resolution": "768x768",
        "modelspec.trigger_phrase": "a photo of sks dog",
    }


def test_config_yaml_holds_every_option_but_no_secret(tmp_path: Path) -> None:
    options = config("--push_to_hub", "--hub_token=hf_s3cret", "--hub_model_id=me/dog")
    export.config_file(tmp_path / "config.yaml", options, seed=7)
    text = (tmp_path / "config.yaml").read_text()
    assert not re.search("s3cret|token", text)
    found = yaml.safe_load(text)
    assert (found["seed"], found["hub_model_id"], found["push_to_hub"]) == (7, "me/dog", True)
    # Given back, it begins the same run anew.
    assert not {"resume_from_checkpoint", "distributed"} & found.keys()


def header(path: Path) -> dict[str, str]:
    with safe_open(path, "np") as opened:
        return dict(opened.metadata())
