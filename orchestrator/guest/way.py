"""The way to one machine: retry while nothing answers, and take only the host key that we made, from the first packet.

While a machine boots, a connection to it may be refused, hang, or be accepted by something in front of it (QEMU's user
networking) and lead nowhere. So a socket counts only when the far side has spoken, a new one is tried all the time, a
few wait at once, and the first that hears something goes on to the SSH handshake.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import asyncssh

from orchestrator.domain.errors import Unreachable, WrongHostKey

CIPHERS = ("aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes128-ctr")
MACS = ("umac-64-etm@openssh.com", "hmac-sha2-256-etm@openssh.com", "hmac-sha2-256")
KEEPALIVE_SECONDS = 5
KEEPALIVE_COUNT = 3
"""A dead peer is noticed after 15 to 20 s."""

_INTERVAL = 0.25
_AT_ONCE = 4
_PATIENCE = 2.0
"""A busy emulated guest takes half a second from accepting a connection to its first word; one that was slow to boot is
slow in this too, so the patience grows with the wait: giving up early only adds to what it has to do."""

MAX_UNSENT = 16 * 2**20
"""Bytes that wait to be taken by the far side. An OpenSSH server never lets it come to more than 2 MiB, its window."""

_HANDSHAKE_SECONDS = 30.0
_DENIED_SECONDS = 10.0

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class VmGone(Exception):
    """The VM is off or gone. Never leaves the room."""


class Way:
    """How to reach one machine: root at `address:port` with our key, and the host key that it must show.

    `host_key` is a public line, `client_key` a private key in OpenSSH's format. Setting `vm_gone` ends every wait.
    """

    def __init__(
        self, address: str, port: int, *, host_key: str, client_key: str, vm_gone: asyncio.Event | None = None
    ) -> None:
        self.address = address
        self.port = port
        self.vm_gone = vm_gone or asyncio.Event()
        self.tried = ""
        self._options = asyncssh.SSHClientConnectionOptions(
            config=None,
            username="root",
            client_keys=[asyncssh.import_private_key(client_key)],
            known_hosts=([asyncssh.import_public_key(host_key)], [], []),
            server_host_key_algs="default",
            preferred_auth="publickey",
            agent_path=None,
            encryption_algs=CIPHERS,
            mac_algs=MACS,
            kex_algs=("curve25519-sha256", "curve25519-sha256@libssh.org", "ecdh-sha2-nistp256"),
            compression_algs=["none"],
            keepalive_interval=KEEPALIVE_SECONDS,
            keepalive_count_max=KEEPALIVE_COUNT,
            login_timeout=_HANDSHAKE_SECONDS,
        )

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"

    async def open(self, seconds: float) -> asyncssh.SSHClientConnection:
        """An authenticated connection. Raises WrongHostKey at once, Unreachable after `seconds`, VmGone."""
        return await self.unless_gone(self._open(seconds))

    async def unless_gone(self, work: Coroutine[Any, Any, _T]) -> _T:
        """The result of `work`, ended with VmGone when the VM is."""
        doing = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(self.vm_gone.wait())
        try:
            await asyncio.wait([doing, gone], return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                return await doing
            raise VmGone
        finally:
            for waiting in (doing, gone):
                waiting.cancel()
            await asyncio.gather(doing, gone, return_exceptions=True)

    async def _open(self, seconds: float) -> asyncssh.SSHClientConnection:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        denied_since: float | None = None
        self.tried = "nothing answered"
        while loop.time() < until:
            sock = await self._answering(until)
            if sock is None:
                break
            try:
                async with asyncio.timeout(min(_HANDSHAKE_SECONDS, max(0.1, until - loop.time()))):
                    return await asyncssh.connect(self.address, self.port, tunnel=_Line(sock), options=self._options)
            except asyncssh.HostKeyNotVerifiable as error:
                raise WrongHostKey(f"{self} showed a host key that we did not make") from error
            except asyncssh.PermissionDenied:
                self.tried = "it refused our key"
                denied_since = denied_since or loop.time()
                if loop.time() - denied_since > _DENIED_SECONDS:
                    break
            except TimeoutError:
                self.tried = "it spoke, but did not end the SSH handshake in time"
            except (OSError, asyncssh.Error) as error:
                self.tried = f"it broke off the SSH handshake: {error}"
            _log.debug("%s: %s", self, self.tried)
            await asyncio.sleep(_INTERVAL)
        raise Unreachable(f"no SSH at {self} within {seconds:g} s: {self.tried}")

    async def _answering(self, until: float) -> socket.socket | None:
        """A connected socket on which the far side has said something (not read yet); None when the time is up."""
        loop = asyncio.get_running_loop()
        started = next_try = loop.time()
        tries: set[asyncio.Task[socket.socket]] = set()
        try:
            while (now := loop.time()) < until:
                if len(tries) < _AT_ONCE and now >= next_try:
                    tries.add(asyncio.create_task(self._try(min(max(_PATIENCE, (now - started) / 3), until - now))))
                    next_try = now + _INTERVAL
                pause = max(0.0, min(next_try, until) - now) if len(tries) < _AT_ONCE else until - now
                if not tries:
                    await asyncio.sleep(pause)
                    continue
                done, tries = await asyncio.wait(tries, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                answered = [attempt.result() for attempt in done if self._noted(attempt)]
                for spare in answered[1:]:
                    spare.close()
                if answered:
                    return answered[0]
            return None
        finally:
            for attempt in tries:
                attempt.cancel()
            for late in await asyncio.gather(*tries, return_exceptions=True):
                if isinstance(late, socket.socket):
                    late.close()

    def _noted(self, attempt: asyncio.Task[socket.socket]) -> bool:
        match attempt.exception():
            case None:
                return True
            case TimeoutError():
                pass  # what was met last is noted
            case OSError() as error:
                self.tried = os.strerror(error.errno) if error.errno else str(error)
            case error:
                raise error
        return False

    async def _try(self, patience: float) -> socket.socket:
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_INET6 if ":" in self.address else socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            async with asyncio.timeout(patience):
                await loop.sock_connect(sock, (self.address, self.port))
                self.tried = "it took a connection, and said nothing"
                await _readable(sock)
            if not sock.recv(1, socket.MSG_PEEK):
                raise ConnectionResetError("it closed the connection at once")
        except BaseException:
            sock.close()
            raise
        return sock


class _Line:
    """An open socket for asyncssh to speak over, as the "tunnel" that it takes. See `_Bounded`."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    async def create_connection(
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        loop = asyncio.get_running_loop()
        transport, bounded = await loop.create_connection(lambda: _Bounded(factory()), sock=self._sock)
        return transport, bounded.speaker


class _Bounded(asyncio.Protocol):
    """What `speaker` speaks, ended when the far side takes too little of it. asyncssh (2.24) itself never stops to
    write: a far side that grants a window without end, or asks what must be answered, and reads nothing, would fill our
    memory."""

    def __init__(self, speaker: asyncio.Protocol) -> None:
        self.speaker = speaker
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.set_write_buffer_limits(MAX_UNSENT)
        self._transport = transport
        self.speaker.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self.speaker.data_received(data)

    def eof_received(self) -> bool | None:
        return self.speaker.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self.speaker.connection_lost(exc)

    def pause_writing(self) -> None:
        if self._transport:
            self._transport.abort()


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    spoke = loop.create_future()
    loop.add_reader(sock, lambda: None if spoke.done() else spoke.set_result(None))
    try:
        await spoke
    finally:
        with suppress(OSError, ValueError):
            loop.remove_reader(sock)
