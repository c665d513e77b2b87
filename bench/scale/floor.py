"""The floor: as many VMs with nothing of ours around.

`python -m bench.scale.floor URL SESSION TEMPLATE COUNT AT_ONCE`. For each VM one `one.template.instantiate`,
OpenNebula's scheduler to place it, one SSH connection with the expected host key and one request over it; all VMs stay
until all are there; then one `terminate-hard` each. Who is RUNNING is seen in one pool call a tick. Prints JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import xmlrpc.client
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import asyncssh
import pyone

from orchestrator.guest.keys import KeyPair, make_key
from orchestrator.opennebula.render import Renderer

CALLS_AT_ONCE = 12
TICK_SECONDS = 0.25
PORT = 2222
MEMORY_MB = 128
NETWORK = "sealed"


@dataclass(frozen=True)
class FloorFigures:
    """What a bare client of the same cloud and the same guests does."""

    starts_per_second: float
    bytes_per_vm: float
    vms: int


@dataclass
class _Bare:
    url: str
    session: str
    template: int
    network: int
    client: KeyPair
    threads: ThreadPoolExecutor
    addresses: dict[int, asyncio.Future[str]]

    async def call(self, method: str, *arguments: Any) -> Any:
        """Each thread has a proxy of its own."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, self._call, method, arguments)

    def _call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        return getattr(pyone.OneServer(self.url, session=self.session), method)(*arguments)

    async def start(self, number: int, renderer: Renderer) -> tuple[int, asyncssh.SSHClientConnection]:
        host = make_key(f"floor-{number}")
        extra = renderer.render(
            "machine",
            cpus=1,
            memory_mb=MEMORY_MB,
            network_id=self.network,
            context={
                "NETWORK": "YES",
                "SET_HOSTNAME": f"floor-{number}",
                "SSH_PUBLIC_KEY": self.client.public,
                "MAYFLY_HOST_KEY_BASE64": host.private_base64,
            },
            tags={},
        )
        vm_id = await self.call("template.instantiate", self.template, f"floor-{number}", False, extra, False)
        address = await self.addresses.setdefault(vm_id, asyncio.get_running_loop().create_future())
        connection = await _connected(address, host, self.client)
        await connection.run("set -- mayfly-facts", check=True)
        return vm_id, connection

    async def watch(self) -> None:
        """One pool call a tick tells every wait; only those that are waited for are asked about."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            wanted = [vm_id for vm_id, told in self.addresses.items() if not told.done()]
            if wanted:
                for vm in ElementTree.fromstring(await self._set_of(wanted)).iter("VM"):
                    told = self.addresses[int(vm.findtext("ID", ""))]
                    if vm.findtext("LCM_STATE") == "3" and not told.done():
                        told.set_result(vm.findtext("TEMPLATE/NIC/IP", ""))

    async def gone(self, vm_ids: list[int]) -> None:
        """Return when all of them are DONE."""
        left = vm_ids
        while left:
            await asyncio.sleep(TICK_SECONDS)
            there = ElementTree.fromstring(await self._set_of(left)).iter("VM")
            left = [int(vm.findtext("ID", "")) for vm in there if vm.findtext("STATE") != "6"]

    async def _set_of(self, vm_ids: list[int]) -> str:
        def ask() -> str:
            server: Any = xmlrpc.client.ServerProxy(self.url)
            reply = server.one.vmpool.infoset(self.session, ",".join(map(str, vm_ids)), False)
            return str(reply[1])

        return await asyncio.get_running_loop().run_in_executor(self.threads, ask)


async def _connected(address: str, host: KeyPair, client: KeyPair) -> asyncssh.SSHClientConnection:
    while True:
        try:
            return await asyncssh.connect(
                address,
                PORT,
                config=None,
                username="root",
                client_keys=[asyncssh.import_private_key(client.private)],
                known_hosts=([asyncssh.import_public_key(host.public)], [], []),
                encryption_algs=["aes128-gcm@openssh.com"],
                kex_algs=["curve25519-sha256"],
                compression_algs=["none"],
                preferred_auth="publickey",
                agent_path=None,
            )
        except OSError:  # RUNNING, and does not listen yet
            await asyncio.sleep(0.05)


async def measure(url: str, session: str, template: int, count: int, at_once: int) -> FloorFigures:
    """`count` VMs that are all there in the end, `at_once` of them being started at a time."""
    one = pyone.OneServer(url, session=session)
    network = next(int(each.ID) for each in one.vnpool.info(-2, -1, -1).VNET if each.NAME == NETWORK)
    renderer = Renderer()
    starting = asyncio.Semaphore(at_once)
    with ThreadPoolExecutor(CALLS_AT_ONCE) as threads:
        bare = _Bare(url, session, template, network, make_key("floor"), threads, {})

        async def start(number: int) -> tuple[int, asyncssh.SSHClientConnection]:
            async with starting:
                return await bare.start(number, renderer)

        watching = asyncio.create_task(bare.watch())
        first = await start(0)  # what is loaded and made once only is no VM's
        idle = rss_bytes()
        began = time.monotonic()
        started = await asyncio.gather(*(start(number) for number in range(1, count + 1)))
        took = time.monotonic() - began
        grown = rss_bytes() - idle
        watching.cancel()
        for _, connection in (first, *started):
            connection.abort()
        await asyncio.gather(*(bare.call("vm.action", "terminate-hard", vm_id) for vm_id, _ in (first, *started)))
        await bare.gone([vm_id for vm_id, _ in (first, *started)])
    return FloorFigures(count / took, grown / count, count)


def rss_bytes(pid: int | str = "self") -> int:
    """Resident memory of a process now."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(pid)


if __name__ == "__main__":
    url, session, template, count, at_once = sys.argv[1:]
    figures = asyncio.run(measure(url, session, int(template), int(count), int(at_once)))
    print(json.dumps(asdict(figures)))
