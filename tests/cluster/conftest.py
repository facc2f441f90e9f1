"""Hosts, Slurm and sshd for the tests of this folder, which need root on Linux.

Each test file has its own: a cable that one pulls does not trouble another. What is missing is
installed with apt-get; where that cannot be, every test is skipped and says why.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hosts import Hosts, HostsError
from slurm import Slurm
from sshd import Sshd

PACKAGES = {
    "slurmctld": "slurm-wlm",
    "sinfo": "slurm-client",
    "munged": "munge",
    "ip": "iproute2",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "nsenter": "util-linux",
}
APT = ("apt-get", "-o", "DPkg::Lock::Timeout=300")


@pytest.fixture(scope="session")
def tools() -> None:
    """The programs of a cluster."""
    if sys.platform != "linux":
        pytest.skip(f"hosts are made of Linux namespaces, this is {sys.platform}")
    if os.geteuid() != 0:
        pytest.skip("hosts are made of namespaces, which takes root")
    with (Path(tempfile.gettempdir()) / "mindbooth-apt.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes that test, one installs
        packages = missing()
        if packages and shutil.which("apt-get") is None:
            pytest.skip(f"no apt-get here to install {' '.join(packages)}")
        if packages and not (install(packages) or (apt("update") and install(packages))):
            pytest.skip(f"apt-get could not install {' '.join(packages)}")


@pytest.fixture(scope="module")
def hosts(tools: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Two hosts, n1 and n2, and `login` (hosts.py)."""
    with ExitStack() as stack:
        try:
            made = stack.enter_context(Hosts(2, tmp_path_factory.mktemp("hosts")))
        except HostsError as err:
            pytest.skip(str(err))
        yield made


@pytest.fixture(scope="module")
def slurm(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A Slurm cluster of the two hosts (slurm.py)."""
    with Slurm(hosts, tmp_path_factory.mktemp("slurm")) as made:
        yield made


@pytest.fixture(scope="module")
def sshd(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """An sshd on each of the two hosts (sshd.py)."""
    with Sshd(hosts, tmp_path_factory.mktemp("sshd")) as made:
        yield made


def missing() -> list[str]:
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return [
        package for program, package in PACKAGES.items() if not shutil.which(program, path=path)
    ]


def install(packages: list[str]) -> bool:
    return apt("install", "--yes", "--no-install-recommends", *packages)


def apt(*words: str) -> bool:
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run([*APT, *words], env=environ, check=False).returncode == 0
