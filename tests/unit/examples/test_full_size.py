"""The dress rehearsal's parts that can be tested without the 7 GB: names, shapes, files, logs."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

FULL_SIZE = Path(__file__).parents[3] / "examples" / "full-size"
LOG = """INFO Saved checkpoint-2.
INFO phase                   times   seconds      each  host end GB
load the models             1     41.00    41.000        5.72
updates                     2    120.40    60.200        6.10
INFO The end.
"""


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FULL_SIZE / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rehearsal() -> ModuleType:
    return script("rehearsal")


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    return script("write_pipeline")


def unet_config(writer: ModuleType) -> dict[str, Any]:
    mini: dict[str, Any] = json.loads((writer.MINI / "unet" / "config.json").read_text())
    return mini | writer.CHANGES["unet"]


def test_a_lora_of_sdxl_has_the_well_known_size(rehearsal: ModuleType, writer: ModuleType) -> None:
    shapes = rehearsal.lora_shapes(unet_config(writer), rank=4)
    assert len(shapes) == 1120
    assert sum(math.prod(shape) for shape in shapes.values()) == 5_806_080


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora.down.weight", (4, 640)),
        ("down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_k.lora.down.weight", (4, 2048)),
        ("mid_block.attentions.0.transformer_blocks.9.attn2.to_k.lora.up.weight", (1280, 4)),
        ("up_blocks.0.attentions.2.transformer_blocks.9.attn1.to_out.0.lora.up.weight", (1280, 4)),
        ("up_blocks.1.attentions.2.transformer_blocks.1.attn2.to_v.lora.down.weight", (4, 2048)),
    ],
)
def test_a_lora_of_sdxl_has_the_well_known_names(
    name: str, shape: tuple[int, ...], rehearsal: ModuleType, writer: ModuleType
) -> None:
    assert rehearsal.lora_shapes(unet_config(writer), rank=4)[f"unet.{name}"] == shape


def test_a_written_file_holds_finite_fp16_tensors_of_the_shapes_given(
    writer: ModuleType, tmp_path: Path
) -> None:
    shapes = {"conv.weight": (8, 4, 3, 3), "norm.weight": (5,), "norm.bias": (5,)}
    writer.write_weights(tmp_path / "some.safetensors", shapes)
    found = load_file(tmp_path / "some.safetensors")
    assert {name: tensor.shape for name, tensor in found.items()} == shapes
    assert all(tensor.dtype == np.float16 for tensor in found.values())
    assert all(np.isfinite(tensor).all() and tensor.any() for tensor in found.values())


def test_the_table_of_phases_is_found_in_a_log(rehearsal: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "launch" / "attempt-1"
    folder.mkdir(parents=True)
    (folder / "worker_1.log").write_text(LOG)
    table = LOG.partition("INFO phase")[2].partition("INFO The end.")[0]
    assert rehearsal.phases(tmp_path, 1) == f"phase{table}"


def test_a_log_without_phases_has_no_table(rehearsal: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "launch" / "attempt-1"
    folder.mkdir(parents=True)
    (folder / "worker_0.log").write_text("INFO encoding 3/3, 5.63 entry/s, 00:00 left\n")
    assert rehearsal.phases(tmp_path, 0) == ""
