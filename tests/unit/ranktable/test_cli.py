"""`mindbooth ranktable`: what is written, shown, refused, and with which status."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from executables import executable

from mindbooth.ranktable import cli, hccl, merge
from mindbooth.ranktable.hccl import RankTable
from mindbooth.ranktable.topology import Cluster, Device, Host, RankTableError

FIXTURES = Path(__file__).parents[2] / "fixtures" / "ranktable"
Run = Callable[..., int]


def table(name: str, ids: tuple[int, ...] = (0, 1), pod: str | None = None) -> RankTable:
    devices = tuple(
        Device(
            physical_id=i,
            address=f"10.0.{name[-1]}.{i}",
            super_device_id=None if pod is None else int(name[-1]) * 16 + i,
        )
        for i in ids
    )
    host = Host(name=name, server_id=name, devices=devices, super_pod_id=pod)
    return hccl.from_cluster(Cluster(hosts=(host,), source="test", assumed=False))


def written(folder: Path, name: str, what: RankTable) -> str:
    (folder / name).write_text(hccl.render(what))
    return str(folder / name)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a command on a machine with devices 4 to 7 and a hccn.conf with their addresses."""
    dev = tmp_path / "dev"
    dev.mkdir()
    for number in (4, 5, 6, 7):
        (dev / f"davinci{number}").touch()
    conf = tmp_path / "hccn.conf"
    conf.write_text("".join(f"address_{n}=10.0.0.{n}\n" for n in (4, 5, 6, 7)))

    def run(*argv: str, **environ: str) -> int:
        return cli.main(argv, environ={"PATH": "", **environ}, dev=dev, hccn_conf=conf)

    return run


def seats(text: str) -> list[tuple[str, str]]:
    devices = json.loads(text)["server_list"][0]["device"]
    return [(device["device_id"], device["rank_id"]) for device in devices]


def test_write_gives_the_table_of_this_host(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("write") == 0
    text = capsys.readouterr().out
    assert hccl.parse(text).servers[0].server_id == socket.gethostname()[:63]
    assert seats(text) == [("4", "0"), ("5", "1"), ("6", "2"), ("7", "3")]
    assert json.loads(text)["server_list"][0]["device"][0]["device_ip"] == "10.0.0.4"


@pytest.mark.parametrize(
    ("asked", "visible", "ids"),
    [
        ("5,7", None, ["5", "7"]),
        (None, "1,2", ["5", "6"]),
        ("6", "1,2", ["6"]),
        (None, "1, 2", ["5"]),
    ],
)
def test_write_takes_what_is_visible_and_of_that_what_is_asked_for(
    run: Run,
    capsys: pytest.CaptureFixture[str],
    asked: str | None,
    visible: str | None,
    ids: list[str],
) -> None:
    environ = {} if visible is None else {"ASCEND_RT_VISIBLE_DEVICES": visible}
    run("write", *([] if asked is None else ["--devices", asked]), **environ)
    assert [device_id for device_id, _ in seats(capsys.readouterr().out)] == ids


@pytest.mark.parametrize(
    ("argv", "environ", "told"),
    [
        (
            ["--devices", "0,4"],
            {},
            "--devices 0,4 were asked for, but /dev/davinci* gives 4,5,6,7.",
        ),
        (
            ["--devices", "4"],
            {"ASCEND_RT_VISIBLE_DEVICES": "1"},
            "/dev/davinci*, ASCEND_RT_VISIBLE_DEVICES=1 gives 5.",
        ),
        ([], {"ASCEND_RT_VISIBLE_DEVICES": ""}, "an NPU was asked for, but"),
        (["--devices", "5,4"], {}, "--devices: 5,4 names a device twice or out of order"),
        (["--devices", "4,4"], {}, "write 4. mindbooth ranktable write --help"),
        (["--devices", "4-7"], {}, "--devices: '4-7' is no number"),
        (
            ["--server_id", "x" * 64],
            {},
            "the table of this host: server_list[0].server_id: 64 char",
        ),
        (["--nnodes", "2"], {}, "--folder, --nnodes and --node_rank belong together"),
        (["--node_rank", "0"], {}, "--folder, --nnodes and --node_rank belong together"),
        (["--wait_seconds", "5"], {}, "and --wait_seconds to them"),
        (
            ["--folder", "x", "--nnodes", "2", "--node_rank", "2"],
            {},
            "--node_rank 2, but --nnodes 2: the hosts are numbered from 0",
        ),
        (["--wait_seconds", "inf"], {}, "--wait_seconds: 'inf' is no number of seconds"),
        (["--fold", "x"], {}, "unrecognized arguments: --fold x"),
    ],
)
def test_a_mistake_of_write_is_one_line_that_says_what_to_do(
    run: Run, argv: list[str], environ: dict[str, str], told: str
) -> None:
    with pytest.raises(RankTableError, match=re.escape(told)) as caught:
        run("write", *argv, **environ)
    assert "\n" not in str(caught.value)


def test_a_machine_without_npus_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        RankTableError, match=r"an NPU was asked for, but /dev/davinci\* gives none"
    ):
        cli.main(["write"], environ={}, dev=tmp_path)


def test_write_puts_the_table_into_a_file_that_others_may_read(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "t.json"
    assert run("write", "-o", str(output)) == 0
    digest = merge.digest(hccl.parse(output.read_text()))
    assert capsys.readouterr().out == (
        f"{output}: version 1.0, 1 host, 4 ranks, sha256 {digest[:16]}\n"
    )
    assert output.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in output.parent.iterdir()] == ["t.json"]


def test_write_fills_in_what_the_tools_know(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hccn.conf").unlink()
    path = executable(tmp_path / "bin", "hccn_tool", 'echo "ipaddr:10.1.1.$2"')
    executable(
        tmp_path / "bin",
        "npu-smi",
        f'case "$*" in "info -m") cat {FIXTURES}/npu_smi_mapping_a3.txt;;\n'
        f"*) sed s/16777218/$(($5 * 2 + $7))/ {FIXTURES}/npu_smi_spod_info.txt;; esac",
    )
    run("write", PATH=path)
    server = hccl.parse(capsys.readouterr().out).servers[0]
    assert server.super_pod_id == "3"
    assert [device.device_ip for device in server.devices] == [f"10.1.1.{n}" for n in (4, 5, 6, 7)]
    assert [device.super_device_id for device in server.devices] == [4, 5, 6, 7]
    run("write", "--super_pod", "off", PATH=path)
    assert hccl.parse(capsys.readouterr().out).version == "1.0"


def test_a_single_host_needs_no_addresses_and_is_not_warned(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hccn.conf").unlink()
    assert run("write") == 0
    out, err = capsys.readouterr()
    assert "device_ip" not in out
    assert err == ""


def test_several_hosts_need_addresses_and_are_told_before_they_wait(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "hccn.conf").unlink()
    folder = tmp_path / "shared"
    with pytest.raises(RankTableError, match=r"table of this host: .*device\[0\]\.device_ip: miss"):
        run(*f"write --folder {folder} --nnodes 2 --node_rank 0 --wait_seconds 0.1".split())
    assert not folder.exists()


HOST = """
import sys
from pathlib import Path
from mindbooth.ranktable import cli
home, rank = Path(sys.argv[1]), sys.argv[2]
argv = f"write --folder {home}/shared --nnodes 2 --node_rank {rank} --server_id n{rank}"
argv += f" -o {home}/{rank}.json --wait_seconds 60"
cli.main(argv.split(), environ={}, dev=home / rank, hccn_conf=home / rank / "hccn.conf")
"""


def test_two_hosts_meet_in_a_folder_and_write_the_same_file(tmp_path: Path) -> None:
    for rank in (0, 1):
        (tmp_path / str(rank)).mkdir()
        (tmp_path / str(rank) / "davinci3").touch()
        (tmp_path / str(rank) / "hccn.conf").write_text(f"address_3=10.0.0.{rank}\n")
    processes = [
        subprocess.Popen([sys.executable, "-c", HOST, str(tmp_path), str(rank)]) for rank in (0, 1)
    ]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    texts = [(tmp_path / f"{rank}.json").read_text() for rank in (0, 1)]
    assert texts[0] == texts[1]
    assert [server.server_id for server in hccl.parse(texts[0]).servers] == ["n0", "n1"]


def test_show_draws_ranks_hosts_devices_and_addresses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = merge.merge([table("n0", (4, 15)), table("host-1", (0, 1))], ["a", "b"])
    assert cli.main(["show", written(tmp_path, "t.json", whole)]) == 0
    assert capsys.readouterr().out == (
        f"version 1.0, 2 hosts, 4 ranks, sha256 {merge.digest(whole)[:16]}\n"
        "\n"
        "rank  host    device  address\n"
        "0     n0      4       10.0.0.4\n"
        "1     n0      15      10.0.0.15\n"
        "2     host-1  0       10.0.1.0\n"
        "3     host-1  1       10.0.1.1\n"
    )


def test_show_draws_super_pods_where_there_are_some(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["show", written(tmp_path, "t.json", table("n1", (0,), pod="pod-7"))])
    assert capsys.readouterr().out.splitlines()[2:] == [
        "rank  host  device  address   super pod  number in it",
        "0     n1    0       10.0.1.0  pod-7      16",
    ]


def test_check_tells_every_fault_of_every_file_and_returns_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = written(tmp_path, "good.json", table("n0"))
    bad = written(tmp_path, "bad.json", table("n0"))
    text = Path(bad).read_text().replace('"1.0"', "1.0").replace("10.0.0.1", "10.0.0")
    Path(bad).write_text(text)
    assert cli.main(["check", good, bad, str(tmp_path / "none.json")]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{good}: good, version 1.0, 1 host, 2 ranks, sha256 ")
    assert lines[1] == f"{bad}: 2 faults"
    assert lines[2].startswith("  version: 1.0 is a number")
    assert lines[3].startswith("  server_list[0].device[1].device_ip: ")
    assert lines[4].startswith(f"{tmp_path}/none.json: no such file or directory. ")
    assert len(lines) == 5


def test_check_looks_into_a_folder_as_the_others_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, "jobstart_hccl.json", table("n0"))
    assert cli.main(["check", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(f"{file}: good, ")


def test_check_reads_no_pipe_and_nothing_too_large(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe, large = tmp_path / "pipe", tmp_path / "large"
    os.mkfifo(pipe)
    with large.open("wb") as stream:
        stream.truncate(100_000_000)
    assert cli.main(["check", str(pipe), str(large)]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{pipe}: not a file. ")
    assert lines[1].startswith(f"{large}: 100,000,000 bytes, a rank table has at most ")


@pytest.mark.parametrize("others", [(), ("good.json",)])
def test_one_table_with_a_fault_is_enough_for_status_2(
    tmp_path: Path, others: tuple[str, ...]
) -> None:
    for name in others:
        written(tmp_path, name, table("n0"))
    (tmp_path / "bad.json").write_text("{}")
    assert cli.main(["check", *(str(tmp_path / name) for name in ("bad.json", *others))]) == 2


def test_check_returns_0_for_a_good_table_and_still_warns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = merge.merge([table("n2"), table("n10")], ["a", "b"])
    assert cli.main(["check", written(tmp_path, "t.json", whole)]) == 0
    warning = capsys.readouterr().out.splitlines()[1]
    assert warning.startswith("  warning: server_list[1].server_id: n10 has higher ranks than n2")


def test_merge_joins_files_in_their_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [written(tmp_path, f"{name}.json", table(name)) for name in ("n1", "n0")]
    assert cli.main(["merge", *files, "-o", "-"]) == 0
    found = hccl.parse(capsys.readouterr().out)
    assert [(s.server_id, d.rank_id) for s in found.servers for d in s.devices] == [
        ("n1", 0),
        ("n1", 1),
        ("n0", 2),
        ("n0", 3),
    ]


def test_merge_writes_nothing_when_files_clash(tmp_path: Path) -> None:
    files = [written(tmp_path, f"{i}.json", table("n0")) for i in range(2)]
    output = tmp_path / "t.json"
    with pytest.raises(
        RankTableError, match=r"server_id 'n0' stands in .*0\.json and in .*1\.json"
    ):
        cli.main(["merge", *files, "-o", str(output)])
    assert not output.exists()


def test_merge_refuses_several_hosts_without_addresses(tmp_path: Path) -> None:
    files = []
    for name in ("n0", "n1"):
        text = re.sub(r'\s*"device_ip".*', "", hccl.render(table(name)))
        (tmp_path / name).write_text(text)
        files.append(str(tmp_path / name))
    with pytest.raises(RankTableError, match=r"the table is not written: .*device_ip: missing"):
        cli.main(["merge", *files])


def test_convert_reads_the_folder_that_modelarts_gives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device = {"device_id": "4", "device_ip": "192.1.10.254"}
    instance = {"pod_name": "job-0", "server_id": "192.168.0.25", "devices": [device]}
    group = {
        "group_name": "job",
        "device_count": "1",
        "instance_count": "1",
        "instance_list": [instance],
    }
    (tmp_path / "jobstart_hccl.json").write_text(
        json.dumps({"group_count": "1", "group_list": [group], "status": "completed"})
    )
    assert cli.main(["convert", str(tmp_path)]) == 0
    assert seats(capsys.readouterr().out) == [("4", "0")]


@pytest.mark.parametrize("command", ["", "write", "show", "check", "merge", "convert"])
def test_the_help_is_as_written_down(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([*command.split(), "--help"])
    assert caught.value.code == 0
    name = f"help_{command}.txt" if command else "help.txt"
    assert capsys.readouterr().out == (FIXTURES / name).read_text()


def test_a_command_is_needed() -> None:
    with pytest.raises(
        RankTableError, match="following arguments are required: COMMAND. mindbooth"
    ):
        cli.main([])
