"""The network of a simulated guest: where it listens, who is connected, and what can go wrong with that."""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import asyncssh

from orchestrator.localcloud.hypervisors import MachineSpec

Serve = Callable[[Any], Awaitable[None]]
"""Takes an SSH session (`asyncssh.SSHServerProcess[bytes]`)."""

# What is cheapest to compute first: thousands of guests share a processor with those who talk to them.
_ALGORITHMS: dict[str, Any] = {
    "kex_algs": ["curve25519-sha256"],
    "encryption_algs": ["aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes128-ctr"],
    "compression_algs": ["none"],
}
_BACKLOG = 100


class GuestNetwork:
    """Everything runs on the loop of the guests.

    flowing: cleared while the guest is frozen; whoever sends waits for it. slow_seconds: how much later a request is
    answered."""

    def __init__(self, spec: MachineSpec, serve: Serve) -> None:
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.slow_seconds = 0.0
        self._spec = spec
        self._serve = serve
        self._connections: set[asyncssh.SSHServerConnection] = set()
        self._server: asyncssh.SSHAcceptor | None = None
        self._silent: socket.socket | None = None
        self._lost = False

    async def listen(self) -> None:
        """At the first NIC's `address:host_port`. Raises OSError, KeyError, ValueError, asyncssh.Error."""
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
            **_ALGORITHMS,
        )

    async def stop_listening(self) -> None:
        """New connections are refused; those that are there stay."""
        if self._server:
            self._server.close()
            await self._server.wait_closed()
            self._server = None
        if self._silent:
            self._silent.close()
            self._silent = None

    async def drop(self) -> None:
        """Reset every connection."""
        connections = list(self._connections)
        for connection in connections:
            connection.abort()
        await asyncio.gather(*(connection.wait_closed() for connection in connections), return_exceptions=True)

    async def lose_address(self) -> None:
        """For good: another machine has it now."""
        self._lost = True
        await self.stop_listening()
        await self.drop()

    async def freeze(self, frozen: bool) -> None:
        """No byte comes in or goes out while it is frozen, as when the host is gone: connections hang, and new ones
        are taken by the kernel and never answered."""
        if self._lost or frozen == (not self.flowing.is_set()):
            return
        await self.stop_listening()
        if frozen:
            self.flowing.clear()
            self._read(False)
            nic = self._spec.nics[0]
            self._silent = socket.create_server((nic.address, nic.host_port), backlog=_BACKLOG)
            return
        await self.listen()
        self.flowing.set()
        self._read(True)

    def _read(self, on: bool) -> None:
        for connection in self._connections:
            # asyncssh has no public way to let a connection's bytes wait in the kernel.
            if transport := connection._transport:
                (transport.resume_reading if on else transport.pause_reading)()


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
