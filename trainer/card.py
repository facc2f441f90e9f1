"""The model card, README.md of the output folder: what was trained, how, and how to load it.

Its front matter is what hubs read. Prompts are anybody's text: there they stand as JSON, which is
YAML as well and keeps a line a line; in the body as code, which Markdown leaves alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindbooth.data.atomic import replace_file

from .config import TrainConfig
from .export import KOHYA_NAME, NAME

if TYPE_CHECKING:
    from .run import Run

LICENSES = {"stabilityai/stable-diffusion-xl-base-1.0": "openrail++"}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the options alone don't tell.

    captioned: how many of the pictures have a caption other than the instance prompt.
    objective: its name. repository: that on the hub, if the folder goes there.
    """

    seed: int
    updates: int
    samples_per_update: int
    pictures: int
    captioned: int
    objective: str
    repository: str | None


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Pictures made at the end. pictures: prompt and path within the output folder of each.

    grid: the path of all of them in one picture.
    """

    pictures: Sequence[tuple[str, str]]
    grid: str


def write(run: Run, samples: Samples | None, *, objective: str, repository: str | None) -> None:
    """Writes the model card into the run's output folder."""
    captions = {example.file: example.caption for example in run.examples}
    facts = Facts(
        seed=run.seed,
        updates=run.updates,
        samples_per_update=run.batching.samples_per_update,
        pictures=len(captions),
        captioned=sum(c != run.config.data.instance_prompt for c in captions.values()),
        objective=objective,
        repository=repository,
    )
    replace_file(run.output / "README.md", text(run.config, facts, samples).encode())


def text(config: TrainConfig, facts: Facts, samples: Samples | None) -> str:
    """The whole card."""
    front = "\n".join(
        f"{name}: {json.dumps(value, ensure_ascii=False)}"
        for name, value in _front_matter(config, facts, samples).items()
    )
    base_model = _base_model(config)
    base = (
        f"`{base_model}`"
        if is_folder(base_model)
        else f"[{base_model}](https://huggingface.co/{base_model})"
    )
    prompt = _code(config.data.instance_prompt)
    shown = f"\n![Pictures after the last update]({samples.grid})\n" if samples else ""
    rows = "\n".join(f"| {name} | {value} |" for name, value in _settings(config, facts))
    return f"""---
{front}
---

# SDXL LoRA DreamBooth: {prompt}

LoRA weights for {base}, trained with DreamBooth on MindSpore by mindbooth. Say
{prompt} to get the subject.
{shown}
| | |
|---|---|
{rows}

{_loading(config, facts)}"""


def is_folder(model: str) -> bool:
    """Whether a model's name is that of a folder here, which a hub does not know."""
    return Path(model).expanduser().is_dir()


def _base_model(config: TrainConfig) -> str:
    """As other programs find it from anywhere: a hub id, or a folder's whole path."""
    name = config.model.pretrained_model_name_or_path
    return str(Path(name).expanduser().resolve()) if is_folder(name) else name


def _front_matter(config: TrainConfig, facts: Facts, samples: Samples | None) -> dict[str, Any]:
    base_model = _base_model(config)
    front: dict[str, Any] = {
        "base_model": base_model,
        "library_name": "diffusers",
        "instance_prompt": config.data.instance_prompt,
        "tags": [
            "text-to-image", "diffusers", "lora", "template:sd-lora", "stable-diffusion-xl",
            "stable-diffusion-xl-diffusers", "dreambooth", "mindspore",
        ],
    }  # fmt: skip
    if facts.repository and is_folder(base_model):
        del front["base_model"]  # the hub refuses a card with anything but an id here
    if base_model in LICENSES:
        front["license"] = LICENSES[base_model]
    if samples:
        front["widget"] = [
            {"text": prompt, "output": {"url": path}} for prompt, path in samples.pictures
        ]
    return front


def _settings(config: TrainConfig, facts: Facts) -> list[tuple[str, str]]:
    """The rows of the table; without what was left out."""
    data, prior, optim, output = config.data, config.prior, config.optim, config.output
    chosen, revision = config.adapter, config.model.revision
    both, vae = chosen.train_text_encoder, config.model.pretrained_vae_model_name_or_path
    rate = f"{optim.peak_rate(facts.samples_per_update):g}"
    if both and not optim.uses_prodigy:
        rate += f" (text encoders {optim.text_encoder_lr:g})"
    captions = f"all {facts.pictures} pictures have the instance prompt"
    if facts.captioned:
        captions = f"{facts.captioned} of {facts.pictures} pictures have their own"
    rows = [
        ("trained", "UNet and both text encoders" if both else "UNet; text encoders not trained"),
        ("rank and alpha", str(chosen.rank)),
        ("LoRA dropout", chosen.lora_dropout and f"{chosen.lora_dropout:g}"),
        ("moving average", chosen.ema_decay and f"decay {chosen.ema_decay:g}"),
        ("updates", f"{facts.updates} of {facts.samples_per_update} pictures each"),
        ("objective", facts.objective),
        ("noise offset", config.objective.noise_offset and f"{config.objective.noise_offset:g}"),
        ("optimizer", "Prodigy" if optim.uses_prodigy else "AdamW"),
        ("learning rate", f"{rate}, {optim.lr_scheduler}"),
        ("resolution", str(data.resolution)),
        ("captions", captions),
        ("caption dropout", data.caption_dropout and f"{data.caption_dropout:g}"),
        ("prior preservation", prior.with_prior_preservation and (
            f"{prior.num_class_images} pictures of {_cell(prior.class_prompt or '')}, "
            f"weight {prior.prior_loss_weight:g}"
        )),
        ("precision of the frozen models", optim.mixed_precision),
        ("revision", revision and _cell(revision)),
        ("VAE for training", _cell(vae) if vae else "the model's own"),
        ("validation prompts", ", ".join(map(_cell, output.validation_prompt or []))),
        ("seed", str(facts.seed)),
    ]  # fmt: skip
    return [(name, value) for name, value in rows if value]


def _loading(config: TrainConfig, facts: Facts) -> str:
    base_model = _base_model(config)
    where = facts.repository or config.output.output_dir
    prompt = config.data.instance_prompt
    kohya = (
        f"ComfyUI and A1111: put `{KOHYA_NAME}` into `models/loras` or `models/Lora`."
        if config.output.output_kohya_format
        else "For ComfyUI and A1111, train with `--output_kohya_format`."
    )
    return f"""In diffusers:

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained({base_model!r})
pipeline.load_lora_weights({where!r}, weight_name="{NAME}")
picture = pipeline({prompt!r}).images[0]
```

In mindone:

```python
from mindone.diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained({base_model!r})
pipeline.load_lora_weights({where!r}, weight_name="{NAME}")
picture = pipeline({prompt!r})[0][0]
```

{kohya}
"""


def _code(text: str) -> str:
    """Anybody's text as code within a line, behind more backticks than it has in a row."""
    line = " ".join(text.split())
    ticks = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{pad}{line}{pad}{ticks}"


def _cell(text: str) -> str:
    """The same in a table, where a bar would end the cell even in code."""
    return _code(text).replace("|", "\\|")
