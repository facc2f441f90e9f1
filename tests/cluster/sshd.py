"""A real sshd on every host of hosts.py, with keys of their own: plain `ssh n2` works from each.

So does it from `login`. The client's options lie over /etc/ssh/ssh_config of the hosts, which alone
see it; the machine's own sshd, keys and known hosts play no part.
"""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from types import TracebackType

from hosts import Host, Hosts, Running, wait

READY_SECONDS = 20.0

SERVER = """\
ListenAddress {host.address}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
"""
CLIENT = """\
Host {names}
    User root
    IdentityFile {folder}/user_key
    IdentitiesOnly yes
    UserKnownHostsFile {folder}/known_hosts
    StrictHostKeyChecking yes
    BatchMode yes
    ConnectTimeout 10
"""


class Sshd:
    """`with Sshd(hosts, folder):` a server on each, from start to end."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts = hosts
        self.folder = folder
        self.servers: dict[str, Running] = {}

    def __enter__(self) -> Sshd:
        self.folder.mkdir(parents=True, exist_ok=True)
        for key in ("host_key", "user_key"):
            words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / key)]
            subprocess.run(words, check=True)
        self._configure()
        try:
            for host in (*self.hosts, self.hosts.login):
                host.run(["mount", "--bind", self.config, "/etc/ssh/ssh_config"])
            for host in self.hosts:
                self.servers[host.name] = self._start(host)
            for host in self.hosts:
                wait(lambda: self._answers(host), READY_SECONDS, lambda: self._told(host))  # noqa: B023
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    @property
    def config(self) -> Path:
        """The client's options, for `ssh -F`; on the hosts they hold without it."""
        return self.folder / "ssh_config"

    def _configure(self) -> None:
        names = [host.name for host in self.hosts]
        addresses = [host.address for host in self.hosts]
        self.config.write_text(CLIENT.format(names=" ".join(names + addresses), folder=self.folder))
        public = " ".join((self.folder / "host_key.pub").read_text().split()[:2])
        known = [f"{','.join(pair)} {public}\n" for pair in zip(names, addresses, strict=True)]
        (self.folder / "known_hosts").write_text("".join(known))
        for host in self.hosts:
            text = SERVER.format(host=host, folder=self.folder)
            (self.folder / f"sshd_config.{host.name}").write_text(text)

    def _start(self, host: Host) -> Running:
        host.run(["mkdir", "-p", "/run/sshd"])
        conf = self.folder / f"sshd_config.{host.name}"
        return host.popen(["/usr/sbin/sshd", "-D", "-e", "-f", conf], cwd=self.folder / "cwd")

    def _answers(self, host: Host) -> bool:
        server = self.servers[host.name]
        assert server.status is None, f"{server.status}: {server.told}"
        return "Server listening" in server.err

    def _told(self, host: Host) -> str:
        return self.servers[host.name].told

    def _end(self) -> None:
        for server in self.servers.values():
            if server.status is None:
                server.send(signal.SIGKILL)
        self.servers.clear()
