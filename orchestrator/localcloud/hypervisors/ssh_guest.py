"""An SSH server that answers as the guest of a machine that does not exist, so that thousands can be driven.

It takes the requests that Mayfly sends to a real guest, reads their first line (`set -- mayfly-VERB WORD…`) instead of
running the script below it, and answers in the same bytes. All guests of a process share one event loop in one thread.

The command is the scenario; see `ssh_scenario`. It must be UTF-8: asyncssh's server refuses any other request.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import shlex
import tarfile
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

import asyncssh

from orchestrator.localcloud.hypervisors import HypervisorError, MachineSpec
from orchestrator.localcloud.hypervisors.ssh_scenario import Scenario

_T = TypeVar("_T")
_Session = asyncssh.SSHServerProcess[bytes]
_CHUNK = 1 << 16

Answer = Callable[["SimulatedGuest", _Session], Awaitable[None]]
"""What a guest does about a request, on the loop that all guests share. When it returns, the status is 0."""


async def never(guest: SimulatedGuest, session: _Session) -> None:
    """The Answer that does not come."""
    await asyncio.Event().wait()


class SimulatedGuest:
    """One guest that listens. `close` is idempotent and may be called from any thread, as may the others.

    asked: the verbs of the requests so far, in order.
    """

    def __init__(
        self, spec: MachineSpec, on_poweroff: Callable[[], None], answers: Mapping[str, Answer] | None = None
    ) -> None:
        self.asked: list[str] = []
        self._spec = spec
        self._on_poweroff = on_poweroff
        self._answers = answers or {}
        self._connections: set[asyncssh.SSHServerConnection] = set()
        self._serving: set[asyncio.Task[Any] | None] = set()
        self._server: asyncssh.SSHAcceptor | None = None
        self._token = ""
        self._scenario: Scenario | None = None
        self._closed = False

    def close(self) -> None:
        """Stop listening, drop every connection, end the process."""
        if not self._closed:
            self._closed = True
            _loop.run(self._close())
            _loop.release()

    def drop_connections(self) -> None:
        """Drop every connection; the process goes on, and new connections are taken."""
        _loop.run(self._drop())

    async def listen(self) -> None:
        nic, context = self._spec.nics[0], self._spec.context
        self._server = await asyncssh.listen(
            nic.address,
            nic.host_port,
            server_factory=lambda: _Server(self._connections),
            server_host_keys=[asyncssh.import_private_key(base64.b64decode(context["MAYFLY_HOST_KEY_BASE64"]))],
            authorized_client_keys=asyncssh.import_authorized_keys(context["SSH_PUBLIC_KEY"]),
            process_factory=self._serve,
            encoding=None,
            allow_scp=False,
        )

    async def _close(self) -> None:
        if self._server:
            self._server.close()
            await self._server.wait_closed()
        if self._scenario:
            self._scenario.abandon()
        await self._drop()
        for serving in self._serving:
            if serving:
                serving.cancel()

    async def _drop(self) -> None:
        connections = list(self._connections)
        for connection in connections:
            connection.abort()
        await asyncio.gather(*(connection.wait_closed() for connection in connections), return_exceptions=True)

    async def _serve(self, session: _Session) -> None:
        first, _, rest = (session.command or "").partition("\n")
        words = shlex.split(first)[2:]
        self.asked += words[:1]
        serving = asyncio.current_task()
        self._serving.add(serving)  # the loop itself holds a task that waits for nothing but weakly
        try:
            match words:
                case [verb, *_] if verb in self._answers:
                    await self._answers[verb](self, session)
                case ["mayfly-facts"]:
                    session.stdout.write(self.facts().encode())
                case ["mayfly-probe", *_]:
                    session.stdout.write(self._probes().encode())
                case ["mayfly-stage-in"]:
                    session.stdout.write(_hashes(await session.stdin.read()))
                case ["mayfly-start", token, timeout, grace, memory, _tasks, limit]:
                    if await self._start(session, token, float(timeout), float(grace), int(memory), _launched(rest)):
                        await self._attend(session, token, [0, 0, 0], int(limit))
                case ["mayfly-look", token]:
                    session.stdout.write(self._look(token).encode())
                case ["mayfly-attend", token, out, err, trace, limit]:
                    await self._attend(session, token, [int(out), int(err), int(trace)], int(limit))
                case ["mayfly-stop", grace]:
                    if self._scenario:
                        await self._scenario.stop(float(grace))
                case _:
                    session.stderr.write(b"not a request that a simulated guest knows\n")
                    session.exit(127)
                    return
            session.exit(0)
        except (asyncssh.Error, OSError, asyncio.IncompleteReadError):
            session.close()
        finally:
            self._serving.discard(serving)

    def facts(self) -> str:
        """A sound guest's answer to mayfly-facts."""
        programs = ("strace", "python3", "tar", "systemd-run", "sha256sum", "xargs", "find", "mkfifo")
        lines = [
            *(f"program={program}" for program in programs),
            "systemd=yes",
            "cgroup2=yes",
            "user=1000:1000",
            f"memory_kib={self._spec.memory_mb * 1024}",
            "uptime=1.00",
            f"boot={self._spec.uuid}",
            "kernel=simulated",
            f"clock={time.time():.9f}",
            "directory=/task/in:0:755",
            "directory=/task/out:1000:755",
            "directory=/task/tmp:1000:755",
            "disk=262144:4096",
        ]
        return "\n".join([*lines, *(["used=yes"] if self._token else [])]) + "\n"

    def _probes(self) -> str:
        """A NIC that may send out reaches everything, one that may not reaches nothing."""
        targets = ("gateway 10.0.2.2 TCP 22", "DNS 10.0.2.3 UDP 53", "public 1.1.1.1 TCP 443")
        out = any(nic.outbound for nic in self._spec.nics)
        return "".join(f"{target}\t{int(out)}\t{'connected' if out else 'silence for 0.3 s'}\n" for target in targets)

    async def _start(
        self, session: _Session, token: str, limit: float, grace: float, memory: int, argv: list[str]
    ) -> bool:
        if self._token and token != self._token:
            session.stdout.write(b"refused\n")
            return False
        if not self._token:
            self._token = token
            self._scenario = Scenario(argv, limit, grace, memory, drop=self._drop, power_off=self._power_off)
        session.stdout.write(b"started\n")
        return True

    def _look(self, token: str) -> str:
        if self._scenario is None:
            return "never\n"
        if token != self._token:
            return "other\n"
        return "ended\n" if self._scenario.record else "running\n"

    async def _power_off(self) -> None:
        if self._server:
            self._server.close()
        await self._drop()
        # Not in a thread of the loop's: it may be this that closes the last guest, and with it the loop.
        threading.Thread(target=self._on_poweroff, daemon=True).start()

    async def _attend(self, session: _Session, token: str, offsets: list[int], limit: int) -> None:
        scenario = self._scenario
        if scenario is None or token != self._token:
            await _frame(session, b"n", b"the VM has restarted, and the process is gone")
        else:
            await _follow(session, scenario, offsets, limit)
        while line := await session.stdin.readline():
            words = line.split()
            if words[0] == b"list":
                await _list(session, scenario, int(words[1]))
            else:
                names = (await session.stdin.readexactly(int(words[1]))).split(b"\0")[:-1]
                await _read(session, scenario, names)


def start_guest(
    spec: MachineSpec, on_poweroff: Callable[[], None] = lambda: None, answers: Mapping[str, Answer] | None = None
) -> SimulatedGuest:
    """Answer as the guest of `spec`, at its first NIC's `address:host_port`, until closed. Blocks until it listens.

    The host key is the context's MAYFLY_HOST_KEY_BASE64, and SSH_PUBLIC_KEY may log in. `on_poweroff` is called, in a
    thread, when the scenario powers the machine off. `answers`, by verb ("mayfly-facts"), take the place of a sound
    guest's. Raises HypervisorError.
    """
    if not spec.nics:
        raise HypervisorError("a simulated guest needs a NIC")
    guest = SimulatedGuest(spec, on_poweroff, answers)
    _loop.acquire()
    try:
        _loop.run(guest.listen())
    except (OSError, KeyError, ValueError, asyncssh.Error) as error:
        _loop.release()
        raise HypervisorError(f"the simulated guest cannot listen: {type(error).__name__}: {error}") from error
    return guest


async def _frame(session: _Session, kind: bytes, payload: bytes) -> None:
    session.stdout.write(kind + len(payload).to_bytes(4, "big") + payload)
    await session.stdout.drain()


async def _follow(session: _Session, scenario: Scenario, offsets: list[int], limit: int) -> None:
    while True:
        record, growth = scenario.record, scenario.growth()
        moved = False
        for number, (kind, log) in enumerate(zip((b"o", b"e", b"t"), scenario.logs, strict=True)):
            data = bytes(log[offsets[number] : min(limit, offsets[number] + _CHUNK)])
            if data:
                await _frame(session, kind, data)
                offsets[number] += len(data)
                moved = True
        if moved:
            continue
        if record:
            names = ("stdout", "stderr", "trace")
            cut = [name for name, log, at in zip(names, scenario.logs, offsets, strict=True) if len(log) > at]
            await _frame(session, b"x", (record + f"cut={' '.join(cut)}\n").encode())
            return
        await growth


async def _list(session: _Session, scenario: Scenario | None, most: int) -> None:
    outputs = scenario.outputs if scenario else {}
    if scenario and scenario.mute:
        await asyncio.Event().wait()
    if len(outputs) > most:
        await _frame(session, b"!", f"more than {most} files and directories".encode())
        return
    for path, content in outputs.items():
        kind, size = ("l", 11) if content is None else ("f", len(content))
        await _frame(session, b"l", f"{kind} 644 {size} 1700000000 {path}\0".encode(errors="surrogateescape"))
    await _frame(session, b"k", b"")


async def _read(session: _Session, scenario: Scenario | None, names: list[bytes]) -> None:
    outputs = scenario.outputs if scenario else {}
    for name in names:
        content = outputs.get(name.decode(errors="surrogateescape"))
        if content is None:
            await _frame(session, b"!", b"not a regular file")
            continue
        await _frame(session, b"f", b"%d" % len(content))
        for at in range(0, len(content), _CHUNK):
            await _frame(session, b"d", content[at : at + _CHUNK])
        await _frame(session, b"h", hashlib.sha256(content).hexdigest().encode() + b" same")


def _hashes(archive: bytes) -> bytes:
    """What `sha256sum -z` would say of the files of a tar archive."""
    lines = b""
    with tarfile.open(fileobj=io.BytesIO(archive), errors="surrogateescape") as tar:
        for member in tar:
            if member.isreg() and (content := tar.extractfile(member)):
                name = member.name.encode(errors="surrogateescape")
                lines += hashlib.sha256(content.read()).hexdigest().encode() + b"  ./" + name + b"\0"
    return lines


def _launched(rest: str) -> list[str]:
    """The argv in a start request: behind `env -i NAME=VALUE…` in the variable `launch`."""
    words = shlex.shlex(rest, posix=True, punctuation_chars=False)
    words.whitespace_split = True
    words.commenters = ""
    launch = words.get_token() or ""
    argv = shlex.split(launch.removeprefix("launch=").rpartition("\nexec ")[2])
    argv = argv[argv.index("-i", argv.index("env")) + 1 :]
    return argv[next((at for at, word in enumerate(argv) if "=" not in word), len(argv)) :]


class _Server(asyncssh.SSHServer):
    """Knows its connections, to drop them."""

    def __init__(self, connections: set[asyncssh.SSHServerConnection]) -> None:
        self._connections = connections
        self._mine: asyncssh.SSHServerConnection | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._mine = conn
        self._connections.add(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._mine:
            self._connections.discard(self._mine)


class _SharedLoop:
    """One event loop in one thread, there as long as somebody needs it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="simulated guests", daemon=True)
                self._thread.start()

    def release(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users or self._loop is None or self._thread is None:
                return
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
            asyncio.run_coroutine_threadsafe(_cancel_all(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        if self._loop is None:
            work.close()
            raise HypervisorError("no simulated guest runs")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


async def _cancel_all() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


_loop = _SharedLoop()
