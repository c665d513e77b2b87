"""Trying out a machine: is it fit for a task, does its seal hold, does a traced process come to its end in it?"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping

from orchestrator.domain.errors import GuestError
from orchestrator.domain.outcome import Exited
from orchestrator.domain.task import TraceProfile
from orchestrator.guest.guest import connect
from orchestrator.guest.launch import TRACE_PATH, Arming, Launch
from orchestrator.guest.readiness import require
from orchestrator.guest.seal import require_sealed
from orchestrator.trace.command import traced

_SECONDS = 60.0
_MEMORY_BYTES = 128 * 2**20
_PROCESSES = 64


class _Kept:
    """A sink in memory."""

    def __init__(self) -> None:
        self.data = b""

    @property
    def offset(self) -> int:
        return len(self.data)

    async def write(self, data: bytes) -> None:
        self.data += data


async def reach(address: str, port: int, *, host_key: str, client_key: str, within: float) -> None:
    """Return once the machine answers, with the host key that we made. Raises Unreachable, WrongHostKey."""
    guest = await connect(address, port, host_key=host_key, client_key=client_key, deadline=within)
    await guest.close()


async def smoke_test(address: str, port: int, *, host_key: str, client_key: str, within: float) -> Mapping[str, str]:
    """Do all that a task's machine must be able to do; facts to show. The machine is used up then.

    Raises GuestError: Unreachable when it does not answer `within` seconds, or is not fit, SealBroken, and GuestError
    itself when the process does not end well or leaves no trace.
    """
    launch = Launch(
        argv=("python3", "--version"),
        timeout_seconds=_SECONDS,
        memory_bytes=_MEMORY_BYTES,
        processes=_PROCESSES,
        trace=traced(TraceProfile.AUDIT, output=TRACE_PATH),
    )
    guest = await connect(address, port, host_key=host_key, client_key=client_key, deadline=within)
    try:
        facts, probes = await guest.make_ready(Arming.of(launch))
        require(facts)
        require_sealed(probes)
        await guest.start(launch)
        stdout, stderr, trace = _Kept(), _Kept(), _Kept()
        outcome, _ = await guest.follow(stdout, stderr, trace)
        if outcome != Exited(0):
            raise GuestError(f"a traced python3 --version ended with {outcome}: {stderr.data[:500]!r}")
        if b"execve" not in _plain(trace.data):
            raise GuestError(f"python3 --version left no trace: {guest.tracing.told()}")
        return {
            "kernel": facts.kernel,
            "python": stdout.data.decode("ascii", "replace").strip().removeprefix("Python "),
            "boot_seconds": f"{facts.uptime_seconds:.1f}",
        }
    finally:
        await guest.close()


def _plain(trace: bytes) -> bytes:
    """The trace as text; nothing, when it is not what the guest's keeper writes: members of gzip."""
    try:
        return gzip.decompress(trace)
    except (OSError, EOFError, zlib.error):
        return b""
