"""A worker for the launcher's tests: `python stub.py BEHAVIOUR ...`, one function each.

Those that join the group do it with MindSpore itself; the others cost no import.
"""

import json
import os
import signal
import sys
import time

RANK = os.environ["RANK_ID"]
IS_SCHEDULER = os.environ["MS_ROLE"] == "MS_SCHED"


def join_group() -> None:
    from mindspore.communication import init

    init()


def all_reduce() -> list[float]:
    import numpy as np
    from mindspore import Tensor, ops

    total = ops.AllReduce()(Tensor(np.full(3, float(RANK) + 1, np.float32)))
    return [float(value) for value in total.asnumpy()]


def wait_as_scheduler() -> None:
    """Stand in for what msrun's scheduler does in init(), where a stub does not join."""
    if IS_SCHEDULER:
        time.sleep(600)


def trains() -> None:
    join_group()
    print("environ", json.dumps(dict(os.environ)))
    print("sum", all_reduce())


def raises_before_joining() -> None:
    if RANK == "1":
        raise RuntimeError("planted before init")
    join_group()


def raises_after_joining() -> None:
    join_group()
    if RANK == "1":
        raise RuntimeError("planted after init")
    all_reduce()


def is_killed() -> None:
    join_group()
    if RANK == "1":
        print("last words")
        os.kill(os.getpid(), signal.SIGKILL)
    all_reduce()


def exits_3() -> None:
    wait_as_scheduler()
    if RANK == "1":
        sys.exit(3)
    time.sleep(600)


def exits_3_at_once() -> None:
    os._exit(3)


def finds_bad_input() -> None:
    print("mindbooth: error: --instance_data_dir nowhere: no such folder.", file=sys.stderr)
    sys.exit(2)


def saves_and_stops() -> None:
    wait_as_scheduler()
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    print("ready")
    while not asked:
        time.sleep(0.05)
    print("saved")
    sys.exit(75)


def beat(done: int) -> None:
    """Keep a heartbeat as a worker that has encoded so many of 9 entries."""
    record = {
        "phase": "encode", "phases": 3, "what": "encoding", "unit": "entry", "first": 0,
        "done": done, "total": 9, "since": 0.0, "figures": {}, "updates": None, "began": False,
        "time": time.monotonic(),
    }  # fmt: skip
    path = os.path.join(os.environ["MINDBOOTH_HEARTBEATS"], f"heartbeat_{RANK}")
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(record))


def takes_long_to_leave() -> None:
    """Be done, as the trainer's workers are in their last second: deaf."""
    wait_as_scheduler()
    beat(9)
    time.sleep(1.5)  # the launcher has looked
    print("ready")
    time.sleep(3)


def hangs_while_encoding() -> None:
    wait_as_scheduler()
    beat(8)
    time.sleep(600)


def fails_at_first() -> None:
    """Fail in the first attempt, and tell in the second one what the worker was asked to do."""
    wait_as_scheduler()
    if not os.environ["MINDBOOTH_HEARTBEATS"].endswith("attempt-1"):
        print("asked", *sys.argv[2:])
        time.sleep(4)  # so that msrun sees no end of ours
    elif RANK == "1":
        sys.exit(3)
    else:
        time.sleep(600)


def does_not_stop() -> None:
    wait_as_scheduler()
    signal.signal(signal.SIGTERM, lambda *_: print("heard"))
    print("ready")
    while True:
        time.sleep(600)


def has_not_joined() -> None:
    print("ready")
    time.sleep(600)


def has_children() -> None:
    wait_as_scheduler()
    if os.fork() == 0:
        os.setsid()
        time.sleep(600)
    print("ready", os.getpid())
    time.sleep(600)


def is_quiet() -> None:
    wait_as_scheduler()
    time.sleep(float(os.environ["STUB_SECONDS"]))


def is_empty() -> None:
    """For as long as msrun takes to start, so that it sees no end of ours."""
    time.sleep(4)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
