"""A worker's own place in the job, read from the environment that msrun gives it.

The trainer asks before it joins the process group, the launcher of each process. Trap: msrun's
scheduler is a process that runs the same command with RANK_ID=0; only `role` tells it from rank 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .topology import RankTableError

Role = Literal["worker", "scheduler"]
ROLES: Mapping[str, Role] = {"MS_WORKER": "worker", "MS_SCHED": "scheduler"}


@dataclass(frozen=True, kw_only=True)
class Placement:
    """`launched` is False for a process that nobody placed: it is alone, rank 0 of 1."""

    rank: int
    world_size: int
    local_rank: int
    role: Role
    launched: bool

    @classmethod
    def from_environ(cls, env: Mapping[str, str]) -> Placement:
        """Read what msrun sets. Without MS_ROLE this process is on its own.

        >>> Placement.from_environ({}).launched
        False
        """
        if "MS_ROLE" not in env:
            return cls(rank=0, world_size=1, local_rank=0, role="worker", launched=False)
        role = ROLES.get(env["MS_ROLE"])
        if role is None:
            raise RankTableError(
                f"MS_ROLE={env['MS_ROLE']} in the environment, which is neither of "
                f"{', '.join(ROLES)}. Start workers with mindbooth launch or msrun."
            )
        world_size = _number(env, "RANK_SIZE", "MS_WORKER_NUM")
        if role == "scheduler":
            return cls(rank=0, world_size=world_size, local_rank=0, role=role, launched=True)
        rank = _number(env, "RANK_ID", "MS_NODE_ID")
        if rank >= world_size:
            raise RankTableError(
                f"RANK_ID={rank} in the environment, but there are {world_size} workers: ranks go "
                f"from 0 to {world_size - 1}. Start workers with mindbooth launch or msrun."
            )
        local_rank = _number(env, "DEVICE_ID")
        return cls(
            rank=rank, world_size=world_size, local_rank=local_rank, role=role, launched=True
        )


def _number(env: Mapping[str, str], *names: str) -> int:
    """Read the first of `names` that is set."""
    for name in names:
        if name in env:
            if env[name].isascii() and env[name].isdigit():
                return int(env[name])
            raise RankTableError(
                f"{name}={env[name]!r} in the environment is not a number, though MS_ROLE is set. "
                "Start workers with mindbooth launch, or give msrun a --node_rank."
            )
    raise RankTableError(
        f"MS_ROLE is set in the environment, but {' and '.join(names)} "
        f"{'is' if len(names) == 1 else 'are'} not. "
        "Start workers with mindbooth launch, or give msrun a --node_rank; "
        "for a single process unset MS_ROLE."
    )
