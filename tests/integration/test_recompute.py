"""--gradient_checkpointing: less memory, the same gradients."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindbooth.data.batches import Batch

PEAK = Path(__file__).parent / "workers" / "peak.py"


@pytest.fixture(scope="module")
def measured(mini_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """In a process of its own, whose memory nothing else has grown. In PyNative: compiling takes
    more memory than the passes, and hides them."""
    out = tmp_path_factory.mktemp("peak") / "peak.json"
    command = [sys.executable, PEAK, mini_sdxl / "model", "pynative", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, dict] = json.loads(out.read_text())
    return found


def test_gradients_stay_the_same(measured: dict[str, dict]) -> None:
    assert measured["with"]["norm"] == pytest.approx(measured["without"]["norm"], rel=1e-6)


def test_the_pass_needs_less_memory(measured: dict[str, dict]) -> None:
    """By 200 MB where it was measured: the mini SDXL at batch 8."""
    assert measured["without"]["peak"] - measured["with"]["peak"] > 100e6


@pytest.mark.parametrize("mode", ["pynative", "graph"])
def test_every_gradient_stays_with_text_encoders_in_training(
    cpu: Any, tiny_pipeline: Path, mode: str
) -> None:
    """Through the UNet's keyword arguments too, by which the encoders' output reaches it."""
    plain, again = (gradients(tiny_pipeline, *how) for how in (("pynative", False), (mode, True)))
    for name, gradient in again.items():
        assert np.linalg.norm(gradient - plain[name]) <= 1e-5 * np.linalg.norm(plain[name]), name
    used = {name.partition(".")[0] for name, gradient in plain.items() if gradient.any()}
    assert used == {"unet", "text_encoder", "text_encoder_2"}


def gradients(folder: Path, mode: str, recomputing: bool) -> dict[str, np.ndarray]:
    from mindspore import Tensor

    from mindbooth.trainer import device, lora, sdxl
    from mindbooth.trainer.config import ModelConfig
    from mindbooth.trainer.recompute import recompute
    from mindbooth.trainer.step import Forward, inputs

    model = sdxl.locate(ModelConfig(pretrained_model_name_or_path=str(folder)))
    encoders = sdxl.TextEncoders(model, sdxl.DTYPES["no"])
    unet = sdxl.load_unet(model, sdxl.DTYPES["no"])
    models = dict(zip(lora.TARGETS, (unet, *encoders.encoders), strict=True))
    for name, cell in models.items():
        lora.inject(cell, rank=3, targets=lora.TARGETS[name])
    if recomputing:
        recompute(models)
    adapter = lora.Adapter(models, seed=5)
    generator = np.random.default_rng(1)
    adapter.load(generator.standard_normal(adapter.size) * 0.2)

    def normal(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype(np.float32)

    ids = [sdxl.tokens(encoders.tokenizers, prompt) for prompt in ("a photo of sks dog", "a cat")]
    batch = Batch(
        samples=(0, 1),
        noisy=normal(2, 4, 16, 16),
        timesteps=np.array([10, 700], np.float32),
        target=normal(2, 4, 16, 16),
        weight=np.ones(2, np.float32),
        time_ids=np.array([[32, 32, 0, 0, 32, 32]] * 2, np.float32),
        text=(*map(np.stack, zip(*ids, strict=True)), np.ones(2, np.float32)),
    )
    with device.mode(mode):
        parts = Forward(adapter, sdxl.DTYPES["no"])(*inputs(batch, Tensor(np.float32(1))))
    flat = np.concatenate([part.asnumpy().ravel() for part in parts])
    return {p.name: flat[p.offset : p.offset + p.size] for p in adapter.pieces}
