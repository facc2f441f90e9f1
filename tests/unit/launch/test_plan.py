import json
from dataclasses import replace
from pathlib import Path

import pytest
from cpu_clock import cpu_seconds
from machines import DESK, SERVER, plan_for

from mindbooth.launch import folders
from mindbooth.launch.options import Job, LaunchConfig, LaunchError
from mindbooth.launch.plan import AUTO_PORTS, TRAINER, Plan, Site, make_plan, port_for
from mindbooth.ranktable import hccl
from mindbooth.ranktable.placement import Placement
from mindbooth.ranktable.topology import Cluster, Device, Host, RankTableError

EIGHT = LaunchConfig(device_target="Ascend", nproc_per_node=8)


def test_the_same_questions_give_the_same_plan() -> None:
    assert plan_for(EIGHT, DESK) == plan_for(EIGHT, DESK)


def test_the_msrun_command_is_complete() -> None:
    config = LaunchConfig(nproc_per_node=2, training_flags=("--seed", "0", "--note=a b"))
    assert plan_for(config, DESK).command == (
        "/venv/bin/msrun",
        "--worker_num=2",
        "--local_worker_num=2",
        "--master_addr=127.0.0.1",
        "--master_port=23456",
        "--node_rank=0",
        "--log_dir=/srv/out/launch/attempt-3",
        "--join=False",
        "--cluster_time_out=600",
        "python",
        "-m",
        "mindbooth.trainer",
        "--seed",
        "0",
        "--note=a b",
        "--device_target",
        "CPU",
    )


@pytest.mark.parametrize(
    ("job", "resume", "words"),
    [
        ("train", False, ("--seed", "0")),
        ("train", True, ("--seed", "0", "--resume_from_checkpoint", "latest")),
        ("precompute", False, ("precompute", "--seed", "0")),
    ],
)
def test_what_workers_do_stands_before_the_flags_and_where_they_go_on_from_behind_them(
    job: Job, resume: bool, words: tuple[str, ...]
) -> None:
    config = LaunchConfig(job=job, training_flags=("--seed", "0"))
    plan = plan_for(config, DESK, resume=resume)
    assert plan.work == job
    assert plan.command[-5 - len(words) :] == (
        *("python", *TRAINER),
        *words,
        *("--device_target", "CPU"),
    )


def test_another_program_can_stand_in_the_trainers_place() -> None:
    def command(program: tuple[str, ...]) -> tuple[str, ...]:
        return make_plan(
            LaunchConfig(),
            DESK,
            output_dir=Path("/o"),
            log_dir=Path("/o/launch"),
            attempt=1,
            site=Site(master_port=23456),
            job="token",
            program=program,
        ).command

    assert command(("stub.py", "x"))[-4:] == ("stub.py", "x", "--device_target", "CPU")
    assert command(TRAINER)[-4:-2] == TRAINER


def test_workers_sit_log_and_are_told_apart_by_rank() -> None:
    plan = plan_for(LaunchConfig(devices=(4, 6)), SERVER)
    assert [(w.rank, w.local_rank, w.device.physical_id, str(w.log)) for w in plan.workers] == [
        (0, 0, 4, "/srv/out/launch/attempt-3/worker_0.log"),
        (1, 1, 6, "/srv/out/launch/attempt-3/worker_1.log"),
    ]
    for worker in plan.workers:
        placed = Placement.from_environ({**plan.environment.by_msrun, **worker.environment})
        assert placed == Placement(
            rank=worker.rank,
            world_size=2,
            local_rank=worker.local_rank,
            role="worker",
            launched=True,
        )


def test_the_environment_of_workers_is_made_from_the_inherited_one() -> None:
    plan = plan_for(LaunchConfig(nproc_per_node=4, devices=(4, 5, 6, 7)), SERVER)
    inherited = {"HOME": "/root", "PATH": "/usr/bin", "RANK_TABLE_FILE": "/old", "RANK_ID": "9"}
    assert plan.environ(inherited) == {
        "HOME": "/root",
        "PATH": "/venv/bin:/usr/bin",
        "MINDBOOTH_JOB": "token",
        "MINDBOOTH_LAUNCHER": "token.0",
        "MINDBOOTH_HEARTBEATS": "/srv/out/launch/attempt-3",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "48",
        "ASCEND_RT_VISIBLE_DEVICES": "4,5,6,7",
    }


@pytest.mark.parametrize(("workers", "threads"), [(1, "6"), (2, "3"), (4, "1"), (8, "1")])
def test_cores_are_shared_out(workers: int, threads: str) -> None:
    plan = plan_for(LaunchConfig(nproc_per_node=workers), DESK)
    assert plan.environment.set["OMP_NUM_THREADS"] == threads


def test_a_users_thread_setting_stays_and_is_noted() -> None:
    plan = plan_for(LaunchConfig(), replace(DESK, environ={"OMP_NUM_THREADS": "5"}))
    assert "OMP_NUM_THREADS" not in plan.environment.set
    assert plan.environ({"OMP_NUM_THREADS": "5"})["OMP_NUM_THREADS"] == "5"
    assert plan.notes == ("OMP_NUM_THREADS=5 stays as it was set.",)


def test_an_inherited_rank_table_is_not_followed_silently() -> None:
    machine = replace(SERVER, environ={"RANK_TABLE_FILE": "/user/config/jobstart_hccl.json"})
    (note,) = plan_for(LaunchConfig(rank_table="off"), machine).notes
    assert "RANK_TABLE_FILE=/user/config/jobstart_hccl.json" in note


def test_a_platforms_rank_table_is_not_followed_silently() -> None:
    site = Site(master_port=23456, platform_table=Path("/user/hccl.json"))
    (note,) = plan_for(LaunchConfig(), DESK, site=site).notes
    assert "pass --rank_table /user/hccl.json" in note


NO_ADDRESSES = replace(SERVER, devices=tuple(Device(physical_id=i) for i in range(8)))


@pytest.mark.parametrize(
    ("config", "machine", "handed", "reason"),
    [
        (LaunchConfig(), SERVER, True, "every id and address in it was read from this machine"),
        (LaunchConfig(rank_table="off"), SERVER, False, "--rank_table off"),
        (LaunchConfig(devices=(0, 1)), NO_ADDRESSES, False, "gives an address of 2 devices"),
        (EIGHT, DESK, False, "its devices are assumed"),
        (LaunchConfig(), DESK, False, "CPU workers read none"),
    ],
)
def test_a_table_is_handed_to_msrun_only_if_it_was_read_from_the_machine(
    config: LaunchConfig, machine: object, handed: bool, reason: str
) -> None:
    plan = plan_for(config, machine)  # type: ignore[arg-type]
    option = "--rank_table_file=/srv/out/launch/rank_table.json"
    assert plan.table.handed is handed
    assert reason in plan.table.reason
    assert (option in plan.command) is handed
    assert ("RANK_TABLE_FILE" in plan.environment.by_msrun) is handed


def test_a_given_table_is_written_as_it_is_and_handed() -> None:
    text = plan_for(LaunchConfig(devices=(4, 5)), SERVER).table.text.replace("\n", "\n ")
    plan = plan_for(LaunchConfig(rank_table=Path("t.json")), SERVER, text)
    assert plan.table.text == text
    assert plan.table.handed
    assert [worker.device.physical_id for worker in plan.workers] == [4, 5]


def test_the_table_holds_physical_ids_in_rank_order() -> None:
    table = hccl.parse(plan_for(LaunchConfig(devices=(4, 6)), SERVER).table.text)
    assert [(d.rank_id, d.device_id, d.device_ip) for d in table.servers[0].devices] == [
        (0, 4, "192.168.4.1"),
        (1, 6, "192.168.6.1"),
    ]


def test_eight_npus_can_be_planned_on_a_machine_without_one() -> None:
    plan = plan_for(EIGHT, DESK)
    assert plan.cluster.assumed
    devices = json.loads(plan.table.text)["server_list"][0]["device"]
    assert devices == [{"device_id": str(i), "rank_id": str(i)} for i in range(8)]


def test_addresses_that_cannot_be_right_are_told() -> None:
    twins = tuple(Device(physical_id=i, address="192.168.0.1") for i in range(2))
    with pytest.raises(RankTableError, match=r"/etc/hccn.conf: .*'192.168.0.1' stands at"):
        plan_for(LaunchConfig(), replace(SERVER, devices=twins))


SECOND = Site(
    master_addr="10.0.0.1",
    master_port=23456,
    nnodes=3,
    node_rank=1,
    names=("n0", "n1", "n2"),
    source="slurm job 7",
)


def peers(count: int) -> tuple[Host, ...]:
    return tuple(
        Host(
            name=f"n{i}",
            server_id=f"10.0.0.{i + 1}",
            devices=tuple(
                Device(physical_id=d, address=f"192.168.{i}.{d + 1}") for d in range(count)
            ),
        )
        for i in range(3)
    )


def test_one_of_several_hosts_starts_its_own_workers_only() -> None:
    plan = plan_for(LaunchConfig(nproc_per_node=2), DESK, site=SECOND)
    assert plan.command[1:6] == (
        "--worker_num=6",
        "--local_worker_num=2",
        "--master_addr=10.0.0.1",
        "--master_port=23456",
        "--node_rank=1",
    )
    assert [worker.rank for worker in plan.here] == [2, 3]
    assert [worker.host for worker in plan.workers] == ["n0", "n0", "desk", "desk", "n2", "n2"]
    assert plan.cluster.source == "slurm job 7; --nproc_per_node 2"
    assert not plan.has_scheduler
    assert plan.token == "token.1"
    for worker in plan.here:
        placed = Placement.from_environ({**plan.environment.by_msrun, **worker.environment})
        assert (placed.rank, placed.world_size, placed.local_rank) == (
            worker.rank,
            6,
            worker.local_rank,
        )


def test_hosts_that_were_not_asked_are_assumed_and_said_to_be() -> None:
    plan = plan_for(LaunchConfig(), SERVER, site=SECOND)
    assert plan.cluster.assumed
    assert not plan.table.handed
    assert "not asked" in plan.notes[0]


def test_what_the_hosts_told_makes_one_table_on_all_of_them() -> None:
    sites = [replace(SECOND, node_rank=i, peers=peers(8)) for i in range(3)]
    plans = [plan_for(LaunchConfig(), SERVER, site=site) for site in sites]
    assert len({plan.table.text for plan in plans}) == 1
    assert {plan.table.handed for plan in plans} == {True}
    assert plans[2].cluster.world_size == 24
    assert hccl.faults(plans[0].table.text) == []


def test_without_addresses_several_hosts_meet_without_a_table() -> None:
    hosts = tuple(replace(host, devices=(Device(physical_id=0),)) for host in peers(1))
    machine = replace(SERVER, devices=(Device(physical_id=0),))
    plan = plan_for(LaunchConfig(), machine, site=replace(SECOND, peers=hosts))
    assert not plan.table.handed
    assert "0 of n0, 0 of n1, 0 of n2" in plan.table.reason


def test_a_given_table_tells_each_host_its_devices() -> None:
    cluster = Cluster(hosts=peers(2), source="", assumed=False)
    text = hccl.render(hccl.from_cluster(cluster))
    config = LaunchConfig(rank_table=Path("t.json"))
    site = replace(SECOND, peers=peers(2))
    second = tuple(Device(physical_id=i, address=f"192.168.1.{i + 1}") for i in range(8))
    machine = replace(SERVER, devices=second)
    plan = plan_for(config, machine, table_text=text, site=site)
    assert [worker.device.physical_id for worker in plan.here] == [0, 1]
    assert plan.table.text == text
    with pytest.raises(LaunchError, match="names 3 servers, but the job has 2 hosts"):
        plan_for(config, machine, table_text=text, site=replace(site, nnodes=2))
    with pytest.raises(LaunchError, match="in the order of node ranks"):
        plan_for(config, machine, table_text=text, site=replace(site, node_rank=0))


def test_a_restart_goes_on_from_the_newest_checkpoint() -> None:
    plan = make_plan(
        LaunchConfig(training_flags=("--resume_from_checkpoint", "out/checkpoint-5")),
        DESK,
        site=Site(master_port=23456),
        output_dir=Path("/o"),
        log_dir=Path("/o/launch"),
        attempt=2,
        job="token",
        resume=True,
    )
    assert plan.command[-6:-2] == (
        *("--resume_from_checkpoint", "out/checkpoint-5"),
        *("--resume_from_checkpoint", "latest"),
    )


def test_the_port_follows_from_the_job_and_leaves_the_next_one_free() -> None:
    ports = {port_for(f"slurm {job}") for job in range(2000)}
    assert port_for("slurm 7") == port_for("slurm 7")
    assert len(ports) > 1500
    assert all(port in AUTO_PORTS and port % 2 == 0 for port in ports)


def test_a_thousand_hosts_are_planned_written_and_checked_in_two_seconds(tmp_path: Path) -> None:
    devices = tuple(Device(physical_id=d, address="192.168.0.1") for d in range(16))
    hosts = tuple(
        Host(
            name=f"n{i}",
            server_id=f"10.0.{i // 256}.{i % 256}",
            devices=tuple(
                replace(device, address=f"172.{16 + i // 256}.{i % 256}.{device.physical_id}")
                for device in devices
            ),
        )
        for i in range(1024)
    )
    site = replace(SECOND, nnodes=1024, node_rank=1023, names=(), peers=hosts)

    def plan_write_and_check() -> Plan:
        plan = plan_for(LaunchConfig(), replace(SERVER, devices=hosts[-1].devices), site=site)
        folders.publish(tmp_path / "rank_table.json", plan.table.text)
        assert hccl.faults((tmp_path / "rank_table.json").read_text()) == []
        return plan

    assert cpu_seconds(plan_write_and_check) < 2
    plan = plan_write_and_check()
    assert plan.table.handed
    assert [worker.rank for worker in plan.here] == list(range(1023 * 16, 1024 * 16))
