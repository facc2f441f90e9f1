"""A picture with a trained LoRA: python picture.py LORA "a photo of sks dog in a bucket" dog.png

LORA is the --output_dir of a training, or a hub id. The model is the one that its card names.
"""

import argparse
from pathlib import Path

import mindspore as ms
import numpy as np
from huggingface_hub import RepoCard

from mindbooth.ranktable.placement import Placement
from mindbooth.trainer import device
from mindbooth.trainer.__main__ import keep_torch_out

options = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
)
options.add_argument("lora")
options.add_argument("prompt")
options.add_argument("picture", nargs="?", default="picture.png")
options.add_argument("--steps", type=int, default=25)
options.add_argument("--seed", type=int, default=0)
asked = options.parse_args()

keep_torch_out()  # which transformers would load beside MindSpore
card = Path(asked.lora, "README.md")
base_model = RepoCard.load(card if card.exists() else asked.lora).data.to_dict()["base_model"]

# An NPU, or the CPU with the operators that MindSpore lacks there; mindone comes after it.
device.start(Placement.from_environ({}), target="auto")
from mindone.diffusers import DiffusionPipeline  # noqa: E402

pipeline = DiffusionPipeline.from_pretrained(base_model, mindspore_dtype=ms.float16)
pipeline.load_lora_weights(asked.lora, weight_name="pytorch_lora_weights.safetensors")
generator = np.random.Generator(np.random.PCG64(asked.seed))
pictures = pipeline(asked.prompt, num_inference_steps=asked.steps, generator=generator)[0]
pictures[0].save(asked.picture)
