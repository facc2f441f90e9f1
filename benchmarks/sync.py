"""Gradient synchronisation of an SDXL adapter of rank 4, against a bare AllReduce of its bytes.

`sync.py` starts two workers by `mindbooth launch`. Each holds gradients in the shapes of SDXL's
1,120 LoRA tensors (5.8 million numbers, fp32) and takes turns between three ways to the sum of all
workers: as the fused step does it (joined to one fp16 vector, one AllReduce, cast back, which in
the step is the first thing of another graph); a bare AllReduce of as many fp16 numbers; and one
fp32 AllReduce a tensor, as nn.DistributedGradReducer does where nothing fuses them.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from figures import as_text, of, ratio, status, write

HERE = Path(__file__).resolve()
RANK, TENSORS = 4, 1120
MOST_OVER_BARE, LEAST_OVER_ONE_BY_ONE = 1.3, 10.0


def shapes() -> list[tuple[int, int]]:
    """Those of A and B of the adapter's layers: 10 transformer blocks of SDXL are 640 wide and 60
    are 1280 wide; each attends to itself and to the prompt, which is 2048 wide."""
    found = []
    for width, blocks in ((640, 10), (1280, 60)):
        for _ in range(blocks):
            for keys in (width, 2048):
                for inputs in (width, keys, keys, width):
                    found += [(RANK, inputs), (width, RANK)]
    assert len(found) == TENSORS
    return sorted(found, key=lambda shape: shape[1])  # as the adapter has them


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="five repeats")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    repeats = 5 if options.quick else options.repeats
    with tempfile.TemporaryDirectory() as folder:
        launch(["--device_target", "CPU", "--nproc_per_node", "2", "--",
                "--repeats", str(repeats), "--output_dir", folder])  # fmt: skip
        times = json.loads((Path(folder) / "found.json").read_text())
    for way, seconds in times.items():
        print(f"{way}: {sorted(seconds)[len(seconds) // 2]:.4f} s")
    fused, bare, one_by_one = times.values()
    found = [
        of("bare AllReduce of 5.8 million fp16 numbers, 2 workers", bare, "s"),
        ratio(
            "gradient synchronisation against the bare AllReduce", fused, bare,
            bar=MOST_OVER_BARE, better="lower",
        ),
        ratio(
            "one fp32 AllReduce a tensor against gradient synchronisation", one_by_one, fused,
            bar=LEAST_OVER_ONE_BY_ONE, better="higher",
        ),
    ]  # fmt: skip
    print(as_text(found), end="")
    write(options.json, found)
    return status(found)


def launch(argv: list[str]) -> None:
    from mindbooth.launch.commands import launch

    if launch(argv, program=(str(HERE), "work")):
        sys.exit("the workers failed")


def work(argv: list[str]) -> int:
    """One of the workers; rank 0 writes down the times."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--output_dir", type=Path)
    parser.add_argument("--device_target")
    options = parser.parse_args(argv)
    import os

    from mindbooth.ranktable.placement import Placement
    from mindbooth.trainer import device

    comm = device.start(Placement.from_environ(os.environ), target=options.device_target)
    import mindspore as ms
    from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

    from mindbooth.trainer.lora import blocks, join
    from mindbooth.trainer.step import Pack

    random = np.random.default_rng(comm.rank)
    # In the step they are what other operators of the graph made; a thousand arguments of a graph
    # would cost more than all that is measured here.
    gradients = ParameterTuple(
        Parameter(Tensor(random.standard_normal(shape, np.float32)), name=f"gradient_{number}")
        for number, shape in enumerate(shapes())
    )
    counts = tuple(count for count, _ in blocks(shapes()))

    class Join(nn.Cell):
        """The end of `step.Forward`, compiled as that is."""

        def __init__(self) -> None:
            super().__init__()
            self.gradients = gradients

        def construct(self):  # type: ignore[no-untyped-def]
            return join(self.gradients, counts)

    class Unpack(nn.Cell):
        """The beginning of `Optimizer`."""

        def construct(self, wire):  # type: ignore[no-untyped-def]
            return ops.cast(wire, ms.float32)

    joined, pack, unpack = Join(), Pack(1 / comm.size, ms.float16), Unpack()
    zero = Tensor([0.0], ms.float32)
    half = Tensor(np.zeros(sum(g.size for g in gradients) + 2, np.float16))
    single = ops.AllReduce()

    def fused() -> Tensor:
        with device.mode("graph"):
            wire = pack(zero, *joined(), zero)
        wire = comm.all_reduce(wire)
        with device.mode("graph"):
            return unpack(wire)

    ways: dict[str, Callable[[], object]] = {
        "fused": lambda: fused().asnumpy(),
        "bare": lambda: single(half).asnumpy(),
        "one by one": lambda: [single(gradient) for gradient in gradients][-1].asnumpy(),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(options.repeats + 2):
        for way, run in ways.items():
            comm.sum(np.zeros(1))  # workers begin together
            began = time.perf_counter()
            run()
            if repeat >= 2:  # the first ones compile, and connect the workers
                times[way].append(time.perf_counter() - began)
    if comm.rank == 0:
        (options.output_dir / "found.json").write_text(json.dumps(times))
    return 0


if __name__ == "__main__":
    sys.exit(work(sys.argv[2:]) if sys.argv[1:2] == ["work"] else main())
