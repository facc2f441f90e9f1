"""Calls of the operators in trainer/cpu_ops.py, written once for mindspore.mint and for torch.

mint has torch's names, so `cases(mint, mindspore)` and `cases(torch, torch)` are the same calls in
two libraries. Each function takes arrays only; in graph mode MindSpore compiles it as it stands.
Random operators are in `draws`: their values can't be compared, only what they are drawn from.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

IDS = np.array([[1, 4, 0], [3, 1, 1]])


@dataclass(frozen=True)
class Case:
    """A call, and the shapes of its inputs (or, for whole numbers, the inputs themselves)."""

    name: str
    call: Callable[..., Any]
    takes: tuple[Any, ...]
    differentiable: bool

    @property
    def operator(self) -> str:
        """The name in mint: what comes before the double underscore is the same, the rest a use."""
        return self.name.partition("__")[0]

    def inputs(self, dtype: str) -> list[np.ndarray]:
        """The same arrays on both sides, away from 0 so that no kink is met."""
        generator = np.random.default_rng(zlib.crc32(self.name.encode()))
        return [
            one if isinstance(one, np.ndarray) else generator.standard_normal(one).astype(dtype)
            for one in self.takes
        ]


def cases(lib: Any, types: Any) -> dict[str, Case]:
    """All calls by name."""
    functional = lib.nn.functional
    found: dict[str, Case] = {}

    def case(*takes: Any, differentiable: bool = True) -> Callable[[Any], Any]:
        def take(call: Any) -> Any:
            found[call.__name__] = Case(
                call.__name__, call, takes, differentiable and bool(takes)
            )
            return call

        return take

    @case()
    def arange():
        return lib.arange(5)

    @case()
    def arange__stepped():
        return lib.arange(2, 11, 3)

    @case()
    def arange__backwards():
        return lib.arange(9, -1, -2)

    @case()
    def arange__of_floats():
        return lib.arange(0.5, 3.0, 0.5)

    @case()
    def arange__typed():
        return lib.arange(0, 8, dtype=types.float32)

    @case()
    def linspace():
        return lib.linspace(0.0, 999.0, 7)

    @case()
    def linspace__typed():
        return lib.linspace(1, 0, 4, dtype=types.float16)

    @case()
    def full():
        return lib.full((2, 3), 1.5)

    @case()
    def full__of_a_whole_number():
        return lib.full((3,), 7)

    @case()
    def full__of_a_truth():
        return lib.full((3,), True)

    @case()
    def full__typed():
        return lib.full((1, 2), 3, dtype=types.float16)

    @case((2, 3), differentiable=False)
    def zeros_like(x):
        return lib.zeros_like(x)

    @case((2, 3), differentiable=False)
    def zeros_like__typed(x):
        return lib.zeros_like(x, dtype=types.int64)

    @case((2, 3), differentiable=False)
    def ones_like(x):
        return lib.ones_like(x)

    @case((2, 3), differentiable=False)
    def ones_like__typed(x):
        return lib.ones_like(x, dtype=types.float32)

    @case((2, 3), (2, 3))
    def stack(x, y):
        return lib.stack((x, y))

    @case((2, 3), (2, 3), (2, 3))
    def stack__last(x, y, z):
        return lib.stack([x, y, z], dim=-1)

    @case((5, 3))
    def split(x):
        return lib.split(x, 2)

    @case((2, 5))
    def split__by_sizes(x):
        return lib.split(x, (1, 4), dim=-1)

    @case((2, 6))
    def chunk(x):
        return lib.chunk(x, 2, dim=-1)

    @case((5, 2))
    def chunk__uneven(x):
        return lib.chunk(x, 3)

    @case((2, 3))
    def repeat_interleave(x):
        return lib.repeat_interleave(x, 2, dim=1)

    @case((2, 3))
    def repeat_interleave__flat(x):
        return lib.repeat_interleave(x, 3)

    @case((2, 3))
    def repeat_interleave__sized(x):
        return lib.repeat_interleave(x, 2, dim=0, output_size=4)

    @case((2, 5))
    def cumsum(x):
        return lib.cumsum(x, -1)

    @case((2, 5))
    def cumsum__typed(x):
        return lib.cumsum(x, dim=0, dtype=types.float32)

    @case((3, 7), differentiable=False)
    def argmax(x):
        return lib.argmax(x, dim=-1)

    @case((3, 7), differentiable=False)
    def argmax__of_all(x):
        return lib.argmax(x)

    @case((3, 7), differentiable=False)
    def argmax__kept(x):
        return lib.argmax(x, dim=0, keepdim=True)

    @case(IDS, differentiable=False)
    def argmax__of_tokens(ids):
        return lib.argmax(ids, dim=-1)

    @case((2, 3, 4))
    def norm(x):
        return lib.norm(x)

    @case((2, 3, 4))
    def norm__along_axes(x):
        return lib.norm(x, p=2, dim=(1, 2), keepdim=True)

    @case((2, 3, 5), (2, 3, 4), (2, 4, 5))
    def baddbmm(x, a, b):
        return lib.baddbmm(x, a, b)

    @case((2, 3, 5), (2, 3, 4), (2, 4, 5))
    def baddbmm__weighted(x, a, b):
        return lib.baddbmm(x, a, b, beta=0.5, alpha=0.25)

    @case((2, 3, 4), (2, 4, 5))
    def baddbmm__of_nothing(a, b):
        # Attention without a mask: whatever lies in the first argument has no part in it.
        return lib.baddbmm(lib.zeros(2, 3, 5).to(a.dtype) / 0.0, a, b, beta=0, alpha=0.5)

    @case((2, 4, 7, 6), (6, 4, 3, 3), (6,))
    def conv2d(x, weight, bias):
        return functional.conv2d(x, weight, bias, padding=1)

    @case((2, 4, 7, 6), (6, 4, 1, 1))
    def conv2d__pointwise(x, weight):
        return functional.conv2d(x, weight)

    @case((1, 4, 9, 8), (6, 4, 3, 3), (6,))
    def conv2d__strided(x, weight, bias):
        return functional.conv2d(x, weight, bias, stride=2, padding=(0, 1))

    @case((1, 4, 9, 8), (6, 2, 3, 2))
    def conv2d__in_groups(x, weight):
        return functional.conv2d(x, weight, None, (1, 2), (2, 1), (2, 1), 2)

    @case((1, 2, 3, 4))
    def pad(x):
        return functional.pad(x, (0, 1, 2, 0))

    @case((2, 3))
    def pad__last(x):
        return functional.pad(x, [1, 2], mode="constant", value=-1.5)

    @case((2, 3))
    def pad__default_value(x):
        return functional.pad(x, (0, 1), "constant", None)

    @case((1, 2, 5, 4))
    def pad__mirrored(x):
        return functional.pad(x, (1, 2, 2, 1), mode="reflect")

    @case((4, 9))
    def gelu(x):
        return functional.gelu(x * 3)

    @case((4, 9))
    def gelu__by_tanh(x):
        return functional.gelu(x * 3, approximate="tanh")

    @case((2, 5, 8), (8,), (8,))
    def layer_norm(x, weight, bias):
        return functional.layer_norm(x, (8,), weight, bias, eps=1e-5)

    @case((2, 5, 8))
    def layer_norm__plain(x):
        return functional.layer_norm(x, (8,))

    @case((2, 5, 8), (5, 8), (5, 8))
    def layer_norm__over_two_axes(x, weight, bias):
        return functional.layer_norm(x, (5, 8), weight, bias, 1e-3)

    @case(IDS, (6, 4))
    def embedding(ids, weight):
        return functional.embedding(ids, weight)

    @case((3, 4))
    def dropout__at_rest(x):
        return functional.dropout(x, 0.5, training=False)

    return found
