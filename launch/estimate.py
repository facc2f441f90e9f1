"""How long an update of the plan would take on NPUs: an estimate, of assumed rates.

    compute        FLOP of the UNet's forward and backward pass / an assumed rate
    fixed          what an update costs whatever the batch: operators' launches, the optimizer
    waiting        for the slowest of N workers: compute * spread * E[max of N normal draws]
    communication  one all-reduce: inside each host over HCCS, between hosts over RoCE

Pure, and no part of a launch: `mindbooth plan` prints it. No figure in NPU was measured by us; each
says where it is from, and docs/scale.md more. benchmarks/scale.py tries the same terms on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

from .options import flag_names, flag_value
from .unet import TOKENS, sums

SHOWN = (1, 8, 64, 512, 4096)  # workers of the table
HOST = 8  # NPUs of a usual host, for the table's rows
MOST_SHARE = 0.05  # of an update, for communication; above it there is advice
TEXT_ENCODERS = ((12, 768), (32, 1280))  # layers and width of CLIP ViT-L and OpenCLIP ViT-bigG
BYTES = {"fp16": 2, "fp32": 4}
PASSES = 12  # over the flat fp32 vector: pack, judge, clip, both moments, the master
YES, NO = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")


class Link(NamedTuple):
    """A step of a collective takes latency (s) + bytes / bandwidth (bytes/s, each way)."""

    latency: float
    bandwidth: float


@dataclass(frozen=True, kw_only=True)
class Machine:
    """rates: FLOP/s that are sustained, by what the models compute in. fixed: s an update.
    memory: bytes/s. spread: relative standard deviation of a worker's compute in an update.
    inside, between: a worker's link to those on its host, and on others."""

    rates: Mapping[str, float]
    fixed: float
    memory: float
    spread: float
    inside: Link
    between: Link


NPU = Machine(
    # mindone publishes 447 ms a step for SDXL LoRA at 1024 x 1024 with one Ascend 910*, batch 1,
    # fp16: the UNet's 14.2 TFLOP and the VAE's 4.9 at 43 TFLOP/s. fp32: as the peaks, 1 to 4.
    rates={"fp16": 40e12, "bf16": 40e12, "no": 10e12},
    fixed=5e-3,  # assumed: some dozens of launches, one wait of the host
    memory=0.8e12,  # assumed: half of a 910B's 1.6 TB/s
    spread=0.02,  # assumed
    # Seven links of 28 GB/s each way (assumed), of which 150 GB/s are assumed to arrive; one
    # 200 GbE NIC an NPU, of whose 25 GB/s 22. 20 us: a public cost model's, for a whole collective.
    inside=Link(20e-6, 150e9),
    between=Link(20e-6, 22e9),
)


@dataclass(frozen=True, kw_only=True)
class Training:
    """The training's options that an update's time depends on, with the trainer's defaults."""

    rank: int = field(default=4, metadata={"also": "lora_rank"})
    resolution: int = 1024
    train_batch_size: int = 4
    gradient_accumulation_steps: int = 1
    train_text_encoder: bool = False
    with_prior_preservation: bool = False
    gradient_checkpointing: bool = False
    mixed_precision: str = field(default="no", metadata={"of": tuple(NPU.rates)})
    allreduce_dtype: str = field(default="fp16", metadata={"of": tuple(BYTES)})

    @property
    def samples(self) -> int:
        """Of one worker in an update."""
        return self.train_batch_size * self.gradient_accumulation_steps

    @property
    def numbers(self) -> int:
        """How many are trained."""
        text = sum(depth * 4 * 2 * width for depth, width in TEXT_ENCODERS)
        return self.rank * (sums(1).sides + self.train_text_encoder * text)

    @property
    def wire(self) -> int:
        """Bytes of an update's all-reduce: gradients, loss, stop request."""
        return BYTES[self.allreduce_dtype] * (self.numbers + 2)

    @property
    def flops(self) -> float:
        """Of a sample, forward and backward; with its class picture, if there is one."""
        unet = sums((self.resolution // 8) ** 2)
        forward, backward = unet.forward, unet.backward
        if self.train_text_encoder:
            text = sum(2 * 12 * width**2 * depth * TOKENS for depth, width in TEXT_ENCODERS)
            forward, backward = forward + text, backward + text
        again = forward if self.gradient_checkpointing else 0
        # The LoRA matrices: forward, their inputs' gradient, their own.
        one = forward + again + backward + 3 * 2 * self.rank * unet.lora
        return one * (2 if self.with_prior_preservation else 1)


@dataclass(frozen=True, kw_only=True)
class Update:
    """An update of so many workers, in seconds; samples: of all of them."""

    workers: int
    samples: int
    compute: float
    fixed: float
    waiting: float
    communication: float

    @property
    def seconds(self) -> float:
        return self.compute + self.fixed + self.waiting + self.communication

    @property
    def share(self) -> float:
        """Of communication."""
        return self.communication / self.seconds

    @property
    def efficiency(self) -> float:
        """Samples/s of a worker, against those of a worker alone."""
        return (self.compute + self.fixed) / self.seconds


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """plan: the plan's own workers. rows: SHOWN, and the plan's. network: how many workers, of the
    plan or if that has one host of the last row, and the bytes/s of a worker's link to other hosts
    with which their communication takes MOST_SHARE; None where no link is fast enough. advice:
    options, and the share that communication has with each."""

    training: Training
    plan: Update
    rows: tuple[Update, ...]
    network: tuple[int, float] | None
    advice: tuple[tuple[str, float], ...]


def read(flags: Sequence[str], config: Mapping[str, object]) -> Training:
    """Look the options up in training flags and, where they are not there, in the YAML file's.

    Never fails: what is missing or odd has its default. The trainer is to complain.
    """
    found: dict[str, Any] = {}
    given = {str(name).replace("-", "_"): value for name, value in config.items()}
    for option in fields(Training):
        value = None
        for name in (option.name, option.metadata.get("also", option.name)):
            if f"--{name}" in flag_names(flags):
                value = flag_value(flags, f"--{name}")
                # A switch may stand alone: what follows it is another flag, or nothing.
                value = "true" if value is None or value.startswith("--") else value
            elif value is None and isinstance(given.get(name), (str, int)):
                value = repr(given[name]) if isinstance(given[name], bool) else _text(given[name])
        parsed = None if value is None else _parsed(value, option.default, option.metadata)
        found[option.name] = option.default if parsed is None else parsed
    return Training(**found)


def _text(value: object) -> str:
    # Python refuses to write numbers of thousands of digits out.
    return "" if isinstance(value, int) and value.bit_length() > 64 else str(value)


def _parsed(text: str, default: object, metadata: Mapping[str, object]) -> object:
    if isinstance(default, bool):
        return {**dict.fromkeys(YES, True), **dict.fromkeys(NO, False)}.get(text.lower())
    if isinstance(default, int):
        sound = text.isascii() and text.isdigit() and len(text) < 7
        return int(text) or None if sound else None
    of = metadata["of"]
    assert isinstance(of, tuple)
    return text if text in of else None


def estimate(training: Training, *, hosts: int, per_host: int) -> Estimate:
    """Estimate updates of `hosts` hosts with `per_host` workers each, and of those in SHOWN."""
    plan = update(training, hosts=hosts, per_host=per_host)
    usual = HOST if per_host <= HOST else 2 * HOST
    shapes = {n: (max(1, n // usual), min(n, usual)) for n in SHOWN}
    shapes[plan.workers] = (hosts, per_host)
    rows = [update(training, hosts=h, per_host=p) for _, (h, p) in sorted(shapes.items())]
    many = (hosts, per_host) if hosts > 1 else shapes[max(shapes)]
    return Estimate(
        training=training,
        plan=plan,
        rows=tuple(rows),
        network=_network(training, *many),
        advice=_advice(training, hosts, per_host) if plan.share > MOST_SHARE else (),
    )


def update(training: Training, *, hosts: int, per_host: int, machine: Machine = NPU) -> Update:
    workers = hosts * per_host
    compute = training.samples * training.flops / machine.rates[training.mixed_precision]
    return Update(
        workers=workers,
        samples=workers * training.samples,
        compute=compute,
        fixed=machine.fixed + PASSES * 4 * training.numbers / machine.memory,
        waiting=compute * machine.spread * slowest(workers),
        communication=all_reduce(training.wire, hosts, per_host, machine.inside, machine.between),
    )


def all_reduce(size: float, hosts: int, per_host: int, inside: Link, between: Link) -> float:
    """Seconds of an all-reduce of `size` bytes.

    Inside a host a ring scatters the sums and gathers them again; between, the worker with the same
    part on each host meets the others by halving and doubling (HCCL's H-D_R; its NHR has as many
    steps). Thakur, Rabenseifner and Gropp 2005, https://doi.org/10.1177/1094342005051521.
    """
    near = _exchange(size, per_host, steps=per_host - 1, link=inside)
    far = _exchange(size / per_host, hosts, steps=(hosts - 1).bit_length(), link=between)
    return near + far


def _exchange(size: float, parties: int, *, steps: int, link: Link) -> float:
    return 2 * (steps * link.latency + (parties - 1) / parties * size / link.bandwidth)


def slowest(workers: int) -> float:
    """The expected maximum of so many standard normal draws, by its integral.

    David and Nagaraja, Order Statistics, 3rd ed.: E[max] = int_0^inf (1 - F^n) - int_-inf^0 F^n.
    """
    step = 0.05
    points = (step * (i + 0.5) for i in range(-160, 160))
    return step * math.fsum(
        (x > 0) - (0.5 * math.erfc(-x / math.sqrt(2))) ** workers for x in points
    )


def _network(training: Training, hosts: int, per_host: int) -> tuple[int, float] | None:
    whole = update(training, hosts=hosts, per_host=per_host)
    rest = whole.seconds - whole.communication
    endless = replace(NPU, between=Link(NPU.between.latency, math.inf))
    without = update(training, hosts=hosts, per_host=per_host, machine=endless).communication
    room = MOST_SHARE / (1 - MOST_SHARE) * rest - without
    at_ours = (whole.communication - without) * NPU.between.bandwidth
    return (whole.workers, at_ours / room) if room > 0 else None


def _advice(training: Training, hosts: int, per_host: int) -> tuple[tuple[str, float], ...]:
    """What to set, each by itself: the least that makes communication fit, or else the most."""
    steps, rank = training.gradient_accumulation_steps, training.rank
    ways: tuple[tuple[str, list[Any]], ...] = (
        ("allreduce_dtype", ["fp16"] if training.allreduce_dtype == "fp32" else []),
        ("gradient_accumulation_steps", [steps << i for i in range(1, 8)]),
        ("rank", [rank >> i for i in range(1, rank.bit_length())]),
    )
    found = []
    for name, values in ways:
        for value in values:
            changed = replace(training, **{name: value})
            share = update(changed, hosts=hosts, per_host=per_host).share
            if share <= MOST_SHARE or value == values[-1]:
                found.append((f"--{name} {value}", share))
                break
    return tuple(found)
