"""Adapter files of all three models in a Hugging Face pipeline: ours read, and its own written."""

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from adapter import Heard
from diffusers import StableDiffusionXLPipeline
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from peft import get_peft_model_state_dict
from safetensors import safe_open

PARTS = ("unet", "text_encoder", "text_encoder_2")


def answer(_: dict[str, np.ndarray], model: str, ours: str, kohyas: str) -> dict[str, np.ndarray]:
    """model: a pipeline's folder. ours, kohyas: the two files.

    "ours NAME" and "kohyas NAME" are the tensors that the pipeline has after loading the file,
    saved by diffusers itself; "told" (JSON): for each what was heard, the header that was saved
    and the strengths of its layers; and the alphas in the kohya file.
    """
    told: dict[str, object] = {}
    found: dict[str, np.ndarray] = {}
    for word, path in (("ours", ours), ("kohyas", kohyas)):
        pipeline = StableDiffusionXLPipeline.from_pretrained(model, add_watermarker=False)
        with listening() as heard:
            pipeline.load_lora_weights(path, adapter_name="default")
        tensors, header = saved(pipeline)
        found |= {f"{word} {name}": tensor for name, tensor in tensors.items()}
        told[word] = {"heard": heard, "header": header, "strengths": strengths(pipeline)}
    _, alphas = StableDiffusionXLPipeline.lora_state_dict(kohyas)
    told["alphas"] = sorted(set(alphas.values()))
    return found | {"told": np.array(json.dumps(told))}


@contextmanager
def listening() -> Iterator[list[str]]:
    """What loggers and warnings say inside."""
    heard, said = Heard(), []
    for name in ("diffusers", "peft", "transformers"):
        logging.getLogger(name).addHandler(heard)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        yield said
    said += [*heard.messages, *(str(one.message) for one in warned)]


def saved(pipeline: StableDiffusionXLPipeline) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and header of the file that diffusers' training script would write."""
    parts = {part: getattr(pipeline, part) for part in PARTS}
    layers = {
        f"{part}_lora_layers": convert_state_dict_to_diffusers(get_peft_model_state_dict(module))
        for part, module in parts.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        StableDiffusionXLPipeline.save_lora_weights(
            folder, **layers, **_collate_lora_metadata(parts)
        )
        [path] = Path(folder).iterdir()
        with safe_open(path, "np") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            return tensors, opened.metadata()


def strengths(pipeline: StableDiffusionXLPipeline) -> list[float]:
    """The factors alpha / rank of all adapted layers."""
    modules = (module for part in PARTS for module in getattr(pipeline, part).modules())
    return sorted({module.scaling["default"] for module in modules if hasattr(module, "scaling")})
