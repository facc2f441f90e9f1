"""Loss and gradients of each case as diffusers' script, peft and torch compute them."""

from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from script import losses
from tiny_sdxl import random_weight
from transformers import CLIPTextModel, CLIPTextModelWithProjection

MODELS = {
    "unet": UNet2DConditionModel,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}
Arrays = dict[str, np.ndarray]


def answer(
    arrays: Arrays,
    folder: str,
    rank: int,
    targets: dict[str, list[str]],
    cases: dict[str, dict[str, Any]],
) -> Arrays:
    """cases by name: as in script.py, with "prior": --prior_loss_weight or None, and "text":
    whether the text encoders are trained. arrays: of each case by "name/part", a row a picture,
    those of the class in the second half: latents, noise, levels, time_ids; and prompt_embeds and
    pooled, or ids_1 and ids_2.

    To "name/loss" and "name/gradient of TENSOR".
    """
    models = {name: adapted(folder, name, rank, only) for name, only in targets.items()}
    found = {}
    for name, case in cases.items():
        own = [n for n in arrays if n.startswith(f"{name}/")]
        given = {n.removeprefix(f"{name}/"): torch.from_numpy(arrays[n]) for n in own}
        trained = tensors(models if case["text"] else {"unet": models["unet"]})
        loss = loss_of(case, given, models)
        gradients = torch.autograd.grad(loss, list(trained.values()), materialize_grads=True)
        found[f"{name}/loss"] = loss.detach().numpy()
        for tensor, gradient in zip(trained, gradients, strict=True):
            found[f"{name}/gradient of {tensor}"] = gradient.numpy()
    return found


def adapted(folder: str, name: str, rank: int, targets: list[str]) -> torch.nn.Module:
    """A frozen model with an adapter of random values."""
    model = MODELS[name].from_pretrained(folder, subfolder=name).requires_grad_(False)
    model.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
    for tensor, parameter in tensors({name: model}).items():
        parameter.data.copy_(torch.from_numpy(random_weight(tensor, tuple(parameter.shape))))
    return model


def tensors(models: dict[str, torch.nn.Module]) -> dict[str, torch.nn.Parameter]:
    """What is trained, by the adapter's names."""
    return {
        f"{prefix}.{name}".replace(".default.", "."): parameter
        for prefix, model in models.items()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def loss_of(
    case: dict[str, Any], given: dict[str, torch.Tensor], models: dict[str, torch.nn.Module]
) -> torch.Tensor:
    if case["text"]:
        prompt_embeds, pooled = encode(given["ids_1"], given["ids_2"], models)
    else:
        prompt_embeds, pooled = given["prompt_embeds"], given["pooled"]

    def predict(noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        conditions = {"text_embeds": pooled, "time_ids": given["time_ids"]}
        return models["unet"](noisy, timesteps, prompt_embeds, added_cond_kwargs=conditions).sample

    each, min_snr = losses(case, given["latents"], given["noise"], given["levels"], predict)
    if case["prior"] is None:
        return (each * min_snr).mean()
    instance, prior = each.chunk(2)
    return (instance * min_snr.chunk(2)[0]).mean() + case["prior"] * prior.mean()


def encode(
    ids_1: torch.Tensor, ids_2: torch.Tensor, models: dict[str, torch.nn.Module]
) -> tuple[torch.Tensor, torch.Tensor]:
    first = models["text_encoder"](ids_1.long(), output_hidden_states=True)
    second = models["text_encoder_2"](ids_2.long(), output_hidden_states=True)
    embeds = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    return embeds, second.text_embeds
