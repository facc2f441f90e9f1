"""The README of mindone's DreamBooth example for SDXL, as facts: what it tells people to run.

Its commands are recorded by their flags. Its Python blocks are written anew with the same calls,
and fewer steps. Users come with these commands and with code like this: all of it must run here
(integration/test_seed_document.py, integration/test_script.py).
"""

from __future__ import annotations

import ast
import re
import shlex

Flags = dict[str, str]

MODEL = "stabilityai/stable-diffusion-xl-base-1.0"
REFINER = "stabilityai/stable-diffusion-xl-refiner-1.0"
VAE = "madebyollin/sdxl-vae-fp16-fix"
PLAYGROUND = "playgroundai/playground-v2.5-1024px-aesthetic"
DATASET = "diffusers/dog-example"
LORA = "<lora-sdxl-dreambooth-id>"

_BOTH: Flags = {
    "instance_data_dir": "dog",
    "mixed_precision": "fp16",
    "instance_prompt": "a photo of sks dog",
    "resolution": "1024",
    "train_batch_size": "1",
    "gradient_accumulation_steps": "4",
    "lr_scheduler": "constant",
    "lr_warmup_steps": "0",
    "max_train_steps": "500",
    "validation_prompt": "A photo of sks dog in a bucket",
    "validation_epochs": "25",
    "seed": "0",
}
TRAIN: Flags = _BOTH | {
    "pretrained_model_name_or_path": MODEL,
    "pretrained_vae_model_name_or_path": VAE,
    "output_dir": "lora-trained-xl",
    "learning_rate": "1e-5",
}
TRAIN_PLAYGROUND: Flags = _BOTH | {
    "pretrained_model_name_or_path": PLAYGROUND,
    "output_dir": "dog-playground-lora",
    "learning_rate": "1e-4",
}
ADD_EDM: Flags = {"do_edm_style_training": ""}
ADD_TEXT_ENCODERS: Flags = {"train_text_encoder": ""}

DOWNLOAD = f'''
from huggingface_hub import snapshot_download

snapshot_download(
    "{DATASET}", repo_type="dataset", local_dir="./dog", ignore_patterns=".gitattributes"
)
'''
PICTURE = f'''
import mindspore as ms
from huggingface_hub.repocard import RepoCard
from mindone.diffusers import DiffusionPipeline

told = RepoCard.load("{LORA}")
model = told.data.to_dict()["base_model"]
base = DiffusionPipeline.from_pretrained(model, mindspore_dtype=ms.float16)
base.load_lora_weights("{LORA}")
made = base("A picture of a sks dog in a bucket", num_inference_steps=2)[0]
made[0].save("sks_dog.png")
'''
REFINED = f'''
import mindspore as ms
import numpy as np
from huggingface_hub.repocard import RepoCard
from mindone.diffusers import DiffusionPipeline, StableDiffusionXLImg2ImgPipeline

told = RepoCard.load("{LORA}")
model = told.data.to_dict()["base_model"]
base = DiffusionPipeline.from_pretrained(model, mindspore_dtype=ms.float16)
base.load_lora_weights("{LORA}")
second = StableDiffusionXLImg2ImgPipeline.from_pretrained(
    "{REFINER}", use_safetensors=True, variant="fp16", mindspore_dtype=ms.float16
)
text = "A picture of a sks dog in a bucket"
random = np.random.Generator(np.random.PCG64(seed=0))
latents = base(prompt=text, generator=random, output_type="latent", num_inference_steps=4)[0]
made = second(prompt=text, image=latents[0][None, :], generator=random, num_inference_steps=4)[0]
made[0].save("refined_sks_dog.png")
'''

# The document's code blocks in their order: language, and what is recorded of it. The first one
# installs mindone from its sources; here it is a dependency that setup.cfg names.
BLOCKS: list[tuple[str, Flags | str | None]] = [
    ("bash", None),
    ("python", DOWNLOAD),
    ("bash", TRAIN),
    ("python", PICTURE),
    ("python", REFINED),
    ("diff", ADD_EDM),
    ("bash", TRAIN_PLAYGROUND),
]


def blocks(document: str) -> list[tuple[str, str]]:
    """Language and text of each code block of a Markdown text."""
    return re.findall(r"^```(\w+)\n(.*?)^```", document, flags=re.MULTILINE | re.DOTALL)


def flags(command: str) -> Flags:
    """The flags of the last command of a shell script, with its variables put in."""
    words = shlex.split(command.replace("\\\n", " "), comments=True)
    variables = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
    found = {}
    for word in words:
        if word.startswith("--"):
            name, _, value = word.removeprefix("--").partition("=")
            found[name] = variables.get(value.removeprefix("$"), value)
    return found


def calls(source: str) -> list[str]:
    """Every call in a Python source, sorted; its own names are written _, and a number of steps,
    which is what a test reduces, is left out."""
    tree = ast.parse(source)
    values = {
        target.id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }

    def value(node: ast.expr) -> str:
        while isinstance(node, ast.Name) and node.id in values:
            node = values[node.id]
        if isinstance(node, ast.Constant):
            return repr(node.value)
        return name(node) if isinstance(node, ast.Attribute) else "_"

    def name(node: ast.expr) -> str:
        if isinstance(node, ast.Attribute):
            return f"{name(node.value)}.{node.attr}"
        return node.id if isinstance(node, ast.Name) and node.id not in values else "_"

    def shown(call: ast.Call) -> str:
        given = [value(argument) for argument in call.args]
        given += sorted(
            f"{keyword.arg}={value(keyword.value)}"
            for keyword in call.keywords
            if keyword.arg != "num_inference_steps"
        )
        return f"{name(call.func)}({', '.join(given)})"

    return sorted(shown(node) for node in ast.walk(tree) if isinstance(node, ast.Call))
