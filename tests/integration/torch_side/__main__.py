"""One question to torch, in a process of its own: `torch_side QUESTION IN.npz OUT.npz OPTIONS`.

QUESTION is a file beside this one with `answer(arrays, **options)`; arrays and what it returns are
dictionaries of NumPy arrays, options are JSON. Asked by the fixture `torch_side` (conftest.py).
"""

import importlib
import json
import sys

import numpy as np
import torch


def main() -> None:
    question, given, path, options = sys.argv[1:]
    torch.set_num_threads(2)
    with np.load(given) as archive:
        arrays = dict(archive)
    answer = importlib.import_module(question).answer(arrays, **json.loads(options))
    np.savez(path, **answer)


if __name__ == "__main__":
    main()
