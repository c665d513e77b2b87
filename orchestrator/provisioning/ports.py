"""What building an image needs of the others: a cloud, a way into a machine, somewhere to tell its progress.

The doors never import each other. `bootstrap` hands in the OpenNebula client as `ImageCloud` and the guest door as
`Probe`; both only have to fit these shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol


class ImageKind(StrEnum):
    """The `TYPE` of an OpenNebula image. OS goes to an image datastore, the other two to a files datastore."""

    OS = "OS"
    KERNEL = "KERNEL"
    RAMDISK = "RAMDISK"


@dataclass(frozen=True, slots=True)
class CloudObject:
    """An image, VM template or VM of the cloud: `tags` are the single-value attributes of its TEMPLATE (of a VM: its
    USER_TEMPLATE) whose name begins with `MAYFLY_`. `created`: seconds since the epoch (REGTIME, STIME)."""

    id: int
    name: str
    tags: Mapping[str, str]
    created: int = 0


@dataclass(frozen=True, slots=True)
class VersionTemplate:
    """A VM template that boots one disk with a kernel and a RAM disk from the files datastore:
    `DISK=[IMAGE_ID]`, `OS=[KERNEL_DS="$FILE[IMAGE_ID=k]", INITRD_DS="$FILE[IMAGE_ID=i]", KERNEL_CMD]`, and the tags as
    single-value attributes. It names no NIC and no CONTEXT: whoever instantiates it says those."""

    name: str
    disk_image: int
    kernel_image: int
    ramdisk_image: int
    kernel_cmdline: str
    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class BuildMachine:
    """One VM to instantiate from a template: `network` is a virtual network's name, `context` the whole CONTEXT vector,
    `tags` go into the USER_TEMPLATE. Memory in MB."""

    template: int
    name: str
    cpus: int
    memory_mb: int
    network: str
    context: Mapping[str, str]
    tags: Mapping[str, str] = field(default_factory=dict)


class ImageCloud(Protocol):
    """The verbs of OpenNebula that image versions need.

    Each returns when the thing is done, not when the cloud accepted it, and raises `domain.errors.CloudError` (or one
    of its kinds) when the cloud refuses, fails, or is not done within `within` seconds. The three that remove are
    idempotent: "already gone" is success. The three that list leave out what the account may not see.
    """

    async def register_image(
        self, name: str, path: Path, kind: ImageKind, tags: Mapping[str, str], *, within: float
    ) -> int:
        """Copy the file at `path` (qcow2 for OS; as it is for KERNEL and RAMDISK) into a datastore of the right kind;
        return the image's id once it is READY. `path` is read by the cloud's front-end."""

    async def delete_image(self, image_id: int, *, within: float) -> None:
        """Delete the image; return when it is gone."""

    async def list_images(self) -> list[CloudObject]:
        """Every image, of every kind."""

    async def register_template(self, template: VersionTemplate) -> int:
        """Make a VM template; return its id."""

    async def tag_template(self, template_id: int, tags: Mapping[str, str]) -> None:
        """Set these attributes of the template, keeping its others (`one.template.update`, merging)."""

    async def tag_image(self, image_id: int, tags: Mapping[str, str]) -> None:
        """Set these attributes of the image, keeping its others (`one.image.update`, merging)."""

    async def delete_template(self, template_id: int) -> None:
        """Delete the template, not its images."""

    async def list_templates(self) -> list[CloudObject]:
        """Every VM template."""

    async def instantiate(self, machine: BuildMachine) -> int:
        """Make a VM and see that it is placed; return its id at once."""

    async def wait_running(self, vm_id: int, *, within: float) -> str:
        """Return the address of the VM's first NIC once it is RUNNING, which is long before SSH answers."""

    async def power_off(self, vm_id: int, *, within: float) -> None:
        """Press its power button (`poweroff`, not `-hard`); return once it is POWEROFF, as `save_disk` needs it."""

    async def save_disk(self, vm_id: int, disk_id: int, name: str, *, within: float) -> int:
        """`one.vm.disksaveas` of a VM in POWEROFF; return the new image's id once that image is READY and the VM is
        back in POWEROFF."""

    async def digest(self, image_id: int) -> str:
        """The SHA-256 of the image's file, in hex; "" where that file is not to be seen from here."""

    async def destroy(self, vm_id: int, *, within: float) -> None:
        """`terminate-hard`, again while it is refused because the VM still starts; return once the VM is DONE."""

    async def list_machines(self) -> list[CloudObject]:
        """Every VM that is not DONE."""


class ConsoleReader(Protocol):
    """The text that a VM wrote to its serial console so far; "" when this cloud has no way to tell."""

    async def __call__(self, vm_id: int) -> str: ...


@dataclass(frozen=True, slots=True)
class SshIdentity:
    """How to reach one machine: root at `address:port` with our key, and the host key that it must show.

    `private_key` and `host_public_key` are in OpenSSH's formats (the public one a line `ssh-ed25519 AAAA…`).
    """

    address: str
    port: int
    private_key: str
    host_public_key: str


class Key(Protocol):
    """An ed25519 key pair in OpenSSH's formats: the private key's text, and the public one as a line."""

    @property
    def private(self) -> str: ...
    @property
    def public(self) -> str: ...


class KeyMaker(Protocol):
    """Make a key pair; `comment` says whose it is."""

    def __call__(self, comment: str, /) -> Key: ...


class Reach(Protocol):
    """Return once the machine answers over SSH, the host key checked strictly. Nothing but sshd is asked for: a machine
    that is still to be provisioned has no more. Raises `domain.errors.GuestError`: Unreachable after `within` seconds,
    WrongHostKey at once."""

    async def __call__(self, identity: SshIdentity, *, within: float) -> None: ...


class Probe(Protocol):
    """As `Reach`; then check that the machine has all that a task needs, and return facts to show
    (`{"kernel": …, "python": …}`). Raises `domain.errors.GuestError`, saying which requirement is not met."""

    async def __call__(self, identity: SshIdentity, *, within: float) -> Mapping[str, str]: ...


class Progress(Protocol):
    """Told as it goes: `step` is one of the build's steps, `fraction` of that step done (None: not known), `text` a
    line for people."""

    def __call__(self, step: str, fraction: float | None, text: str) -> None: ...
