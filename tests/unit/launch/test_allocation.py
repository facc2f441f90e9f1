from dataclasses import replace
from typing import Any

import pytest

from mindbooth.launch import allocation
from mindbooth.launch.allocation import Allocation
from mindbooth.launch.options import LaunchError

ALONE = Allocation(scheduler="none", source="this host alone", hosts=("n1",))
SLURM = Allocation(
    scheduler="slurm",
    source="slurm job 7, SLURM_STEP_NODELIST",
    nnodes=2,
    node_rank=1,
    hosts=("n1", "n2"),
    master_addr="n1",
)
MODELARTS = replace(SLURM, scheduler="modelarts", source="modelarts", devices_per_host=8)
POD = Allocation(
    scheduler="indexed-job", source="indexed job", node_rank=3, untold=("nnodes",), job="lora"
)
MPIRUN = replace(SLURM, scheduler="open-mpi", source="mpirun", hosts=(), master_addr=None)


def agree(found: Allocation, **asked: Any) -> Allocation:
    nothing = dict.fromkeys(("nnodes", "node_rank", "master_addr", "nproc_per_node"))
    return allocation.agree(found, **(nothing | asked))


@pytest.mark.parametrize(
    ("found", "asked", "agreed"),
    [
        (ALONE, {}, ALONE),
        (ALONE, {"nproc_per_node": 8}, ALONE),
        (ALONE, {"nnodes": 1, "node_rank": 0, "master_addr": "n1"}, {"nnodes": 1, "node_rank": 0}),
        (ALONE, {"nnodes": 1, "master_addr": "n1"}, {"hosts": ("n1",), "master_addr": None}),
        (
            ALONE,
            {"nnodes": 3, "node_rank": 2, "master_addr": "n1"},
            {"nnodes": 3, "node_rank": 2, "master_addr": "n1", "hosts": ()},
        ),
        (SLURM, {}, SLURM),
        (SLURM, {"nnodes": 2, "node_rank": 1}, SLURM),
        (SLURM, {"master_addr": "n1.cluster"}, {"master_addr": "n1.cluster"}),
        (SLURM, {"master_addr": "10.1.0.1"}, {"master_addr": "10.1.0.1"}),
        (SLURM, {"master_addr": "fd00::1"}, {"master_addr": "fd00::1"}),
        (SLURM, {"master_addr": "[fd00::1]"}, {"master_addr": "fd00::1"}),
        (MODELARTS, {"nproc_per_node": 8}, MODELARTS),
        (MODELARTS, {"nproc_per_node": 4}, MODELARTS),
        (
            POD,
            {"nnodes": 4, "master_addr": "lora-0.lora"},
            {"nnodes": 4, "node_rank": 3, "master_addr": "lora-0.lora"},
        ),
        (POD, {"nnodes": 1}, {"nnodes": 1, "node_rank": 0, "master_addr": None}),
        (MPIRUN, {"master_addr": "n1"}, {"nnodes": 2, "node_rank": 1, "master_addr": "n1"}),
    ],
)
def test_the_command_line_fills_what_the_scheduler_leaves_open(
    found: Allocation, asked: dict[str, Any], agreed: Allocation | dict[str, Any]
) -> None:
    made = agree(found, **asked)
    assert made.untold == ()
    if isinstance(agreed, Allocation):
        assert made == agreed
    else:
        assert {name: getattr(made, name) for name in agreed} == agreed


@pytest.mark.parametrize(
    ("found", "asked", "source"),
    [
        (ALONE, {"nnodes": 2, "node_rank": 1, "master_addr": "a"}, "--nnodes 2, --node_rank 1"),
        (POD, {"nnodes": 4, "master_addr": "lora-0.lora"}, "indexed job, --nnodes 4"),
        (SLURM, {"nnodes": 2}, "slurm job 7, SLURM_STEP_NODELIST"),
    ],
)
def test_the_source_names_what_came_from_the_command_line(
    found: Allocation, asked: dict[str, Any], source: str
) -> None:
    assert agree(found, **asked).source == source


NEEDS = "that does not tell all that several hosts need. Pass"


@pytest.mark.parametrize(
    ("found", "asked", "told"),
    [
        (ALONE, {"nnodes": 0}, "--nnodes 0: at least one host is needed."),
        (
            ALONE,
            {"node_rank": 1, "master_addr": "n1"},
            "--node_rank 1 --master_addr n1, but no scheduler says how many hosts there are. "
            "Pass --nnodes too.",
        ),
        (
            ALONE,
            {"nnodes": 2},
            f"--nnodes 2: {NEEDS} --node_rank (this one's number, from 0) and --master_addr (host "
            "0's, the same on each).",
        ),
        (
            ALONE,
            {"nnodes": 2, "node_rank": 2, "master_addr": "n1"},
            "--nnodes 2 --node_rank 2 (--nnodes 2): hosts are numbered from 0 to 1. Correct one of "
            "them.",
        ),
        (
            SLURM,
            {"nnodes": 4},
            "--nnodes 4 was asked for, but slurm job 7, SLURM_STEP_NODELIST gives --nnodes 2 "
            "--node_rank 1 (n1, n2). Leave out what it gives, or pass --scheduler none with "
            "--nnodes, --node_rank and --master_addr.",
        ),
        (
            SLURM,
            {"nnodes": 2, "node_rank": 0},
            "--nnodes 2 --node_rank 0 was asked for, but slurm job 7, SLURM_STEP_NODELIST gives "
            "--nnodes 2 --node_rank 1 (n1, n2). Leave out what it gives, or pass --scheduler none "
            "with --nnodes, --node_rank and --master_addr.",
        ),
        (
            SLURM,
            {"master_addr": "n2"},
            "--master_addr n2 is host 1, but the workers meet on host 0, n1 (slurm job 7, "
            "SLURM_STEP_NODELIST). Name that one.",
        ),
        (
            replace(SLURM, processes_per_host=8, local_process=3),
            {},
            "slurm job 7, SLURM_STEP_NODELIST has started 8 processes on a host, of which this is "
            "number 3. One launcher a host starts all its workers: start it with srun "
            "--ntasks-per-node=1.",
        ),
        (
            MODELARTS,
            {"nproc_per_node": 16},
            "--nproc_per_node 16, but modelarts gives a host 8 devices. Ask for 8 at most.",
        ),
        (
            POD,
            {},
            f"indexed job: {NEEDS} --nnodes (how many hosts there are) and --master_addr (host "
            "0's, the same on each).",
        ),
        (
            POD,
            {"nnodes": 2, "master_addr": "lora-0.lora"},
            "--nnodes 2 --node_rank 3 (indexed job): hosts are numbered from 0 to 1. Correct one "
            "of them.",
        ),
        (
            POD,
            {"nnodes": 4, "node_rank": 1},
            "--nnodes 4 --node_rank 1 was asked for, but indexed job gives --node_rank 3. Leave "
            "out what it gives, or pass --scheduler none with --nnodes, --node_rank and "
            "--master_addr.",
        ),
        (MPIRUN, {}, f"mpirun: {NEEDS} --master_addr (host 0's, the same on each)."),
    ],
)
def test_a_disagreement_is_told_with_all_numbers(
    found: Allocation, asked: dict[str, Any], told: str
) -> None:
    with pytest.raises(LaunchError) as caught:
        agree(found, **asked)
    assert str(caught.value) == told


@pytest.mark.parametrize("name", ["-oProxyCommand=id", "a b", "$(id)", "fd00:::1", ""])
def test_a_master_address_is_a_name_and_nothing_else(name: str) -> None:
    with pytest.raises(LaunchError, match="--master_addr: .* is no host name"):
        agree(SLURM, master_addr=name)
