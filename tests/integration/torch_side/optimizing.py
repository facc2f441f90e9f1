"""torch.optim.AdamW and prodigyopt with clipping and schedules, as diffusers' scripts use them."""

from typing import Any

import numpy as np
import torch
from diffusers.optimization import get_scheduler
from prodigyopt import Prodigy


def answer(
    arrays: dict[str, np.ndarray], cases: list[dict[str, Any]], schedules: list[dict[str, Any]]
) -> dict[str, np.ndarray]:
    """arrays: "start" (P,), "gradients" (updates, P).

    To "masters i" (updates, P) and "norms i" (updates,) for case i, with "d i" (updates,) for
    Prodigy, and "rates i" for schedule i.
    """
    found = {}
    for i, case in enumerate(cases):
        found |= {f"{k} {i}": v for k, v in course(**arrays, **case).items()}
    for i, options in enumerate(schedules):
        found[f"rates {i}"] = rates(**options)
    return found


def course(
    start: np.ndarray,
    gradients: np.ndarray,
    optimizer: str,
    segments: list[dict[str, float]],
    schedule: dict[str, Any],
    max_grad_norm: float,
    options: dict[str, Any],
) -> dict[str, np.ndarray]:
    stops = [int(segment["stop"]) for segment in segments]
    parameters = [
        torch.nn.Parameter(torch.from_numpy(part.copy())) for part in np.split(start, stops[:-1])
    ]
    groups = [
        {"params": [p], "lr": segment["rate"], "weight_decay": segment["weight_decay"]}
        for p, segment in zip(parameters, segments, strict=True)
    ]
    kind = {"AdamW": torch.optim.AdamW, "Prodigy": Prodigy}[optimizer]
    moving = kind(groups, lr=segments[0]["rate"], **options)
    scheduler = get_scheduler(
        schedule["name"],
        moving,
        num_warmup_steps=schedule["warmup"],
        num_training_steps=schedule["updates"],
    )
    masters, norms, d = [], [], []
    for gradient in gradients[: schedule["updates"]]:
        for p, part in zip(parameters, np.split(gradient, stops[:-1]), strict=True):
            p.grad = torch.from_numpy(part.copy())
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm).item())
        moving.step()
        scheduler.step()
        masters.append(np.concatenate([p.detach().numpy() for p in parameters]))
        d.append(moving.param_groups[0].get("d", 0.0))
    return {"masters": np.stack(masters), "norms": np.array(norms), "d": np.array(d)}


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
