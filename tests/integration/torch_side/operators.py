"""Values and gradients of every call in tests/operator_cases.py."""

import numpy as np
import torch
from operator_cases import Case, cases


def answer(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """ "name dtype value 0", ..., and "name dtype gradient 0", ... for each differentiable one."""
    found = {}
    for case in cases(torch, torch).values():
        for dtype in ("float32", "float16"):
            values, gradients = run(case, dtype)
            for kind, tensors in (("value", values), ("gradient", gradients)):
                for i, tensor in enumerate(tensors):
                    found[f"{case.name} {dtype} {kind} {i}"] = tensor.detach().numpy()
    return found


def run(case: Case, dtype: str) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    inputs = [torch.from_numpy(array) for array in case.inputs(dtype)]
    floats = [x.requires_grad_() for x in inputs if x.is_floating_point()]
    output = case.call(*inputs)
    values = tuple(output) if isinstance(output, (tuple, list)) else (output,)
    if not case.differentiable:
        return values, ()
    pulls = [
        torch.from_numpy(case.array(f"pull {i}", tuple(value.shape), dtype))
        for i, value in enumerate(values)
    ]
    return values, torch.autograd.grad(values, floats, pulls)
