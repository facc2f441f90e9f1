"""`mindbooth launch`, `plan` and `demo`: look around, make the plan, print it or run it.

A launch, in the order of its files: `options`, `surroundings` (`schedulers`, `devices`), `plan`,
`preflight`, `assembly` (`rendezvous`), `supervise` (`link`, `verdict`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from signal import SIGINT

from . import estimate, folders, options, show, surroundings
from .follow import Terminal
from .options import LaunchConfig, LaunchError
from .plan import TRAINER, Plan, port_for

JOB_OF_A_PLAN = "<new for each launch>"
DEMO = Path("examples", "mini-sdxl", "demo.py")


def plan(argv: Sequence[str]) -> int:
    """Print what `launch` would do with the same options."""
    parser = options.parser("plan", "Print what mindbooth launch would do, and start nothing.")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    config, extra = options.parse(parser, argv)
    if config.by_ssh:
        hosts, commands = _by_ssh(config, argv)
        print((show.ssh_as_json if extra.json else show.ssh_as_text)(hosts, commands), end="")
        return 0
    around = surroundings.look(config, os.environ, pause=None)
    made = around.plan(attempt=folders.look(around.log_dir), job=JOB_OF_A_PLAN)
    print((show.as_json if extra.json else show.as_text)(made, _estimate(config, made)), end="")
    return 0


def _estimate(config: LaunchConfig, made: Plan) -> estimate.Estimate | None:
    """What its updates would take; there are no figures for a CPU, nor for a precompute."""
    if made.device_target == "CPU" or made.work != "train":
        return None
    flags = config.training_flags
    asked = estimate.read(flags, surroundings.yaml_options(options.config_file(flags)))
    hosts = made.cluster.hosts
    return estimate.estimate(asked, hosts=len(hosts), per_host=len(hosts[0].devices))


def launch(argv: Sequence[str], program: tuple[str, ...] = TRAINER) -> int:
    """Start the workers, supervise them, return the job's status. `program` is what python runs."""
    parser = options.parser("launch", "Start workers with msrun and watch them to their end.")
    config, _ = options.parse(parser, argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a log may hold what this terminal can't show
            stream.reconfigure(errors="replace")
    terminal = Terminal(out=sys.stdout, err=sys.stderr)
    if config.by_ssh:
        from .ssh import fan_out

        hosts, commands = _by_ssh(config, argv)
        return fan_out(
            hosts=hosts, commands=commands, terminal=terminal, grace_seconds=config.grace_seconds
        )
    return _launch(config, program, terminal)


def _launch(config: LaunchConfig, program: tuple[str, ...], terminal: Terminal) -> int:
    import time

    from . import assembly
    from .inbox import Inbox
    from .leash import Leash
    from .rendezvous import Interrupted
    from .supervise import supervise
    from .verdict import INTERRUPTED, STOPPED

    def tell(line: str) -> None:
        terminal.show(f"mindbooth: {line}")

    leash = Leash(sys.stdin.fileno(), time.monotonic()) if config.ssh_leash else None
    with Inbox(leash) as inbox:

        def pause(seconds: float) -> None:
            for number in inbox.wait(seconds):
                raise Interrupted(number)

        try:
            around = surroundings.look(config, os.environ, pause=pause)
            start = assembly.assemble(around, program, wait=inbox.wait, tell=tell)
        except Interrupted as err:
            terminal.say(f"mindbooth: {err}: stopped before anything was started")
            return INTERRUPTED if err.number is SIGINT else STOPPED
        plan = start.plan
        for line in (show.headline(plan), f"logs in {plan.attempt_dir}", *plan.notes):
            tell(line)
        try:
            return supervise(
                plan,
                link=start.link,
                inbox=inbox,
                inherited=around.machine.environ,
                terminal=terminal,
                claim=start.claim,
                renew=start.renew,
                forget=start.forget,
            )
        finally:
            start.link.close()


def demo(argv: Sequence[str]) -> int:
    """Run the checkout's demonstration in place of this process."""
    script = Path(__file__).resolve().parent.parent / DEMO
    if not script.is_file():
        raise LaunchError(
            f"mindbooth demo needs a checkout: {script} is not there. Clone the repository, "
            "install it with pip install -e, and run mindbooth demo again."
        )
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, str(script), *argv])


def _by_ssh(config: LaunchConfig, argv: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The hosts of --hosts or --hostfile, and the command of each."""
    from .remote import remote_commands

    hosts, slots = surroundings.hosts(config)
    ours, training_flags = options.split(argv)
    kept = [word for word in ours if word != "--json"]
    if slots is not None and config.nproc_per_node is None:
        kept += ["--nproc_per_node", str(slots)]
    commands = remote_commands(
        hosts,
        folder=Path.cwd(),
        python=Path(sys.executable),
        environ=os.environ,
        options=kept,
        training_flags=training_flags,
        master_addr=config.master_addr,
        master_port=config.master_port or port_for(str(surroundings.output_folders(config)[0])),
    )
    return hosts, commands
