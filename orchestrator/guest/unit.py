"""A seal profile as properties of the systemd unit that the process runs in: systemd.exec(5), of 252 or later."""

from __future__ import annotations

from typing import assert_never

from orchestrator.domain.seal import Network, Seal

CAPABILITIES = ("CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH", "CAP_SETUID", "CAP_SETGID")
"""What strace needs, as root, to become the process's user in its child, to follow it, and to read what is behind its
descriptors. The process itself has none: it is another user, and no-new-privileges keeps it from getting any."""

WRITABLE = ("/task/out", "/task/tmp", "/tmp", "/var/tmp", "/dev/shm")  # noqa: S108
"""Where the process may write."""


def properties(seal: Seal) -> tuple[str, ...]:
    """What of the unit depends on the profile; the rest is in `scripts/arm.py`."""
    found = [
        f"CapabilityBoundingSet={' '.join(CAPABILITIES)}",
        "RestrictNamespaces=yes",
        "SystemCallArchitectures=native",
    ]
    match seal.network:
        case Network.NONE | Network.LOOPBACK:
            found.append("PrivateNetwork=yes")
        case Network.OPEN:
            pass
        case _:
            assert_never(seal.network)
    if seal.denied_calls:
        # without a number behind the calls systemd would kill the process
        found += [f"SystemCallFilter=~{' '.join(seal.denied_calls)}", "SystemCallErrorNumber=EPERM"]
    if seal.others_hidden:
        found.append("ProtectProc=invisible")
    if not seal.tmp_executable:
        found.append(f"NoExecPaths={' '.join(WRITABLE)}")
    return tuple(found)


def loopback(seal: Seal) -> str:
    """What becomes of the loopback of the unit's own network namespace: "up", "down"; "open" when it has none."""
    match seal.network:
        case Network.NONE:
            return "down"
        case Network.LOOPBACK:
            return "up"
        case Network.OPEN:
            return "open"
        case _:
            assert_never(seal.network)
