"""torch.optim.AdamW with clipping, and the learning rates of diffusers' schedules."""

import numpy as np
import torch
from diffusers.optimization import get_scheduler


def answer(
    arrays: dict[str, np.ndarray], adamw: dict[str, object], schedules: list[dict[str, object]]
) -> dict[str, np.ndarray]:
    """arrays: "start" (P,), "gradients" (updates, P), "rates" (updates,).

    To "masters" (updates, P), "norms" (updates,), and "rates i" for schedule i.
    """
    master = torch.nn.Parameter(torch.from_numpy(arrays["start"]))
    max_grad_norm = adamw.pop("max_grad_norm")
    optimizer = torch.optim.AdamW([master], **adamw)
    masters, norms = [], []
    for gradient, rate in zip(arrays["gradients"], arrays["rates"], strict=True):
        master.grad = torch.from_numpy(gradient.copy())
        norms.append(torch.nn.utils.clip_grad_norm_([master], max_grad_norm).item())
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.step()
        masters.append(master.detach().numpy().copy())
    found = {"masters": np.stack(masters), "norms": np.array(norms)}
    for i, options in enumerate(schedules):
        found[f"rates {i}"] = rates(**options)
    return found


def rates(
    name: str, rate: float, warmup: int, updates: int, cycles: int, power: float
) -> np.ndarray:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    scheduler = get_scheduler(
        name,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=updates,
        num_cycles=cycles,
        power=power,
    )
    found = []
    for _ in range(updates):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return np.array(found)
