"""`mindbooth launch`, `plan` and `demo`: look at the machine, make the plan, print it or run it.

The only file here that reads the process's environment, the machine and the user's files.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import zlib
from collections.abc import Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path

from mindbooth.ranktable import discover

from . import folders, options, show
from .devices import Machine
from .options import LaunchConfig, LaunchError
from .plan import SCHEDULER_HOST, TRAINER, Plan, make_plan

JOB_OF_A_PLAN = "<new for each launch>"
AUTO_PORTS = range(20000, 30000)  # below the ports that the kernel gives to clients
PLAN = "plan.json"
DEMO = Path("examples", "mini-sdxl", "demo.py")


def plan(argv: Sequence[str]) -> int:
    """Print what `launch` would do with the same options."""
    parser = options.parser("plan", "Print what mindbooth launch would do, and start nothing.")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    config, extra = options.parse(parser, argv)
    output_dir, log_dir = _folders(config)
    made = _plan(config, _machine(), output_dir, log_dir, folders.look(log_dir), JOB_OF_A_PLAN)
    print((show.as_json if extra.json else show.as_text)(made), end="")
    return 0


def launch(argv: Sequence[str], program: tuple[str, ...] = TRAINER) -> int:
    """Start the workers, supervise them, return the job's status. `program` is what python runs."""
    from .follow import Terminal  # what plan does not need stays out of its start
    from .supervise import supervise
    from .verdict import BAD_INPUT

    parser = options.parser("launch", "Start workers with msrun and watch them to their end.")
    config, _ = options.parse(parser, argv)
    machine = _machine()
    output_dir, log_dir = _folders(config)
    draft = _plan(config, machine, output_dir, log_dir, 1, secrets.token_hex(8), program)
    _refuse(draft, config)
    made_folders = folders.missing(log_dir, draft.launch_dir)
    made_files = [f for f in (draft.launch_dir / PLAN, draft.table.path) if not f.exists()]
    attempt = folders.claim(log_dir, "--log_dir" if config.log_dir else "--output_dir")
    final = _plan(config, machine, output_dir, log_dir, attempt, draft.job, program)
    folders.publish(final.launch_dir / PLAN, show.as_json(final))
    folders.publish(final.table.path, final.table.text)

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a log may hold what this terminal can't show
            stream.reconfigure(errors="replace")
    terminal = Terminal(out=sys.stdout, err=sys.stderr)
    for line in (show.headline(final), f"logs in {final.attempt_dir}", *final.notes):
        terminal.show(f"mindbooth: {line}")
    status = supervise(final, inherited=machine.environ, terminal=terminal)
    if status == BAD_INPUT:
        folders.forget(final.attempt_dir, made_files, made_folders)
    return status


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


def _machine() -> Machine:
    return Machine(
        name=socket.gethostname(),
        devices=discover.ask(),
        cores=len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1,
        python=Path(sys.executable),
        environ=dict(os.environ),
    )


def _folders(config: LaunchConfig) -> tuple[Path, Path]:
    """Name the output folder and the folder of the attempts, both absolute."""
    flags = config.training_flags
    asked = options.output_dir(flags, _yaml(options.config_file(flags)))
    output_dir = Path.cwd() / asked.expanduser()
    log_dir = output_dir / "launch"
    if config.log_dir is not None:
        log_dir = Path.cwd() / config.log_dir.expanduser()
    return output_dir, log_dir


def _yaml(path: Path | None) -> Mapping[str, object]:
    if path is None:
        return {}
    import yaml

    try:
        content = yaml.safe_load(path.expanduser().read_text(encoding="utf-8")) or {}
    except OSError as err:
        raise LaunchError(f"--config {path}: cannot be read ({err.strerror}).") from err
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise LaunchError(f"--config {path}: no YAML ({' '.join(str(err).split())}).") from err
    if not isinstance(content, dict):
        raise LaunchError(f"--config {path}: holds no options. Write lines such as rank: 4.")
    return content


def _plan(
    config: LaunchConfig,
    machine: Machine,
    output_dir: Path,
    log_dir: Path,
    attempt: int,
    job: str,
    program: tuple[str, ...] = TRAINER,
) -> Plan:
    table_text = None
    if isinstance(config.rank_table, Path):
        try:
            table_text = config.rank_table.read_text()
        except (OSError, UnicodeDecodeError) as err:
            raise LaunchError(f"--rank_table {config.rank_table}: cannot be read ({err}).") from err
    return make_plan(
        config,
        machine,
        output_dir=output_dir,
        log_dir=log_dir,
        attempt=attempt,
        master_port=config.master_port or free_port(str(output_dir)),
        job=job,
        table_text=table_text,
        program=program,
    )


def free_port(key: str) -> int:
    """Find a free port; the search starts where `key` says, so that plan and launch agree."""
    start = zlib.crc32(key.encode()) % len(AUTO_PORTS)
    for offset in range(len(AUTO_PORTS)):
        port = AUTO_PORTS[(start + offset) % len(AUTO_PORTS)]
        if is_free(port):
            return port
    raise LaunchError(f"no port from {AUTO_PORTS[0]} to {AUTO_PORTS[-1]} is free.")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((SCHEDULER_HOST, port))
        except OSError:
            return False
    return True


def _refuse(draft: Plan, config: LaunchConfig) -> None:
    """Stop here what cannot work on this machine, though it can be planned."""
    if draft.cluster.assumed:
        raise LaunchError(
            "--device_target Ascend, but there is no /dev/davinciN here. Look at it with "
            "mindbooth plan, start it on a machine with NPUs, or pass --device_target CPU."
        )
    for program in (draft.environment.path_first / "python", Path(draft.command[0])):
        if not program.exists():
            raise LaunchError(f"{program} is not there. Install mindspore beside {sys.executable}.")
    if config.master_port is not None and not is_free(config.master_port):
        raise LaunchError(
            f"--master_port {config.master_port} is taken on this host. Name another, or leave it "
            "out and a free one is found."
        )
