"""A real machine without a runner: booted in the local cloud, and reached over SSH."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import asyncssh

from orchestrator.domain.task import TraceProfile
from orchestrator.guest import TRACE_PATH, Guest, Launch, connect
from orchestrator.trace.command import traced
from tests.guest_ends import CLIENT, HOST

MIB = 2**20


@dataclass(frozen=True)
class Machine:
    """Where a booting VM will answer."""

    address: str
    port: int


Boot = Callable[[str], Machine]


@asynccontextmanager
async def reached(machine: Machine) -> AsyncIterator[Guest]:
    """A connection to it, once it has booted."""
    guest = await connect(
        machine.address,
        machine.port,
        host_key=HOST.public,
        client_key=CLIENT.private,
        deadline=180,
        reconnect_seconds=60,
    )
    try:
        yield guest
    finally:
        await guest.close()


async def as_root(machine: Machine, command: str) -> str:
    """What a command of ours says there, beside the guest's own connection."""
    connection = await asyncssh.connect(
        machine.address,
        machine.port,
        username="root",
        client_keys=[asyncssh.import_private_key(CLIENT.private)],
        known_hosts=([asyncssh.import_public_key(HOST.public)], [], []),
        config=None,
        keepalive_interval=1,  # a machine that is reset says nothing by itself
    )
    async with connection:
        return str((await connection.run(command, check=True)).stdout)


def launch(*argv: str, **changes: object) -> Launch:
    plain = Launch(
        argv=argv,
        timeout_seconds=120,
        memory_bytes=128 * MIB,
        processes=64,
        trace=traced(TraceProfile.AUDIT, output=TRACE_PATH),
        kill_grace_seconds=2,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]
