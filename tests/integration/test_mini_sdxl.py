"""The embedded example against Hugging Face diffusers: it loads whole, and can be built again.

torch runs in processes of its own: it and MindSpore are never imported together.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

LOAD = """
import json, sys
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

folder, size = sys.argv[1], int(sys.argv[2])
parts = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}
faults = {}
for name, kind in parts.items():
    _, told = kind.from_pretrained(folder, subfolder=name, output_loading_info=True)
    faults[name] = [*told["missing_keys"], *told["unexpected_keys"], *told["mismatched_keys"]]
pipeline = StableDiffusionXLPipeline.from_pretrained(
    folder, torch_dtype=torch.float32, add_watermarker=False
)
picture = pipeline("a red robot", num_inference_steps=2, output_type="np").images[0]
print(json.dumps({"faults": faults, "shape": picture.shape, "spread": float(picture.std())}))
"""


@pytest.mark.parametrize(("pipeline", "size"), [("mini", 64), ("tiny", 32)])
def test_diffusers_loads_every_weight_and_draws_at_the_native_size(
    pipeline: str, size: int, mini_sdxl: Path, tiny_pipeline: Path
) -> None:
    folder = {"mini": mini_sdxl / "model", "tiny": tiny_pipeline}[pipeline]
    told = json.loads(python("-c", LOAD, str(folder), str(size)).splitlines()[-1])
    assert told["faults"] == {"unet": [], "vae": [], "text_encoder": [], "text_encoder_2": []}
    assert told["shape"] == [size, size, 3]
    assert told["spread"] > 0.01


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, mini_sdxl: Path) -> Path:
    work = tmp_path_factory.mktemp("build")
    python(str(mini_sdxl / "build.py"), "--quick", "--threads", "2", "--work", str(work))
    return work


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer_config.json"])
@pytest.mark.parametrize("tokenizer", ["tokenizer", "tokenizer_2"])
def test_the_builder_learns_the_shipped_tokenizers(
    built: Path, mini_sdxl: Path, tokenizer: str, name: str
) -> None:
    ours, shipped = built / "model" / tokenizer / name, mini_sdxl / "model" / tokenizer / name
    assert ours.read_bytes() == shipped.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "text_encoder_2/config.json",
    ],
)
def test_the_builder_writes_the_shipped_architecture(
    built: Path, mini_sdxl: Path, name: str
) -> None:
    ours, shipped = (json.loads((f / "model" / name).read_text()) for f in (built, mini_sdxl))
    ours.pop("scaling_factor", None)  # measured after the VAE's training
    shipped.pop("scaling_factor", None)
    assert ours == shipped


@pytest.mark.slow
def test_the_built_weights_have_the_shipped_sizes(built: Path, mini_sdxl: Path) -> None:
    ours, shipped = (
        {p.relative_to(f): p.stat().st_size for p in (f / "model").rglob("*.safetensors")}
        for f in (built, mini_sdxl)
    )
    assert len(shipped) == 4
    assert ours == shipped


def python(*arguments: str) -> str:
    run = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout
