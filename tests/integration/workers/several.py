"""Several trainings in one process, which saves the start-up: `several.py RUNS.json [flags]`.

RUNS.json is a list of command lines; the flags given here come before each of them. Alone, each is
`mindbooth train` with it, and ended.json tells the statuses and what was written to the terminal.
As a worker of a launch, the group is joined once, as the trainer's main() does it, for all runs.
"""

import contextlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from mindbooth.ranktable.placement import Placement
from mindbooth.trainer import __main__ as trainer


def alone(runs: list[list[str]], prepare: Callable[[], None] = lambda: None) -> int:
    ended = []
    prepare()
    for argv in runs:
        told: dict[str, str] = {}
        with captured(1, told, "out"), captured(2, told, "err"):
            try:
                status = trainer.main(argv)
            except SystemExit as err:
                status = int(err.code or 0)
            except BaseException:
                traceback.print_exc()
                status = 1
        ended.append({"status": status, **told})
    Path("ended.json").write_text(json.dumps(ended))
    return 0


@contextlib.contextmanager
def captured(descriptor: int, told: dict[str, str], name: str) -> Iterator[None]:
    """What is written to a descriptor, by Python or by native code, goes to `told`."""
    kept = os.dup(descriptor)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), descriptor)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(kept, descriptor)
            os.close(kept)
            file.seek(0)
            told[name] = file.read().decode(errors="replace")


def together(runs: list[list[str]], prepare: Callable[[], None] = lambda: None) -> int:
    trainer.keep_torch_out()
    from mindbooth.trainer import device, loop, report
    from mindbooth.trainer.parse import parse
    from mindbooth.trainer.stop import StopRequest

    report.start()
    configs = [parse(argv)[0] for argv in runs]
    comm = device.start(Placement.from_environ(os.environ), target="CPU")
    stop = StopRequest()
    stop.install()
    prepare()
    for number, config in enumerate(configs):
        environ = {**os.environ, "MINDBOOTH_JOB": f"{os.environ['MINDBOOTH_JOB']} {number}"}
        status = trainer.ended(lambda: loop.train(config, comm, stop, environ), stop)  # noqa: B023
        if status:
            return status
    return 0


if __name__ == "__main__":
    todo = [[*sys.argv[2:], *argv] for argv in json.loads(Path(sys.argv[1]).read_text())]
    sys.exit(together(todo) if "MS_ROLE" in os.environ else alone(todo))
