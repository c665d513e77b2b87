"""Does the seal of a machine hold? Looked at from outside, as the cloud has it, and tried from inside: before any input
goes in, and again and again while it stands ready."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.decide.seal import complaints
from orchestrator.domain.errors import CloudUnreachable, SealBroken
from orchestrator.domain.outside import OutsideView
from orchestrator.domain.pool import Pool
from orchestrator.domain.seal import Seal
from orchestrator.domain.task import TaskSpec
from orchestrator.runner.launching import answered
from orchestrator.runner.machine import Machine
from orchestrator.runner.tools import Tools

LOOK_SECONDS = 60.0
"""How long a cloud that does not answer is asked."""


def seal_of(spec: TaskSpec, pool: Pool) -> Seal:
    """The task's profile. Raises SealBroken when its pool does not allow it any more."""
    seal = pool.seal_named(spec.seal)
    if seal is None:
        raise SealBroken(f"pool {pool.name} allows no seal profile {spec.seal} any more")
    return seal


def told_of_profile(seal: Seal) -> dict[str, Any]:
    """Which one, as it stands in an attempt's environment; of an open one also that nothing is looked at or tried."""
    told: dict[str, Any] = {"seal_profile": {"name": seal.name, "version": seal.version}}
    if seal.closed:
        return told
    return told | {"seal": [], "outside": {"skipped": f"the profile {seal.id} leaves the network open"}}


async def look_from_outside(seal: Seal, machine: Machine, pool: Pool, tools: Tools) -> Mapping[str, Any]:
    """What the cloud says of the machine's NICs, and whether a closed seal holds, as it stands in an attempt's
    environment. One request, asked again while the cloud does not answer. Raises CloudUnreachable, CloudError."""
    view = await answered(lambda: tools.cloud.outside_view(machine.cloud_id), within=LOOK_SECONDS)
    return {"outside": _told(view, complaints(seal, view, ssh_port=pool.ssh_port))}


async def look_again(seal: Seal, machine: Machine, pool: Pool, tools: Tools) -> Mapping[str, Any]:
    """Of a machine that stands ready: the same, asked once. A cloud that does not answer says nothing against it."""
    try:
        view = await tools.cloud.outside_view(machine.cloud_id)
    except CloudUnreachable:
        return {}
    return {"outside": _told(view, complaints(seal, view, ssh_port=pool.ssh_port))}


def require_holds(told: Mapping[str, Any]) -> None:
    """Raise SealBroken, naming what `look_from_outside` found against the seal."""
    found = told.get("outside", {}).get("complaints", [])
    if found:
        raise SealBroken(f"the cloud says of the VM: {'; '.join(found)}")


def _told(view: OutsideView, found: tuple[str, ...]) -> dict[str, Any]:
    nics = [
        {"network": nic.network, "ip": nic.ip, "mac": nic.mac, "security_groups": list(nic.security_groups)}
        for nic in view.nics
    ]
    return {"nics": nics, "holds": not found, "looked_at": view.at.isoformat(), "complaints": list(found)}
