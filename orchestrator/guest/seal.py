"""Can this machine reach anything? Tried from inside; `scripts/probe.py` says what "reached" means, exactly."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator.domain.errors import SealBroken
from orchestrator.guest.errors import StepFailed, printable
from orchestrator.guest.wire import Reply

PROBE_WINDOW_SECONDS = 0.3
"""How long answers are listened for. Silence is what a sealed machine hears, so this is what a probe takes."""

_MAX_PROBES = 200


@dataclass(frozen=True, slots=True)
class Probe:
    """One thing that was tried: `detail` says what answered, or that nothing did."""

    target: str
    reached: bool
    detail: str


def require_sealed(probes: Sequence[Probe]) -> None:
    """Raise SealBroken, naming what was reached."""
    reached = [f"{probe.target} ({probe.detail})" for probe in probes if probe.reached]
    if reached:
        raise SealBroken(f"the VM could reach {', '.join(reached)}")


def probe_words(extra: Sequence[tuple[str, int]], window: float) -> list[str]:
    """The words of the request. Raises ValueError for an address that is not a literal one, or a port that is none."""
    words = [f"{window:g}"]
    for address, port in extra:
        if not 0 < port < 65536:
            raise ValueError(f"not a port: {port}")
        words += [str(ipaddress.ip_address(address)), str(port)]
    return words


def read_probes(reply: Reply) -> tuple[Probe, ...]:
    """The probes in what the script wrote. Raises StepFailed when it is not that, so that no seal is taken on trust."""
    if reply.status != 0:
        raise StepFailed(f"the guest could not try its seal (status {reply.status}): {reply.stderr}")
    probes = tuple(_probes(reply.stdout.decode(errors="replace").splitlines()))
    if not probes:
        raise StepFailed("the guest tried nothing when asked to try its seal")
    return probes


def _probes(lines: Iterable[str]) -> Iterable[Probe]:
    for number, line in enumerate(lines):
        target, _, rest = line.partition("\t")
        reached, _, detail = rest.partition("\t")
        if reached not in ("0", "1") or number >= _MAX_PROBES:
            raise StepFailed(f"the guest's probes cannot be read: {printable(line)}")
        yield Probe(printable(target), reached == "1", printable(detail))
