"""trainer/cpu_ops.py against torch, operator by operator, and the SDXL models that run on it.

The calls are those of tests/operator_cases.py. "pull" is the vector that a gradient is taken with.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from operator_cases import cases

HERE = Path(__file__).parent
CLOSE = {"float32": 2e-6, "float16": 2e-3}  # of the greatest absolute value in the tensor
MODES = ("pynative", "graph")

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def torch_answers(torch_side: Any) -> Arrays:
    return torch_side("operators")


@pytest.fixture(scope="module")
def bare() -> dict[str, Any]:
    """mint in a process where nothing was installed (bare_mint.py)."""
    run = subprocess.run(
        [sys.executable, HERE / "bare_mint.py"],
        env={**os.environ, "PYTHONPATH": str(HERE.parent), "USE_TORCH": "0"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-4000:]
    return dict(json.loads(run.stdout.splitlines()[-1]))


@pytest.fixture(scope="module", params=MODES)
def our_answers(request: pytest.FixtureRequest, cpu: object, torch_answers: Arrays) -> Arrays:
    """The same of mint with the replacements. One graph of all calls: one is quick to compile."""
    import mindspore as ms
    from mindspore import Tensor, mint

    from mindbooth.trainer import device

    found = {}
    every = cases(mint, ms).values()
    for dtype in ("float32", "float16"):
        inputs = [[Tensor(array) for array in case.inputs(dtype)] for case in every]
        values = [of(torch_answers, case.name, dtype, "value").values() for case in every]
        pulls = [
            [
                Tensor(case.array(f"pull {i}", value.shape, dtype))
                for i, value in enumerate(theirs)
                if case.differentiable
            ]
            for case, theirs in zip(every, values, strict=True)
        ]
        with device.mode(request.param):
            answers = evaluate([case.call for case in every], inputs, pulls)
        for case, (value, gradients) in zip(every, answers, strict=True):
            floats = [g for g in gradients if g.dtype in (ms.float32, ms.float16)]
            for kind, tensors in (("value", value), ("gradient", floats)):
                listed = tensors if isinstance(tensors, (tuple, list)) else [tensors]
                for i, tensor in enumerate(listed):
                    found[f"{case.name} {dtype} {kind} {i}"] = tensor.asnumpy()
    return found


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("name", cases())
def test_values_and_gradients_are_those_of_torch(
    name: str, dtype: str, our_answers: Arrays, torch_answers: Arrays
) -> None:
    ours, theirs = (of(answers, name, dtype) for answers in (our_answers, torch_answers))
    assert ours.keys() == theirs.keys()
    for key, expected in theirs.items():
        assert (ours[key].dtype, ours[key].shape) == (expected.dtype, expected.shape), key
        limit = CLOSE[dtype] * np.abs(expected.astype(np.float64)).max()
        assert np.abs(ours[key].astype(np.float64) - expected).max() <= limit, key


def of(answers: Arrays, *words: str) -> Arrays:
    """The answers whose names begin with these words."""
    return {k: v for k, v in answers.items() if k.startswith(" ".join(words) + " ")}


def evaluate(calls: list[Any], inputs: list[list[Any]], pulls: list[list[Any]]) -> Any:
    """(value, gradients) of each call; the gradients are () for a call without pulls."""
    from mindspore import nn, ops

    class Evaluate(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.calls = tuple(calls)
            self.takes = tuple(map(len, inputs))
            self.pulled = tuple(map(len, pulls))
            self.grad = ops.GradOperation(get_all=True, sens_param=True)

        # A graph has gradients for tensors given one by one, not for those given in tuples.
        def construct(self, *given):  # type: ignore[no-untyped-def]
            answers = ()
            at = 0
            for call, takes, pulled in zip(self.calls, self.takes, self.pulled):  # noqa: B905
                x = given[at : at + takes]
                pull = given[at + takes : at + takes + pulled]
                at += takes + pulled
                if pulled == 0:
                    answers += ((call(*x), ()),)
                elif pulled == 1:
                    answers += ((call(*x), self.grad(call)(*x, pull[0])),)
                else:
                    answers += ((call(*x), self.grad(call)(*x, pull)),)
            return answers

    flat = [tensor for x, pull in zip(inputs, pulls, strict=True) for tensor in (*x, *pull)]
    return Evaluate()(*flat)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_dropout_keeps_the_mean_and_draws_anew(cpu: object, mode: str, dtype: str) -> None:
    from mindspore import Tensor, mint

    from mindbooth.trainer import device

    ones = Tensor(np.ones((100, 100), dtype))
    layer = mint.nn.Dropout(0.25).set_train()
    with device.mode(mode):
        answers = evaluate([layer, layer], [[ones], [ones]], [[ones], [ones]])
    (first, (gradient,)), (second, _) = answers
    first, gradient, second = (t.asnumpy().astype(np.float32) for t in (first, gradient, second))
    kept = first != 0
    assert np.allclose(first[kept], 1 / 0.75, rtol=1e-3)
    assert abs(kept.mean() - 0.75) < 0.02  # 4.6 standard deviations
    assert abs(gradient.mean() - 1) < 0.03
    assert 0.3 < (kept != (second != 0)).mean() < 0.45  # 2 * 0.25 * 0.75 expected


def test_dropout_at_rest_changes_nothing(cpu: object) -> None:
    from mindspore import Tensor, mint

    x = np.arange(6, dtype=np.float32)
    layer = mint.nn.Dropout(0.5).set_train(False)
    assert np.array_equal(layer(Tensor(x)).asnumpy(), x)


@pytest.mark.parametrize("mode", MODES)
def test_layers_compute_what_the_functions_compute(cpu: object, mode: str) -> None:
    from mindspore import Tensor, mint

    from mindbooth.trainer import cpu_ops, device

    f, nn = mint.nn.functional, mint.nn
    x = Tensor(np.random.default_rng(0).standard_normal((2, 4, 5, 8)).astype(np.float32))
    ids = Tensor(np.array([[1, 3], [0, 1]]))
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1)
    mirrored = nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect", bias=False)
    norm, plain = nn.LayerNorm((8,), eps=1e-3), nn.LayerNorm(8, elementwise_affine=False)
    table = nn.Embedding(5, 4, padding_idx=1)
    biased, bare = nn.Linear(8, 3), nn.Linear(8, 3, bias=False)
    expected = {
        (conv, x): f.conv2d(x, conv.weight, conv.bias, 2, 1),
        (mirrored, x): f.conv2d(f.pad(x, (1, 1, 1, 1), "reflect"), mirrored.weight),
        (norm, x): f.layer_norm(x, (8,), norm.weight, norm.bias, 1e-3),
        (plain, x): f.layer_norm(x, (8,)),
        (table, ids): f.embedding(ids, table.weight),
        (biased, x): f.linear(x, biased.weight, biased.bias),
        (bare, x): f.linear(x, bare.weight),
        (nn.GELU(approximate="tanh"), x): f.gelu(x, approximate="tanh"),
        (nn.Dropout(0.0).set_train(), x): x,
    }
    assert {type(layer) for layer, _ in expected} == set(cpu_ops.LAYERS)
    for (layer, given), output in expected.items():
        with device.mode(mode):
            assert np.allclose(layer(given).asnumpy(), output.asnumpy(), atol=1e-6), layer


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("flags", [{}, {"upcast_attention": True, "upcast_softmax": True}])
def test_attention_and_its_gradients_are_those_of_the_formula(
    cpu: object, mode: str, flags: dict[str, bool]
) -> None:
    from mindone.diffusers.models.attention_processor import Attention
    from mindspore import Tensor, nn, ops

    from mindbooth.trainer import device

    attention = Attention(query_dim=12, heads=2, dim_head=6, **flags)
    random = np.random.default_rng(0)
    # Batch, heads, places, width: keys and values are as many, queries are fewer.
    given = [random.standard_normal((3, 2, n, 6)).astype(np.float32) for n in (5, 7, 7)]
    pull = random.standard_normal((3, 2, 5, 6)).astype(np.float32)

    class Attend(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def construct(self, query, key, value):  # type: ignore[no-untyped-def]
            return self.attention.scaled_dot_product_attention(query, key, value)

    cell = Attend()
    with device.mode(mode):
        output = cell(*map(Tensor, given)).asnumpy()
        gradient = ops.GradOperation(get_all=True, sens_param=True)(cell)
        gradients = [g.asnumpy() for g in gradient(*map(Tensor, given), Tensor(pull))]
    query, key, value = (array.astype(np.float64) for array in given)
    scores = np.exp(query @ key.swapaxes(-1, -2) / np.sqrt(6))
    shares = scores / scores.sum(-1, keepdims=True)
    of_shares = pull @ value.swapaxes(-1, -2)
    of_scores = shares * (of_shares - (of_shares * shares).sum(-1, keepdims=True)) / np.sqrt(6)
    expected = (of_scores @ key, of_scores.swapaxes(-1, -2) @ query, shares.swapaxes(-1, -2) @ pull)
    assert np.allclose(output, shares @ value, atol=1e-6)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert np.allclose(ours, theirs, atol=1e-5)


def test_what_a_replacement_can_not_do_is_refused(cpu: object) -> None:
    from mindone.diffusers.models.attention_processor import Attention
    from mindspore import Tensor, mint

    f, x = mint.nn.functional, Tensor(np.ones((2, 2), np.float32))
    with pytest.raises(ValueError, match="max_norm"):
        f.embedding(Tensor(np.array([1])), x, max_norm=1.0)
    with pytest.raises(ValueError, match="in place"):
        f.dropout(x, inplace=True)
    with pytest.raises(ValueError, match="no mask"):
        Attention(query_dim=2, heads=1, dim_head=2).math_attention_op(x, x, x, x)


def test_no_replacement_is_without_need(bare: dict[str, Any], cpu: object) -> None:
    from mindbooth.trainer import cpu_ops

    functions = {f.__name__ for group in cpu_ops.FUNCTIONS.values() for f in group}
    layers = {layer.__name__.removesuffix("Ext") for layer in cpu_ops.LAYERS}
    assert set(bare["failing"]) == (functions | layers) - {"exp", "linear", "Linear"}
    assert bare["exp_off"] > 3e-6
    assert {case.operator for case in cases().values()} == functions


def test_nothing_is_replaced_where_install_is_not_called(bare: dict[str, Any]) -> None:
    assert bare["replaced"] == []


def test_replacements_have_the_signatures_of_mint(bare: dict[str, Any], cpu: object) -> None:
    from mindbooth.trainer import cpu_ops

    ours = {f.__name__: f for group in cpu_ops.FUNCTIONS.values() for f in group}
    assert set(ours) - set(bare["signatures"]) == {"gelu"}  # (*args, **kwargs)
    for name, theirs in bare["signatures"].items():
        assert str(inspect.signature(ours[name])) == theirs, name
