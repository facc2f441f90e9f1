from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mindbooth.launch import schedulers
from mindbooth.launch.allocation import STARTS, Allocation
from mindbooth.launch.options import LaunchError

ENVIRONMENTS = Path(__file__).parents[2] / "fixtures" / "environments"
NODE_FILE = Path("/var/spool/pbs/aux/1672.pbs")
NODES = "n1.cluster\nn1.cluster\nn2.cluster\nn2.cluster\n"
TABLE = schedulers.MINDCLUSTER_TABLE


def environment(name: str) -> dict[str, str]:
    lines = (ENVIRONMENTS / f"{name}.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


def detect(
    environ: str | Mapping[str, str],
    hostname: str = "n2",
    scheduler: str | None = None,
    files: Mapping[Path, str] | None = None,
) -> Allocation:
    def read(path: Path) -> str:
        if path not in (files or {}):
            raise FileNotFoundError(path)
        return (files or {})[path]

    return schedulers.detect(
        environment(environ) if isinstance(environ, str) else environ,
        hostname=hostname,
        scheduler=scheduler,
        read=read,
    )


TWO = {"nnodes": 2, "node_rank": 1, "processes_per_host": 1, "local_process": 0, "untold": ()}
N1_N2 = {"hosts": ("n1", "n2"), "master_addr": "n1"}
ALONE = {"nnodes": 1, "node_rank": 0, "hosts": ("n1",), "master_addr": None}


@pytest.mark.parametrize(
    ("name", "scheduler", "facts"),
    [
        ("slurm_step", "slurm", TWO | N1_N2 | {"job": "1.0"}),
        ("slurm_requeued", "slurm", TWO | N1_N2 | {"job": "6.1"}),
        ("slurm_salloc_srun", "slurm", TWO | N1_N2 | {"job": "3.0"}),
        ("slurm_interactive_srun", "slurm", TWO | N1_N2 | {"job": "8.0"}),
        ("slurm_pty_srun", "slurm", TWO | N1_N2 | {"job": "4.2"}),
        ("slurm_narrow", "slurm", ALONE | {"hosts": ("n2",), "job": "1.2"}),
        ("slurm_batch_one_host", "slurm", ALONE | {"job": "2"}),
        ("slurm_four_tasks", "slurm", {"processes_per_host": 4, "local_process": 1, "nnodes": 2}),
        ("slurm_uneven", "slurm", {"processes_per_host": 2, "local_process": 0, "nnodes": 2}),
        ("open_mpi_in_slurm", "open-mpi", TWO | N1_N2 | {"job": "1241448449"}),
        ("open_mpi_two_a_host", "open-mpi", {"processes_per_host": 2, "local_process": 1}),
        ("open_mpi", "open-mpi", {"nnodes": 1, "node_rank": 0, "hosts": ()}),
    ],
)
def test_a_recorded_environment_is_read(name: str, scheduler: str, facts: dict[str, Any]) -> None:
    allocation = detect(name)
    assert allocation.scheduler == scheduler
    assert {key: getattr(allocation, key) for key in facts} == facts


@pytest.mark.parametrize(
    ("allocation", "facts"),
    [
        (
            detect("openpbs", files={NODE_FILE: NODES}),
            TWO | {"hosts": ("n1.cluster", "n2.cluster"), "job": "1672.pbs"},
        ),
        (
            detect("lsf", hostname="hostB.example.org"),
            TWO | {"hosts": ("hostA", "hostB"), "job": "5025.3"},
        ),
        (
            detect("modelarts"),
            TWO
            | {
                "job": "ma-job-0ce1",
                "devices_per_host": 8,
                "master_addr": "ma-job-0ce1-worker-0.ma-job-0ce1",
                "rank_table": Path("/user/config"),
            },
        ),
        (
            detect("modelarts_one_node", hostname="n1"),
            ALONE | {"devices_per_host": None, "rank_table": None},
        ),
        (
            detect("ascendjob", files={TABLE: ""}),
            TWO
            | {
                "hosts": (),
                "job": "7f2c9a30-12aa",
                "devices_per_host": 8,
                "master_addr": "198.51.100.7",
                "master_port": 2222,
                "rank_table": TABLE,
            },
        ),
        (
            detect("volcano"),
            TWO
            | {
                "hosts": ("lora-npu-worker-0.lora", "lora-npu-worker-1.lora"),
                "job": "lora",
                "rank_table": None,
            },
        ),
        (
            detect("indexed_job", hostname="lora-1"),
            {"node_rank": 1, "untold": ("nnodes",), "hosts": (), "job": "lora"},
        ),
        (detect("indexed_job", hostname="n-2"), {"node_rank": 1, "job": None}),  # hostNetwork
        (detect({}, hostname="n1"), ALONE | {"scheduler": "none", "job": None}),
        (detect("msrun_worker", hostname="n1"), ALONE | {"scheduler": "none"}),
    ],
    ids=lambda value: value.scheduler if isinstance(value, Allocation) else "",
)
def test_a_documented_environment_is_read(allocation: Allocation, facts: dict[str, Any]) -> None:
    assert {key: getattr(allocation, key) for key in facts} == facts


@pytest.mark.parametrize(
    ("allocation", "source"),
    [
        (detect("slurm_step"), "slurm job 1, SLURM_STEP_NODELIST"),
        (detect("slurm_batch_one_host"), "slurm job 2, SLURM_JOB_NUM_NODES=1"),
        (detect("open_mpi_in_slurm"), "mpirun, OMPI_COMM_WORLD_RANK, SLURM_JOB_NODELIST"),
        (detect("openpbs", files={NODE_FILE: NODES}), "pbs job 1672.pbs, PBS_NODEFILE"),
        (detect("openpbs"), "pbs job 1672.pbs, PBS_NODEFILE cannot be read here"),
        (
            detect("openpbs", hostname="n9", files={NODE_FILE: NODES}),
            "pbs job 1672.pbs, PBS_NODEFILE names n1.cluster, n2.cluster and not n9",
        ),
        (detect("volcano"), "volcano, VC_NPU_WORKER_HOSTS"),
        (detect("volcano_two_tasks"), "volcano, VC_MASTER_HOSTS and VC_WORKER_HOSTS"),
        (detect({"VC_TASK_INDEX": "1"}), "volcano, no VC_..._HOSTS (plugin svc)"),
        (detect({}), "this host alone"),
    ],
)
def test_the_source_names_the_evidence(allocation: Allocation, source: str) -> None:
    assert allocation.source == source


@pytest.mark.parametrize(
    ("allocation", "untold"),
    [
        (detect("openpbs"), ("nnodes", "node_rank")),
        (detect("openpbs", hostname="n9", files={NODE_FILE: NODES}), ("node_rank",)),
        (detect("volcano_two_tasks"), ("nnodes", "node_rank")),
        (detect({"VC_TASK_INDEX": "1"}), ("nnodes", "node_rank")),
        (detect("indexed_job"), ("nnodes",)),
    ],
)
def test_what_a_scheduler_does_not_tell_is_not_made_up(
    allocation: Allocation, untold: tuple[str, ...]
) -> None:
    assert allocation.untold == untold


@pytest.mark.parametrize(
    "name", ["slurm_batch", "slurm_salloc", "slurm_interactive_step", "slurm_pty_bash"]
)
def test_one_process_beside_the_hosts_of_a_slurm_job_is_told_to_use_srun(name: str) -> None:
    job = environment(name)["SLURM_JOB_ID"]
    with pytest.raises(LaunchError) as caught:
        detect(name, hostname="login")
    assert str(caught.value) == (
        f"slurm job {job}: this is one process, in a script or shell on login, but the job has 2 "
        "of n[1-2]. Start one on each with srun --ntasks-per-node=1 mindbooth launch, or pass "
        "--scheduler none for this host alone."
    )


def test_the_shell_of_salloc_is_not_on_its_only_host() -> None:
    environ = environment("slurm_salloc") | {"SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "n1"}
    with pytest.raises(LaunchError, match="srun"):
        detect(environ, hostname="login")


@pytest.mark.parametrize("name", ["slurm_batch", "slurm_step", "openpbs", "volcano"])
def test_scheduler_none_looks_at_nothing(name: str) -> None:
    assert detect(name, hostname="n1", scheduler="none") == detect({}, hostname="n1")


def test_a_named_scheduler_wins_over_the_first_one_found() -> None:
    assert detect("open_mpi_in_slurm", scheduler="slurm").scheduler == "slurm"


@pytest.mark.parametrize("detector", schedulers.DETECTORS, ids=lambda detector: detector.name)
def test_a_named_scheduler_says_what_it_misses(detector: schedulers.Detector) -> None:
    environ = dict.fromkeys(detector.marks[:-1], "1")
    with pytest.raises(LaunchError) as caught:
        detect(environ, scheduler=detector.name)
    assert str(caught.value) == (
        f"--scheduler {detector.name}, but the environment lacks {detector.marks[-1]}. "
        f"Start with {STARTS[detector.name]}, or leave --scheduler out."
    )


def test_an_unknown_scheduler_is_told_the_known_ones() -> None:
    with pytest.raises(LaunchError, match="--scheduler slum: none of auto, none, open-mpi, slurm"):
        detect({}, scheduler="slum")


@pytest.mark.parametrize(
    "change",
    [
        {"SLURM_JOB_NODELIST": "n[2-3]"},  # this host is second of them, but first there
        {"SLURM_JOB_NODELIST": "n[1-3]"},  # mpirun took two of three
        {"SLURM_JOB_NODELIST": "a[1-2]"},  # --host names others
    ],
)
def test_mpirun_believes_no_list_in_which_this_host_stands_elsewhere(
    change: dict[str, str],
) -> None:
    allocation = detect(environment("open_mpi_in_slurm") | change)
    assert (allocation.hosts, allocation.master_addr) == ((), None)


def test_mpirun_with_two_processes_on_the_other_host_is_noticed_on_this_one() -> None:
    environ = environment("open_mpi_in_slurm") | {"OMPI_COMM_WORLD_SIZE": "3"}
    assert detect(environ).processes_per_host == 2


def test_mpirun_of_version_5_counts_hosts_by_its_processes() -> None:
    environ = environment("open_mpi_in_slurm")
    del environ["OMPI_MCA_orte_num_nodes"]
    assert detect(environ).nnodes == 2


@pytest.mark.parametrize(
    ("variables", "hostname", "files"),
    [
        ({"LSB_JOBID": "7", "LSB_MCPU_HOSTS": "n1 4 n2 4"}, "n2.cluster", {}),
        ({"PBS_JOBID": "7.pbs", "PBS_NODEFILE": str(NODE_FILE)}, "n2", {NODE_FILE: NODES}),
    ],
)
def test_mpirun_takes_the_hosts_of_the_allocation_around_it(
    variables: dict[str, str], hostname: str, files: dict[Path, str]
) -> None:
    mpirun = {
        key: value
        for key, value in environment("open_mpi_in_slurm").items()
        if key.startswith("OMPI_")
    }
    allocation = detect(mpirun | variables, hostname=hostname, files=files)
    assert allocation.scheduler == "open-mpi"
    assert [name.partition(".")[0] for name in allocation.hosts] == ["n1", "n2"]


def test_a_process_for_each_npu_on_modelarts_is_noticed() -> None:
    allocation = detect(environment("modelarts") | {"ASCEND_DEVICE_ID": "3"})
    assert (allocation.processes_per_host, allocation.local_process) == (8, 3)


@pytest.mark.parametrize(
    "environ",
    [
        environment("ascendjob_without_npus"),
        environment("ascendjob") | {"MS_NODE_RANK": "0"},  # the first Worker beside such a pod
    ],
)
def test_an_ascendjob_whose_scheduler_has_no_npus_is_refused(environ: dict[str, str]) -> None:
    with pytest.raises(LaunchError, match=r"MS_WORKER_NUM=16.* has no NPUs.* ask for NPUs"):
        detect(environ)


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("slurm_step", {"SLURM_NODEID": "one"}, "SLURM_NODEID='one' in the environment"),
        ("slurm_step", {"SLURM_NODEID": ""}, "SLURM_NODEID is not set"),
        ("slurm_step", {"SLURM_STEP_NODELIST": "n[2-1]"}, "SLURM_STEP_NODELIST: '2-1'"),
        ("lsf", {"LSB_MCPU_HOSTS": "hostA 8 -oProxyCommand=x 8"}, "LSB_MCPU_HOSTS: '-oProxy"),
        ("modelarts", {"MA_NUM_HOSTS": "3"}, "MA_NUM_HOSTS=3, but VC_WORKER_HOSTS names 2"),
        ("ascendjob", {"MS_WORKER_NUM": "12"}, "MS_WORKER_NUM=12 is no multiple of MS_LOCAL_W"),
        ("volcano", {"VC_NPU_WORKER_HOSTS": "a,$(id)"}, "VC_NPU_WORKER_HOSTS: '\\$\\(id\\)'"),
    ],
)
def test_a_variable_that_cannot_be_is_named(name: str, change: dict[str, str], told: str) -> None:
    with pytest.raises(LaunchError, match=told):
        detect(environment(name) | change)
