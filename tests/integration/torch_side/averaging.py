"""The moving average of diffusers' EMAModel."""

import numpy as np
import torch
from diffusers.training_utils import EMAModel


def answer(arrays: dict[str, np.ndarray], decay: float) -> dict[str, np.ndarray]:
    """arrays: "start" (P,), "masters" (updates, P) after each update. To "averages" likewise."""
    parameter = torch.nn.Parameter(torch.from_numpy(arrays["start"]))
    ema = EMAModel([parameter], decay=decay)
    averages = []
    for master in arrays["masters"]:
        parameter.data.copy_(torch.from_numpy(master))
        ema.step([parameter])
        averages.append(ema.shadow_params[0].numpy().copy())
    return {"averages": np.stack(averages)}
