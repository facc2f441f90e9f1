"""Calls of the operators that trainer/cpu_ops.py replaces, written once for mint and for torch.

mint has torch's names, so `cases(mint, mindspore)` and `cases(torch, torch)` are the same calls in
two libraries; `cases()` alone tells their names. MindSpore compiles each function as it stands.
The part of a name before "__" is the operator, the rest says what is special about the call.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

IDS = np.array([[1, 4, 0], [3, 1, 1]])


@dataclass(frozen=True, kw_only=True)
class Case:
    """A call, and what it takes: shapes of floats, or whole numbers as they are."""

    name: str
    call: Callable[..., Any]
    takes: tuple[Any, ...]
    differentiable: bool

    @property
    def operator(self) -> str:
        return self.name.partition("__")[0]

    def inputs(self, dtype: str) -> list[np.ndarray]:
        """The same arrays in both libraries."""
        return [
            given if isinstance(given, np.ndarray) else self.array(f"input {i}", given, dtype)
            for i, given in enumerate(self.takes)
        ]

    def array(self, key: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Standard normal numbers that depend on the case and the key only."""
        generator = np.random.default_rng(zlib.crc32(f"{self.name} {key}".encode()))
        return generator.standard_normal(shape).astype(dtype)


def cases(lib: Any = None, types: Any = None) -> dict[str, Case]:
    """All calls by name."""
    found: dict[str, Case] = {}

    def case(*takes: Any, differentiable: bool = True) -> Callable[[Any], Any]:
        def take(call: Any) -> Any:
            name = call.__name__
            found[name] = Case(
                name=name, call=call, takes=takes, differentiable=differentiable and bool(takes)
            )
            return call

        return take

    @case()
    def arange():
        return lib.arange(5)

    @case()
    def arange__with_a_step():
        return lib.arange(2, 11, 3)

    @case()
    def arange__backwards():
        return lib.arange(9, -1, -2)

    @case()
    def arange__of_floats():
        return lib.arange(0.5, 3.0, 0.5)

    @case()
    def arange__by_keywords():
        return lib.arange(start=0, end=8, dtype=types.float32)

    @case()
    def linspace():
        return lib.linspace(0.0, 999.0, 7)

    @case()
    def linspace__downwards():
        return lib.linspace(1, 0, 5, dtype=types.float16)

    @case()
    def full():
        return lib.full((2, 3), 1.5)

    @case()
    def full__of_a_whole_number():
        return lib.full((3,), 7)

    @case()
    def full__of_a_truth_value():
        return lib.full((3,), True)

    @case()
    def full__with_a_dtype():
        return lib.full((1, 2), fill_value=3, dtype=types.float16)

    @case((2, 3), differentiable=False)
    def zeros_like(x):
        return lib.zeros_like(x)

    @case((2, 3), differentiable=False)
    def zeros_like__with_a_dtype(x):
        return lib.zeros_like(x, dtype=types.int64)

    @case((40, 40))
    def exp(x):
        return lib.exp(x)

    @case((2, 3), (2, 3))
    def stack(x, y):
        return lib.stack((x, y))

    @case((2, 3), (2, 3), (2, 3))
    def stack__at_the_end(x, y, z):
        return lib.stack([x, y, z], dim=-1)

    @case((5, 3))
    def split(x):
        return lib.split(x, 2)

    @case((2, 5))
    def split__by_sizes(x):
        return lib.split(x, [1, 4], dim=-1)

    @case((2, 6))
    def chunk(x):
        return lib.chunk(x, 2, dim=-1)

    @case((5, 2))
    def chunk__uneven(x):
        return lib.chunk(x, 3)

    @case((2, 3, 5), (2, 3, 4), (2, 4, 5))
    def baddbmm(x, a, b):
        return lib.baddbmm(x, a, b)

    @case((2, 3, 5), (2, 3, 4), (2, 4, 5))
    def baddbmm__weighted(x, a, b):
        return lib.baddbmm(x, a, b, beta=0.5, alpha=0.25)

    @case((2, 3, 4), (2, 4, 5))
    def baddbmm__of_nothing(a, b):
        # As attention without a mask calls it: what is in the first argument must not matter.
        nothing = lib.full((2, 3, 5), 1.0).to(a.dtype) / 0.0
        return lib.baddbmm(nothing, a, b, beta=0, alpha=0.5)

    @case((2, 3, 5), (4, 5), (4,))
    def linear(x, weight, bias):
        return lib.nn.functional.linear(x, weight, bias)

    @case((3, 5), (4, 5))
    def linear__without_bias(x, weight):
        return lib.nn.functional.linear(x, weight)

    @case((2, 4, 7, 6), (6, 4, 3, 3), (6,))
    def conv2d(x, weight, bias):
        return lib.nn.functional.conv2d(x, weight, bias, padding=1)

    @case((2, 4, 7, 6), (6, 4, 1, 1))
    def conv2d__pointwise(x, weight):
        return lib.nn.functional.conv2d(x, weight)

    @case((1, 4, 9, 8), (6, 4, 3, 3), (6,))
    def conv2d__strided(x, weight, bias):
        return lib.nn.functional.conv2d(x, weight, bias, stride=2, padding=(0, 1))

    @case((1, 4, 9, 8), (6, 2, 3, 2))
    def conv2d__in_groups(x, weight):
        return lib.nn.functional.conv2d(x, weight, None, (1, 2), (2, 1), (2, 1), 2)

    @case((1, 2, 3, 4))
    def pad(x):
        return lib.nn.functional.pad(x, (0, 1, 2, 0))

    @case((2, 3))
    def pad__with_a_value(x):
        return lib.nn.functional.pad(x, [1, 2], mode="constant", value=-1.5)

    @case((2, 3))
    def pad__with_no_value(x):
        return lib.nn.functional.pad(x, (0, 1), "constant", None)

    @case((1, 2, 5, 4))
    def pad__mirrored(x):
        return lib.nn.functional.pad(x, (1, 2, 2, 1), mode="reflect")

    @case((4, 9))
    def gelu(x):
        return lib.nn.functional.gelu(x * 3)

    @case((4, 9))
    def gelu__by_tanh(x):
        return lib.nn.functional.gelu(x * 3, approximate="tanh")

    @case((2, 5, 8), (8,), (8,))
    def layer_norm(x, weight, bias):
        return lib.nn.functional.layer_norm(x, (8,), weight, bias, eps=1e-5)

    @case((2, 5, 8))
    def layer_norm__plain(x):
        return lib.nn.functional.layer_norm(x, (8,))

    @case((2, 5, 8), (5, 8), (5, 8))
    def layer_norm__over_two_axes(x, weight, bias):
        return lib.nn.functional.layer_norm(x, (5, 8), weight, bias, 1e-3)

    @case(IDS, (6, 4))
    def embedding(ids, weight):
        return lib.nn.functional.embedding(ids, weight)

    @case((3, 4))
    def dropout__at_rest(x):
        return lib.nn.functional.dropout(x, 0.5, training=False)

    return found
