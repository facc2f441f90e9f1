"""The device, the process group, and Comm: the little that a worker asks of the other workers.

`start()` sets the device up and alone joins the group; `mode()` changes between graph and PyNative.
A single process gets the same Comm with every collective the identity, so that nothing else asks
whether a run is distributed. `Comm.collectives` counts what really went over the wire.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Iterator

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from mindspore.communication import get_rank, init

from mindbooth.ranktable import discover
from mindbooth.ranktable.placement import Placement

from . import lazy

log = logging.getLogger(__name__)


_MODE = threading.RLock()  # the mode is the whole process's: one thread at a time may set it


class Comm:
    """All workers of a run.

    rank, size: this worker's number in 0..size-1, and how many there are.
    collectives: how many collectives this worker has taken part in so far.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size
        self.collectives = 0
        self._sum = ops.AllReduce() if size > 1 else None

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of `x` over all workers; x in fp32 or fp16, of one shape everywhere."""
        if self._sum is None:
            return x
        self.collectives += 1
        return self._sum(x)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The sum over all workers of an array on the host, in fp32."""
        return self.all_reduce(Tensor(np.asarray(values, np.float32))).asnumpy()

    def agree(self, value: int) -> int:
        """Rank 0's `value` (0 <= value < 2**24, exact in fp32), on every worker."""
        return int(self.sum(np.array([value if self.rank == 0 else 0]))[0])


@functools.cache  # MindSpore takes these settings once in a process
def start(place: Placement, *, target: str, debug: bool = False) -> Comm:
    """Sets the device up, joins the group where there is one, and returns the Comm.

    target: "Ascend", "CPU", or "auto" (Ascend where this machine has NPUs). PyNative until
    `mode()` says otherwise; with `debug`, each operator ends before the next one starts.
    msrun's scheduler process never returns from here.
    """
    if target == "auto":
        target = "Ascend" if discover.ask() else "CPU"
    ms.set_device(target, place.local_rank if target == "Ascend" else 0)
    ms.set_context(mode=ms.PYNATIVE_MODE)
    ms.set_recursion_limit(10000)  # a graph over SDXL's adapter is deeper than the default 1000
    if debug or target == "CPU":
        # On a CPU, launching operators from a thread of their own costs far more than it hides.
        ms.runtime.launch_blocking()
    if target == "CPU":
        ms.runtime.dispatch_threads_num(1)
    if place.launched:
        init()
    _prepare_mindone(target)
    return Comm(rank=get_rank(), size=place.world_size) if place.launched else Comm()


def _prepare_mindone(target: str) -> None:
    """What has to be done before mindone is imported."""
    lazy.install()
    if target == "CPU":
        from . import cpu_ops

        cpu_ops.install()


@contextlib.contextmanager
def mode(name: str) -> Iterator[None]:
    """Inside the `with`, cells run in "graph" or "pynative" mode; after it, as before."""
    with _MODE:
        before = ms.get_context("mode")
        ms.set_context(mode=ms.GRAPH_MODE if name == "graph" else ms.PYNATIVE_MODE)
        try:
            yield
        finally:
            ms.set_context(mode=before)
