"""Plan -> exit status: attempt it, agree with the other hosts how it ended, leave nothing behind.

    launcher --- keeper     kills what the launcher started if the launcher vanishes
        +-- attempt 1, 2 ...

What carries this launcher's token after an attempt is killed. Then the launchers of all hosts agree
how it ended (`link.py`), and start again together if `--max_restarts` allows it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping

from . import keeper, processes
from .attempt import Attempt, start_msrun
from .follow import Terminal
from .inbox import Inbox
from .link import Link
from .options import LaunchError
from .plan import Plan
from .verdict import Outcome, describe, farewell


def supervise(
    plan: Plan,
    *,
    link: Link,
    inbox: Inbox,
    inherited: Mapping[str, str],
    terminal: Terminal,
    claim: Callable[[], int],
    renew: Callable[[int, bool], Plan],
    forget: Callable[[], None],
) -> int:
    """Run the plan, and again after a failure if it says so.

    `inherited` is the environment to start from. `claim` makes the folder of another attempt (on
    host 0), and `renew` the plan of it: its number, and whether to go on from a checkpoint.
    `forget` undoes what was made, if all that there was to say is one line about the input.
    """
    processes.become_subreaper()
    guard = keeper.start(plan.token)
    restarts, resume = 0, False

    def again(whole: Outcome) -> int | None:
        if not whole.may_restart or restarts == plan.max_restarts:
            return None
        try:
            return claim()
        except LaunchError as err:
            terminal.say(f"mindbooth: no restart: {err}")
            return None

    try:
        while True:
            mine = _attempt(plan, link, inbox, inherited, terminal)
            whole, following = link.settle(mine, inbox.wait, again)
            for line in _report(whole, plan):
                terminal.say(line)
            if following is None:
                if restarts == 0 and whole.failure is not None and whole.failure.is_bad_input:
                    forget()
                return whole.status
            restarts, resume = restarts + 1, resume or whole.resumable
            terminal.say(f"mindbooth: starting again (restart {restarts} of {plan.max_restarts})")
            plan = renew(following, resume)
    finally:
        processes.sweep(plan.token)
        guard.communicate()


def _attempt(
    plan: Plan, link: Link, inbox: Inbox, inherited: Mapping[str, str], terminal: Terminal
) -> Outcome:
    with tempfile.TemporaryFile() as output:
        job = Attempt(plan, link, start_msrun(plan, inherited, output), output, terminal)
        try:
            while not job.over(time.monotonic()):
                for number in inbox.wait(job.patience(), link.sources):
                    link.stop(number)
                    job.ask_to_stop(number, time.monotonic())
                job.step(time.monotonic())
        finally:
            left = processes.sweep(plan.token)
        now = time.monotonic()
        job.look(now)
        job.follow(now, last=True)
        terminal.close()
        if left:
            terminal.say(f"mindbooth: these processes would not end: {sorted(left)}")
        return job.outcome()


def _report(whole: Outcome, plan: Plan) -> list[str]:
    told = describe(whole.failure, plan) if whole.failure else []
    return told + farewell(whole)
