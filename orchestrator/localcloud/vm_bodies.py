"""VMs to XML bodies: the whole one of `one.vm.info`, the short one of `one.vmpool.info`, history, monitoring."""

from __future__ import annotations

from orchestrator.localcloud.markup import (
    cdata,
    element,
    lock_xml,
    owner_xml,
    permissions_xml,
    plain,
    template_xml,
)
from orchestrator.localcloud.model import History, Vm
from orchestrator.localcloud.template import Vector, text_of, vectors


def vm_body(vm: Vm) -> str:
    """What `one.vm.info`, `one.vmpool.infoextended` and `infoset(…, True)` show."""
    history = [history_xml(vm, record) for record in vm.history]
    return element(
        "VM",
        owner_xml(vm),
        lock_xml(vm),
        permissions_xml(vm.permissions),
        element("LAST_POLL", vm.last_poll),
        element("STATE", vm.state),
        element("LCM_STATE", vm.lcm_state),
        element("PREV_STATE", vm.state),
        element("PREV_LCM_STATE", vm.lcm_state),
        element("RESCHED", int(vm.resched)),
        element("STIME", vm.stime),
        element("ETIME", vm.etime),
        plain("DEPLOY_ID", vm.deploy_id),
        sample_xml(vm.samples[-1]) if vm.samples else "<MONITORING></MONITORING>",
        "<SCHED_ACTIONS></SCHED_ACTIONS>",
        template_xml("TEMPLATE", vm.template),
        template_xml("USER_TEMPLATE", vm.user_template),
        element("HISTORY_RECORDS", *history) if history else "<HISTORY_RECORDS/>",
        "<BACKUPS><BACKUP_CONFIG/><BACKUP_IDS></BACKUP_IDS></BACKUPS>",
    )


_DISK_KEYS = (
    "DISK_ID",
    "DATASTORE",
    "DATASTORE_ID",
    "IMAGE",
    "IMAGE_ID",
    "SIZE",
    "TYPE",
    "CLONE",
    "CLONE_TARGET",
    "LN_TARGET",
    "DISK_SNAPSHOT_TOTAL_SIZE",
)
_NIC_KEYS = ("IP", "MAC", "NETWORK", "NETWORK_ID", "NIC_ID", "SECURITY_GROUPS")
_GRAPHICS_KEYS = ("LISTEN", "PASSWD", "PORT", "TYPE")


def vm_short_body(vm: Vm) -> str:
    """What `one.vmpool.info` shows: no PERMISSIONS, CONTEXT, OS or MONITORING, and of USER_TEMPLATE next to nothing."""
    template = [plain(key, text_of(vm.template, key)) for key in ("CPU", "MEMORY", "VCPU")]
    for name, keys in (("DISK", _DISK_KEYS), ("NIC", _NIC_KEYS), ("GRAPHICS", _GRAPHICS_KEYS)):
        template += [_some_of(name, vector, keys) for vector in vectors(vm.template, name)]
    record = vm.history[-1] if vm.history else None
    labels = {key: values for key, values in vm.user_template.items() if key == "LABELS"}
    return element(
        "VM",
        owner_xml(vm),
        lock_xml(vm),
        element("LAST_POLL", vm.last_poll),
        element("STATE", vm.state),
        element("LCM_STATE", vm.lcm_state),
        element("RESCHED", int(vm.resched)),
        element("STIME", vm.stime),
        element("ETIME", vm.etime),
        plain("DEPLOY_ID", vm.deploy_id),
        element("TEMPLATE", *template),
        "<MONITORING/>",
        template_xml("USER_TEMPLATE", labels) if vm.user_template else "<USER_TEMPLATE/>",
        element("HISTORY_RECORDS", _short_history(vm, record)) if record else "<HISTORY_RECORDS/>",
    )


def _some_of(name: str, vector: Vector, keys: tuple[str, ...]) -> str:
    return element(name, *(cdata(key, vector[key]) for key in keys if key in vector))


def _short_history(vm: Vm, record: History) -> str:
    return element(
        "HISTORY",
        element("OID", vm.oid),
        element("SEQ", record.seq),
        cdata("HOSTNAME", record.hostname),
        element("HID", record.hid),
        element("CID", record.cid),
        element("DS_ID", record.ds_id),
        cdata("VM_MAD", record.vm_mad),
        cdata("TM_MAD", "qcow2"),
        cdata("ACTION", record.action),
    )


def history_xml(vm: Vm, record: History, inside: str = "") -> str:
    """One record; `inside` is what accounting puts at its end, the VM."""
    return element(
        "HISTORY",
        element("OID", vm.oid),
        element("SEQ", record.seq),
        plain("HOSTNAME", record.hostname),
        element("HID", record.hid),
        element("CID", record.cid),
        element("STIME", record.stime),
        element("ETIME", record.etime),
        cdata("VM_MAD", record.vm_mad),
        cdata("TM_MAD", "qcow2"),
        element("DS_ID", record.ds_id),
        element("PLAN_ID", -1 if record.by_scheduler else -2),
        element("ACTION_ID", 0 if record.by_scheduler else -1),
        element("PSTIME", record.pstime),
        element("PETIME", record.petime),
        element("RSTIME", record.rstime),
        element("RETIME", record.retime),
        element("ESTIME", record.estime),
        element("EETIME", record.eetime),
        element("ACTION", record.action),
        element("UID", record.uid),
        element("GID", record.gid),
        element("REQUEST_ID", record.request_id),
        inside,
    )


def sample_xml(sample: dict[str, str]) -> str:
    """One monitoring record of a VM."""
    return element("MONITORING", *(cdata(key, sample[key]) for key in sorted(sample)))
