"""From what one launcher sees to a plan that all launchers of the job share, and the line to them.

On one host there is nobody to ask. On several, host 0 waits for the others (`rendezvous.py`); then
every host makes the same plan from the same facts, and shows the others that it did.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from mindbooth.ranktable import hccl, merge
from mindbooth.ranktable.topology import Cluster, Host

from . import folders, preflight, rendezvous, show
from .link import Link, Wait
from .options import LaunchError
from .plan import Plan
from .processes import make_room
from .rendezvous import Hello, Party
from .surroundings import Surroundings

PLAN = "plan.json"


@dataclass(frozen=True, kw_only=True)
class Start:
    """What supervise needs. forget: undoes what was made, for a run that ended at its input."""

    plan: Plan
    link: Link
    claim: Callable[[], int]
    renew: Callable[[int, bool], Plan]
    forget: Callable[[], None]


def assemble(
    around: Surroundings, program: tuple[str, ...], *, wait: Wait, tell: Callable[[str], None]
) -> Start:
    """Check what can be checked, find the other hosts, make folders and files."""
    draft = around.plan(attempt=1, job=secrets.token_hex(8), program=program)
    refuse(draft, around)
    absent = folders.missing(around.log_dir, draft.launch_dir)
    files = [path for path in (draft.launch_dir / PLAN, draft.table.path) if not path.exists()]
    party = _party(around, draft, wait=wait, tell=tell)
    lines = party.lines if party else {}
    with rendezvous.refusing(lines.values()):
        shared = not party or draft.node_rank == 0 or _sees(around.log_dir, party.attempt)
        start = _start(around, party, draft, program, shared)
        if draft.node_rank == 0 or not shared:  # else host 0 does it for both
            made = start.plan.attempt_dir
            start = replace(start, forget=lambda: folders.forget(made, files, absent))
        if party:
            try:
                _agree(around, party, start.plan, shared, wait=wait, tell=tell)
            except BaseException:
                start.forget()
                raise
            start = replace(start, link=_link(party, start.plan))
    return start


def refuse(draft: Plan, around: Surroundings) -> None:
    """Stop here what cannot work on this machine, though it can be planned."""
    if draft.device_target == "Ascend" and not around.machine.devices:
        raise LaunchError(
            "--device_target Ascend, but there is no /dev/davinciN here. Look at it with "
            "mindbooth plan, start it on a machine with NPUs, or pass --device_target CPU."
        )
    for program in (draft.environment.path_first / "python", Path(draft.command[0])):
        if not program.exists():
            raise LaunchError(f"{program} is not there. Install mindspore beside {program.parent}.")
    site = around.site
    if site.node_rank == 0:
        several = site.nnodes > 1
        if several and site.master_addr not in preflight.own_addresses():
            raise LaunchError(
                f"this is host 0, but the master's address {site.master_addr} is none of its own "
                f"({', '.join(sorted(preflight.own_addresses()))}). Pass the one of them that the "
                "other hosts reach as --master_addr, on every host."
            )
        for port in (site.master_port, site.master_port + 1)[: 1 + several]:
            who = preflight.holder(site.master_addr, port)
            if who is not None:
                raise _taken(around, port, who)


def _taken(around: Surroundings, port: int, who: str) -> LaunchError:
    return preflight.port_taken(
        around.site.master_addr,
        port,
        who,
        source=around.port_source,
        several_hosts=around.site.nnodes > 1,
    )


def _party(
    around: Surroundings, draft: Plan, *, wait: Wait, tell: Callable[[str], None]
) -> Party | None:
    """Meet the other hosts, if there are any."""
    site, seconds = around.site, around.config.rendezvous_seconds
    if site.nnodes == 1:
        return None
    if site.node_rank:
        return rendezvous.call(
            site.master_addr,
            site.master_port + 1,
            lambda address: _hello(around, draft, address),
            seconds=seconds,
            wait=wait,
            tell=tell,
        )
    make_room(site.nnodes)
    try:
        reception = rendezvous.Reception(site.master_addr, site.master_port + 1)
    except OSError as err:  # taken since we looked
        raise _taken(around, site.master_port + 1, err.strerror or str(err)) from err
    try:
        hellos, lines = reception.gather(
            _hello(around, draft, site.master_addr),
            names=site.names,
            seconds=seconds,
            wait=wait,
            tell=tell,
            command_of=lambda rank: show.command_of_host(around.config, site, rank),
        )
    finally:
        reception.close()
    with rendezvous.refusing(lines.values()):
        attempt = _claim(around, at_least=max(hello.attempt for hello in hellos))
    return rendezvous.welcome(hellos, lines, job=draft.job, attempt=attempt)


def _hello(around: Surroundings, draft: Plan, address: str) -> Hello:
    here = draft.cluster.hosts[draft.node_rank]
    if around.table_text is None:
        here = replace(here, server_id=address, host_ip=address if here.super_pod_id else None)
    table = hccl.from_cluster(Cluster(hosts=(here,), source=here.name, assumed=False))
    flags = "\0".join(around.config.training_flags)
    return Hello(
        key=around.key,
        work=draft.work,
        version=version("mindbooth"),
        nnodes=around.site.nnodes,
        node_rank=around.site.node_rank,
        name=around.machine.name,
        address=address,
        target=draft.device_target,
        devices=len(here.devices),
        flags=hashlib.sha256(os.fsencode(flags)).hexdigest(),
        table=hccl.render(table),
        attempt=folders.look(around.log_dir),
        clock=time.time(),
    )


def _hosts(party: Party) -> tuple[Host, ...]:
    names = [hello.name for hello in party.hellos]
    tables = [hccl.parse(hello.table, hello.name) for hello in party.hellos]
    cluster = hccl.to_cluster(merge.merge(tables, names), "what the hosts told")
    return tuple(replace(host, name=name) for host, name in zip(cluster.hosts, names, strict=True))


def _start(
    around: Surroundings,
    party: Party | None,
    draft: Plan,
    program: tuple[str, ...],
    shared: bool,
) -> Start:
    site = replace(around.site, peers=_hosts(party)) if party else around.site
    job = party.job if party else draft.job
    attempt = party.attempt if party else _claim(around)

    def renew(attempt: int, resume: bool) -> Plan:
        plan = around.plan(attempt=attempt, job=job, site=site, program=program, resume=resume)
        if plan.node_rank == 0 or not shared:
            folders.make(plan.attempt_dir, _option(around))
            folders.publish(plan.launch_dir / PLAN, show.as_json(plan))
            folders.publish(plan.table.path, plan.table.text)
        return plan

    plan = renew(attempt, False)
    return Start(
        plan=plan,
        link=Link(),
        claim=lambda: _claim(around),
        renew=renew,
        forget=lambda: None,
    )


def _link(party: Party, plan: Plan) -> Link:
    return Link(
        party.lines,
        node_rank=plan.node_rank,
        hosts=len(plan.cluster.hosts),
        workers=plan.cluster.world_size,
    )


def _agree(
    around: Surroundings,
    party: Party,
    plan: Plan,
    shared: bool,
    *,
    wait: Wait,
    tell: Callable[[str], None],
) -> None:
    digest = hashlib.sha256(plan.table.text.encode()).hexdigest()
    if plan.node_rank:
        rendezvous.ready(party, digest=digest, shared=shared, wait=wait)
        return
    blind = rendezvous.start_together(party, digest, wait)
    for rank in blind:
        tell(
            f"host {party.hellos[rank].name} does not see {around.log_dir}: it keeps its workers' "
            "logs itself. To restart or resume, all hosts must see one --output_dir."
        )


def _sees(log_dir: Path, attempt: int) -> bool:
    """Whether host 0's folder of this attempt is seen here; it was made before we were told.

    The parent is listed: network file systems may remember that a name was missing.
    """
    return log_dir.is_dir() and folders.name(attempt) in os.listdir(log_dir)


def _claim(around: Surroundings, at_least: int = 1) -> int:
    return folders.claim(around.log_dir, _option(around), at_least)


def _option(around: Surroundings) -> str:
    return "--log_dir" if around.config.log_dir else "--output_dir"
