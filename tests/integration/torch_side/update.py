"""One training update of the UNet's adapter by Hugging Face diffusers, peft and torch."""

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig


def answer(
    arrays: dict[str, np.ndarray],
    folder: str,
    rank: int,
    targets: list[str],
    rate: float,
    weight_decay: float,
    max_grad_norm: float,
) -> dict[str, np.ndarray]:
    """arrays: a batch by the names of its fields, and "adapter <name>" for each tensor.

    To "loss", "grad_norm", and for each tensor "gradient <name>" and "updated <name>".
    """
    given = {name: torch.from_numpy(array) for name, array in arrays.items()}
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").requires_grad_(False)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
    trained = {
        name.replace(".default.", "."): parameter
        for name, parameter in unet.named_parameters()
        if parameter.requires_grad
    }
    ours = {name.split()[1]: array for name, array in given.items() if name.startswith("adapter ")}
    assert trained.keys() == ours.keys()
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(ours[name])
    predicted = unet(
        given["noisy"],
        given["timesteps"],
        given["prompt_embeds"],
        added_cond_kwargs={"text_embeds": given["pooled"], "time_ids": given["time_ids"]},
    ).sample
    error = torch.nn.functional.mse_loss(predicted, given["target"], reduction="none")
    loss = (error.mean(dim=(1, 2, 3)) * given["weight"]).mean()
    loss.backward()
    found = {"loss": loss.detach()}
    found |= {f"gradient {name}": p.grad.clone() for name, p in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=rate, weight_decay=weight_decay)
    found["grad_norm"] = torch.nn.utils.clip_grad_norm_(trained.values(), max_grad_norm)
    optimizer.step()
    found |= {f"updated {name}": p.detach() for name, p in trained.items()}
    return {name: tensor.numpy() for name, tensor in found.items()}
