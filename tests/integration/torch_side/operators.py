"""torch's values and gradients of every case in operators.py: `operators.py IN.npz OUT.npz`."""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from operators import cases  # noqa: E402


def main() -> None:
    told = np.load(sys.argv[1])
    print(told)


if __name__ == "__main__":
    main()
