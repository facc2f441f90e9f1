"""What a UNet of 83 million numbers takes once it is loaded: `weights.py FOLDER FILES DTYPE`.

Writes one with random weights into FOLDER, in FILES (float16, float32), loads it in DTYPE, and
prints JSON: bytes of weights by dtype, and by how many bytes the process has grown.
"""

import ctypes
import gc
import json
import sys
from pathlib import Path

from mindbooth.ranktable.placement import Placement
from mindbooth.trainer import __main__ as trainer


def write(folder: Path, files: str) -> None:
    import numpy as np
    from mindone.diffusers import UNet2DConditionModel
    from mindspore.nn.utils import no_init_parameters
    from safetensors.numpy import save_file
    from tiny_sdxl import WEIGHTS, config

    wide = {"block_out_channels": [160, 640], "attention_head_dim": [5, 10], "norm_num_groups": 32}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config("unet") | wide))
    with no_init_parameters():
        unet = UNet2DConditionModel.from_config(str(folder))
    random = np.random.default_rng(0)
    values = {
        name: random.random(parameter.shape, np.float32).astype(files)
        for name, parameter in unet.parameters_and_names()
    }
    save_file(values, folder / WEIGHTS["unet"], metadata={"format": "pt"})


def main(folder: Path, files: str, dtype: str) -> None:
    trainer.keep_torch_out()
    from mindbooth.trainer import device, memory, sdxl

    device.start(Placement.from_environ({}), target="CPU")
    write(folder / "unet", files)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system
    host = memory.Host()
    before, _ = host.read()
    model = sdxl.Model(name="", folder=folder, vae=folder, variant=None, vae_variant=None)
    unet = sdxl.load_unet(model, sdxl.DTYPES[dtype])
    gc.collect()
    after, _ = host.read()
    print(json.dumps({"weights": memory.weights(unet), "grown": after - before}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
