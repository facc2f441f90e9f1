"""A worker for the tests on several hosts: `python stub.py BEHAVIOUR`, one function each.

What goes wrong goes wrong on the last rank, which sits on the last host.
"""

import os
import signal
import sys
import time

RANK, SIZE = int(os.environ["RANK_ID"]), int(os.environ["MS_WORKER_NUM"])
IS_LAST = RANK == SIZE - 1
IS_SCHEDULER = os.environ["MS_ROLE"] == "MS_SCHED"


def join_group() -> None:
    from mindspore.communication import init

    init()


def all_reduce(number: float) -> float:
    import numpy as np
    from mindspore import Tensor, ops

    return float(ops.AllReduce()(Tensor(np.full(1, number, np.float32))).asnumpy()[0])


def fail() -> None:
    print("last words")
    raise RuntimeError(f"planted at {time.time()} s")


def leave() -> None:
    """As a worker of the trainer: whoever asks now does not change the status."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(75)


def reduces() -> None:
    """Reduce again and again; all leave together when one of them has been asked to."""
    join_group()
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    print("sum", all_reduce(RANK + 1))
    print("last words")
    while not all_reduce(len(asked)):
        time.sleep(0.05)
        print("reduced")
    print("saved")
    leave()


def leaves_late() -> None:
    """Be done ten seconds after the other ranks, which have left then."""
    join_group()
    all_reduce(1)
    if IS_LAST:
        print("late")
        time.sleep(10)


def raises_before_joining() -> None:
    if IS_LAST:
        fail()
    join_group()


def raises_after_joining() -> None:
    join_group()
    if IS_LAST:
        fail()
    all_reduce(1)


def waits() -> None:
    """Wait to be stopped, with a child that has run away; join no group, which costs an import."""
    if IS_SCHEDULER:
        time.sleep(600)
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    if os.fork() == 0:
        os.setsid()
        time.sleep(600)
    print("ready")
    while not asked:
        time.sleep(0.05)
    print("saved")
    leave()


def never_listens() -> None:
    time.sleep(600)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
