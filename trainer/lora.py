"""The LoRA adapter: injected into a model's attention, and held in one flat fp32 vector.

    W x  ->  W x + B (A x) * alpha / rank        A: (rank, in), gaussian; B: (out, rank), zeros

All A and B of the run lie behind each other in one vector, the master, which alone the optimizer
writes. In each model's part, tensors with rows of one length are neighbours, so that one
concatenation joins all their gradients. After each update the layers' parameters get their values
in the first of these ways that works, which is tried out at the start:

    memory    on a CPU only: copied into the parameters' own memory, which the host can write to
    views     each parameter is given a view of the master; the views are made once
    anew      the same with new views, where earlier ones do not show what was written later

A parameter that was given a tensor costs the next run of a graph 0.09 ms on a CPU, a tenth of a
second for SDXL's 1,120; one whose memory was written to costs nothing (MindSpore 2.7.1). Views have
to be given each time: a compiled graph copies what it was given to memory of its own.

Method: LoRA, https://arxiv.org/abs/2106.09685.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import operator
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, mint, nn, ops

log = logging.getLogger(__name__)

WAYS = ("memory", "views", "anew")
# Which layers get an adapter, by model.
TARGETS = {
    "unet": ("to_k", "to_q", "to_v", "to_out.0"),
    "text_encoder": ("q_proj", "k_proj", "v_proj", "out_proj"),
    "text_encoder_2": ("q_proj", "k_proj", "v_proj", "out_proj"),
}


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Where one tensor of the adapter lies in the flat vector."""

    name: str  # e.g. "unet.down_blocks.1.attentions.0....to_q.lora_A.weight"
    shape: tuple[int, int]
    offset: int

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1]


class Adapter:
    """The trained tensors of a run: their pieces, the flat master, and the layers' parameters.

    models: with LoRA layers, by TARGETS' names; the vector has their tensors in this order.
    master: Parameter (P,), fp32. Written by the optimizer only.
    parameters: the layers' own, in the order of `pieces`; fp32, trainable.
    blocks: how many neighbours each have rows of one length, and how many rows of which length.
    stops: where each model's part of the vector ends.
    metadata: per model, its peft configuration, as diffusers stores it; without dropout, which
    torch's diffusers would go on with when it draws.
    """

    def __init__(self, models: Mapping[str, nn.Cell], *, seed: int) -> None:
        self.models = models
        pieces, parameters, offset = [], [], 0
        self.stops: dict[str, int] = {}
        for prefix, model in models.items():
            for parameter in sorted(model.trainable_params(), key=lambda p: p.shape[1]):
                name = f"{prefix}.{parameter.name.replace('.default.', '.')}"
                pieces.append(Piece(name=name, shape=tuple(parameter.shape), offset=offset))
                parameters.append(parameter)
                offset += pieces[-1].size
            self.stops[prefix] = offset
            if prefix != "unet":  # the text encoders' names are the same, which a graph can't have
                for parameter in model.get_parameters():
                    parameter.name = f"{prefix}.{parameter.name}"
        self.pieces = tuple(pieces)
        self.parameters = tuple(parameters)
        self.blocks = blocks([piece.shape for piece in self.pieces])
        self.metadata = {
            name: {**model.peft_config["default"].to_dict(), "lora_dropout": 0.0}
            for name, model in models.items()
        }
        flat = np.concatenate([_initial(piece, seed).ravel() for piece in self.pieces])
        self.master = Parameter(Tensor(flat), name="adapter_master", requires_grad=False)
        for parameter in self.parameters:
            parameter.set_dtype(ms.float32)
        self.ways: tuple[str, ...] = WAYS if ms.get_context("device_target") == "CPU" else WAYS[1:]
        self.prove()

    @property
    def size(self) -> int:
        """How many numbers are trained."""
        return self.pieces[-1].offset + self.pieces[-1].size

    @property
    def way(self) -> str:
        """How the layers get the master's values."""
        return self.ways[0]

    def prove(self) -> None:
        """Finds the first way that works; once more after others have used the parameters.

        Raises RuntimeError where none does.
        """
        kept = self.master.asnumpy().copy()
        while not self._works():
            if len(self.ways) == 1:
                raise RuntimeError(f"No way of {', '.join(WAYS)} reaches the layers' parameters.")
            log.info("Layers can't be written to by way of %s here, but by %s.", *self.ways[:2])
            self.ways = self.ways[1:]
        self.load(kept)

    def written(self) -> None:
        """To be called after each write to the master: the layers have its values now."""
        if self.way == "memory":
            for memory, values in zip(self._memory, self.arrays().values(), strict=True):
                np.copyto(memory, values, casting="no")
            return
        views = self._views if self.way == "views" else self._parts()
        for parameter, view in zip(self.parameters, views, strict=True):
            parameter.set_data(view)

    def load(self, flat: np.ndarray) -> None:
        """Replaces the master's values, (P,) fp32, and the layers' with them."""
        ops.assign(self.master, Tensor(np.ascontiguousarray(flat, np.float32)))
        self.written()

    def arrays(self, flat: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """The adapter's tensors by name; or those of another vector of its kind."""
        flat = self.master.asnumpy() if flat is None else flat
        return {p.name: flat[p.offset : p.offset + p.size].reshape(p.shape) for p in self.pieces}

    def digest(self) -> int:
        """24 bits of the master's SHA-256: equal on all ranks as long as they agree."""
        return int(hashlib.sha256(self.master.asnumpy().tobytes()).hexdigest()[:6], 16)

    def layout(self) -> str:
        """A digest of names and shapes: equal where one flat vector fits the other."""
        told = " ".join(f"{piece.name}{piece.shape}" for piece in self.pieces)
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    @functools.cached_property
    def _memory(self) -> list[np.ndarray]:
        return [parameter.asnumpy() for parameter in self.parameters]

    @functools.cached_property
    def _views(self) -> list[Tensor]:
        return self._parts()

    def _parts(self) -> list[Tensor]:
        """New views of the master, one for each piece."""
        return [self.master[p.offset : p.offset + p.size].view(p.shape) for p in self.pieces]

    def _works(self) -> bool:
        """Whether an operator that reads the parameters finds what was loaded, twice."""
        for start in (1, 2):
            probe = ((np.arange(self.size) + start) % 251).astype(np.float32) / 3
            self.load(probe)
            blocks = join(self.parameters, [count for count, _ in self.blocks])
            seen = np.concatenate([block.asnumpy().ravel() for block in blocks])
            if not np.array_equal(seen, probe):
                return False
        return True


def blocks(shapes: Iterable[tuple[int, int]]) -> tuple[tuple[int, tuple[int, int]], ...]:
    """`Adapter.blocks`, from the shapes of all tensors."""
    found = []
    for width, group in itertools.groupby(shapes, key=operator.itemgetter(1)):
        rows = [rows for rows, _ in group]
        found.append((len(rows), (sum(rows), width)))
    return tuple(found)


def join(tensors: Sequence[Tensor], counts: Sequence[int]) -> tuple[Tensor, ...]:
    """Each `counts` of neighbours, which have rows of one length, as one matrix; also in a graph.

    One vector of them all would be a reshape a tensor, and for SDXL's 1,120 a tuple that takes
    minutes to compile where it grows by one at a time.
    """
    joined: tuple[Tensor, ...] = ()
    start = 0
    for count in counts:
        joined += (ops.concat(tensors[start : start + count]),)
        start += count
    return joined


def inject(
    model: nn.Cell,
    *,
    rank: int,
    targets: tuple[str, ...] = TARGETS["unet"],
    dropout: float = 0.0,
) -> None:
    """Freezes `model` and adds LoRA layers of `rank` (alpha = rank, so scale 1) at `targets`.

    dropout: see `drop`. Raises ValueError for a target that matches no layer.
    """
    from mindone.peft import LoraConfig, inject_adapter_in_model

    layers = [name for name, _ in model.cells_and_names()]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            raise ValueError(f"LoRA target {target!r} matches no layer of {type(model).__name__}.")
    for parameter in model.get_parameters():
        parameter.requires_grad = False
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        lora_dropout=dropout,
        init_lora_weights=False,  # Adapter sets the values
        target_modules=list(targets),
    )
    inject_adapter_in_model(config, model)
    for layer in model.cells():
        _simplify(layer)


def drop(models: Mapping[str, nn.Cell], *, on: bool) -> None:
    """Whether LoRA layers zero some of their inputs, as in training, or none, as for pictures."""
    from mindone.peft.tuners.lora import LoraLayer

    for model in models.values():
        for _, cell in model.cells_and_names():
            if isinstance(cell, LoraLayer):
                cell.lora_dropout["default"].set_train(on)


def seed_dropout(*numbers: int) -> None:
    """Seeds what `drop` draws on the device: all that is random there, and differs by rank."""
    ms.set_seed(int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:4], "big") >> 1)


class Projection(nn.Cell):
    """x W^T in the dtype of x, with W kept in fp32: what autocasting is elsewhere.

    peft casts x to fp32 instead; in an fp16 model that is twice the memory traffic.
    """

    def __init__(self, weight: Parameter) -> None:
        super().__init__()
        self.weight = weight

    def construct(self, x: Tensor) -> Tensor:
        return mint.nn.functional.linear(x, ops.cast(self.weight, x.dtype))


def _simplify(cell: nn.Cell) -> None:
    """Puts a Projection in the place of each LoRA matrix below `cell`, and takes out of its layer
    what does nothing here: two multiplications by 1 a layer, and casts."""
    from mindone.peft.tuners.lora import LoraLayer

    if isinstance(cell, LoraLayer):
        for matrices in (cell.lora_A, cell.lora_B):
            matrices["default"] = Projection(matrices["default"].weight)
        cell.__class__ = _layer_class(cell.__class__)
        return
    for inner in cell.cells():
        _simplify(inner)


@functools.cache
def _layer_class(of_peft: Hashable) -> Any:
    base: Any = of_peft

    class Linear(base):
        """W x + B (A x): peft's layer with one adapter of scale 1, neither merged nor disabled."""

        def construct(self, x: Tensor) -> Tensor:
            low = self.lora_A["default"](self.lora_dropout["default"](x))
            return self.base_layer(x) + self.lora_B["default"](low)

    return Linear


def _initial(piece: Piece, seed: int) -> np.ndarray:
    """peft's "gaussian" start: A ~ N(0, 1 / rank), B = 0, from a generator of the piece's own.

    Keyed by (seed, name), so every rank has the same values and needs no broadcast.
    """
    if ".lora_B." in piece.name:
        return np.zeros(piece.shape, np.float32)
    key = hashlib.sha256(f"{seed} {piece.name}".encode()).digest()[:16]
    generator = np.random.Generator(np.random.Philox(key=np.frombuffer(key, np.uint64)))
    return (generator.standard_normal(piece.shape) / piece.shape[0]).astype(np.float32)
