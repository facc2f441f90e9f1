"""What the doctor thinks of the hosts that it met in a shared folder: values in, findings out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .findings import Finding
from .peers import Card, Meeting, Peer
from .preflight import CLOCK_SECONDS, clock_remark

SHOWN_HOSTS = 8


def hosts(
    meeting: Meeting,
    card: Card,
    *,
    folder: Path,
    nnodes: int,
    node_rank: int,
    waited_seconds: float,
) -> list[Finding]:
    """Judge a meeting from the side of the host `node_rank`, whose card this is."""
    if meeting.double is not None:
        return [
            Finding(
                "node rank",
                "fault",
                f"{meeting.double} says that it is host {node_rank}, as {card.name} does",
                "Start one doctor a host, each with its own --node_rank.",
            )
        ]
    cards = {node_rank: card} | {rank: peer.card for rank, peer in meeting.peers.items()}
    known = dict(sorted(cards.items()))
    missing = [
        Finding(
            f"host {rank}",
            "fault",
            f"not seen in {folder} for {waited_seconds:g} s",
            f"Run there: mindbooth doctor --folder {folder} --nnodes {nnodes} --node_rank {rank}. "
            "If it runs, the folder is not shared.",
        )
        for rank in range(nnodes)
        if rank not in known
    ]
    names = [f"{known[rank].name} ({known[rank].address})" for rank in known]
    shown = ", ".join(names[:SHOWN_HOSTS]) + (", ..." if len(names) > SHOWN_HOSTS else "")
    return [
        Finding("hosts", "ok", f"{len(known)} of {nnodes}: {shown}"),
        *missing,
        *_alike("names", {rank: one.name for rank, one in known.items()}, _NAMES),
        *_alike("addresses", {rank: str(one.address) for rank, one in known.items()}, _ADDRESSES),
        *_unreached(meeting.peers),
        *_clocks(meeting.peers),
        *_differences(card, meeting.peers),
    ]


_NAMES = "MindSpore counts the devices of a host by its name: give each host its own."
_ADDRESSES = "Hosts can't tell each other apart: correct /etc/hosts."


def _alike(what: str, values: Mapping[int, str], remedy: str) -> list[Finding]:
    """Find what must differ from host to host and does not."""
    found = {
        value: [rank for rank, other in values.items() if other == value]
        for value in values.values()
    }
    return [
        Finding(what, "fault", f"hosts {', '.join(map(str, ranks))} are all {value}", remedy)
        for value, ranks in found.items()
        if len(ranks) > 1
    ]


def _unreached(peers: Mapping[int, Peer]) -> list[Finding]:
    lost = [
        f"{peer.card.name} ({peer.card.address})" for peer in peers.values() if not peer.reached
    ]
    if lost:
        return [
            Finding(
                "reached",
                "fault",
                f"no connection to {', '.join(lost)}",
                "Open the firewall between the hosts for TCP, and correct /etc/hosts.",
            )
        ]
    return [Finding("reached", "ok", "each by TCP at its address")] if peers else []


def _clocks(peers: Mapping[int, Peer]) -> list[Finding]:
    remarks = [
        remark
        for peer in peers.values()
        if abs(peer.ahead) - peer.within >= CLOCK_SECONDS
        and (remark := clock_remark(peer.card.name, peer.ahead))
    ]
    if remarks or not peers:
        return [Finding("clocks", "warning", remark) for remark in remarks]
    worst = max(abs(peer.ahead) + peer.within for peer in peers.values())
    return [Finding("clocks", "ok", f"less than {worst:.1f} s apart")]


def _differences(card: Card, peers: Mapping[int, Peer]) -> list[Finding]:
    """Compare what must be equal on all hosts."""
    findings = []
    for fact, value in card.facts.items():
        others = {
            peer.card.name: peer.card.facts.get(fact, "not told")
            for peer in peers.values()
            if peer.card.facts.get(fact) != value
        }
        if others:
            listed = ", ".join(f"{name} has {other}" for name, other in others.items())
            findings.append(
                Finding(fact, "fault", f"{value} here, but {listed}", "Make all hosts equal.")
            )
    if findings or not peers:
        return findings
    return [Finding("equal on all", "ok", ", ".join(card.facts))]
