"""Peak memory of a forward and backward pass with --gradient_checkpointing, and without it.

`peak.py MODEL MODE OUT.json`; MODEL is the mini SDXL.
With it first: memory that was freed stays with the process, so what comes later can only need more.
"""

import json
import sys
from pathlib import Path

import numpy as np

from mindbooth.ranktable.placement import Placement
from mindbooth.trainer.__main__ import keep_torch_out

ROWS = 8


def main(model: str, mode: str) -> dict[str, dict[str, float]]:
    keep_torch_out()
    from mindspore import Tensor

    from mindbooth.data.batches import Batch
    from mindbooth.trainer import device, lora, memory, sdxl
    from mindbooth.trainer.config import ModelConfig
    from mindbooth.trainer.recompute import recompute
    from mindbooth.trainer.step import Forward, inputs

    device.start(Placement.from_environ({}), target="CPU")
    located = sdxl.locate(ModelConfig(pretrained_model_name_or_path=model))
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    batch = Batch(
        samples=tuple(range(ROWS)),
        noisy=normal(ROWS, 4, 32, 32),
        timesteps=np.arange(ROWS).astype(np.float32),
        target=normal(ROWS, 4, 32, 32),
        weight=np.ones(ROWS, np.float32),
        time_ids=np.array([[64, 64, 0, 0, 64, 64]] * ROWS, np.float32),
        text=(normal(ROWS, 32, 160), normal(ROWS, 96)),
    )
    host, found = memory.Host(), {}
    for name in ("with", "without"):
        unet = sdxl.load_unet(located, sdxl.DTYPES["no"])
        lora.inject(unet, rank=4)
        adapter = lora.Adapter({"unet": unet}, seed=3)
        adapter.load(np.random.default_rng(1).standard_normal(adapter.size) * 0.05)
        if name == "with":
            recompute(adapter.models)
        forward = Forward(adapter, sdxl.DTYPES["no"])
        for _ in range(2):  # what the first one allocates, by compiling or not, does not count
            host.reset()
            resident, _ = host.read()
            with device.mode(mode):
                parts = forward(*inputs(batch, Tensor(np.float32(1))))
            flat = np.concatenate([part.asnumpy().ravel() for part in parts])
        _, peak = host.read()
        found[name] = {"peak": peak, "resident": resident, "norm": float(np.linalg.norm(flat))}
    return found


if __name__ == "__main__":
    Path(sys.argv[3]).write_text(json.dumps(main(sys.argv[1], sys.argv[2])))
