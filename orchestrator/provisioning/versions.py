"""The versions of base images, as the cloud holds them: VM templates found by their tags, never by memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from orchestrator.domain.errors import CloudError, NotFound, NotPossible
from orchestrator.provisioning.ports import CloudObject, ImageCloud, ImageKind

_DELETE_SECONDS = 30.0
_KEPT = 2

IMAGE_TAGS: Mapping[ImageKind, str] = {
    ImageKind.OS: "MAYFLY_DISK_IMAGE",
    ImageKind.KERNEL: "MAYFLY_KERNEL_IMAGE",
    ImageKind.RAMDISK: "MAYFLY_RAMDISK_IMAGE",
}
"""The tags of a version's template that name the images it is made of."""


class VersionState(StrEnum):
    """PROMOTED: new VMs boot it. PREVIOUS: it was promoted before. REJECTED: rolled back, or being deleted."""

    CANDIDATE = "candidate"
    PROMOTED = "promoted"
    PREVIOUS = "previous"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class ImageVersion:
    """One version of a base image. images: ids of the images that only it uses. recipe: `Definition.recipe` of what it
    was made from; empty when that was not noted."""

    image: str
    version: int
    state: VersionState
    template_id: int
    images: tuple[int, ...]
    created_at: datetime
    recipe: str = ""

    @property
    def name(self) -> str:
        return version_name(self.image, self.version)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "image": self.image,
            "version": self.version,
            "state": str(self.state),
            "template_id": self.template_id,
            "created_at": self.created_at.isoformat(),
            "recipe": self.recipe,
        }


def version_name(image: str, version: int) -> str:
    """The name in OpenNebula of a version's template and disk image."""
    return f"mayfly-{image}-{version}"


def version_from(template: CloudObject) -> ImageVersion | None:
    """The version that a VM template is; None when its tags do not say one."""
    tags = template.tags
    version, state = tags.get("MAYFLY_VERSION", ""), tags.get("MAYFLY_STATE", "")
    if not tags.get("MAYFLY_IMAGE") or not version.isdecimal() or state not in set(VersionState):
        return None
    return ImageVersion(
        image=tags["MAYFLY_IMAGE"],
        version=int(version),
        state=VersionState(state),
        template_id=template.id,
        images=tuple(int(tags[tag]) for tag in IMAGE_TAGS.values() if tags.get(tag, "").isdecimal()),
        created_at=datetime.fromtimestamp(template.created, UTC),
        recipe=tags.get("MAYFLY_RECIPE", ""),
    )


async def all_versions(cloud: ImageCloud, image: str | None = None) -> list[ImageVersion]:
    """Every version in the cloud (of `image`), by image, the newest first."""
    found = (version_from(template) for template in await cloud.list_templates())
    wanted = [version for version in found if version is not None and image in (None, version.image)]
    return sorted(wanted, key=lambda version: (version.image, -version.version))


async def promoted_version(cloud: ImageCloud, image: str) -> ImageVersion | None:
    """The version that new VMs boot; None when none is promoted."""
    return next((v for v in await all_versions(cloud, image) if v.state is VersionState.PROMOTED), None)


async def promote_version(cloud: ImageCloud, image: str, version: int) -> ImageVersion:
    """Boot new VMs from this version; what was promoted becomes PREVIOUS. Raises NotFound.

    The new one is tagged first: at no moment is there none. Cut off in between, there are two, and saying it again
    mends that.
    """
    versions = await all_versions(cloud, image)
    chosen = next((known for known in versions if known.version == version), None)
    if chosen is None:
        known = ", ".join(str(other.version) for other in versions) or "none"
        raise NotFound("version", f"{image} has no version {version}", f"known: {known}")
    await _mark(cloud, chosen, VersionState.PROMOTED)
    for other in versions:
        if other.state is VersionState.PROMOTED and other.version != version:
            await _mark(cloud, other, VersionState.PREVIOUS)
    return await _again(cloud, chosen)


async def roll_back(cloud: ImageCloud, image: str) -> ImageVersion:
    """Boot new VMs from the newest PREVIOUS version; the one promoted now becomes REJECTED. Raises NotPossible."""
    versions = await all_versions(cloud, image)
    back = next((version for version in versions if version.state is VersionState.PREVIOUS), None)
    if back is None:
        raise NotPossible("image rollback", f"{image} has no previous version", "see mayfly image list")
    await _mark(cloud, back, VersionState.PROMOTED)
    for other in versions:
        if other.state is VersionState.PROMOTED:
            await _mark(cloud, other, VersionState.REJECTED)
    return await _again(cloud, back)


async def prune(cloud: ImageCloud, image: str) -> list[ImageVersion]:
    """Delete all versions but the two newest and the promoted one; return those that are gone.

    One whose disk is in use stays, marked REJECTED, until a later call.
    """
    gone = []
    for old in (await all_versions(cloud, image))[_KEPT:]:
        if old.state is VersionState.PROMOTED:
            continue
        await _mark(cloud, old, VersionState.REJECTED)
        try:
            # The disk first: OpenNebula refuses that while a VM has it, and keeps no count of who boots a kernel.
            for each in old.images:
                await cloud.delete_image(each, within=_DELETE_SECONDS)
        except CloudError:
            continue
        await cloud.delete_template(old.template_id)
        gone.append(old)
    return gone


async def _mark(cloud: ImageCloud, version: ImageVersion, state: VersionState) -> None:
    await cloud.tag_template(version.template_id, {"MAYFLY_STATE": str(state)})


async def _again(cloud: ImageCloud, version: ImageVersion) -> ImageVersion:
    """The version as the cloud has it now."""
    now = await all_versions(cloud, version.image)
    return next((known for known in now if known.template_id == version.template_id), version)
