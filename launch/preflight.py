"""What is looked at before anything is started: the master's address, its port, variables.

`launch` calls it in the first second (commands.py), `mindbooth doctor` shares it. What cannot work
is a LaunchError here rather than a job that hangs: msrun asks nobody whether its port is free, and
its workers then wait ten minutes for a scheduler that could not start.
"""

from __future__ import annotations

import ipaddress
import socket

import psutil

from .options import LaunchError

UNSEEN = "a process that this user can't see"
EVERYWHERE = ("0.0.0.0", "::")
CLOCK_SECONDS = 2.0  # files younger than this are not trusted (data/digests.py)


class UnknownName(LaunchError):  # noqa: N818 - an answer to act upon rather than a failure
    """Nobody knows the address of a host."""


def holder(address: str, port: int) -> str | None:
    """Say who holds a port of this host; None where it is free.

    It says 'python (pid 123, user x)', or that this user can't see the process.
    """
    if _binds(address, port):
        return None
    here = (address, f"::ffff:{address}", *EVERYWHERE)
    held = [
        connection
        for connection in psutil.net_connections("tcp")
        if connection.laddr
        and connection.laddr.port == port
        and (address in EVERYWHERE or connection.laddr.ip in here)
    ]
    listening_first = sorted(held, key=lambda found: found.status != psutil.CONN_LISTEN)
    pids = [connection.pid for connection in listening_first if connection.pid is not None]
    return _process(pids[0]) if pids else UNSEEN


def port_taken(
    address: str, port: int, who: str, *, source: str, several_hosts: bool
) -> LaunchError:
    """Make the error of a taken port; `source` says where its number comes from."""
    advice = "the same on every host" if several_hosts else "or none, and a free one is found"
    return LaunchError(
        f"port {port} of {address} ({source}) is taken by {who}. End that, or pass another "
        f"--master_port, {advice}."
    )


def resolve(name: str, *, several_hosts: bool, source: str = "--master_addr") -> str:
    """Turn the master's name into the numeric IPv4 address that every host is given."""
    try:
        answers = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as err:
        reason = err.strerror if isinstance(err, OSError) else "not a host name"
        raise UnknownName(
            f"{source} {name}: no IPv4 address of that name is known on {socket.gethostname()} "
            f"({reason}). Write it to /etc/hosts of every host, or pass --master_addr with a "
            "number such as 10.0.0.1."
        ) from err
    addresses = [str(answer[4][0]) for answer in answers]
    reachable = [address for address in addresses if not is_loopback(address)]
    if several_hosts and not reachable:
        raise LaunchError(
            f"{source} {name} is {addresses[0]} on {socket.gethostname()}: an address that other "
            "hosts can't reach. Correct its line in /etc/hosts, or pass --master_addr with the "
            "number that the others reach."
        )
    return (reachable or addresses)[0]


def is_loopback(address: str) -> bool:
    """Whether an address leads back to the host that uses it: 127.x and 0.0.0.0."""
    number = ipaddress.ip_address(address)
    return number.is_loopback or number.is_unspecified


def interfaces() -> dict[str, frozenset[str]]:
    """List this host's network interfaces and the IP addresses of each."""
    kinds = (socket.AF_INET, socket.AF_INET6)
    return {
        name: frozenset(found.address.partition("%")[0] for found in all_ if found.family in kinds)
        for name, all_ in psutil.net_if_addrs().items()
    }


def own_addresses() -> set[str]:
    """List this host's IP addresses."""
    return {address for addresses in interfaces().values() for address in addresses}


def clock_remark(name: str, seconds: float) -> str | None:
    """Say that the clock of host `name` is ahead of ours by `seconds`, where that matters."""
    if abs(seconds) < CLOCK_SECONDS:
        return None
    side = "ahead of" if seconds > 0 else "behind"
    return (
        f"the clock of {name} is {abs(seconds):.1f} s {side} this host's: log lines can't be put "
        "in order, and files look too old or too new. Start NTP (chronyd) on both."
    )


def _binds(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as MindSpore's scheduler does
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def _process(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        return f"{process.name()} (pid {pid}, user {process.username()})"
    except psutil.Error:
        return UNSEEN
