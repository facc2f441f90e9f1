"""What mint's own operators do on a CPU: run in a process where nothing has been replaced.

Prints JSON. replaced: names in mint that are ours although install() was never called, after
every module of the trainer was imported. failing: the operators and layers that do fail.
signatures: parameters of mint's own functions, where they tell. exp_off: the greatest relative
error of mint's exp.
"""

import importlib
import inspect
import json
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint, nn
from operator_cases import Case, cases

from mindbooth.trainer import cpu_ops

LAYERS = {
    "Conv2d": lambda: mint.nn.Conv2d(2, 2, 1)(Tensor(np.ones((1, 2, 3, 3), np.float32))),
    "LayerNorm": lambda: mint.nn.LayerNorm((3,))(Tensor(np.ones((2, 3), np.float32))),
    "Embedding": lambda: mint.nn.Embedding(4, 2)(Tensor(np.array([1, 3]))),
    "GELU": lambda: mint.nn.GELU()(Tensor(np.ones(3, np.float32))),
    "Dropout": lambda: mint.nn.Dropout(0.5).set_train()(Tensor(np.ones(3, np.float32))),
}


class Compiled(nn.Cell):
    def __init__(self, case: Case) -> None:
        super().__init__()
        self.call = case.call

    def construct(self, *inputs):
        return self.call(*inputs)


def main() -> None:
    for path in Path(cpu_ops.__file__).parent.glob("*.py"):
        importlib.import_module(f"mindbooth.trainer.{path.stem}")
    told = {"replaced": replaced(), "signatures": signatures(), "failing": failing()}
    told |= {"exp_off": exp_off()}
    print(json.dumps(told))


def functions() -> dict[str, object]:
    return {
        f.__name__: getattr(module, f.__name__)
        for module, replacements in cpu_ops.FUNCTIONS.items()
        for f in replacements
    }


def replaced() -> list[str]:
    names = [name for name, f in functions().items() if f.__module__ == cpu_ops.__name__]
    layers = [
        layer.__name__ for layer in cpu_ops.LAYERS if layer.construct.__module__ == cpu_ops.__name__
    ]
    return names + layers


def signatures() -> dict[str, str]:
    """Of the functions that are not hidden behind (*args, **kwargs)."""
    told = {name: str(inspect.signature(f)) for name, f in functions().items()}
    return {name: text for name, text in told.items() if "kwargs" not in text}


def failing() -> list[str]:
    ms.set_device("CPU")
    ms.runtime.launch_blocking()
    found = [name for name, make in LAYERS.items() if fails(make)]
    first = {}
    for case in cases(mint, ms).values():
        first.setdefault(case.operator, case)
    for operator, case in first.items():
        inputs = [Tensor(array) for array in case.inputs("float32")]
        if fails(lambda case=case, inputs=inputs: case.call(*inputs)):
            found.append(operator)
            continue
        ms.set_context(mode=ms.GRAPH_MODE)
        if fails(lambda case=case, inputs=inputs: Compiled(case)(*inputs)):
            found.append(operator)
        ms.set_context(mode=ms.PYNATIVE_MODE)
    return found


def exp_off() -> float:
    x = np.linspace(-9, 0, 1001, dtype=np.float32)
    return float(np.abs(mint.exp(Tensor(x)).asnumpy() / np.exp(x.astype(np.float64)) - 1).max())


def fails(call) -> bool:
    try:
        call()
    except (RuntimeError, TypeError):
        return True
    return False


if __name__ == "__main__":
    main()
