"""`mayfly doctor`: what Mayfly needs, one requirement a line, each with a hint when it is not met."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass

from orchestrator import bootstrap
from orchestrator.cli import output
from orchestrator.cli.entry import perform
from orchestrator.cli.submission import AsJson
from orchestrator.domain.errors import MayflyError, NotFound
from orchestrator.localcloud.hypervisors import acceleration
from orchestrator.settings import Settings

FREE_BYTES = 4 * 2**30
PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
    "mkfs.ext4": "e2fsprogs",
    "ssh": "openssh-client",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One requirement: `met`, what was seen, and what to do if it is not met."""

    requirement: str
    met: bool
    seen: str
    hint: str = ""


def doctor(as_json: AsJson = False) -> None:
    """Check this machine, its home, its cloud, its images and pools; exit status 1 when something is missing."""
    settings = Settings.from_environment()
    findings = perform(_all(settings))
    if as_json:
        output.as_json([asdict(each) for each in findings])
    else:
        for each in findings:
            mark = "ok " if each.met else "NO "
            hint = f"  → {each.hint}" if not each.met and each.hint else ""
            output.say(f"{mark} {each.requirement}: {output.printable(each.seen)}{hint}")
    raise SystemExit(0 if all(each.met for each in findings) else 1)


async def _all(settings: Settings) -> list[Finding]:
    findings = [_python(), _home(settings)]
    if settings.uses_local_cloud:
        findings += [_program(name, package) for name, package in PROGRAMS.items()]
        findings.append(await asyncio.to_thread(_acceleration, settings))
    checks: Mapping[str, Callable[[Settings], Awaitable[str]]] = {
        "database": _database,
        "pools": _pools,
        "cloud": _cloud,
        "images": _images,
    }
    for name, check in checks.items():
        try:
            findings.append(Finding(name, True, await check(settings)))
        except MayflyError as error:
            findings.append(Finding(name, False, str(error)))
    return findings


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


async def _database(settings: Settings) -> str:
    async with bootstrap.open_house(settings) as house:
        return f"{settings.database_url.split('://')[0]}, installation {house.store.installation_id}"


async def _pools(settings: Settings) -> str:
    pools = await bootstrap.load_pools(settings)
    if not pools:
        raise NotFound("inventory", f"no host in the group pools of {settings.inventory}", "see inventories/local")
    return f"{', '.join(pools)} ({settings.inventory})"


async def _cloud(settings: Settings) -> str:
    async with bootstrap.open_cloud(settings) as cloud:
        return f"OpenNebula {await cloud.version()} at {cloud.client.endpoint}"


async def _images(settings: Settings) -> str:
    pools = await bootstrap.load_pools(settings)
    async with bootstrap.open_cloud(settings) as cloud:
        wanted = sorted({pool.image for pool in pools.values()})
        found = [await cloud.promoted(name) for name in wanted]
        return ", ".join(f"{version.image} version {version.version}" for version in found)
