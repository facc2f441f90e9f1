"""What a user would run instead, and what no update can do without: workers of step.py.

`peer.py step` is a training step made of what mindone 0.5.0 publishes, as its example for
DreamBooth puts it together: `TrainStep` with a static loss scale and clipping,
`nn.AdamWeightDecay`, `nn.DistributedGradReducer` where there are several workers, the VAE's encoder
inside the step, with --captions also both text encoders, noise and timesteps drawn on the device,
and loss and learning rate read after each step. `peer.py bare` is the UNet's forward and backward
for the adapter's gradients, with mindbooth's LoRA layers and nothing else.

Both get their pictures prepared, and run on the device as mindbooth sets it up: with the operators
that it replaces on a CPU, of which some are there for speed alone. Rank 0 writes found.json:
seconds of each step, and the most memory that was resident. `peer.py launch LAUNCHER_OPTIONS --
...` starts several workers of them.

`peer.py between FILE TRAIN_OPTIONS` is `mindbooth train`, but that before each update, and on its
batches, the bare forward and backward is done; FILE gets its seconds, and all that it took.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

RANK = 4
LOSS_SCALE = 65536
Run = Callable[[], object]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("step", "bare"))
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--resolution", type=int, required=True)
    parser.add_argument("--mode", choices=("graph", "pynative"), default="graph")
    parser.add_argument("--captions", action="store_true")
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--left_out", type=int, default=5, help="before memory is looked at")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--device_target", default="CPU")  # the launcher adds it
    options = parser.parse_args()

    from mindbooth.ranktable.placement import Placement
    from mindbooth.trainer.__main__ import hide_chatter, keep_torch_out

    keep_torch_out()
    hide_chatter()
    from mindbooth.trainer import device

    comm = device.start(Placement.from_environ(os.environ), target=options.device_target)
    from mindbooth.trainer.memory import Host

    run = (step if options.what == "step" else bare)(options, comm)
    seconds, host = [], Host()
    with device.mode(options.mode):
        for update in range(options.updates):
            if update == options.left_out:
                host.reset()
            began = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - began)
    if comm.rank == 0:
        found = {"seconds": seconds, "peak": host.read()[1]}
        (options.output_dir / "found.json").write_text(json.dumps(found))
    return 0


def launch(argv: list[str]) -> int:
    """As `mindbooth launch` starts its own workers."""
    from mindbooth.launch.commands import launch

    return launch(argv, program=(str(Path(__file__).resolve()),))


def loaded_unet(model: Path) -> Any:
    from mindone.diffusers import UNet2DConditionModel

    return frozen(UNet2DConditionModel.from_pretrained(str(model), subfolder="unet"))


def frozen(cell: Any) -> Any:
    cell.set_train(False)
    for parameter in cell.get_parameters():
        parameter.requires_grad = False
    return cell


def conditions(unet: Any, resolution: int) -> tuple[Any, Any, Any]:
    """Prompt embeddings, pooled ones and size ids of one sample."""
    import mindspore as ms

    config = unet.config
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    random = np.random.default_rng(0)
    made = [
        random.standard_normal((1, 32, config.cross_attention_dim), np.float32),
        random.standard_normal((1, pooled), np.float32),
        np.array([[resolution, resolution, 0, 0, resolution, resolution]], np.float32),
    ]
    return tuple(ms.Tensor(array) for array in made)  # type: ignore[return-value]


def bare(options: argparse.Namespace, comm: Any) -> Run:
    """Forward and backward for the gradients of mindbooth's own adapter layers, and no more."""
    import mindspore as ms
    from mindspore import Tensor

    from mindbooth.trainer import lora

    unet = loaded_unet(options.model)
    lora.inject(unet, rank=RANK)
    text, pooled, ids = conditions(unet, options.resolution)
    sample = unet.config.sample_size
    random = np.random.default_rng(0)
    noisy, target = (
        Tensor(random.standard_normal((1, 4, sample, sample), np.float32)) for _ in range(2)
    )
    timestep = Tensor([500.0], ms.float32)
    cell = bare_cell(unet)

    def run() -> float:
        loss, _ = cell(noisy, timestep, target, text, pooled, ids)
        return float(loss.asnumpy())

    return run


def bare_cell(unet: Any) -> Any:
    """Noisy latents, timestep, target, texts and size ids -> loss and gradients."""
    from mindspore import nn, ops

    class Bare(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.unet = unet
            self.gradients = ops.value_and_grad(self.loss, None, weights=unet.trainable_params())

        def loss(self, noisy, timestep, target, text, pooled, ids):  # type: ignore[no-untyped-def]
            predicted = self.unet(
                noisy,
                timestep,
                text,
                added_cond_kwargs={"text_embeds": pooled, "time_ids": ids},
                return_dict=False,
            )[0]
            return ops.mse_loss(predicted, target)

        def construct(self, *inputs):  # type: ignore[no-untyped-def]
            return self.gradients(*inputs)

    return Bare()


def between(argv: list[str]) -> int:
    """`mindbooth train`, with the bare forward and backward before each update."""
    from mindbooth.trainer import __main__ as trainer

    trainer.hide_chatter()
    trainer.keep_torch_out()
    from mindspore import Tensor

    from mindbooth.trainer import device, loop
    from mindbooth.trainer.step import inputs

    took: dict[int, list[float]] = {}  # by update: the bare ones, and all that is none of its own

    class Between(loop.Step):
        def prepare(self, batch: Any) -> None:
            # First: the second graph of a process is up to a tenth slower.
            self.bare = bare_cell(self.adapter.models["unet"])
            self.run_bare([batch])
            super().prepare(batch)

        def __call__(self, update: int, factor: float, batches: Any, *, stop: bool) -> Any:
            before = took.get(update, [0, 0])  # it overflowed, and is repeated
            took[update] = [a + b for a, b in zip(before, self.run_bare(batches), strict=True)]
            return super().__call__(update, factor, batches, stop=stop)

        def run_bare(self, batches: Any) -> tuple[float, float]:
            """Seconds; and with those before: its inputs are ready, and what an update left for the
            next graph to do is done."""
            came, given = time.perf_counter(), []
            for batch in batches:
                noisy, timesteps, target, _, ids, _, *text = inputs(batch, Tensor(1.0))
                given.append((noisy, timesteps, target, *text, ids))
            with device.mode(self.mode):
                self.bare(*given[0])[0].asnumpy()
                began = time.perf_counter()
                for tensors in given:
                    self.bare(*tensors)[0].asnumpy()
            ended = time.perf_counter()
            return ended - began, ended - came

    loop.Step = Between  # type: ignore[misc]
    ended = trainer.main(argv[1:])
    Path(argv[0]).write_text(json.dumps(list(took.values())))
    return ended


def step(options: argparse.Namespace, comm: Any) -> Run:
    """One whole step of the example's kind, on one picture a worker."""
    import mindspore as ms
    from mindone.diffusers import AutoencoderKL, DDPMScheduler
    from mindone.diffusers.training_utils import TrainStep
    from mindone.peft import LoraConfig
    from mindone.transformers import (
        AutoModel,  # noqa: F401 (then it is the whole package, as a script has it)
        CLIPTextModel,
        CLIPTextModelWithProjection,
    )
    from mindspore import Tensor, nn, ops
    from mindspore.amp import StaticLossScaler

    if comm.size > 1:
        ms.set_auto_parallel_context(
            parallel_mode="data_parallel",
            device_num=comm.size,
            global_rank=comm.rank,
            gradients_mean=True,
        )
    model = str(options.model)
    unet = loaded_unet(options.model)
    unet.add_adapter(
        LoraConfig(
            r=RANK,
            lora_alpha=RANK,
            init_lora_weights="gaussian",
            target_modules=["to_k", "to_q", "to_v", "to_out.0"],
        )
    )
    vae = frozen(AutoencoderKL.from_pretrained(model, subfolder="vae"))
    scheduler = DDPMScheduler.from_pretrained(model, subfolder="scheduler")
    encoders = [
        frozen(kind.from_pretrained(model, subfolder=part))
        for kind, part in (
            (CLIPTextModel, "text_encoder"),
            (CLIPTextModelWithProjection, "text_encoder_2"),
        )
    ]
    for name, encoder in zip(("one", "two"), encoders, strict=True):
        for parameter in encoder.get_parameters():  # the optimizer wants each name once
            parameter.name = f"text_encoder_{name}.{parameter.name}"
    rates = [1e-4] * (options.updates + 1)
    optimizer = nn.AdamWeightDecay(unet.trainable_params(), learning_rate=rates, weight_decay=1e-4)
    text, pooled, ids = conditions(unet, options.resolution)

    class Step(TrainStep):
        def __init__(self) -> None:
            super().__init__(unet, optimizer, StaticLossScaler(LOSS_SCALE), 1.0, 1)
            self.unet, self.vae, self.scheduler = unet, vae, scheduler
            self.first, self.second = encoders
            self.captions = options.captions
            self.text, self.pooled = text, pooled
            self.levels = scheduler.config.num_train_timesteps
            self.factor = vae.config.scaling_factor

        def encoded(self, one, two):  # type: ignore[no-untyped-def]
            states = self.first(one, output_hidden_states=True)[-1][-2]
            second = self.second(two, output_hidden_states=True)
            return ops.concat((states, second[-1][-2]), -1), second[0]

        def forward(self, pixels, one, two, ids):  # type: ignore[no-untyped-def]
            latents = self.vae.diag_gauss_dist.sample(self.vae.encode(pixels)[0]) * self.factor
            noise = ops.randn_like(latents, dtype=latents.dtype)
            timesteps = ops.randint(0, self.levels, (latents.shape[0],)).long()
            noisy = self.scheduler.add_noise(latents, noise, timesteps)
            text, pooled = self.encoded(one, two) if self.captions else (self.text, self.pooled)
            predicted = self.unet(
                noisy,
                timesteps,
                text,
                added_cond_kwargs={"text_embeds": pooled, "time_ids": ids},
                return_dict=False,
            )[0]
            loss = ops.mse_loss(predicted.float(), noise.float(), reduction="mean")
            return self.scale_loss(loss), predicted

    cell = Step().set_train()
    random = np.random.default_rng(comm.rank)
    side = options.resolution
    pixels = random.uniform(-1, 1, (5, 1, 3, side, side)).astype(np.float32)
    tokens = random.integers(3, 700, (5, 2, 1, 32)).astype(np.int32)
    done = 0

    def run() -> tuple[float, float]:
        nonlocal done
        at, done = done % len(pixels), done + 1
        given = [Tensor(pixels[at]), *map(Tensor, tokens[at]), ids]
        loss, _ = cell(*given)
        return float(loss.asnumpy()), float(optimizer.get_lr().asnumpy())

    return run


if __name__ == "__main__":
    way = {"launch": launch, "between": between}.get("".join(sys.argv[1:2]))
    sys.exit(way(sys.argv[2:]) if way else main())
