import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindbooth.launch import hostlist
from mindbooth.launch.hostlist import HostLine, parse_hostfile, parse_hosts
from mindbooth.launch.options import LaunchError

SPELLINGS = {
    "n1": ["n1"],
    "a,b": ["a", "b"],
    "n[1-3]": ["n1", "n2", "n3"],
    "n[1-2,04],gpu-a": ["n1", "n2", "n04", "gpu-a"],
    "n[08-11]": ["n08", "n09", "n10", "n11"],
    "n[098-101]": ["n098", "n099", "n100", "n101"],
    "n[1-03]": ["n1", "n2", "n3"],
    "r[1-2]n[08-09]": ["r1n08", "r1n09", "r2n08", "r2n09"],
    "n[1,5-6],m[7]": ["n1", "n5", "n6", "m7"],
    "10.0.0.[1-2]": ["10.0.0.1", "10.0.0.2"],
    "node_1.example.org": ["node_1.example.org"],
}


@pytest.fixture(scope="module")
def scontrol(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slurm.conf with which scontrol expands lists. It waits a minute where there is none."""
    if shutil.which("scontrol") is None:
        pytest.skip("scontrol is not on PATH: Slurm is not installed")
    conf = tmp_path_factory.mktemp("slurm") / "slurm.conf"
    conf.write_text("ClusterName=test\nSlurmctldHost=localhost\n")
    return conf


def slurm_expands(text: str, conf: Path) -> list[str]:
    done = subprocess.run(
        ["scontrol", "show", "hostnames", text],
        env={"SLURM_CONF": str(conf), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


@pytest.mark.parametrize(("text", "names"), SPELLINGS.items())
def test_a_list_is_written_out(text: str, names: list[str]) -> None:
    assert list(parse_hosts(text)) == names


@pytest.mark.parametrize("text", SPELLINGS)
def test_slurm_writes_it_out_alike(text: str, scontrol: Path) -> None:
    assert list(parse_hosts(text)) == slurm_expands(text, scontrol)


@st.composite
def ranges(draw: st.DrawFn) -> str:
    """Some ranges of numbers in one pair of brackets, each number once."""
    start, parts = 0, []
    for _ in range(draw(st.integers(1, 4))):
        low = start + draw(st.integers(0, 50))
        high = low + draw(st.integers(0, 120))
        width = draw(st.integers(1, 5))
        parts.append(f"{low:0{width}d}" + (f"-{high}" if high > low else ""))
        start = high + 1
    return f"[{','.join(parts)}]"


LISTS = st.lists(st.tuples(st.booleans(), ranges()), min_size=1, max_size=3).map(
    lambda items: ",".join(
        f"{'abc'[i]}{'1-' if dash else ''}{inside}" for i, (dash, inside) in enumerate(items)
    )
)


@settings(max_examples=40, deadline=None)
@given(text=LISTS)
def test_slurm_writes_any_list_out_alike(text: str, scontrol: Path) -> None:
    assert list(parse_hosts(text)) == slurm_expands(text, scontrol)


@given(text=LISTS)
def test_names_written_out_stay_as_they_are(text: str) -> None:
    names = parse_hosts(text)
    assert parse_hosts(",".join(names)) == names


def test_an_ipv6_address_stands_in_brackets() -> None:
    assert parse_hosts("a,[fe80::1],[FD00::0:2]") == ("a", "fe80::1", "fd00::2")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "'' is no host name"),
        ("a,,b", "'' is no host name"),
        ("-oProxyCommand=id", "'-oProxyCommand=id' is no host name"),
        ("a,$(id)", "'\\$\\(id\\)' is no host name"),
        ("a;b", "'a;b' is no host name"),
        ("a b", "'a b' is no host name"),
        ("root@a", "'root@a' is no host name"),
        ("ä", "'ä' is no host name"),
        ("[::g]", r"'::g' in '\[::g\]' is no range"),
        ("[1::2::3]", r"'\[1::2::3\]' is no host name"),
        ("fe80::1", "'fe80::1' is no host name"),
        ("n[1-2", r"'n\[1-2' is no host name"),
        ("n1-2]", r"'n1-2\]' is no host name"),
        ("n[]", "'' in 'n\\[\\]' is no range"),
        ("n[3-1]", r"'3-1' in 'n\[3-1\]' is no range"),
        ("n[a-c]", r"'a-c' in 'n\[a-c\]' is no range"),
        ("n[1-999999999]", "is no range .* at most 65536"),
        ("n[1-999]m[1-999]", "is more than 65536 hosts"),
        ("n[1-2],n2,a,a", "n2, a stands there more than once"),
    ],
)
def test_what_is_no_list_of_hosts_is_refused(text: str, told: str) -> None:
    with pytest.raises(LaunchError, match=told):
        parse_hosts(text)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a\nb\n", [("a", None), ("b", None)]),
        ("# ours\n\na slots=8  # new\nb  slots = 8", [("a", 8), ("b", 8)]),
        ("a:4\r\nb:4\r\n", [("a", 4), ("b", 4)]),
        ("a:2\nb slots=2\n[fe80::1]:2\n", [("a", 2), ("b", 2), ("fe80::1", 2)]),
        ("[fe80::1]\n10.0.0.1\n", [("fe80::1", None), ("10.0.0.1", None)]),
    ],
)
def test_a_hostfile_is_read(text: str, lines: list[tuple[str, int | None]]) -> None:
    made = tuple(HostLine(name=name, slots=slots) for name, slots in lines)
    assert parse_hostfile(text, "hosts") == made


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("# none\n", "hosts: names no host"),
        ("a\n\nb c\n", "hosts, line 3: 'b c' is none of: name, name slots=8, name:8."),
        ("a slots=x\n", "hosts, line 1: 'a slots=x' is none of"),
        ("a slots=0\n", "hosts, line 1: 'a slots=0' has no slots"),
        ("a:99999:1\n", "hosts, line 1: 'a:99999:1' is none of"),
        ("-F/tmp/x\n", "hosts, line 1: '-F/tmp/x' is no host name"),
        ("`id`\n|id\n", "line 1: '`id`' is no host name.* line 2: '|id' is no host name"),
        ("a\nb\na\n", "hosts: a stands there more than once"),
        ("a slots=8\nb slots=4\nc\n", r"hosts: slots differ \(a 8, b 4, c none\)"),
    ],
)
def test_a_wrong_hostfile_is_told_by_file_and_line(text: str, told: str) -> None:
    with pytest.raises(LaunchError, match=told.replace("|", r"\|")):
        parse_hostfile(text, "hosts")


@pytest.mark.parametrize(
    ("name", "place"),
    [("n1", 0), ("n2", 1), ("n2.cluster", 1), ("n2.elsewhere", 1), ("n3", None), ("m", None)],
)
def test_a_host_is_found_by_its_short_and_by_its_whole_name(name: str, place: int | None) -> None:
    assert hostlist.position(("n1", "n2.cluster", "m.a", "m.b"), name) == place


def test_an_address_has_no_short_form() -> None:
    assert hostlist.position(("192.168.0.1", "10.0.0.1"), "10.0.0.1") == 1
    assert hostlist.position(("192.168.0.1", "10.0.0.1"), "10.0.0.9") is None
