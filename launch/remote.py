"""What each host of an ssh fan-out is asked to run: one line for its login shell. Pure.

    cd FOLDER || exit 126; exec env NAME=value ... PYTHON -m mindbooth.launch launch --node_rank I
        --scheduler none --nnodes N --master_addr A --master_port P --ssh_leash ... -- flags

`plan` prints the lines and `ssh.py` runs them. Folder and Python are this host's: all hosts need
them at the same paths. Everything in such a line can be read in the process list of the host, so no
secret goes into one.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from .options import LaunchError, flag_names
from .show import SECRET_FLAGS

NO_FOLDER = 126
# What belongs to this launcher, or is written anew for each host.
REPLACED = (
    *("--hosts", "--hostfile", "--scheduler"),
    *("--nnodes", "--node_rank", "--master_addr", "--master_port"),
)
# What the processes of a job read, and what CANN's set_env.sh sets.
PASSED_PREFIXES = ("ASCEND_", "GLOG_", "HCCL_", "HF_", "MS_", "OMP_", "WANDB_")
PASSED = (
    *("LD_LIBRARY_PATH", "LD_PRELOAD", "PATH", "PYTHONPATH", "TOOLCHAIN_HOME"),
    "XDG_CACHE_HOME",
)
OF_ONE_HOST = ("HCCL_IF_IP", "MS_WORKER_IP")
SECRET = ("KEY", "PASSWORD", "SECRET", "TOKEN")


def remote_commands(
    hosts: Sequence[str],
    *,
    folder: Path,
    python: Path,
    environ: Mapping[str, str],
    options: Sequence[str],
    training_flags: Sequence[str],
    master_addr: str | None,
    master_port: int,
) -> tuple[str, ...]:
    """Write the line of each host. `options` are those that this launcher was started with.

    Without a `master_addr` the first host's name is it, which each host looks up for itself.
    """
    _refuse_secrets(training_flags)
    launcher = [*_environment(environ), str(python), "-m", "mindbooth.launch", "launch"]
    job = [
        *("--scheduler", "none", "--nnodes", str(len(hosts))),
        *("--master_addr", master_addr or hosts[0], "--master_port", str(master_port)),
        *("--ssh_leash", *_kept(options), "--", *training_flags),
    ]
    return tuple(
        f"cd {shlex.quote(str(folder))} || exit {NO_FOLDER}; exec "
        + shlex.join(["env", *launcher, "--node_rank", str(rank), *job])
        for rank in range(len(hosts))
    )


def _refuse_secrets(training_flags: Sequence[str]) -> None:
    for name in flag_names(training_flags):
        if name in SECRET_FLAGS:
            raise LaunchError(
                f"{name} would stand in the process list of every host, for all to read. Leave it "
                "out, and log in on the hosts instead: huggingface-cli login"
            )


def _environment(environ: Mapping[str, str]) -> list[str]:
    """Choose what goes along of the environment here, as arguments of `env`."""
    return [
        f"{name}={value}"
        for name, value in sorted(environ.items())
        if (name in PASSED or name.startswith(PASSED_PREFIXES))
        and name not in OF_ONE_HOST
        and not any(word in name for word in SECRET)
    ]


def _kept(options: Sequence[str]) -> list[str]:
    """Leave out the options that are replaced, with their values."""
    kept = []
    words = iter(options)
    for word in words:
        name, equals, _ = word.partition("=")
        if name not in REPLACED:
            kept.append(word)
        elif not equals:
            next(words)
    return kept
