"""Both ends of a guest's connection: sinks, trees and writers in memory; a simulated guest, and one that misbehaves."""

from __future__ import annotations

import asyncio
import hashlib
import io
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import paramiko

from orchestrator.artifacts.members import Members
from orchestrator.guest import Guest, KeyPair, Launch, OutputEntry, WholeOutput, connect, make_key
from orchestrator.localcloud.hypervisors import MachineSpec, NicSpec
from orchestrator.localcloud.hypervisors.ssh_guest import SimulatedGuest, start_guest
from tests.misbehaving_ssh import Answer, Meets, MisbehavingServer

HOST = make_key("host")
CLIENT = make_key("client")
ADDRESS = "127.0.0.1"


class MemorySink:
    """A stream held in memory."""

    def __init__(self) -> None:
        self.data = b""

    @property
    def offset(self) -> int:
        return len(self.data)

    async def write(self, data: bytes, /) -> None:
        self.data += data


class TraceSink(MemorySink):
    """What a real machine sends of a trace is compressed."""

    @property
    def text(self) -> bytes:
        return Members().feed(self.data, 1 << 30)


class Sinks:
    """The three of them, in the order of `follow`."""

    def __init__(self) -> None:
        self.stdout, self.stderr, self.trace = MemorySink(), MemorySink(), TraceSink()

    def __iter__(self) -> Any:
        return iter((self.stdout, self.stderr, self.trace))


@dataclass(frozen=True)
class Entry:
    """An entry to stage in, from memory."""

    path: str
    data: bytes = b""
    kind: Literal["file", "directory", "symlink"] = "file"
    mode: int = 0o644
    target: str = ""
    claimed: str = ""

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def sha256(self) -> str:
        return self.claimed or hashlib.sha256(self.data).hexdigest()

    def open(self) -> BinaryIO:
        return io.BytesIO(self.data)


@dataclass
class MemoryOutputs:
    """Outputs held in memory: `files` has what was committed, `aborted` what was not."""

    files: dict[str, bytes] = field(default_factory=dict)
    aborted: list[str] = field(default_factory=list)

    async def open(self, entry: OutputEntry, /) -> _Writer:
        return _Writer(self, entry.path)

    async def put(self, files: Sequence[WholeOutput], /) -> None:
        for each in files:
            assert hashlib.sha256(each.data).hexdigest() == each.sha256
            self.files[each.entry.path] = each.data


class _Writer:
    def __init__(self, outputs: MemoryOutputs, path: str) -> None:
        self._outputs, self._path, self._data = outputs, path, b""

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self._data).hexdigest()

    async def write(self, data: bytes, /) -> None:
        self._data += data

    async def commit(self, sha256: str, /) -> None:
        assert hashlib.sha256(self._data).hexdigest() == sha256
        self._outputs.files[self._path] = self._data

    async def abort(self) -> None:
        self._outputs.aborted.append(self._path)


def launch(*argv: str, **changes: Any) -> Launch:
    """A launch of this command, with limits that no scenario meets."""
    limits = {"timeout_seconds": 600.0, "memory_bytes": 1 << 26, "processes": 8, "trace": ("strace", "--")}
    return Launch(argv=argv, **{**limits, **changes})


def spec(port: int, *, outbound: bool = False, host: KeyPair = HOST) -> MachineSpec:
    """A machine whose guest is to be simulated."""
    return MachineSpec(
        vm_id=1,
        name="one",
        uuid="11111111-2222-3333-4444-555555555555",
        directory=Path("/nonexistent"),
        cpus=1,
        memory_mb=512,
        disks=(),
        nics=(NicSpec(0, ADDRESS, "02:00:7f:00:00:01", port, outbound),),
        context={"SSH_PUBLIC_KEY": CLIENT.public, "MAYFLY_HOST_KEY_BASE64": host.private_base64},
    )


def free_port() -> int:
    """A port on which nothing listens now."""
    with socket.create_server((ADDRESS, 0)) as server:
        return int(server.getsockname()[1])


async def reach(port: int, **changes: Any) -> Guest:
    """A connection to whatever listens there."""
    wanted = {"host_key": HOST.public, "client_key": CLIENT.private, "deadline": 30.0, "reconnect_seconds": 5.0}
    return await connect(ADDRESS, port, **{**wanted, **changes})


@asynccontextmanager
async def simulated(**changes: Any) -> AsyncIterator[tuple[Guest, SimulatedGuest]]:
    """A simulated guest, reached; at `port` if that is given."""
    machine = spec(changes.pop("port", None) or free_port(), outbound=changes.pop("outbound", False))
    far = await asyncio.to_thread(start_guest, machine, changes.pop("on_poweroff", lambda: None))
    try:
        near = await reach(machine.nics[0].host_port, **changes)
        try:
            yield near, far
        finally:
            await near.close()
    finally:
        await asyncio.to_thread(far.close)


@asynccontextmanager
async def misbehaving(
    on_exec: Answer | Sequence[Answer] = (), *, on_connection: Sequence[Meets] = (Meets.SERVICE,), **changes: Any
) -> AsyncIterator[tuple[Guest, MisbehavingServer]]:
    """A misbehaving guest, reached."""
    far = misbehaving_server(on_exec, on_connection=on_connection)
    try:
        near = await reach(far.port, **changes)
        try:
            yield near, far
        finally:
            await near.close()
    finally:
        await asyncio.to_thread(far.close)


def misbehaving_server(
    on_exec: Answer | Sequence[Answer] = (),
    *,
    on_connection: Sequence[Meets] = (Meets.SERVICE,),
    host: paramiko.PKey | None = None,
) -> MisbehavingServer:
    """A misbehaving guest that shows the right host key, unless told."""
    key = host or paramiko.Ed25519Key.from_private_key(io.StringIO(HOST.private))
    return MisbehavingServer(key, CLIENT.public, on_connection=on_connection, on_exec=on_exec)
