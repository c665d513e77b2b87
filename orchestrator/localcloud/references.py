"""What a VM template refers to: images, networks and security groups, by id or by name."""

from __future__ import annotations

import re

from orchestrator.localcloud.calls import Caller
from orchestrator.localcloud.model import Entity, Image, Network
from orchestrator.localcloud.refusals import internal
from orchestrator.localcloud.store import Pool, Store
from orchestrator.localcloud.template import Template, Vector, text_of, vector_of, vectors

FILE_REFERENCES = ("KERNEL_DS", "INITRD_DS")
_FILE = re.compile(r"\$FILE\[\s*(IMAGE_ID|IMAGE)\s*=\s*\"?([^\"\],]+)\"?[^\]]*\]")


def _owner(store: Store, caller: Caller, vector: Vector, prefix: str) -> int | None:
    """Whose objects a name means: the caller's own unless the vector says otherwise."""
    if uid := vector.get(f"{prefix}_UID"):
        return int(uid) if uid.isdigit() else None
    if uname := vector.get(f"{prefix}_UNAME"):
        return next((user.oid for user in store.users if user.name == uname), None)
    return caller.user.oid


def _by_name(pool: Pool[Image] | Pool[Network], name: str, owner: int | None) -> Image | Network | None:
    return next((thing for thing in pool if thing.name == name and thing.uid == owner), None)


def image_of(store: Store, caller: Caller, disk: Vector) -> Image | None:
    """None for a volatile disk. Raises Refused 8192 when what it names is not there."""
    if ident := disk.get("IMAGE_ID"):
        found = store.images.find(int(ident)) if ident.isdigit() else None
        if found is None:
            raise internal(f"Image with ID: {ident} does not exist")
        return found
    if name := disk.get("IMAGE"):
        owner = _owner(store, caller, disk, "IMAGE")
        image = _by_name(store.images, name, owner)
        if not isinstance(image, Image):
            who = caller.user.oid if owner is None else owner
            raise internal(
                f"User {who} does not own an image with name: {name} . Set IMAGE_UNAME or IMAGE_UID of owner in DISK."
            )
        return image
    return None


def network_of(store: Store, caller: Caller, nic: Vector) -> Network:
    """Raises Refused 8192 when what it names is not there."""
    if ident := nic.get("NETWORK_ID"):
        found = store.networks.find(int(ident)) if ident.isdigit() else None
        if found is None:
            raise internal(f"Virtual network with ID: {ident} does not exist")
        return found
    name = nic.get("NETWORK", "")
    if not name:
        raise internal("NIC has no NETWORK nor NETWORK_ID attribute.")
    owner = _owner(store, caller, nic, "NETWORK")
    network = _by_name(store.networks, name, owner)
    if not isinstance(network, Network):
        who = caller.user.oid if owner is None else owner
        raise internal(
            f"User {who} does not own a network with name: {name} . Set NETWORK_UNAME or NETWORK_UID of owner in NIC."
        )
    return network


def file_image(store: Store, caller: Caller, reference: str) -> Image:
    """The image of `$FILE[IMAGE_ID=n]` or `$FILE[IMAGE="name"]`. Raises Refused 8192."""
    found = _FILE.search(reference)
    if not found:
        raise internal(f"Error parsing file reference: {reference}")
    image = image_of(store, caller, {found.group(1): found.group(2).strip()})
    if image is None:
        raise internal(f"Error parsing file reference: {reference}")
    return image


def file_id(reference: str) -> int | None:
    """The image's id of `$FILE[IMAGE_ID=n]`; None for a reference by name."""
    found = _FILE.search(reference)
    return int(found.group(2)) if found and found.group(1) == "IMAGE_ID" and found.group(2).isdigit() else None


def group_ids(text: str) -> list[int]:
    """`0,100` as numbers; anything else in it is ignored."""
    return [int(part) for part in text.split(",") if part.strip().isdigit()]


def needed_rights(store: Store, caller: Caller, template: Template, *, images: bool = True) -> list[tuple[str, Entity]]:
    """What the caller must be allowed to use; the images of disks only if `images`. What cannot be found is not asked
    for here: it fails later, in words of its own."""
    found: list[Entity] = []
    for disk in vectors(template, "DISK") if images else ():
        ident = disk.get("IMAGE_ID", "")
        image = store.images.find(int(ident)) if ident.isdigit() else None
        if not ident and "IMAGE" in disk:
            image = _image_or_none(store, caller, disk)
        if image:
            found.append(image)
    for nic in vectors(template, "NIC"):
        ident = nic.get("NETWORK_ID", "")
        network = store.networks.find(int(ident)) if ident.isdigit() else None
        if not ident and "NETWORK" in nic:
            by_name = _by_name(store.networks, nic["NETWORK"], _owner(store, caller, nic, "NETWORK"))
            network = by_name if isinstance(by_name, Network) else None
        if network:
            found.append(network)
    groups = {ident for nic in vectors(template, "NIC") for ident in group_ids(nic.get("SECURITY_GROUPS", ""))}
    found += [group for ident in sorted(groups) if (group := store.security_groups.find(ident))]
    operating_system = vector_of(template, "OS")
    for key in FILE_REFERENCES:
        if match := _FILE.search(operating_system.get(key, "")):
            image = _image_or_none(store, caller, {match.group(1): match.group(2).strip()})
            if image:
                found.append(image)
    unique = {(thing.auth_name, thing.oid): thing for thing in found}
    return [("USE", thing) for thing in unique.values()]


def _image_or_none(store: Store, caller: Caller, vector: Vector) -> Image | None:
    ident = vector.get("IMAGE_ID", "")
    if ident:
        return store.images.find(int(ident)) if ident.isdigit() else None
    image = _by_name(store.images, vector.get("IMAGE", ""), _owner(store, caller, vector, "IMAGE"))
    return image if isinstance(image, Image) else None


def requires_capacity(template: Template) -> tuple[float, int]:
    """CPU (cores) and MEMORY (MB). Raises Refused 8192 with OpenNebula's words."""
    try:
        memory = int(text_of(template, "MEMORY"))
    except ValueError:
        memory = 0
    if memory <= 0:
        raise internal("MEMORY attribute must be a positive integer value.")
    try:
        cpu = float(text_of(template, "CPU"))
    except ValueError:
        cpu = 0.0
    if not 0.0 < cpu < float("inf"):
        raise internal("CPU attribute must be a positive float or integer value.")
    vcpu = text_of(template, "VCPU")
    if vcpu and not (vcpu.isdigit() and int(vcpu) > 0):
        raise internal("VCPU attribute must be a positive integer value.")
    return cpu, memory
