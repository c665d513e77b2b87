"""VMs: the calls that make, show and describe them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from xml.sax.saxutils import escape

from orchestrator.localcloud import edits, references, vm_make
from orchestrator.localcloud.calls import Caller, Calls
from orchestrator.localcloud.cloud import Cloud
from orchestrator.localcloud.contexts import fill_context
from orchestrator.localcloud.markup import element
from orchestrator.localcloud.model import Lcm, Vm, VmState
from orchestrator.localcloud.networks import parsed
from orchestrator.localcloud.pools import newest_first, page, visible
from orchestrator.localcloud.refusals import Code, Refused, internal, wrong_state
from orchestrator.localcloud.replies import Escaped
from orchestrator.localcloud.template import TemplateError, Vector, parse, vector_of
from orchestrator.localcloud.templates import check_quota, check_restricted
from orchestrator.localcloud.vm_bodies import history_xml, sample_xml, vm_body, vm_short_body

calls = Calls()

ANY_BUT_DONE, ANY_STATE = -1, -2


@calls.add("one.vm.allocate", "s|b")
def allocate(cloud: Cloud, caller: Caller, text: str, hold: bool = False) -> int:
    template = parsed(text)
    caller.require_create("VM")
    check_restricted(caller, template)
    caller.require(*references.needed_rights(cloud.store, caller, template))
    check_quota(cloud, caller, template)
    return vm_make.create(cloud, caller, template, hold=hold).oid


@calls.add("one.vm.info", "i|b")
def info(cloud: Cloud, caller: Caller, vm_id: int, _decrypt: bool = False) -> str:
    vm = cloud.store.vms.get(vm_id)
    caller.require(("USE", vm))
    return cloud.store.vms.made(vm, vm_body)


def _selected(cloud: Cloud, caller: Caller, flag: int, start: int, end: int, state: int, key: str = "") -> list[Vm]:
    if flag < -4:
        raise Refused(Code.API, "Incorrect filter_flag")
    known = {int(item) for item in VmState} | {7, ANY_BUT_DONE, ANY_STATE}
    if state not in known:
        raise Refused(Code.API, f"Incorrect state filter {state}")
    if key:
        raise internal("JSON query search is not supported by the SQL backend")

    def in_state(vm: Vm) -> bool:
        if state == ANY_BUT_DONE:
            return vm.state != VmState.DONE
        return state in (ANY_STATE, vm.state)

    return page(visible(caller, (vm for vm in cloud.store.vms if in_state(vm)), flag), start, end)


@calls.add("one.vmpool.info", "iiii|s")
def pool_info(cloud: Cloud, caller: Caller, flag: int, start: int, end: int, state: int, key: str = "") -> str:
    """State -1: all but DONE; -2: all."""
    shown = _selected(cloud, caller, flag, start, end, state, key)
    return _pool(cloud, shown, _escaped_short_body)


@calls.add("one.vmpool.infoextended", "iiii|s")
def pool_info_extended(cloud: Cloud, caller: Caller, flag: int, start: int, end: int, state: int, key: str = "") -> str:
    shown = _selected(cloud, caller, flag, start, end, state, key)
    return _pool(cloud, shown, _escaped_body)


def _pool(cloud: Cloud, shown: list[Vm], body: Callable[[Vm], str]) -> Escaped:
    parts = (cloud.store.vms.made(vm, body) for vm in shown)
    return Escaped(f"{escape('<VM_POOL>')}{''.join(parts)}{escape('</VM_POOL>')}")


def _escaped_body(vm: Vm) -> str:
    return escape(vm_body(vm))


def _escaped_short_body(vm: Vm) -> str:
    return escape(vm_short_body(vm))


@calls.add("one.vmpool.infoset", "s|b")
def pool_info_set(cloud: Cloud, caller: Caller, text: str, extended: bool = False) -> str:
    """Ids separated by commas; unknown ones are left out."""
    wanted = set(references.group_ids(text))
    shown = newest_first(vm for vm in cloud.store.vms if vm.oid in wanted and caller.may("USE", vm))
    return element("VM_POOL", *(cloud.store.vms.made(vm, vm_body if extended else vm_short_body) for vm in shown))


@calls.add("one.vm.monitoring", "i")
def monitoring(cloud: Cloud, caller: Caller, vm_id: int) -> str:
    vm = cloud.store.vms.get(vm_id)
    caller.require(("USE", vm))
    return element("MONITORING_DATA", *(sample_xml(sample) for sample in vm.samples))


@calls.add("one.vmpool.monitoring", "i|i")
def pool_monitoring(cloud: Cloud, caller: Caller, flag: int, seconds: int = -1) -> str:
    """`seconds`: -1 all there is, 0 the newest of each, else what is not older. DONE VMs too."""
    shown = sorted(visible(caller, cloud.store.vms, flag), key=lambda vm: vm.oid)
    newest = max((int(vm.samples[-1]["TIMESTAMP"]) for vm in shown if vm.samples), default=0)
    parts = []
    for vm in shown:
        samples = vm.samples[-1:] if seconds == 0 else vm.samples
        parts += [
            sample_xml(sample) for sample in samples if seconds <= 0 or newest - int(sample["TIMESTAMP"]) <= seconds
        ]
    return element("MONITORING_DATA", *parts)


@calls.add("one.vmpool.accounting", "iii")
def pool_accounting(cloud: Cloud, caller: Caller, flag: int, start: int, end: int) -> str:
    """Every history record that touches the time from `start` to `end` (Unix; -1 is open), with its VM inside."""
    parts = []
    for vm in sorted(visible(caller, cloud.store.vms, flag), key=lambda vm: vm.oid):
        for record in vm.history:
            if (end == -1 or record.stime <= end) and (start == -1 or record.etime == 0 or record.etime >= start):
                parts.append(history_xml(vm, record, vm_body(dataclasses.replace(vm, history=[]))))
    return element("HISTORY_RECORDS", *parts)


@calls.add("one.vm.update", "isi")
def update(cloud: Cloud, caller: Caller, vm_id: int, text: str, how: int) -> int:
    """USER_TEMPLATE: 0 replaces all of it, 1 merges."""
    vm = cloud.store.vms.get(vm_id)
    caller.require(("MANAGE", vm))
    vm.user_template = edits.updated(vm.user_template, text, how)
    cloud.store.vms.save(vm)
    return vm_id


_CONF_KEYS = ("BACKUP_CONFIG", "CONTEXT", "CPU_MODEL", "FEATURES", "GRAPHICS", "INPUT", "OS", "RAW", "VIDEO")
_CONF_STATES = (VmState.PENDING, VmState.HOLD, VmState.POWEROFF, VmState.UNDEPLOYED)


@calls.add("one.vm.updateconf", "is|i")
def updateconf(cloud: Cloud, caller: Caller, vm_id: int, text: str, how: int = 0) -> int:
    """Replace (0) or append (1) CONTEXT and other machine attributes; a running guest sees it with its next boot."""
    vm = cloud.store.vms.get(vm_id)
    caller.require(("MANAGE", vm))
    running = vm.state == VmState.ACTIVE and vm.lcm_state == Lcm.RUNNING
    if not running and vm.state not in _CONF_STATES:
        raise wrong_state(f"Update configuration not allowed in state {vm.state_name}.")
    try:
        given = parse(text)
    except TemplateError as error:
        raise internal(str(error)) from None
    check_restricted(caller, given)
    for key in _CONF_KEYS:
        if key not in given and how == 1:
            continue
        if key == "CONTEXT":
            _update_context(cloud, caller, vm, vector_of(given, key), how)
        elif key == "OS":
            # A machine keeps its identity, and the files that its kernel was resolved to.
            kept = vector_of(vm.template, "OS")
            new = vector_of(given, "OS")
            vm.template["OS"] = [{**(kept if how == 1 else {}), **new, "UUID": kept.get("UUID", "")}]
        elif key in given:
            vm.template[key] = given[key]
        else:
            vm.template.pop(key, None)
    cloud.store.vms.save(vm)
    return vm_id


def _update_context(cloud: Cloud, caller: Caller, vm: Vm, given: Vector, how: int) -> None:
    before = vector_of(vm.template, "CONTEXT")
    kept: Vector = before if how == 1 else {key: before[key] for key in before if key in ("TARGET", "DISK_ID")}
    if not kept and not given:
        return
    vm.template["CONTEXT"] = [{**kept, **given}]
    fill_context(cloud.store, cloud.store.users.find(vm.uid) or caller.user, vm)
