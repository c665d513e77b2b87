"""How a version of a base image is made: the page, top to bottom.

Root file system, registered as images → booted on an open network → provisioned by the playbook → switched off →
its disk saved as an image → a fresh, sealed VM of that image tried out. What is only needed on the way is removed in
any case; what is to stay is removed too unless all of it went well. Everything is tagged with the build's name before
it exists, so that a build that was killed is swept away by the next one (`sweep`).
"""

from __future__ import annotations

import asyncio
import base64
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from orchestrator.domain.errors import CloudError, GuestError, PlatformError
from orchestrator.provisioning.access import ansible_access
from orchestrator.provisioning.definition import Definition, MachineSize
from orchestrator.provisioning.playbook import PlaybookEvent, run_playbook
from orchestrator.provisioning.ports import (
    BuildMachine,
    ConsoleReader,
    ImageCloud,
    ImageKind,
    KeyMaker,
    Probe,
    Progress,
    Reach,
    SshIdentity,
    VersionTemplate,
)
from orchestrator.provisioning.rootfs import BootFiles, make_rootfs
from orchestrator.provisioning.sources import AptSources, apt_sources
from orchestrator.provisioning.versions import IMAGE_TAGS, VersionState, all_versions, version_name

log = logging.getLogger(__name__)

_REGISTER_SECONDS = 600.0
_RUNNING_SECONDS = 300.0
_OFF_SECONDS = 120.0
_SAVE_SECONDS = 900.0
_DESTROY_SECONDS = 120.0
_DELETE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class BuildTools:
    """What a build works with, wired by `bootstrap`.

    ssh_port: where a machine's address answers (22; 2222 on the local cloud). home: a folder for the lock and the name
    of this builder. cache: where root file systems are kept, shared by all homes of a user. definitions: the folder of
    image definitions, None for our own `images/`.
    """

    cloud: ImageCloud
    reach: Reach
    probe: Probe
    make_key: KeyMaker
    console: ConsoleReader
    ssh_port: int
    home: Path
    cache: Path
    definitions: Path | None = None


async def build_candidate(tools: BuildTools, definition: Definition, builder: str, tell: Progress) -> int:
    """Make the next version of the image, as a CANDIDATE that passed the smoke test; return its number.

    Raises PlatformError (CloudError, GuestError) with the console or Ansible's log as evidence, NotPossible.
    """
    sources = await apt_sources(definition)
    recipe = await asyncio.to_thread(definition.recipe)
    files = await make_rootfs(definition, sources, tools.cache, tell)
    cloud = tools.cloud
    number = await _next_number(cloud, definition.name)
    name = version_name(definition.name, number)
    tags = {"MAYFLY_BUILD": f"{builder}/{name}"}
    async with AsyncExitStack() as passing, AsyncExitStack() as staying:
        tell("register", None, f"{name}: disk, kernel and initrd")
        seed, kernel, ramdisk = await _register(cloud, files, name, tags, passing, staying)
        template = await _template(cloud, definition, f"{name}-seed", (seed, kernel, ramdisk), tags, passing)
        tell("boot", None, _described(definition.build))
        async with _machine(tools, template, f"{name}-build", definition.build, tags) as (vm_id, identity):
            await _reached(tools, vm_id, identity, definition.boot_timeout, tell)
            await _provision(definition, sources, identity, tell)
            tell("save", None, "switching the machine off")
            await cloud.power_off(vm_id, within=_OFF_SECONDS)
            tell("save", None, f"saving its disk as {name}")
            disk = await cloud.save_disk(vm_id, 0, name, within=_SAVE_SECONDS)
            _later_delete_image(cloud, disk, staying)
            await cloud.tag_image(disk, tags)
            digest = await cloud.digest(disk)
        version = {
            "MAYFLY_IMAGE": definition.name,
            "MAYFLY_VERSION": str(number),
            "MAYFLY_STATE": str(VersionState.CANDIDATE),
            "MAYFLY_RECIPE": recipe,
            **({"MAYFLY_DISK_SHA256": digest} if digest else {}),
            **{tag: str(each) for tag, each in zip(IMAGE_TAGS.values(), (disk, kernel, ramdisk), strict=True)},
        }
        template = await _template(cloud, definition, name, (disk, kernel, ramdisk), tags | version, staying)
        tell("smoke test", None, _described(definition.smoke_test))
        async with _machine(tools, template, f"{name}-smoke-test", definition.smoke_test, tags) as (vm_id, identity):
            await _smoke_test(tools, vm_id, identity, definition.boot_timeout, tell)
        await cloud.tag_template(template, {"MAYFLY_BUILD": "done"})
        for image in (disk, kernel, ramdisk):
            await cloud.tag_image(image, {"MAYFLY_BUILD": "done"})
        staying.pop_all()
    return number


async def sweep(cloud: ImageCloud, builder: str) -> int:
    """Remove what this builder's killed builds left behind; return how many things. Only to be called while no build of
    this builder runs."""
    mine = f"{builder}/"
    builds: set[str] = set()
    removed = 0
    for vm in await cloud.list_machines():
        if vm.tags.get("MAYFLY_BUILD", "").startswith(mine):
            builds.add(vm.tags["MAYFLY_BUILD"].removeprefix(mine))
            await cloud.destroy(vm.id, within=_DESTROY_SECONDS)
            removed += 1
    for template in await cloud.list_templates():
        if template.tags.get("MAYFLY_BUILD", "").startswith(mine):
            builds.add(template.tags["MAYFLY_BUILD"].removeprefix(mine))
            await cloud.delete_template(template.id)
            removed += 1
    for image in await cloud.list_images():
        # A disk saved by a build that was killed before it could tag it has the name of the build, and no tag.
        if image.tags.get("MAYFLY_BUILD", "").startswith(mine) or (image.name in builds and not image.tags):
            await cloud.delete_image(image.id, within=_DELETE_SECONDS)
            removed += 1
    return removed


async def _next_number(cloud: ImageCloud, image: str) -> int:
    """One more than any version, and than any image that has a version's name: names are not used twice."""
    prefix = version_name(image, 0).removesuffix("0")
    named = [each.name.removeprefix(prefix).partition("-")[0] for each in await cloud.list_images()]
    taken = [version.version for version in await all_versions(cloud, image)]
    return max([0, *taken, *(int(number) for number in named if number.isdecimal())]) + 1


async def _register(
    cloud: ImageCloud,
    files: BootFiles,
    name: str,
    tags: dict[str, str],
    passing: AsyncExitStack,
    staying: AsyncExitStack,
) -> tuple[int, int, int]:
    """Ids of the seed's disk, which goes when the build is over, and of kernel and RAM disk, which stay."""

    async def put(suffix: str, path: Path, kind: ImageKind, stack: AsyncExitStack) -> int:
        image = await cloud.register_image(f"{name}-{suffix}", path, kind, tags, within=_REGISTER_SECONDS)
        _later_delete_image(cloud, image, stack)
        return image

    seed = await put("seed", files.disk, ImageKind.OS, passing)
    kernel = await put("kernel", files.kernel, ImageKind.KERNEL, staying)
    ramdisk = await put("ramdisk", files.initrd, ImageKind.RAMDISK, staying)
    return seed, kernel, ramdisk


def _later_delete_image(cloud: ImageCloud, image: int, stack: AsyncExitStack) -> None:
    async def delete() -> None:
        await cloud.delete_image(image, within=_DELETE_SECONDS)

    stack.push_async_callback(_removed, f"image {image}", delete)


async def _removed(what: str, remove: Callable[[], Awaitable[None]]) -> None:
    """Remove it. When that fails, the build's own end is what counts: the next build's sweep removes it."""
    try:
        await remove()
    except CloudError as error:
        log.warning("%s was left for the next build to remove: %s", what, error)


async def _template(
    cloud: ImageCloud,
    definition: Definition,
    name: str,
    images: tuple[int, int, int],
    tags: dict[str, str],
    stack: AsyncExitStack,
) -> int:
    disk, kernel, ramdisk = images
    template = await cloud.register_template(
        VersionTemplate(name, disk, kernel, ramdisk, definition.kernel_cmdline.strip(), tags)
    )
    stack.push_async_callback(_removed, f"template {template}", partial(cloud.delete_template, template))
    return template


@asynccontextmanager
async def _machine(
    tools: BuildTools, template: int, name: str, size: MachineSize, tags: dict[str, str]
) -> AsyncIterator[tuple[int, SshIdentity]]:
    """A VM of the template that runs, and how to enter it; destroyed when the block ends."""
    host, client = tools.make_key(name), tools.make_key(name)
    vm_id = await tools.cloud.instantiate(
        BuildMachine(
            template=template,
            name=name,
            cpus=size.cpus,
            memory_mb=size.memory // 2**20,
            network=size.network,
            context={
                "NETWORK": "YES",
                "SET_HOSTNAME": name,
                "SSH_PUBLIC_KEY": client.public,
                "MAYFLY_HOST_KEY_BASE64": base64.b64encode(host.private.encode()).decode(),
            },
            tags={**tags, "MAYFLY_VM": f"build-{uuid.uuid4()}"},
        )
    )
    try:
        address = await tools.cloud.wait_running(vm_id, within=_RUNNING_SECONDS)
        yield vm_id, SshIdentity(address, tools.ssh_port, client.private, host.public)
    finally:
        await tools.cloud.destroy(vm_id, within=_DESTROY_SECONDS)


def _described(size: MachineSize) -> str:
    return f"a VM with {size.cpus} CPU, {size.memory // 2**20} MiB, on network {size.network}"


async def _reached(tools: BuildTools, vm_id: int, identity: SshIdentity, within: float, tell: Progress) -> None:
    tell("boot", None, f"VM {vm_id} at {identity.address}: waiting for SSH")
    try:
        await tools.reach(identity, within=within)
    except GuestError as error:
        raise await _with_console(tools, vm_id, error) from error


async def _provision(definition: Definition, sources: AptSources, identity: SshIdentity, tell: Progress) -> None:
    def hear(event: PlaybookEvent) -> None:
        if event.kind == "runner_on_start":
            tell("provision", None, event.task)

    tell("provision", None, definition.playbook)
    variables = {"mayfly_apt_proxy": sources.proxy, "mayfly_context_present": True}
    with ansible_access(definition.name, identity) as inventory:
        result = await run_playbook(
            definition.playbook_path,
            inventory,
            within=definition.provision_timeout,
            variables=variables,
            on_event=hear,
        )
    if not result.succeeded:
        raise PlatformError(f"{definition.playbook}: {result.explain()}", evidence=result.log)


async def _smoke_test(tools: BuildTools, vm_id: int, identity: SshIdentity, within: float, tell: Progress) -> None:
    tell("smoke test", None, f"VM {vm_id} at {identity.address}: can it run a task?")
    try:
        facts = await tools.probe(identity, within=within)
    except GuestError as error:
        raise await _with_console(tools, vm_id, error) from error
    tell("smoke test", 1.0, ", ".join(f"{name} {value}" for name, value in facts.items()))


async def _with_console(tools: BuildTools, vm_id: int, error: GuestError) -> GuestError:
    """The same error, with what the machine wrote to its console as evidence."""
    try:
        console = await tools.console(vm_id)
    except CloudError:
        console = ""
    error.evidence = "\n".join(part for part in (error.evidence, console) if part)
    return error
