"""The verbs that making a base image needs: files into datastores, VM templates, a disk saved as an image."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from orchestrator.domain.errors import (
    CloudError,
    CloudMissing,
    CloudUnreachable,
    CloudWrongState,
    NotPossible,
)
from orchestrator.opennebula.cloud import Cloud
from orchestrator.opennebula.objects import CloudVm, VmRequest, tags_of
from orchestrator.opennebula.states import Phase, State

log = logging.getLogger(__name__)

Listed = TypeVar("Listed")

_ALL, _OWN = -2, -3  # filter flags of the pool calls
_DATASTORE_TYPE = {"OS": 0, "KERNEL": 2, "RAMDISK": 2}  # TYPE of a datastore: 0 images, 1 system, 2 files
_READY, _ERROR = 1, 5  # STATE of an image
_MERGE = 1
_SETTLE_SECONDS = 2.0  # for how long after an action was accepted its effect may not be visible yet


class Template(Protocol):
    """What `register_template` needs to know: see `templates/version.one.j2`."""

    @property
    def name(self) -> str: ...
    @property
    def disk_image(self) -> int: ...
    @property
    def kernel_image(self) -> int: ...
    @property
    def ramdisk_image(self) -> int: ...
    @property
    def kernel_cmdline(self) -> str: ...
    @property
    def tags(self) -> Mapping[str, str]: ...


class Machine(Protocol):
    """What `instantiate` needs to know. Memory in MB; `network` is a name; `context` is the whole vector."""

    @property
    def template(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def cpus(self) -> int: ...
    @property
    def memory_mb(self) -> int: ...
    @property
    def network(self) -> str: ...
    @property
    def context(self) -> Mapping[str, str]: ...
    @property
    def tags(self) -> Mapping[str, str]: ...


class Images(Generic[Listed]):
    """The cloud as `mayfly image` needs it, over the same connection.

    listed: makes the caller's own noun of an object's id, name, tags (the single-value attributes that begin with
    `MAYFLY_`) and time of creation (seconds since the epoch). datastores: names of the image datastore and of the files
    datastore; without them OpenNebula's own `default` and `files`, or the only ones that there are.

    Each verb returns when the thing is done, not when OpenNebula accepted it, and raises a CloudError when OpenNebula
    refuses, fails, or is not done `within` seconds; nothing half-done is left then. Removing what is gone is success.
    """

    def __init__(
        self,
        cloud: Cloud,
        listed: Callable[[int, str, Mapping[str, str], int], Listed],
        *,
        datastores: tuple[str, str] | None = None,
    ) -> None:
        self._cloud = cloud
        self._client = cloud.client
        self._listed = listed
        self._datastores = datastores

    async def register_image(self, name: str, path: Path, kind: str, tags: Mapping[str, str], *, within: float) -> int:
        """Copy the file at `path` of OpenNebula's front-end into a datastore that takes `kind` (OS, KERNEL or RAMDISK;
        qcow2 for OS); return the image's id once it is READY."""
        datastore = await self._datastore(_DATASTORE_TYPE[str(kind)])
        text = self._cloud.renderer.render("image", name=name, kind=str(kind), path=str(path), tags=tags)
        try:
            image_id = int(await self._client.order("image.allocate", text, datastore, False))
        except CloudUnreachable as error:
            image_id = await self._named("image", name, tags, error)
        deadline = time.monotonic() + within
        async with self._kept_if_whole(image_id):
            await self._until(lambda: self._image_is_ready(image_id), f"image {image_id} is not READY", deadline)
        return image_id

    async def delete_image(self, image_id: int, *, within: float) -> None:
        """Delete the image; return when it is gone. While a VM still uses it, it is asked for again."""
        deadline = time.monotonic() + within
        while True:
            try:
                await self._client.ask("image.delete", image_id)
                break
            except CloudMissing:
                return
            except CloudWrongState:
                if time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(self._cloud.poll_seconds)
        await self._until(lambda: self._image_is_gone(image_id), f"image {image_id} is not gone", deadline)

    async def list_images(self) -> list[Listed]:
        """Every image that the account may use, of every kind."""
        pool = await self._client.ask("imagepool.info", _ALL, -1, -1)
        return [self._object(image, image.TEMPLATE, image.REGTIME) for image in pool.IMAGE]

    async def register_template(self, template: Template) -> int:
        """Make a VM template; return its id."""
        text = self._cloud.renderer.render(
            "version",
            name=template.name,
            disk_image=template.disk_image,
            kernel_image=template.kernel_image,
            ramdisk_image=template.ramdisk_image,
            kernel_cmdline=template.kernel_cmdline,
            tags=template.tags,
        )
        try:
            return int(await self._client.order("template.allocate", text))
        except CloudUnreachable as error:
            return await self._named("template", template.name, template.tags, error)

    async def tag_template(self, template_id: int, tags: Mapping[str, str]) -> None:
        """Set these attributes of the template, keeping its others."""
        await self._client.ask("template.update", template_id, self._cloud.renderer.render("tags", tags=tags), _MERGE)
        self._cloud.forget()

    async def tag_image(self, image_id: int, tags: Mapping[str, str]) -> None:
        """Set these attributes of the image, keeping its others."""
        await self._client.ask("image.update", image_id, self._cloud.renderer.render("tags", tags=tags), _MERGE)

    async def delete_template(self, template_id: int) -> None:
        """Delete the template, not its images."""
        try:
            await self._client.ask("template.delete", template_id, False)
        except CloudMissing:
            return
        finally:
            self._cloud.forget()

    async def list_templates(self) -> list[Listed]:
        """Every VM template that the account may use."""
        pool = await self._client.ask("templatepool.info", _ALL, -1, -1)
        return [self._object(template, template.TEMPLATE, template.REGTIME) for template in pool.VMTEMPLATE]

    async def instantiate(self, machine: Machine) -> int:
        """Make a VM and see that it is placed; return its id at once."""
        request = VmRequest(
            name=machine.name,
            cpus=machine.cpus,
            memory_bytes=machine.memory_mb * 2**20,
            network=machine.network,
            context=machine.context,
            tags=machine.tags,
        )
        return await self._cloud.instantiate(machine.template, request)

    async def wait_running(self, vm_id: int, *, within: float) -> str:
        """The address of the VM's first NIC once it is RUNNING, which is long before SSH answers."""
        vm = await self._cloud.wait_running(vm_id, within=within)
        if vm.address is None:
            raise CloudError(f"VM {vm_id} runs, but has no address: its NIC has no IP")
        return vm.address

    async def power_off(self, vm_id: int, *, within: float) -> None:
        """Press its power button; return once it is POWEROFF. A guest that ignored the button is asked again."""
        deadline = time.monotonic() + within
        refused = ""
        while True:
            vm = await self._cloud.vm(vm_id)
            if vm.state is State.POWEROFF:
                return
            if vm.phase in (Phase.DONE, Phase.FAILED):
                raise CloudWrongState(f"VM {vm_id} cannot be powered off, it is {vm.why}")
            if vm.phase is Phase.RUNNING:
                refused = await self._press(vm_id)
                await self._changed(vm, deadline)
            if time.monotonic() >= deadline:
                raise CloudWrongState(
                    f"VM {vm_id} is not POWEROFF after {within:g} s, it is {vm.why}. {refused}".strip()
                )
            await asyncio.sleep(self._cloud.poll_seconds)

    async def save_disk(self, vm_id: int, disk_id: int, name: str, *, within: float) -> int:
        """Save a disk of a VM that is POWEROFF as a new image of this name; return the image's id once it is READY and
        the VM is POWEROFF again."""
        deadline = time.monotonic() + within
        try:
            image_id = int(await self._client.order("vm.disksaveas", vm_id, disk_id, name, "", -1))
        except CloudUnreachable as error:
            image_id = await self._named("image", name, {}, error)
        async with self._kept_if_whole(image_id):
            await self._until(lambda: self._image_is_ready(image_id), f"image {image_id} is not READY", deadline)
            await self._until(lambda: self._is_off(vm_id), f"VM {vm_id} is not POWEROFF again", deadline)
        return image_id

    async def digest(self, image_id: int) -> str:
        """The SHA-256 of the image's file, in hex; "" where that file is not to be seen from here."""
        source = str((await self._client.ask("image.info", image_id)).SOURCE or "")
        return await asyncio.to_thread(_digest_of, Path(source)) if source.startswith("/") else ""

    async def destroy(self, vm_id: int, *, within: float) -> None:
        """See `Cloud.terminate`."""
        await self._cloud.terminate(vm_id, within=within)

    async def list_machines(self) -> list[Listed]:
        """Every VM of the account that is not DONE."""
        return [self._listed(vm.id, vm.name, vm.tags, vm.started) for vm in await self._cloud.vms()]

    def _object(self, thing: Any, template: Mapping[str, Any] | None, created: int) -> Listed:
        return self._listed(int(thing.ID), str(thing.NAME), tags_of(template or {}), int(created))

    async def _datastore(self, kind: int) -> int:
        pool = await self._client.ask("datastorepool.info")
        found = [datastore for datastore in pool.DATASTORE if int(datastore.TYPE) == kind]
        wanted = (self._datastores or ("default", "files"))[0 if kind == 0 else 1]
        if self._datastores or len(found) > 1:
            found = [datastore for datastore in found if str(datastore.NAME) == wanted]
        if len(found) != 1:
            noun = "an image datastore" if kind == 0 else "a files datastore"
            raise NotPossible("datastore", f"OpenNebula shows no single one to take for {noun} ({wanted!r})", "name it")
        return int(found[0].ID)

    async def _named(self, kind: str, name: str, tags: Mapping[str, str], lost: CloudUnreachable) -> int:
        """The object that the call whose reply was `lost` made, or is making: names are unique for an owner.

        Raises `lost` when there is none within the patience; then none was made, or it is left behind."""
        give_up = time.monotonic() + self._cloud.patience
        while True:
            pool = await self._client.ask(f"{kind}pool.info", _OWN, -1, -1)
            for thing in pool.IMAGE if kind == "image" else pool.VMTEMPLATE:
                if str(thing.NAME) == name and tags.items() <= tags_of(thing.TEMPLATE or {}).items():
                    log.info("adopting %s %s, found by its name %r", kind, thing.ID, name)
                    return int(thing.ID)
            if time.monotonic() >= give_up:
                raise lost
            await asyncio.sleep(self._cloud.poll_seconds)

    @asynccontextmanager
    async def _kept_if_whole(self, image_id: int) -> AsyncIterator[None]:
        """Delete the image when the block fails or is canceled."""
        try:
            yield
        except BaseException:
            try:
                await self._client.ask("image.delete", image_id)
            except CloudError as error:
                log.warning("image %d is left behind: %s", image_id, error)
            raise

    async def _image_is_ready(self, image_id: int) -> bool:
        image = await self._client.ask("image.info", image_id)
        if int(image.STATE) == _ERROR:
            text = (image.TEMPLATE or {}).get("ERROR", "OpenNebula does not say why")
            raise CloudError(f"image {image_id} ({image.NAME}) could not be made: {text}")
        return int(image.STATE) == _READY

    async def _image_is_gone(self, image_id: int) -> bool:
        try:
            await self._client.ask("image.info", image_id)
        except CloudMissing:
            return True
        return False

    async def _is_off(self, vm_id: int) -> bool:
        vm = await self._cloud.vm(vm_id)
        if vm.phase in (Phase.DONE, Phase.FAILED, Phase.RUNNING):
            raise CloudWrongState(f"VM {vm_id} left POWEROFF while its disk was saved, it is {vm.why}")
        return vm.state is State.POWEROFF

    async def _press(self, vm_id: int) -> str:
        """Ask for a power-off; what was answered, if that was "not now"."""
        try:
            await self._client.ask("vm.action", "poweroff", vm_id)
        except CloudWrongState as error:
            return str(error)
        return ""

    async def _changed(self, before: CloudVm, deadline: float) -> None:
        """Wait until the VM is seen in another state than `before`, which after an accepted action takes a moment."""
        moment = min(deadline, time.monotonic() + _SETTLE_SECONDS)
        while True:
            if (await self._cloud.vm(before.id)).state_name != before.state_name or time.monotonic() >= moment:
                return
            await asyncio.sleep(self._cloud.poll_seconds)

    async def _until(self, condition: Callable[[], Awaitable[bool]], problem: str, deadline: float) -> None:
        began = time.monotonic()
        while not await condition():
            if time.monotonic() >= deadline:
                raise CloudError(f"{problem} after {time.monotonic() - began:.0f} s")
            await asyncio.sleep(self._cloud.poll_seconds)


def _digest_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
