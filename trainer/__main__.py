"""`mindbooth train`, `python -m mindbooth.trainer`, and each worker of `mindbooth launch`.

Parses (pure), joins the group, and only then touches files: msrun's scheduler process executes the
same command and stays in joining until the run is over.
"""

from __future__ import annotations

import errno
import faulthandler
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence

from mindbooth.data.errors import DataError, RankFailed, RankStopped
from mindbooth.ranktable.placement import Placement
from mindbooth.ranktable.topology import RankTableError

from .errors import NeverFinite, Unreachable
from .stop import STATUS, StopRequest

log = logging.getLogger("mindbooth.trainer")

SECONDS_FOR_THE_CAUSE = 10.0
PRECOMPUTE = "precompute"  # the worker's first word, and the command's name


def main(argv: Sequence[str] | None = None, prog: str = "mindbooth train") -> int:
    """Runs a training, or with the first word `precompute` only what comes before it; returns the
    exit status."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == [PRECOMPUTE]:
        return precompute(words[1:])
    return _main(words, prog, trains=True)


def precompute(argv: Sequence[str]) -> int:
    """Fills the cache with what a training with these flags needs; returns the exit status."""
    return _main(argv, f"mindbooth {PRECOMPUTE}", trains=False)


def _main(argv: Sequence[str], prog: str, *, trains: bool) -> int:
    show_stacks_when_asked()
    keep_torch_out()
    hide_chatter()
    from . import report

    report.start()
    stop = StopRequest()
    return ended(lambda: _run(argv, prog, stop, trains=trains), stop)


def ended(run: Callable[[], int], stop: StopRequest) -> int:
    """The exit status of `run`: its own, or that of what it raised, which is told in one line."""
    from .config import ConfigError

    def tell(text: object) -> None:
        print(f"mindbooth: error: {text}", file=sys.stderr, flush=True)

    try:
        return run()
    except (ConfigError, DataError, RankTableError) as err:
        tell(err)
        return 1 if stop.began else 2
    except RankStopped:
        return STATUS
    except RankFailed as err:
        time.sleep(SECONDS_FOR_THE_CAUSE)  # so that the rank that failed is seen to end first
        tell(f"another rank failed: {err}")
        return 1
    except (NeverFinite, Unreachable) as err:
        tell(err)
        return 1
    except OSError as err:
        if err.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" ({err.filename})" if err.filename else ""
        tell(f"The disk is full{where}: free some space, then go on with "
             "--resume_from_checkpoint latest.")  # fmt: skip
        return 1
    except KeyboardInterrupt:
        return 130


def show_stacks_when_asked() -> None:
    """At USR2, Python stacks go to standard error: that of the main thread wherever it hangs, and
    those of all threads as soon as it can run Python.

    Threads that run meanwhile would change their frames while these are read, which has crashed
    processes; the interpreter's lock holds them.
    """
    signal.signal(signal.SIGUSR2, lambda *_: faulthandler.dump_traceback(2, all_threads=True))
    faulthandler.register(signal.SIGUSR2, file=2, all_threads=False, chain=True)


def keep_torch_out() -> None:
    """transformers would load torch where that is installed (4 s), and complain where it is not.

    It can only be told by the environment, before it is imported.
    """
    os.environ.setdefault("USE_TORCH", "0")
    for package in ("TRANSFORMERS", "DIFFUSERS"):  # mindone puts the second in the first's place
        os.environ.setdefault(f"{package}_NO_ADVISORY_WARNINGS", "1")


def hide_chatter() -> None:
    """MindSpore's own warnings. Under msrun they go to the log; the terminal shows none."""
    if not Placement.from_environ(os.environ).launched:
        os.environ.setdefault("GLOG_v", "3")


def _run(argv: Sequence[str], prog: str, stop: StopRequest, *, trains: bool) -> int:
    from .config import ConfigError
    from .parse import parse

    config, warnings = parse(argv, prog)
    place = Placement.from_environ(os.environ)
    if config.run.distributed and not place.launched:
        raise ConfigError("--distributed needs msrun around it, or use mindbooth launch.")
    if config.run.debug and place.world_size > 1:
        raise ConfigError("--debug is for one process: mindbooth train --debug.")

    from . import device, loop

    comm = device.start(place, target=config.run.device_target, debug=config.run.debug)
    stop.install()
    try:
        if comm.rank == 0:
            for warning in warnings:
                log.warning("%s", warning)
        if trains:
            return loop.train(config, comm, stop, os.environ)
        return loop.precompute(config, comm, os.environ)
    finally:
        stop.leave()


if __name__ == "__main__":
    sys.exit(main())
