"""The only file that knows everyone: it builds the parts and wires them. Nobody but the command line calls it.

A door is imported where it is opened, so that a command that only reads the database does not wait for the others.
"""

from __future__ import annotations

import asyncio
import fcntl
import ipaddress
import logging
import math
import os
import time
import urllib.parse
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.artifacts import Artifacts
from orchestrator.domain.errors import CloudUnreachable, NotFound, NotPossible
from orchestrator.domain.pool import Pool
from orchestrator.settings import MIN_LEASE_SECONDS, Settings
from orchestrator.store import Store
from orchestrator.trouble import TROUBLE

if TYPE_CHECKING:
    from orchestrator.guest.keys import KeyPair
    from orchestrator.localcloud.daemon import Endpoint
    from orchestrator.opennebula import Cloud
    from orchestrator.provisioning.image import BaseImages
    from orchestrator.provisioning.ports import SshIdentity
    from orchestrator.receipts import Keys
    from orchestrator.runner.outlook import Outlook
    from orchestrator.runner.tools import Console, Tools
    from orchestrator.scheduler.upkeep import Upkeep
    from orchestrator.telemetry import Address, Metrics, Telemetry

CONSOLE_TAIL_BYTES = 16 * 1024
CLOUD_START_SECONDS = 30.0
NO_EVENTS = "none"
"""What ONE_ZMQ says when OpenNebula's events are not to be used."""
INVENTORY_SECONDS = 10.0
"""How soon a runner follows a change of the inventory."""

SSH_PORT = 22
QEMU_GATEWAY = "10.0.2.2"
"""The host, as a machine in QEMU's user networking names it."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class House:
    """What every command has: where things are, the database, the artifact store."""

    settings: Settings
    store: Store
    artifacts: Artifacts


def make_home(settings: Settings) -> None:
    """The home, readable by its owner alone. Raises NotPossible when it cannot be made or written."""
    try:
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise NotPossible(
            "MAYFLY_HOME", f"cannot make {settings.home}: {error.strerror}", "name another home"
        ) from error
    if not os.access(settings.home, os.W_OK | os.X_OK):
        raise NotPossible("MAYFLY_HOME", f"cannot write to {settings.home}", "name another home")


@asynccontextmanager
async def open_house(settings: Settings) -> AsyncIterator[House]:
    """Open the database (made and migrated on first use) and the artifact store."""
    if not MIN_LEASE_SECONDS <= settings.lease_seconds < math.inf:
        wrong = f"{settings.lease_seconds:g} is not a number of seconds from {MIN_LEASE_SECONDS:g} on"
        raise NotPossible("MAYFLY_LEASE_SECONDS", wrong, "60 is the default")
    make_home(settings)
    async with await Store.open(settings.database_url) as store:
        yield House(settings, store, Artifacts(settings.artifacts))


@asynccontextmanager
async def open_metrics(address: Address | None, tell: Callable[[str], None]) -> AsyncIterator[Metrics]:
    """What this process counts, served at the address, which `tell` is told. Raises NotPossible when nothing can listen
    there."""
    from orchestrator.telemetry import Metrics, exposed

    metrics = Metrics()
    async with AsyncExitStack() as opened:
        if address is not None:
            where = await opened.enter_async_context(exposed(metrics, address))
            tell(f"metrics: http://{where}/metrics")
        yield metrics


@asynccontextmanager
async def open_telemetry(house: House, metrics: Metrics | None = None) -> AsyncIterator[Telemetry]:
    """Measurements: counted in `metrics`, and sent as traces where OpenTelemetry's variables say so."""
    from orchestrator.reports.ended import ended
    from orchestrator.telemetry import Telemetry, open_traces

    telemetry = Telemetry(metrics, traces=open_traces(os.environ))
    async with telemetry.going(partial(ended, house.store)):
        yield telemetry


async def load_pools(settings: Settings) -> Mapping[str, Pool]:
    """The pools of the inventory, checked. Raises InvalidPool."""
    from orchestrator.provisioning.inventory import load_pools as read

    return await read(settings.inventory, cache=settings.home / "cache")


def find_cloud(home: Path) -> Endpoint | None:
    """The local cloud of `home`, if it runs."""
    from orchestrator.localcloud import daemon

    return daemon.status(home)


def ensure_cloud(home: Path, hypervisor: str = "qemu") -> Endpoint:
    """The local cloud of `home`, started unless it runs. Raises NotPossible when it cannot be."""
    from orchestrator.localcloud import daemon

    deadline = time.monotonic() + CLOUD_START_SECONDS
    while True:
        try:
            return daemon.status(home) or daemon.start(home, hypervisor)
        except daemon.AlreadyRunning as other:  # another process is starting it: wait until it answers
            if time.monotonic() > deadline:
                raise NotPossible("local cloud", str(other), "see cloud.log there") from other
            time.sleep(0.1)
        except daemon.CloudNotStarted as failure:
            raise NotPossible("local cloud", str(failure), "see mayfly doctor") from failure


def saved_states(home: Path) -> list[dict[str, Any]]:
    """The machines that the local cloud of `home` has saved to make clones of, the last used first."""
    from orchestrator.localcloud.hypervisors.states import States

    return States(home, 0).told()


def stop_cloud(home: Path) -> bool:
    """Stop the local cloud of `home`; False when it did not run. Its machines go on."""
    from orchestrator.localcloud import daemon

    return daemon.stop(home)


@asynccontextmanager
async def open_cloud(
    settings: Settings, *, start: bool = False, telemetry: Telemetry | None = None
) -> AsyncIterator[Cloud]:
    """The OpenNebula that the environment names; else the local cloud of this home, started first if `start`.
    telemetry: requests are counted there.

    Raises CloudUnreachable, CloudDenied, NotPossible.
    """
    from orchestrator.opennebula import Cloud, events_address, read_session

    if settings.uses_local_cloud:
        make_home(settings)
        endpoint = await asyncio.to_thread(ensure_cloud if start else find_cloud, settings.cloud_home)
        if endpoint is None:
            raise CloudUnreachable(
                "the local cloud does not run: start it with mayfly cloud start (or mayfly up), or name an OpenNebula "
                "with ONE_XMLRPC and ONE_AUTH"
            )
        settings = replace(
            settings, one_xmlrpc=endpoint.url, one_auth=endpoint.auth_path, one_zmq=endpoint.events or NO_EVENTS
        )
    events = None if settings.one_zmq == NO_EVENTS else settings.one_zmq or events_address(settings.one_xmlrpc)
    async with Cloud(
        settings.one_xmlrpc,
        read_session(settings.one_auth),
        events=events,
        events_once=not settings.one_zmq,
        on_request=None if telemetry is None else telemetry.metrics.request,
    ) as cloud:
        await cloud.version()
        yield cloud


@asynccontextmanager
async def open_tools(
    house: House,
    *,
    start_cloud: bool = False,
    serves: bool = True,
    name: str | None = None,
    pools: Collection[str] | None = None,
    telemetry: Telemetry | None = None,
) -> AsyncIterator[Tools]:
    """A runner's tools, the runner being registered for as long as they are open.

    serves: False: it will take one task of its own and nothing else, so nobody should count on it. name: the runner's,
    HOST-PID unless given. pools: the names of those that it serves; None: all of the inventory.
    telemetry: unless given, one of its own, of which only traces are seen.
    Raises NotFound for a pool that there is not, NotPossible when a living runner has the name.
    """
    from orchestrator.runner.beside import beside
    from orchestrator.runner.loop import registered
    from orchestrator.runner.tools import Tools

    served = _chosen(await load_pools(house.settings), pools)
    async with AsyncExitStack() as opened:
        if telemetry is None:
            telemetry = await opened.enter_async_context(open_telemetry(house))
        telemetry.metrics.pools = served
        cloud = await opened.enter_async_context(open_cloud(house.settings, start=start_cloud, telemetry=telemetry))
        us = registered(house.store, tuple(served) if serves else (), name=name)
        runner_id = await opened.enter_async_context(us)
        if serves:
            reread = _reread_pools(house, runner_id, served, pools)
            await opened.enter_async_context(beside(reread, "read the inventory again"))
        yield Tools(
            runner_id=runner_id,
            store=house.store,
            artifacts=house.artifacts,
            cloud=cloud,
            pools=served,
            client_key=client_key(house.settings),
            console=console_reader(house.settings),
            forbidden=_forbidden(cloud.client.endpoint),
            lease_seconds=house.settings.lease_seconds,
            telemetry=telemetry,
            keys=receipt_keys(house.settings),
        )


async def look_ahead(house: House) -> Outlook:
    """What runners would do now for the ready machines of every pool. Nothing is changed.

    Raises InvalidPool, and what `open_cloud` does.
    """
    from orchestrator.runner.outlook import look_ahead as look
    from orchestrator.runner.tools import Tools

    pools = await load_pools(house.settings)
    async with open_cloud(house.settings) as cloud:
        tools = Tools(
            runner_id="",
            store=house.store,
            artifacts=house.artifacts,
            cloud=cloud,
            pools=pools,
            client_key=client_key(house.settings),
            console=console_reader(house.settings),
        )
        return await look(tools)


async def _reread_pools(house: House, runner_id: str, served: dict[str, Pool], names: Collection[str] | None) -> None:
    """Renew `served` in place when the inventory changes, and say so in the runner's row. One that cannot be read
    changes nothing."""
    told, written = "", tuple(served)
    while True:
        await asyncio.sleep(INVENTORY_SECONDS)
        try:
            found = await load_pools(house.settings)
            now = {name: pool for name, pool in found.items() if names is None or name in names}
            if now != served:
                _log.info("the inventory has changed; pools: %s", ", ".join(now))
                served.clear()
                served.update(now)
            if tuple(served) != written:
                await house.store.runners.serves(runner_id, tuple(served))
                written = tuple(served)
            told = ""
        except TROUBLE as problem:
            if str(problem) != told:
                _log.warning("a change of the inventory is not followed yet: %s", problem)
            told = str(problem)


@asynccontextmanager
async def open_upkeep(
    house: House, *, cloud: Cloud | None = None, telemetry: Telemetry | None = None
) -> AsyncIterator[Upkeep]:
    """What the chores work with. `cloud`, `telemetry`: what is open already.

    Raises InvalidPool, and what `open_cloud` does.
    """
    from orchestrator.scheduler.upkeep import Upkeep

    async def read_pools() -> Mapping[str, Pool]:
        return await load_pools(house.settings)

    pools = dict(await read_pools())
    async with AsyncExitStack() as opened:
        if telemetry is None:
            telemetry = await opened.enter_async_context(open_telemetry(house))
        telemetry.metrics.pools = pools
        if cloud is None:
            cloud = await opened.enter_async_context(open_cloud(house.settings, telemetry=telemetry))
        lease_seconds = house.settings.lease_seconds
        keys = receipt_keys(house.settings)
        yield Upkeep(house.store, house.artifacts, cloud, pools, read_pools, lease_seconds, telemetry, keys)


def _chosen(pools: Mapping[str, Pool], names: Collection[str] | None) -> dict[str, Pool]:
    if names is None:
        return dict(pools)
    for name in names:
        if name not in pools:
            raise NotFound("pool", f"no pool {name!r}; there are {', '.join(sorted(pools))}", "see mayfly pool list")
    return {name: pools[name] for name in names}


@asynccontextmanager
async def open_images(settings: Settings, *, start_cloud: bool = True) -> AsyncIterator[BaseImages]:
    """The base images of the cloud, ready to be built and promoted."""
    from orchestrator.guest.keys import make_key
    from orchestrator.guest.smoke import reach, smoke_test
    from orchestrator.opennebula import Images
    from orchestrator.provisioning.build import BuildTools
    from orchestrator.provisioning.image import BaseImages
    from orchestrator.provisioning.ports import CloudObject

    async def reached(identity: SshIdentity, *, within: float) -> None:
        await reach(**_way(identity), within=within)

    async def tried(identity: SshIdentity, *, within: float) -> Mapping[str, str]:
        return await smoke_test(**_way(identity), within=within)

    make_home(settings)
    pools = await load_pools(settings)
    async with open_cloud(settings, start=start_cloud) as cloud:
        yield BaseImages(
            BuildTools(
                cloud=Images(cloud, CloudObject),
                reach=reached,
                probe=tried,
                make_key=make_key,
                console=console_reader(settings),
                ssh_port=next((pool.ssh_port for pool in pools.values()), SSH_PORT),
                home=settings.home,
                cache=settings.cache,
            )
        )


def _way(identity: SshIdentity) -> dict[str, Any]:
    return {
        "address": identity.address,
        "port": identity.port,
        "host_key": identity.host_public_key,
        "client_key": identity.private_key,
    }


def _forbidden(endpoint: str) -> tuple[tuple[str, int], ...]:
    """The cloud's endpoint, as a machine would name it: a loopback address is behind QEMU's gateway there."""
    url = urllib.parse.urlsplit(endpoint)
    host, port = url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        return ()
    return ((QEMU_GATEWAY if address.is_loopback else str(address), port),)


def client_key(settings: Settings) -> KeyPair:
    """The key with which this home's runners enter their machines; made on first use, readable by the owner alone."""
    from orchestrator.guest.keys import make_key, read_key

    path = settings.home / "keys" / "runner_ed25519"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    if not path.exists():
        fresh.touch(mode=0o600)
        fresh.write_text(make_key("mayfly-runner").private)
        try:
            os.link(fresh, path)  # never over a key that another process made meanwhile
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    try:
        return read_key(path.read_text())
    except ValueError as error:
        raise NotPossible("MAYFLY_HOME", f"{path}: {error}", "move it away; a new one is made") from error


def receipt_keys(settings: Settings) -> Keys:
    """The keys with which this home's receipts are signed and checked. None is made before it is needed."""
    from orchestrator.receipts import Keys

    return Keys(settings.home / "keys" / "receipts")


def console_reader(settings: Settings) -> Console:
    """What a machine wrote to its serial console. Only the local cloud tells; OpenNebula's API has no call for it."""
    machines = settings.cloud_home / "vms" if settings.uses_local_cloud else None

    async def read(vm_id: int) -> str:
        return "" if machines is None else await asyncio.to_thread(_tail, machines / str(vm_id) / "console.log")

    return read


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - CONSOLE_TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


@contextmanager
def only_one(settings: Settings, what: str) -> Iterator[None]:
    """Hold the home's lock for `what`. Raises NotPossible when another process has it."""
    make_home(settings)
    with (settings.home / f"{what}.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise NotPossible(
                "MAYFLY_HOME",
                f"mayfly {what} runs already on {settings.home} (pid {lock.read().strip()})",
                "stop that one, or set MAYFLY_HOME to another home",
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
