"""The adapter as a file that other tools load, the model card, and config.yaml.

`pytorch_lora_weights.safetensors` has diffusers' names, `unet.<layer>.lora.down.weight` (A) and
`.lora.up.weight` (B), and the peft configuration in its header, so that rank and scale need no
guessing. Everything is written aside and renamed: a reader sees a whole file or none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from safetensors.numpy import save

from mindbooth.data.atomic import replace_file

from . import report
from .config import TrainConfig

if TYPE_CHECKING:
    from .run import Run

NAME = "pytorch_lora_weights.safetensors"


def diffusers_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The adapter's tensors (`...lora_A.weight`) under the names that diffusers saves."""
    words = {".lora_A.": ".lora.down.", ".lora_B.": ".lora.up."}
    named = {}
    for name, tensor in tensors.items():
        for ours, theirs in words.items():
            name = name.replace(ours, theirs)
        named[name] = np.ascontiguousarray(tensor)  # safetensors takes the bytes as they lie
    return named


def card(run: Run, picture: str | None) -> None:
    """Writes the model card. picture: path within the output folder of the last pictures."""
    text = model_card(
        run.config, seed=run.seed, updates=run.updates,
        samples_per_update=run.batching.samples_per_update, picture=picture,
    )  # fmt: skip
    replace_file(run.output / "README.md", text.encode())


def adapter(folder: Path, tensors: Mapping[str, np.ndarray],
            metadata: Mapping[str, Mapping[str, Any]]) -> Path:  # fmt: skip
    """Writes the LoRA file into `folder`. metadata: the peft configuration by model prefix."""
    flat = {f"{k}.{name}": v for k, part in metadata.items() for name, v in part.items()}
    header = {
        "format": "pt",
        "lora_adapter_metadata": json.dumps(flat, indent=2, sort_keys=True, default=_plain),
    }
    path = folder / NAME
    replace_file(path, save(diffusers_names(tensors), metadata=header))
    return path


def config_file(path: Path, config: TrainConfig, seed: int) -> None:
    """Every option as it was resolved, and the versions; `--config` reads it again."""
    options = {**config.flat(), "seed": seed, "versions": report.versions()}
    text = yaml.safe_dump(options, sort_keys=False, allow_unicode=True)
    replace_file(path, text.encode())


def model_card(config: TrainConfig, *, seed: int, updates: int, samples_per_update: int,
               picture: str | None) -> str:  # fmt: skip
    """The text of README.md, with the front matter that hubs read: base model, prompt, picture."""
    base_model = config.model.pretrained_model_name_or_path
    prompt = config.data.instance_prompt
    front: dict[str, Any] = {
        "base_model": base_model,
        "library_name": "diffusers",
        "instance_prompt": prompt,
        "tags": [
            "text-to-image", "diffusers", "lora", "template:sd-lora", "stable-diffusion-xl",
            "stable-diffusion-xl-diffusers", "dreambooth", "mindspore",
        ],
    }  # fmt: skip
    if picture and config.output.validation_prompt:
        front["widget"] = [{"text": config.output.validation_prompt, "output": {"url": picture}}]
    optim = config.optim
    local = Path(base_model).expanduser().is_dir()
    base = f"`{base_model}`" if local else f"[{base_model}](https://huggingface.co/{base_model})"
    shown = f"\n![Pictures of: {config.output.validation_prompt}]({picture})\n" if picture else ""
    vae = config.model.pretrained_vae_model_name_or_path
    body = f"""
# SDXL LoRA DreamBooth: {prompt}

LoRA weights for {base}, trained with DreamBooth on MindSpore by mindbooth. Say
`{prompt}` to get the subject.
{shown}
| | |
|---|---|
| rank | {optim.rank} |
| updates | {updates} of {samples_per_update} pictures each |
| learning rate | {optim.learning_rate}, {optim.lr_scheduler} |
| resolution | {config.data.resolution} |
| text encoders | not trained |
| VAE for training | {vae or "the model's own"} |
| seed | {seed} |

```python
from diffusers import AutoPipelineForText2Image
pipeline = AutoPipelineForText2Image.from_pretrained({base_model!r})
pipeline.load_lora_weights("this folder", weight_name="{NAME}")
picture = pipeline({prompt!r}).images[0]
```
"""
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n{body}"


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)
