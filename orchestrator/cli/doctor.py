"""`mayfly doctor`: what Mayfly needs, one requirement a line, each with a hint when it is not met."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from orchestrator import bootstrap
from orchestrator.cli import output
from orchestrator.cli.entry import perform
from orchestrator.cli.submission import AsJson
from orchestrator.decide.admission import stalled
from orchestrator.domain.errors import MayflyError, NotFound
from orchestrator.localcloud.hypervisors import acceleration
from orchestrator.scheduler.leader import LEADER_SECONDS, NAME
from orchestrator.settings import Settings
from orchestrator.store import QueueRow, Store

if TYPE_CHECKING:
    from orchestrator.opennebula import Cloud

FREE_BYTES = 4 * 2**30
EVENTS_SECONDS = 3.0
_LONG_AGO = datetime(1971, 1, 1, tzinfo=UTC)
PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
    "mkfs.ext4": "e2fsprogs",
    "ssh": "openssh-client",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One requirement: `met`, what was seen, and what to do if it is not met. `advice`: it is met, and could be better
    if that was done."""

    requirement: str
    met: bool
    seen: str
    hint: str = ""
    advice: str = ""


def doctor(as_json: AsJson = False) -> None:
    """Check this machine, its home, database, cloud, images, pools and services; exit status 1: not all is well."""
    settings = Settings.from_environment()
    findings = perform(_all(settings))
    if as_json:
        output.as_json([asdict(each) for each in findings])
    else:
        for each in findings:
            mark = "ok " if each.met else "NO "
            do = each.advice if each.met else each.hint
            output.say(f"{mark} {each.requirement}: {output.printable(each.seen)}{f'  → {do}' if do else ''}")
    raise SystemExit(0 if all(each.met for each in findings) else 1)


async def _all(settings: Settings) -> list[Finding]:
    findings = [_python(), _home(settings)]
    if settings.uses_local_cloud:
        findings += [_program(name, package) for name, package in PROGRAMS.items()]
        findings.append(await asyncio.to_thread(_acceleration, settings))
    for name, check in (
        ("database", _database),
        ("pools", _pools),
        ("cloud", _cloud),
        ("images", _images),
    ):
        findings += await _tried(name, check, settings)
    return findings


async def _tried(name: str, check: Callable[[Settings], Awaitable[list[Finding]]], settings: Settings) -> list[Finding]:
    """What the check found; that it could not look is a finding, too."""
    try:
        return await check(settings)
    except MayflyError as error:
        return [Finding(name, False, str(error))]


def _python() -> Finding:
    return Finding("Python 3.11 or newer", sys.version_info >= (3, 11), sys.version.split()[0])


def _home(settings: Settings) -> Finding:
    try:
        bootstrap.make_home(settings)
    except MayflyError as error:
        return Finding("home", False, str(error))
    free = shutil.disk_usage(settings.home).free
    return Finding(
        "home", free >= FREE_BYTES, f"{settings.home}, {output.size(free)} free", f"free {output.size(FREE_BYTES)}"
    )


def _program(name: str, package: str) -> Finding:
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    return Finding(name, path is not None, path or "not found", f"apt-get install {package}")


def _acceleration(settings: Settings) -> Finding:
    verdicts = acceleration.verdicts(settings.cloud_home)
    if not verdicts:
        return Finding("acceleration", True, "not tried yet: the first boot of an image tries KVM once")
    return Finding("acceleration", True, "; ".join(f"{each.accelerator}: {each.reason}" for each in verdicts))


async def _database(settings: Settings) -> list[Finding]:
    async with bootstrap.open_house(settings) as house:
        store = house.store
        now = await store.clock.sync()
        queues = await store.queues.list()
        waiting = sum(queue.waiting for queue in queues)
        return [
            Finding("database", True, f"{await store.describe()}, installation {store.installation_id}"),
            await _scheduler(store, now, waiting),
            *await _runners(store, now, {queue.pool: queue.waiting for queue in queues}),
            *(_blocked(queue) for queue in queues if queue.waiting and queue.blocked_reason is not None),
        ]


async def _scheduler(store: Store, now: datetime, waiting: int) -> Finding:
    """Needed where tasks wait: `mayfly run` does without."""
    hint = "start one with mayfly up or mayfly scheduler"
    leader = await store.leaders.get(NAME)
    if leader is None:
        return Finding("scheduler", not waiting, f"none leads, and {waiting} tasks wait", hint)
    heard = leader.expires_at - timedelta(seconds=LEADER_SECONDS)
    if leader.expires_at > now:
        return Finding(
            "scheduler", True, f"{leader.holder} leads, in term {leader.term}, heard {output.ago(heard, now)} ago"
        )
    last = "resigned" if heard <= _LONG_AGO else f"was heard {output.ago(heard, now)} ago"
    return Finding(
        "scheduler", not waiting, f"none leads, {leader.holder} was the last and {last}; {waiting} tasks wait", hint
    )


async def _runners(store: Store, now: datetime, waiting: Mapping[str, int]) -> list[Finding]:
    """Those that are alive, and a finding for each pool whose tasks wait for one."""
    alive = await store.runners.alive(now=now)
    told = [
        f"{runner.name} ({', '.join(runner.pools) or 'a task of its own'}"
        + (", drains)" if runner.draining_at else f", heard {output.ago(runner.heartbeat_at, now)} ago)")
        for runner in alive
    ]
    hint = "start one with mayfly up or mayfly runner"
    return [Finding("runners", True, "; ".join(told) or "none is alive")] + [
        Finding(f"runner for pool {pool}", False, f"none is alive, and {count} tasks wait", hint)
        for pool, count in waiting.items()
        if count and not await store.runners.serving(pool, now=now)
    ]


def _blocked(queue: QueueRow) -> Finding:
    since = "" if queue.blocked_at is None else f", for {output.ago(queue.blocked_at)}"
    return Finding(f"queue {queue.pool}", False, f"{queue.waiting} tasks wait{since}: {queue.blocked_message}")


async def _pools(settings: Settings) -> list[Finding]:
    pools = await bootstrap.load_pools(settings)
    if not pools:
        raise NotFound("inventory", f"no host in the group pools of {settings.inventory}", "see inventories/local")
    return [Finding("pools", True, f"{', '.join(pools)} ({settings.inventory})")]


async def _cloud(settings: Settings) -> list[Finding]:
    async with bootstrap.open_cloud(settings) as cloud:
        found = [Finding("cloud", True, f"OpenNebula {await cloud.version()} at {cloud.client.endpoint}")]
        found += [await _placement(cloud), await _events(cloud)]
        if stall := stalled(await cloud.capacity()):
            found.append(Finding("OpenNebula's scheduler", False, stall, "restart it, or see its log on the front-end"))
        found += [
            Finding(f"VM {vm.vm_id}", False, f"stays {vm.state}: {vm.why}", f"an administrator can give {vm.command}")
            for vm in await cloud.stuck()
        ]
        return found


async def _placement(cloud: Cloud) -> Finding:
    """Who gives a VM its host, and what it costs if it is OpenNebula's scheduler (measured on 7.2.0)."""
    hosts = [host for host in await cloud.hosts() if host.usable]
    if hosts and await cloud.administers():
        count = f"{len(hosts)} hosts" if len(hosts) > 1 else "the one host"
        return Finding("placement", True, f"Mayfly places VMs itself, on {count}")
    may = "sees hosts, but is not of the group oneadmin" if hosts else "sees no host"
    return Finding(
        "placement",
        True,
        f"this account {may}: OpenNebula's scheduler places VMs, a lone one after 10 to 15 s by default",
        advice="give Mayfly an account of the group oneadmin, or set SCHED_MAX_WND_TIME to 1 in oned.conf",
    )


async def _events(cloud: Cloud) -> Finding:
    if cloud.events_address is None:
        return Finding("events", True, "not asked for: VMs are looked at 4 times a second", advice="unset ONE_ZMQ")
    if await cloud.events_come(EVENTS_SECONDS):
        return Finding("events", True, f"OpenNebula's come from {cloud.events_address}")
    return Finding(
        "events",
        True,
        f"nobody answers at {cloud.events_address}: VMs are looked at 4 times a second instead",
        advice="let HM_MAD in oned.conf publish at an address that only this machine can reach, and set ONE_ZMQ",
    )


async def _images(settings: Settings) -> list[Finding]:
    pools = await bootstrap.load_pools(settings)
    async with bootstrap.open_cloud(settings) as cloud:
        wanted = sorted({pool.image for pool in pools.values()})
        found = [await cloud.promoted(name) for name in wanted]
    seen = ", ".join(f"{version.image} version {version.version}" for version in found)
    return [Finding("images", True, seen, advice=await _old_images(settings, wanted))]


async def _old_images(settings: Settings, wanted: list[str]) -> str:
    """What to do about promoted versions that were made from another definition than the one that is here."""
    old = []
    async with bootstrap.open_images(settings, start_cloud=False) as images:
        for name in wanted:
            with contextlib.suppress(NotFound):  # of an image defined elsewhere nothing can be said
                if await images.up_to_date(name) is None:
                    old.append(name)
    return f"made from another definition: {'; '.join(f'mayfly image build {name}' for name in old)}" if old else ""
