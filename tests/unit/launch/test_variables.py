import pytest

from mindbooth.launch.options import DeviceTarget
from mindbooth.launch.variables import leftovers, picked, remarks

ORDINARY = {
    "PATH": "/usr/bin",
    "HOME": "/home/anna",
    "OMP_NUM_THREADS": "8",
    "https_proxy": "http://proxy:3128",
    "ASCEND_HOME_PATH": "/usr/local/Ascend/ascend-toolkit/latest",
    "ASCEND_RT_VISIBLE_DEVICES": "0,1,2,3",
    "HCCL_CONNECT_TIMEOUT": "600",
    "HCCL_EXEC_TIMEOUT": "1836",
    "HCCL_IF_BASE_PORT": "50000",
    "HCCL_DETERMINISTIC": "true",
    "HCCL_IF_IP": "10.0.0.1",
    "HCCL_SOCKET_IFNAME": "eth",
    "HCCL_WHITELIST_DISABLE": "1",
    "GLOG_v": "2",
    "MS_COMPILER_CACHE_ENABLE": "0",
    "ASCEND_GLOBAL_LOG_LEVEL": "3",
}
INTERFACES = {"lo": {"127.0.0.1", "::1"}, "eth0": {"10.0.0.1"}, "docker0": {"172.17.0.1"}}


def told(environ: dict[str, str], target: DeviceTarget, several_hosts: bool) -> tuple[str, ...]:
    return remarks(environ, target=target, several_hosts=several_hosts, interfaces=INTERFACES)


@pytest.mark.parametrize("target", ["Ascend", "CPU"])
@pytest.mark.parametrize("several_hosts", [True, False])
def test_an_ordinary_environment_gets_no_remark(target: DeviceTarget, several_hosts: bool) -> None:
    assert told(ORDINARY, target, several_hosts) == ()
    assert leftovers(ORDINARY) == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MS_DISABLE_HEARTBEAT", "1"),
        ("MS_ENABLE_RECOVERY", "1"),
        ("MS_COMPILER_CACHE_ENABLE", "1"),
        ("MS_WORKER_IP", "10.0.0.2"),
        ("GLOG_v", "0"),
        ("GLOG_v", "1"),
        ("GLOG_v", "4"),
        ("GLOG_logtostderr", "0"),
    ],
)
@pytest.mark.parametrize("target", ["Ascend", "CPU"])
def test_what_bites_everywhere_is_one_line_with_name_and_value(
    name: str, value: str, target: DeviceTarget
) -> None:
    (remark,) = told(ORDINARY | {name: value}, target, False)
    assert remark.startswith(f"{name}={value}: ")
    assert "\n" not in remark


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HCCL_CONNECT_TIMEOUT", "60"),
        ("HCCL_CONNECT_TIMEOUT", "10000"),
        ("HCCL_CONNECT_TIMEOUT", "600s"),
        ("HCCL_CONNECT_TIMEOUT", "²"),
        ("HCCL_EXEC_TIMEOUT", "68"),
        ("HCCL_IF_BASE_PORT", "65521"),
        ("HCCL_IF_BASE_PORT", "²"),
        ("HCCL_DETERMINISTIC", "True"),
        ("HCCL_DETERMINISTIC", "1"),
        ("HCCL_IF_IP", "10.0.0.2"),
        ("HCCL_SOCKET_IFNAME", "=eth"),
        ("HCCL_SOCKET_IFNAME", "^eth,lo,docker"),
        ("HCCL_SOCKET_IFNAME", "bond0"),
        ("HCCL_WHITELIST_DISABLE", "0"),
        ("ASCEND_RT_VISIBLE_DEVICES", "0, 1"),
        ("ASCEND_RT_VISIBLE_DEVICES", "3,2,1,0"),
        ("ASCEND_RT_VISIBLE_DEVICES", ""),
        ("ASCEND_RT_VISIBLE_DEVICES", "99999999999"),
        ("ASCEND_RT_VISIBLE_DEVICES", "0,1,"),
        ("ASCEND_GLOBAL_LOG_LEVEL", "0"),
        ("ASCEND_SLOG_PRINT_TO_STDOUT", "1"),
        ("ASCEND_LAUNCH_BLOCKING", "1"),
    ],
)
def test_what_bites_on_npus_is_told_there_and_not_on_the_cpu(name: str, value: str) -> None:
    environ = ORDINARY | {name: value}
    (remark,) = told(environ, "Ascend", False)
    assert remark.startswith(f"{name}={value}")
    assert told(environ, "CPU", False) == ()


def test_a_list_of_devices_is_told_as_far_as_cann_reads_it() -> None:
    (remark,) = told({"ASCEND_RT_VISIBLE_DEVICES": "1,3, 4"}, "Ascend", False)
    assert remark.startswith("ASCEND_RT_VISIBLE_DEVICES=1,3, 4: CANN reads 1,3 of it")


def test_an_open_whitelist_with_its_file_is_all_right() -> None:
    environ = {"HCCL_WHITELIST_DISABLE": "0", "HCCL_WHITELIST_FILE": "/etc/hccl.json"}
    assert told(environ, "Ascend", True) == ()


def test_lccl_bites_on_several_hosts_only() -> None:
    environ = {"MS_ENABLE_LCCL": "1"}
    assert told(environ, "Ascend", False) == ()
    assert len(told(environ, "Ascend", True)) == 1


def test_without_interfaces_nothing_is_said_of_them() -> None:
    environ = {"HCCL_IF_IP": "10.9.9.9", "HCCL_SOCKET_IFNAME": "bond0", "MS_WORKER_IP": "10.9.9.9"}
    assert remarks(environ, target="Ascend", several_hosts=True) == ()


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        ("eth", ["eth0", "eth1"]),
        ("eth,docker", ["eth0", "eth1", "docker0"]),
        ("^eth", ["lo", "docker0"]),
        ("=eth0", ["eth0"]),
        ("=eth0,lo", ["lo", "eth0"]),
        ("^=eth0,lo", ["eth1", "docker0"]),
        ("=eth", []),
    ],
)
def test_interfaces_are_picked_as_hccl_picks_them(rule: str, names: list[str]) -> None:
    assert set(picked(rule, ["lo", "eth0", "eth1", "docker0"])) == set(names)


@pytest.mark.parametrize(
    "name",
    [
        "RANK_TABLE_FILE",
        "MINDSPORE_HCCL_CONFIG_PATH",
        "MS_ROLE",
        "MS_NODE_ID",
        "RANK_ID",
        "DEVICE_ID",
        "MS_SIMULATION_LEVEL",
    ],
)
def test_what_an_earlier_job_left_is_told_and_no_remark_on_a_launch_that_drops_it(
    name: str,
) -> None:
    (line,) = leftovers({name: "0"})
    assert line.startswith(f"{name}=0: ")
    assert told({name: "0"}, "Ascend", True) == ()
