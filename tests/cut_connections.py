"""A machine whose programs really run, here in a folder, and a way to it that is cut once so many bytes went over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import asyncssh

from orchestrator.guest import Guest
from tests.guest_ends import CLIENT, HOST, reach


class Way:
    """A TCP proxy. `cuts`: after how many bytes in (or out) each connection in turn is cut; those after them are not.

    sent, received: bytes to and from the machine in all, SSH's own among them.
    """

    def __init__(self, target: int, cuts: Iterable[int], *, of_received: bool = False) -> None:
        self.sent = self.received = 0
        self.connections = 0
        self._target = target
        self._cuts = list(cuts)
        self._of_received = of_received
        self._taking: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        await asyncio.gather(*self._taking)

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        me = asyncio.current_task()
        assert me
        self._taking.add(me)
        try:
            await self._take(reader, writer)
        finally:
            self._taking.discard(me)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        limit = self._cuts.pop(0) if self._cuts else None
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        limits = (None, limit) if self._of_received else (limit, None)
        pumps = [
            asyncio.create_task(self._pump(reader, far_writer, limits[0], 1, 0)),
            asyncio.create_task(self._pump(far_reader, writer, limits[1], 0, 1)),
        ]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for each in pumps:
            each.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        for end in (writer, far_writer):
            end.transport.abort()
            with suppress(OSError):
                await end.wait_closed()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int | None, sent: int, received: int
    ) -> None:
        moved = 0
        with suppress(OSError):
            while data := await reader.read(65536 if limit is None else min(65536, limit - moved)):
                moved += len(data)
                self.sent += len(data) * sent
                self.received += len(data) * received
                writer.write(data)
                await writer.drain()
                if limit is not None and moved >= limit:
                    return


@asynccontextmanager
async def machine(
    folder: Path, cuts: Iterable[int] = (), *, of_received: bool = False, instead: dict[str, str] | None = None
) -> AsyncIterator[tuple[Guest, Way]]:
    """One reached over such a way. What is /task and /run in its programs is in `folder`; `instead`: texts of its
    programs that are others there."""
    others = {"/task/": f"{folder}/task/", "/run/mayfly-": f"{folder}/run/mayfly-"} | (instead or {})
    for name in ("task/in", "task/out", "run"):
        (folder / name).mkdir(parents=True, exist_ok=True)

    serving: set[asyncio.Task[None]] = set()

    async def serve(session: asyncssh.SSHServerProcess[bytes]) -> None:
        text = session.command or ""
        for before, after in others.items():
            text = text.replace(before, after)
        me = asyncio.current_task()
        assert me
        serving.add(me)
        try:
            await _run(session, text)
        finally:
            serving.discard(me)

    keys = asyncssh.import_authorized_keys(CLIENT.public)
    listener = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_host_keys=[asyncssh.import_private_key(HOST.private)],
        authorized_client_keys=keys,
        process_factory=serve,
        encoding=None,
    )
    way = Way(listener.get_port(), cuts, of_received=of_received)
    server = await asyncio.start_server(way.take, "127.0.0.1", 0)
    try:
        guest = await reach(server.sockets[0].getsockname()[1])
        try:
            yield guest, way
        finally:
            await guest.close()
    finally:
        server.close()
        await way.close()
        listener.close()
        await listener.wait_closed()
        await asyncio.gather(*serving, return_exceptions=True)


async def _run(session: asyncssh.SSHServerProcess[bytes], text: str) -> None:
    pipe = asyncio.subprocess.PIPE
    program = await asyncio.create_subprocess_exec("sh", "-c", text, stdin=pipe, stdout=pipe, stderr=pipe)
    assert program.stdin and program.stdout and program.stderr
    pumps = [
        asyncio.create_task(_fill(session, program.stdin)),
        asyncio.create_task(_empty(program.stdout, session.stdout)),
        asyncio.create_task(_empty(program.stderr, session.stderr)),
    ]
    try:
        await asyncio.gather(*pumps[1:])
        session.exit(await program.wait())
    except (asyncssh.Error, OSError):
        session.close()
    finally:
        if program.returncode is None:
            program.kill()
        for each in pumps:
            each.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        program.stdin.close()
        while await program.stdout.read(65536) or await program.stderr.read(65536):
            pass
        await program.wait()


async def _fill(session: asyncssh.SSHServerProcess[bytes], program: asyncio.StreamWriter) -> None:
    with suppress(asyncssh.Error, OSError):
        while data := await session.stdin.read(65536):
            program.write(data)
            await program.drain()
    program.close()


async def _empty(program: asyncio.StreamReader, session: asyncssh.SSHWriter[bytes]) -> None:
    while data := await program.read(65536):
        session.write(data)
        await session.drain()
