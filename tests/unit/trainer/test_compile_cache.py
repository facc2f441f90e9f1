"""What determines a compiled graph, and where graphs lie."""

import functools
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from mindbooth.trainer import compile_cache
from mindbooth.trainer.graph_store import key


class Layer(nn.Cell):
    def __init__(self, factor: float = 2.0, table: int = 0, rank: int = 4) -> None:
        super().__init__()
        self.factor = factor
        self.table = Tensor(np.arange(3) + table)
        self.a = Parameter(Tensor(np.zeros((rank, 3), np.float32)), name="a")
        self.dense = ops.Dense()
        self.options = {"scaling": {"default": 1.0}}

    def construct(self, x: Tensor) -> Tensor:
        return self.dense(x * self.factor + self.table, self.a, None)


X = (Tensor(np.zeros((1, 3), np.float32)),)


def facts_of(layer: nn.Cell, inputs: tuple[Tensor, ...] = X, **more: object) -> str:
    return key(compile_cache.facts(layer, [inputs], {}, more.get("environ", {})))  # type: ignore


def test_the_same_cell_made_again_has_the_same_key() -> None:
    assert facts_of(Layer()) == facts_of(Layer())


def changed_weights() -> nn.Cell:
    layer = Layer()
    layer.a.set_data(Tensor(np.ones((4, 3), np.float32)))
    return layer


def test_weights_do_not_count() -> None:
    assert facts_of(changed_weights()) == facts_of(Layer())


def flagged(change: str) -> nn.Cell:
    layer = Layer()
    if change == "trains":
        layer.set_train()
    elif change == "frozen":
        layer.a.requires_grad = False
    elif change == "recomputed":
        layer.recompute()
    elif change == "half":
        layer.a.set_dtype(ms.float16)
    elif change == "nested":
        layer.options["scaling"]["default"] = 0.5
    elif change == "primitive":
        layer.dense.add_prim_attr("seed", 7)
    return layer


@pytest.mark.parametrize(
    "other",
    [Layer(factor=3.0), Layer(table=1), Layer(rank=8), nn.SequentialCell(Layer()),
     *map(flagged, ("trains", "frozen", "recomputed", "half", "nested", "primitive"))],
    ids=["constant", "table", "rank", "wrapped", "trains", "frozen", "recomputed", "half",
         "nested", "primitive"],
)  # fmt: skip
def test_a_changed_cell_has_another_key(other: nn.Cell) -> None:
    assert facts_of(other) != facts_of(Layer())


@pytest.mark.parametrize(
    "inputs",
    [(Tensor(np.zeros((2, 3), np.float32)),), (Tensor(np.zeros((1, 3), np.float16)),), X * 2],
    ids=["batch size", "dtype", "number"],
)
def test_other_inputs_have_another_key(inputs: tuple[Tensor, ...]) -> None:
    assert facts_of(Layer(), inputs) != facts_of(Layer())


def test_a_change_of_our_sources_has_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before, read = facts_of(Layer()), Path.read_bytes
    monkeypatch.setattr(
        Path, "read_bytes", lambda self: read(self) + b"#" * (self.name == "step.py")
    )
    assert facts_of(Layer()) != before


def test_sources_that_changed_since_they_were_loaded_have_no_key_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is on the disk then is not what was compiled."""
    monkeypatch.setattr(compile_cache, "STARTED", 0.0)
    assert facts_of(Layer()) != facts_of(Layer())


def test_another_version_has_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = facts_of(Layer())
    monkeypatch.setattr(compile_cache.report, "version", lambda package: f"{package} 0.0")
    assert facts_of(Layer()) != before


def test_variables_that_tell_the_compiler_count_and_those_that_place_a_worker_do_not() -> None:
    plain = facts_of(Layer())
    assert facts_of(Layer(), environ={"MS_DEV_JIT_SYNTAX_LEVEL": "0"}) != plain
    placed = {"MS_SCHED_PORT": "20001", "MS_NODE_ID": "3", "MS_WORKER_NUM": "4", "HOME": "/x"}
    assert facts_of(Layer(), environ=placed) == plain


def test_a_graph_that_is_cut_short_is_not_whole() -> None:
    """A number, a string, a 64-bit and a 32-bit value, as protobuf writes them."""
    message = b"\x08\x96\x01" + b"\x12\x83\x01" + b"g" * 131 + b"\x19" + b"8" * 8 + b"\x25abcd"
    whole = [size for size in range(len(message) + 1) if compile_cache.is_whole(message[:size])]
    assert whole == [3, 137, 146, 151]


def test_where_graphs_lie(tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path), "HOME": "/nowhere"}
    root = compile_cache.root
    assert root("off", environ, target="CPU") is None
    assert root(None, environ, target="CPU") == tmp_path / "mindbooth-graphs"
    assert root(None, environ, target="Ascend") is None
    assert root("/some/where", environ, target="Ascend") == Path("/some/where")


def test_functions_are_told_by_what_they_hold() -> None:
    def scaled(by: int) -> object:
        return lambda x, more=by: x * by + more

    assert compile_cache.told(scaled(2)) == compile_cache.told(scaled(2))
    assert compile_cache.told(scaled(2)) != compile_cache.told(scaled(3))
    assert compile_cache.told(functools.partial(int, base=2)) != compile_cache.told(
        functools.partial(int, base=16)
    )
    assert compile_cache.told(range(2)) != compile_cache.told(range(3))


class Scaled:
    """A callable object, which a cell may have as an attribute."""

    def __init__(self, by: float) -> None:
        self.by = by
        self.itself = self

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.by


def test_callable_objects_are_told_by_what_they_hold() -> None:
    assert compile_cache.told(Scaled(2)) == compile_cache.told(Scaled(2))
    assert compile_cache.told(Scaled(2)) != compile_cache.told(Scaled(3))
