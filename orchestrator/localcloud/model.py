"""The cloud's objects. Each is one row of the store; every field is plain data, so that it goes to disk as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import ClassVar

from orchestrator.localcloud.template import Template

PUBLIC_USE = "110100000"
"""Permissions: three digits (use, manage, admin) each for owner, group, others."""
PRIVATE = "110000000"


class VmState(IntEnum):
    """OpenNebula's STATE."""

    INIT = 0
    PENDING = 1
    HOLD = 2
    ACTIVE = 3
    STOPPED = 4
    SUSPENDED = 5
    DONE = 6
    POWEROFF = 8
    UNDEPLOYED = 9
    CLONING = 10
    CLONING_FAILURE = 11


class Lcm(IntEnum):
    """OpenNebula's LCM_STATE, those that this cloud goes through; LCM_INIT unless STATE is ACTIVE."""

    LCM_INIT = 0
    PROLOG = 1
    BOOT = 2
    RUNNING = 3
    SAVE_STOP = 5
    SAVE_SUSPEND = 6
    PROLOG_RESUME = 9
    EPILOG_STOP = 10
    EPILOG = 11
    SHUTDOWN = 12
    CLEANUP_RESUBMIT = 15
    UNKNOWN = 16
    SHUTDOWN_POWEROFF = 18
    BOOT_POWEROFF = 20
    BOOT_SUSPENDED = 21
    BOOT_STOPPED = 22
    CLEANUP_DELETE = 23
    HOTPLUG_NIC = 25
    HOTPLUG_SAVEAS = 26
    HOTPLUG_SAVEAS_POWEROFF = 27
    SHUTDOWN_UNDEPLOY = 29
    EPILOG_UNDEPLOY = 30
    PROLOG_UNDEPLOY = 31
    BOOT_UNDEPLOY = 32
    BOOT_FAILURE = 36
    PROLOG_FAILURE = 39
    EPILOG_FAILURE = 40
    EPILOG_STOP_FAILURE = 41
    EPILOG_UNDEPLOY_FAILURE = 42
    BOOT_UNDEPLOY_FAILURE = 47
    BOOT_STOPPED_FAILURE = 48
    PROLOG_RESUME_FAILURE = 49
    PROLOG_UNDEPLOY_FAILURE = 50
    HOTPLUG_NIC_POWEROFF = 65


class ImageState(IntEnum):
    """OpenNebula's image STATE."""

    READY = 1
    USED = 2
    DISABLED = 3
    LOCKED = 4
    ERROR = 5
    DELETE = 7
    USED_PERS = 8
    LOCKED_USED = 9
    LOCKED_USED_PERS = 10


class ImageType(IntEnum):
    """OpenNebula's image TYPE."""

    OS = 0
    CDROM = 1
    DATABLOCK = 2
    KERNEL = 3
    RAMDISK = 4
    CONTEXT = 5


@dataclass(slots=True)
class Entity:
    """Anything with an id, a name and a template. `kind` is its word in "Error getting …", `auth_name` in "Not
    authorized to perform USE …", `element` its XML element."""

    kind: ClassVar[str] = ""
    auth_name: ClassVar[str] = ""
    element: ClassVar[str] = ""

    oid: int
    name: str
    template: Template = field(default_factory=dict)


@dataclass(slots=True)
class Owned(Entity):
    """An entity with an owner, a group, permissions and perhaps a lock."""

    uid: int = 0
    gid: int = 0
    uname: str = "oneadmin"
    gname: str = "oneadmin"
    permissions: str = PRIVATE
    lock: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class User(Entity):
    """`tokens` are login tokens: TOKEN, EXPIRATION_TIME (Unix; -1: never), EGID."""

    kind: ClassVar[str] = "user"
    auth_name: ClassVar[str] = "USER"
    element: ClassVar[str] = "USER"

    gid: int = 1
    groups: list[int] = field(default_factory=list)
    password: str = ""
    enabled: bool = True
    tokens: list[dict[str, str]] = field(default_factory=list)
    quotas: Template = field(default_factory=dict)


@dataclass(slots=True)
class Group(Entity):
    kind: ClassVar[str] = "group"
    auth_name: ClassVar[str] = "GROUP"
    element: ClassVar[str] = "GROUP"

    quotas: Template = field(default_factory=dict)


@dataclass(slots=True)
class Cluster(Entity):
    kind: ClassVar[str] = "cluster"
    auth_name: ClassVar[str] = "CLUSTER"
    element: ClassVar[str] = "CLUSTER"


@dataclass(slots=True)
class Host(Entity):
    """STATE: 0 INIT, 2 MONITORED, 3 ERROR, 4 DISABLED, 8 OFFLINE. `cpu` in percent of a core, `memory` in kB.
    `samples` are its newest monitoring records. `unreachable`: see `reach`."""

    kind: ClassVar[str] = "host"
    auth_name: ClassVar[str] = "HOST"
    element: ClassVar[str] = "HOST"

    state: int = 0
    im_mad: str = ""
    vm_mad: str = ""
    cluster_id: int = 0
    cpu: int = 0
    memory: int = 0
    samples: list[dict[str, int]] = field(default_factory=list)
    unreachable: bool = False


@dataclass(slots=True)
class Datastore(Owned):
    """TYPE: 0 image, 1 system, 2 file."""

    kind: ClassVar[str] = "datastore"
    auth_name: ClassVar[str] = "DATASTORE"
    element: ClassVar[str] = "DATASTORE"

    type: int = 0
    ds_mad: str = ""
    tm_mad: str = ""
    clusters: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Image(Owned):
    """`size` in MB; `source` is its file in the datastore, empty until it is there; `vms` are those that use it."""

    kind: ClassVar[str] = "image"
    auth_name: ClassVar[str] = "IMAGE"
    element: ClassVar[str] = "IMAGE"

    type: int = ImageType.OS
    persistent: bool = False
    regtime: int = 0
    modtime: int = 0
    source: str = ""
    path: str = ""
    format: str = ""
    size: int = 0
    state: int = ImageState.LOCKED
    datastore_id: int = 1
    vms: list[int] = field(default_factory=list)


@dataclass(slots=True)
class SecurityGroup(Owned):
    """`updating_vms`: the driver is about to give them the rules; `error_vms`: it could not."""

    kind: ClassVar[str] = "security group"
    auth_name: ClassVar[str] = "SECGROUP"
    element: ClassVar[str] = "SECURITY_GROUP"

    updating_vms: list[int] = field(default_factory=list)
    error_vms: list[int] = field(default_factory=list)


@dataclass(slots=True)
class AddressRange:
    """`leases`: index in the range (as text) → VM id; -1 is a held address."""

    ar_id: int
    type: str
    ip: str
    mac: str
    size: int
    leases: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Network(Owned):
    kind: ClassVar[str] = "virtual network"
    auth_name: ClassVar[str] = "NET"
    element: ClassVar[str] = "VNET"

    bridge: str = ""
    vn_mad: str = ""
    clusters: list[int] = field(default_factory=list)
    ranges: list[AddressRange] = field(default_factory=list)


@dataclass(slots=True)
class VmTemplate(Owned):
    kind: ClassVar[str] = "virtual machine template"
    auth_name: ClassVar[str] = "TEMPLATE"
    element: ClassVar[str] = "VMTEMPLATE"

    regtime: int = 0


@dataclass(slots=True)
class History:
    """One stay of a VM on a host. All times are Unix seconds, 0 while not reached: (s)tart and (e)nd of the record,
    of its (p)rolog, (r)un and (e)pilog. `action` is the one that ended it, and who asked."""

    seq: int
    hostname: str
    hid: int
    cid: int
    ds_id: int
    stime: int
    etime: int = 0
    pstime: int = 0
    petime: int = 0
    rstime: int = 0
    retime: int = 0
    estime: int = 0
    eetime: int = 0
    action: int = 0
    uid: int = -1
    gid: int = -1
    request_id: int = -1
    by_scheduler: bool = False
    vm_mad: str = ""


@dataclass(slots=True)
class Vm(Owned):
    """`template` is TEMPLATE, `user_template` USER_TEMPLATE. `pending` names what a worker does to it just now (an
    image id for disksaveas), or `stuck`: nothing, and nothing will. `samples` are its newest monitoring records."""

    kind: ClassVar[str] = "virtual machine"
    auth_name: ClassVar[str] = "VM"
    element: ClassVar[str] = "VM"

    state: int = VmState.INIT
    lcm_state: int = Lcm.LCM_INIT
    user_template: Template = field(default_factory=dict)
    history: list[History] = field(default_factory=list)
    stime: int = 0
    etime: int = 0
    deploy_id: str = ""
    resched: bool = False
    last_poll: int = 0
    samples: list[dict[str, str]] = field(default_factory=list)
    pending: dict[str, int] = field(default_factory=dict)

    @property
    def state_name(self) -> str:
        """As OpenNebula's texts name it: the LCM state of an active VM, else the state."""
        return Lcm(self.lcm_state).name if self.state == VmState.ACTIVE else VmState(self.state).name
