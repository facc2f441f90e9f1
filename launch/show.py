"""A Plan as text for people and as JSON for programs. Secrets among the flags are not shown."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict

from .estimate import MOST_SHARE, NPU, Estimate, Update
from .options import LaunchConfig
from .plan import Plan, Site, Worker

SECRET_FLAGS = ("--hub_token",)
HIDDEN = "***"
LINKS = ("inside", "between")


def as_text(plan: Plan, estimated: Estimate | None = None) -> str:
    """Draw the plan, in the order in which a launch happens; then what may come of it."""
    environment = plan.environment
    no_address = "assumed" if plan.cluster.assumed else "-"
    rows = [_row(worker, no_address) for worker in plan.workers]
    table_use = "handed to msrun" if plan.table.handed else "not handed to msrun"
    parts = [
        headline(plan),
        _columns([("rank", "host", "device", "address", "log"), *rows]),
        "command\n  " + shlex.join(_without_secrets(plan.command)),
        "environment that we set\n"
        + _assignments([*environment.set.items(), ("PATH", f"{environment.path_first}:$PATH")]),
        "environment that we unset\n  " + " ".join(environment.unset),
        "environment that msrun sets for every worker\n"
        + _assignments([*environment.by_msrun.items()]),
        "environment that msrun sets for each worker\n"
        + "\n".join(f"  rank {w.rank}: {_words(w)}" for w in plan.workers),
        f"scheduler log\n  {plan.scheduler_log}",
        f"rank table ({table_use}: {plan.table.reason})\n  {plan.table.path}\n"
        + _indented(plan.table.text.rstrip()),
    ]
    if estimated is not None:
        parts.append(_estimate(estimated))
    if plan.notes:
        parts.append("notes\n" + "\n".join(f"  {note}" for note in plan.notes))
    return "\n\n".join(parts) + "\n"


def command_of_host(config: LaunchConfig, site: Site, node_rank: int) -> str:
    """The command that another host should run, with what a scheduler gave written out."""
    options = [
        *("mindbooth", "launch", "--nnodes", str(site.nnodes), "--node_rank", str(node_rank)),
        *("--master_addr", site.master_addr, "--master_port", str(site.master_port)),
    ]
    if config.job != "train":
        options += ["--job", config.job]
    if config.nproc_per_node is not None:
        options += ["--nproc_per_node", str(config.nproc_per_node)]
    if config.device_target is not None:
        options += ["--device_target", config.device_target]
    return shlex.join((*options, "--", *_without_secrets(config.training_flags)))


def ssh_as_text(hosts: Sequence[str], commands: Sequence[str]) -> str:
    """Draw a fan-out by ssh: what each host would be asked to run."""
    parts = [f"{len(hosts)} hosts by ssh: {', '.join(hosts)}"]
    parts += [f"{host}\n  {command}" for host, command in zip(hosts, commands, strict=True)]
    parts.append("What a host then does, mindbooth plan tells there.")
    return "\n\n".join(parts) + "\n"


def ssh_as_json(hosts: Sequence[str], commands: Sequence[str]) -> str:
    pairs = zip(hosts, commands, strict=True)
    document = {"hosts": [{"name": host, "command": command} for host, command in pairs]}
    return json.dumps(document, indent=2) + "\n"


def headline(plan: Plan) -> str:
    """Say in one line who works where, and how we know."""
    count = plan.cluster.world_size
    workers = "1 worker" if count == 1 else f"{count} workers"
    assumed = ", devices assumed" if plan.cluster.assumed else ""
    names = [host.name for host in plan.cluster.hosts]
    hosts = f"host {names[0]}" if len(names) == 1 else f"{len(names)} hosts ({_some(names)})"
    port = str(plan.master_port) if len(names) == 1 else f"{plan.master_port} of {names[0]}"
    work = "" if plan.work == "train" else f"{plan.work}: "
    where = f"{plan.device_target}, {hosts} ({plan.cluster.source}){assumed}, port {port}"
    return f"{work}{workers} on {where}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 8 else f"{', '.join(names[:3])} ... {names[-1]}"


def as_json(plan: Plan, estimated: Estimate | None = None) -> str:
    """Write the whole plan down; stable order, so that two plans can be compared."""
    environment = plan.environment
    document = {
        "job": plan.job,
        "work": plan.work,
        "device_target": plan.device_target,
        "world_size": plan.cluster.world_size,
        "source": plan.cluster.source,
        "assumed": plan.cluster.assumed,
        "hosts": [
            {
                "name": host.name,
                "server_id": host.server_id,
                "devices": [
                    {
                        "physical_id": device.physical_id,
                        "address": device.address,
                        "assumed": plan.cluster.assumed,
                    }
                    for device in host.devices
                ],
            }
            for host in plan.cluster.hosts
        ],
        "node_rank": plan.node_rank,
        "master_addr": plan.master_addr,
        "master_port": plan.master_port,
        "command": list(_without_secrets(plan.command)),
        "environment": {
            "set": dict(environment.set),
            "path_first": str(environment.path_first),
            "unset": list(environment.unset),
            "by_msrun": dict(environment.by_msrun),
        },
        "workers": [
            {
                "rank": worker.rank,
                "node_rank": worker.node_rank,
                "host": worker.host,
                "local_rank": worker.local_rank,
                "physical_id": worker.device.physical_id,
                "environment": dict(worker.environment),
                "log": str(worker.log),
            }
            for worker in plan.workers
        ],
        "rank_table": {
            "path": str(plan.table.path),
            "handed_to_msrun": plan.table.handed,
            "reason": plan.table.reason,
            "content": json.loads(plan.table.text),
        },
        "output_dir": str(plan.output_dir),
        "attempt_dir": str(plan.attempt_dir),
        "scheduler_log": str(plan.scheduler_log),
        "grace_seconds": plan.grace_seconds,
        "hang_seconds": plan.hang_seconds,
        "max_restarts": plan.max_restarts,
        "estimate": None if estimated is None else _document(estimated),
        "notes": list(plan.notes),
    }
    return json.dumps(document, indent=2) + "\n"


def _estimate(found: Estimate) -> str:
    asked = found.training
    precision = {"no": "fp32"}.get(asked.mixed_precision, asked.mixed_precision)
    most = f"{MOST_SHARE:.0%} of an update"
    rows = [
        ("*" if row == found.plan else "", str(row.workers), f"{row.seconds:.3f}")
        + (_number(1 / row.seconds), _number(row.samples / row.seconds))
        + (f"{row.efficiency:.1%}", f"{row.share:.2%}")
        for row in found.rows
    ]
    heads = ("", "NPUs", "s/update", "updates/s", "samples/s", "efficiency", "communication")
    lines = [
        "estimate (from assumed rates: nothing in it was measured on an NPU; docs/scale.md)",
        f"  a sample: {_number(asked.flops / 1e12)} TFLOP at {asked.resolution} pixels, at "
        f"{NPU.rates[asked.mixed_precision] / 1e12:g} TFLOP/s ({precision}); "
        f"all-reduce: {_number(asked.wire / 1e6)} MB ({asked.allreduce_dtype})",
        *(
            f"  {mark:1}"
            + "".join(cell.rjust(len(h) + 2) for cell, h in zip(cells, heads[1:], strict=True))
            for mark, *cells in (heads, *rows)
        ),
    ]
    if found.advice:
        ways = ", ".join(f"{option} ({share:.1%})" for option, share in found.advice)
        lines.append(
            f"  Communication takes more than {most}. Any of these makes it less:\n  {ways}"
        )
    elif found.network is not None:
        workers, least = found.network
        lines.append(
            f"  With {_number(least * 8 / 1e9)} Gbit/s between hosts an NPU, communication of "
            f"{workers} NPUs would take {most}."
        )
    return "\n".join(lines)


def _document(found: Estimate) -> dict[str, object]:
    """The same, and what it is computed from; seconds, bytes, FLOP."""

    def row(of: Update) -> dict[str, object]:
        derived = {"seconds": of.seconds, "share": of.share, "efficiency": of.efficiency}
        return {name: round(value, 9) for name, value in (asdict(of) | derived).items()}

    return {
        "measured_on_npu": False,
        "assumed": asdict(NPU) | {name: getattr(NPU, name)._asdict() for name in LINKS},
        "training": asdict(found.training),
        "flops_of_a_sample": found.training.flops,
        "bytes_of_the_all_reduce": found.training.wire,
        "plan": row(found.plan),
        "rows": [row(of) for of in found.rows],
        "network": found.network
        and dict(zip(("workers", "bandwidth"), found.network, strict=True)),
        "advice": [{"set": option, "share": share} for option, share in found.advice],
    }


def _number(x: float) -> str:
    """Three digits, or all of those before the point."""
    return f"{x:.0f}" if x >= 100 else f"{x:.3g}"


def _without_secrets(command: Sequence[str]) -> tuple[str, ...]:
    shown: list[str] = []
    for word in command:
        name, equals, _ = word.partition("=")
        if shown and _is_secret(shown[-1]):
            shown.append(HIDDEN)
        elif equals and _is_secret(name):
            shown.append(f"{name}={HIDDEN}")
        else:
            shown.append(word)
    return tuple(shown)


def _is_secret(flag: str) -> bool:
    return flag.replace("-", "_").replace("__", "--", 1) in SECRET_FLAGS


def _row(worker: Worker, unknown: str) -> tuple[str, ...]:
    device = worker.device
    return (
        str(worker.rank),
        worker.host,
        str(device.physical_id),
        device.address or unknown,
        str(worker.log),
    )


def _columns(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(f"  {line.rstrip()}" for line in lines)


def _assignments(pairs: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"  {name}={value}" for name, value in pairs)


def _words(worker: Worker) -> str:
    return " ".join(f"{name}={value}" for name, value in worker.environment.items())


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
