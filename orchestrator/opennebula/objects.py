"""OpenNebula's objects as plain values, read from what pyone makes of its replies. Pure.

pyone gives numbers as numbers, and TEMPLATE and USER_TEMPLATE as dictionaries whose values are strings, dictionaries
(a vector) or lists of either (a repeated key).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.domain.pool import Placement
from orchestrator.opennebula.states import LcmState, Phase, State, phase, state_name

TAG_PREFIX = "MAYFLY_"
_FILE = re.compile(r"\$FILE\[IMAGE_ID=(\d+)\]")


@dataclass(frozen=True, slots=True)
class VmRequest:
    """A machine to make of a VM template. Memory in bytes, rounded up to MB; `network` is a virtual network's name;
    `context` is the whole CONTEXT vector; `tags` go into the USER_TEMPLATE and hold at least MAYFLY_VM, ours for it.
    `avoid_hosts`: names of hosts that are taken only when no other has room. `placement`: which of several hosts, where
    the account places its VMs itself."""

    name: str
    cpus: int
    memory_bytes: int
    network: str
    context: Mapping[str, str]
    tags: Mapping[str, str]
    avoid_hosts: Collection[str] = ()
    placement: Placement = Placement.SPREAD

    def __post_init__(self) -> None:
        if not self.tags.get("MAYFLY_VM"):
            raise ValueError("a VM without the tag MAYFLY_VM could not be found again")


@dataclass(frozen=True, slots=True)
class CloudVm:
    """A VM as OpenNebula shows it. `address`: of its first NIC, and only while it is RUNNING: OpenNebula goes on to
    show it when the VM is DONE, and it may be another's by then. `error` is the text of the last failure, which stays
    when the VM is well again. `tags` include those of the VM's template. `datastore`: the id of the system datastore of
    its disks, None before it has a host. Times: seconds since the epoch, 0 when it has not come to that."""

    id: int
    name: str
    owner: str
    state: State
    lcm_state: LcmState
    address: str | None
    host: str | None
    error: str
    sched_message: str
    tags: Mapping[str, str]
    started: int
    ended: int
    datastore: int | None = None

    @property
    def state_name(self) -> str:
        """RUNNING, PENDING, BOOT_FAILURE: as OpenNebula's messages name it."""
        return state_name(self.state, self.lcm_state)

    @property
    def phase(self) -> Phase:
        """What that means."""
        return phase(self.state, self.lcm_state)

    @property
    def why(self) -> str:
        """The state with the reason that OpenNebula gives for it, if any."""
        reason = {Phase.FAILED: self.error, Phase.WAITING: self.sched_message}.get(self.phase, "")
        return f"{self.state_name}: {reason}" if reason else self.state_name

    @classmethod
    def read(cls, vm: Any) -> CloudVm:
        """From a VM of `one.vm.info` or of a pool."""
        user_template = vm.USER_TEMPLATE or {}
        history = vm.HISTORY_RECORDS.HISTORY if vm.HISTORY_RECORDS else []
        state, lcm_state = State(int(vm.STATE)), LcmState(int(vm.LCM_STATE))
        return cls(
            id=int(vm.ID),
            name=str(vm.NAME),
            owner=str(vm.UNAME),
            state=state,
            lcm_state=lcm_state,
            address=_address(vm.TEMPLATE or {}) if phase(state, lcm_state) is Phase.RUNNING else None,
            host=str(history[-1].HOSTNAME) if history else None,
            error=_text(user_template.get("ERROR")),
            sched_message=_text(user_template.get("SCHED_MESSAGE")),
            tags=tags_of(user_template),
            started=int(vm.STIME),
            ended=int(vm.ETIME),
            datastore=int(history[-1].DS_ID) if history else None,
        )


@dataclass(frozen=True, slots=True)
class ImageVersion:
    """One version of a base image: a VM template, tagged as ours, and the images that it boots from. `recipe`: the hash
    of the definition that it was built from; `disk_sha256`: of the disk's file. Either is empty when the build could
    not tell. `created`: seconds since the epoch."""

    template_id: int
    template_name: str
    image: str
    version: int
    state: str
    disk_image: int
    kernel_image: int | None
    ramdisk_image: int | None
    created: int
    recipe: str = ""
    disk_sha256: str = ""

    @classmethod
    def read(cls, template: Any) -> ImageVersion | None:
        """From a VMTEMPLATE; None when it is no version of ours, or not a whole one."""
        content = template.TEMPLATE or {}
        tags = tags_of(content)
        disk = _first(content.get("DISK"))
        boot = _first(content.get("OS"))
        version, disk_image = tags.get("MAYFLY_VERSION", ""), disk.get("IMAGE_ID") or ""
        if not (tags.get("MAYFLY_IMAGE") and _is_number(version) and _is_number(disk_image)):
            return None
        return cls(
            template_id=int(template.ID),
            template_name=str(template.NAME),
            image=tags["MAYFLY_IMAGE"],
            version=int(version),
            state=tags.get("MAYFLY_STATE", ""),
            disk_image=int(disk_image),
            kernel_image=_file_image(boot.get("KERNEL_DS")),
            ramdisk_image=_file_image(boot.get("INITRD_DS")),
            created=int(template.REGTIME),
            recipe=tags.get("MAYFLY_RECIPE", ""),
            disk_sha256=tags.get("MAYFLY_DISK_SHA256", ""),
        )


@dataclass(frozen=True, slots=True)
class Host:
    """A host with what is not yet given away: CPUs, and memory in bytes. `usable`: it reports and is enabled. `failed`:
    it does not report (state ERROR); its VMs may be gone, whatever state OpenNebula shows of them."""

    id: int
    name: str
    cluster_id: int
    usable: bool
    failed: bool
    cpu_free: float
    memory_free_bytes: int
    running_vms: int

    @classmethod
    def read(cls, host: Any) -> Host:
        """From a HOST. OpenNebula counts CPU in percent of one, memory in kB."""
        share = host.HOST_SHARE
        return cls(
            id=int(host.ID),
            name=str(host.NAME),
            cluster_id=int(host.CLUSTER_ID),
            usable=int(host.STATE) in (1, 2),  # MONITORING_MONITORED, MONITORED
            failed=int(host.STATE) in (3, 5),  # ERROR, MONITORING_ERROR
            cpu_free=(int(share.MAX_CPU) - int(share.CPU_USAGE)) / 100,
            memory_free_bytes=(int(share.MAX_MEM) - int(share.MEM_USAGE)) * 1024,
            running_vms=int(share.RUNNING_VMS),
        )


@dataclass(frozen=True, slots=True)
class Network:
    """A virtual network and the clusters whose hosts can reach it."""

    id: int
    name: str
    owner_id: int
    owner: str
    cluster_ids: frozenset[int]

    @classmethod
    def read(cls, network: Any) -> Network:
        """From a VNET."""
        return cls(
            id=int(network.ID),
            name=str(network.NAME),
            owner_id=int(network.UID),
            owner=str(network.UNAME),
            cluster_ids=frozenset(int(cluster) for cluster in network.CLUSTERS.ID),
        )


def tags_of(template: Mapping[str, Any]) -> dict[str, str]:
    """The attributes of ours in a TEMPLATE or USER_TEMPLATE: those with one value (pyone: None if empty)."""
    ours = {key: "" if value is None else value for key, value in template.items() if key.startswith(TAG_PREFIX)}
    return {key: value for key, value in ours.items() if isinstance(value, str)}


def _address(template: Mapping[str, Any]) -> str | None:
    """The first NIC's IPv4 address, else its IPv6 one; NIC is a dictionary, or a list when there are several."""
    nic = _first(template.get("NIC"))
    address = nic.get("IP") or nic.get("IP6_GLOBAL") or nic.get("IP6")
    return address if isinstance(address, str) else None


def _first(vector: Any) -> Mapping[str, Any]:
    if isinstance(vector, list):
        vector = vector[0] if vector else {}
    return vector if isinstance(vector, dict) else {}


def _text(value: Any) -> str:
    """An attribute that oned writes once, though a template may repeat it: the last of them."""
    if isinstance(value, list):
        value = value[-1] if value else ""
    return value if isinstance(value, str) else ""


def _is_number(text: Any) -> bool:
    return isinstance(text, str) and text.isascii() and text.isdigit()


def _file_image(reference: Any) -> int | None:
    found = _FILE.fullmatch(reference) if isinstance(reference, str) else None
    return int(found[1]) if found else None
