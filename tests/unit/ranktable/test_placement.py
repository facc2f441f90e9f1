import pytest

from mindbooth.ranktable.placement import Placement
from mindbooth.ranktable.topology import RankTableError

WORKER = {
    "MS_ROLE": "MS_WORKER",
    "MS_WORKER_NUM": "4",
    "MS_NODE_ID": "3",
    "RANK_ID": "3",
    "RANK_SIZE": "4",
    "DEVICE_ID": "1",
}


def test_a_process_that_nobody_placed_is_alone() -> None:
    alone = Placement(rank=0, world_size=1, local_rank=0, role="worker", launched=False)
    assert Placement.from_environ({"RANK_ID": "7", "DEVICE_ID": "7"}) == alone


def test_a_worker_reads_what_msrun_sets() -> None:
    assert Placement.from_environ(WORKER) == Placement(
        rank=3, world_size=4, local_rank=1, role="worker", launched=True
    )


def test_the_scheduler_is_not_rank_0() -> None:
    env = {"MS_ROLE": "MS_SCHED", "RANK_ID": "0", "RANK_SIZE": "4", "MS_WORKER_NUM": "4"}
    assert Placement.from_environ(env).role == "scheduler"


@pytest.mark.parametrize("spare", ["RANK_ID", "RANK_SIZE"])
def test_mindspores_own_names_stand_in(spare: str) -> None:
    env = {name: value for name, value in WORKER.items() if name != spare}
    assert Placement.from_environ(env) == Placement.from_environ(WORKER)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"MS_ROLE": "MS_PSERVER"}, "MS_ROLE=MS_PSERVER"),
        ({"RANK_ID": "4"}, "ranks go from 0 to 3"),
        ({"RANK_ID": "-1"}, "RANK_ID='-1'"),
        ({"DEVICE_ID": ""}, "DEVICE_ID=''"),
        ({"RANK_ID": "", "MS_NODE_ID": "3"}, "RANK_ID=''"),
    ],
)
def test_an_unusable_environment_names_its_variable(change: dict[str, str], told: str) -> None:
    with pytest.raises(RankTableError, match=told):
        Placement.from_environ(WORKER | change)


@pytest.mark.parametrize("missing", ["DEVICE_ID", "RANK_ID MS_NODE_ID", "RANK_SIZE MS_WORKER_NUM"])
def test_a_missing_variable_is_named_with_the_remedy(missing: str) -> None:
    env = {name: value for name, value in WORKER.items() if name not in missing.split()}
    with pytest.raises(RankTableError, match=f"{missing.split()[0]}.*--node_rank"):
        Placement.from_environ(env)
