"""A stop request, by real signals to a real process."""

import subprocess
import sys

import pytest

# What __del__ does at the end of a process is done after Python has taken its handlers away.
WORKER = """
import os, signal, sys
from mindbooth.trainer.stop import StopRequest

class Last:
    def __del__(self):
        os.kill(os.getpid(), signal.{late})

last, stop = Last(), StopRequest()
stop.install()
try:
    {work}
finally:
    stop.leave()
sys.exit(0)
"""


@pytest.mark.parametrize("late", ["SIGTERM", "SIGUSR1"])
@pytest.mark.parametrize(
    ("work", "status"), [("pass", 0), ("os.kill(os.getpid(), signal.SIGTERM)", 75)]
)
def test_a_request_in_the_last_second_does_not_change_the_status(
    work: str, status: int, late: str
) -> None:
    code = WORKER.format(work=work, late=late)
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == status


def test_while_updates_run_a_request_is_only_noted() -> None:
    work = "with stop.noted(): os.kill(os.getpid(), signal.SIGTERM); assert stop.asked"
    code = WORKER.format(work=work, late="SIGTERM")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
