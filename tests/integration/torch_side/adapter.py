"""An adapter's file in a Hugging Face pipeline: what is told on loading, and one UNet call."""

import json
import logging
import warnings

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file


class Heard(logging.Handler):
    """Keeps what loggers say from WARNING on."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@torch.no_grad()
def answer(arrays: dict[str, np.ndarray], model: str, adapter: str) -> dict[str, np.ndarray]:
    """arrays: a batch by the names of its fields. model: a pipeline's folder. adapter: the file.

    To "bare" and "adapted" (the UNet's outputs without and with the adapter), "told" (JSON: what
    was heard on loading, rank and alpha as understood, tensors that are not the file's).
    """
    given = {name: torch.from_numpy(array) for name, array in arrays.items()}
    pipeline = StableDiffusionXLPipeline.from_pretrained(model, add_watermarker=False)

    def call() -> np.ndarray:
        conditions = {"text_embeds": given["pooled"], "time_ids": given["time_ids"]}
        return pipeline.unet(
            given["noisy"],
            given["timesteps"],
            given["prompt_embeds"],
            added_cond_kwargs=conditions,
        ).sample.numpy()

    found = {"bare": call()}
    heard = Heard()
    for name in ("diffusers", "peft", "transformers"):
        logging.getLogger(name).addHandler(heard)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        pipeline.load_lora_weights(adapter, adapter_name="subject")
    understood = pipeline.unet.peft_config["subject"]
    told = {
        "heard": [*heard.messages, *(str(one.message) for one in warned)],
        "rank": understood.r,
        "alpha": understood.lora_alpha,
        "targets": sorted(understood.target_modules),
        "different": different(pipeline.unet, load_file(adapter)),
    }
    return found | {"adapted": call(), "told": np.array(json.dumps(told))}


def different(unet: torch.nn.Module, saved: dict[str, torch.Tensor]) -> list[str]:
    """Tensors that only one of file and model has, or whose values differ."""
    words = {".lora_A.subject.": ".lora.down.", ".lora_B.subject.": ".lora.up."}
    loaded = {}
    for name, parameter in unet.named_parameters():
        if ".lora_" in name:
            for ours, theirs in words.items():
                name = name.replace(ours, theirs)
            loaded[f"unet.{name}"] = parameter
    return sorted(saved.keys() ^ loaded.keys()) + [
        name for name in saved.keys() & loaded.keys() if not torch.equal(saved[name], loaded[name])
    ]
