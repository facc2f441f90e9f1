"""Machines to plan for: one without NPUs, one with eight."""

from dataclasses import replace
from pathlib import Path

from mindbooth.launch.devices import Machine
from mindbooth.launch.options import LaunchConfig
from mindbooth.launch.plan import Plan, Site, make_plan
from mindbooth.ranktable.topology import Device

DESK = Machine(name="desk", devices=(), cores=6, python=Path("/venv/bin/python3"), environ={})
SERVER = replace(
    DESK,
    name="server",
    devices=tuple(Device(physical_id=i, address=f"192.168.{i}.1") for i in range(8)),
    cores=192,
)


ALONE = Site(master_port=23456)


def plan_for(
    config: LaunchConfig,
    machine: Machine,
    table_text: str | None = None,
    site: Site = ALONE,
    resume: bool = False,
) -> Plan:
    return make_plan(
        config,
        machine,
        site=site,
        output_dir=Path("/srv/out"),
        log_dir=Path("/srv/out/launch"),
        attempt=3,
        job="token",
        table_text=table_text,
        resume=resume,
    )
