"""Security groups, and what a change of one does to the VMs that are in it.

As the original does it (onesecgroup(1), "update" and "commit"): the new rules go into each VM's SECURITY_GROUP_RULE,
and to the driver of each that runs; UPDATING_VMS, UPDATED_VMS and ERROR_VMS say how far that is. A VM on its way from
one state to another is an error at once, and keeps its rules until the next commit.
"""

from __future__ import annotations

from orchestrator.localcloud import bodies, edits, names
from orchestrator.localcloud.calls import Caller, Calls
from orchestrator.localcloud.cloud import Cloud, log
from orchestrator.localcloud.hypervisors import HypervisorError, NicSpec
from orchestrator.localcloud.machines import nic_spec
from orchestrator.localcloud.markup import element
from orchestrator.localcloud.model import Lcm, SecurityGroup, Vm, VmState
from orchestrator.localcloud.networks import parsed
from orchestrator.localcloud.pools import page, visible
from orchestrator.localcloud.reach import require_reachable
from orchestrator.localcloud.references import group_ids
from orchestrator.localcloud.refusals import internal, wrong_state
from orchestrator.localcloud.template import Template, text_of, vectors
from orchestrator.localcloud.vm_make import refresh_security_rules

calls = Calls()

_BEFORE_BOOT = (Lcm.LCM_INIT, Lcm.PROLOG, Lcm.PROLOG_RESUME, Lcm.PROLOG_UNDEPLOY)
_PROTOCOLS = ("ALL", "TCP", "UDP", "ICMP", "ICMPV6", "IPSEC")


@calls.add("one.secgroup.allocate", "s")
def allocate_group(cloud: Cloud, caller: Caller, text: str) -> int:
    caller.require_create("SECGROUP")
    template = parsed(text)
    name = text_of(template, "NAME")
    names.check(name)
    names.check_free(name, cloud.store.security_groups, owner=caller.user.oid, word="SECGROUP")
    if wrong := _wrong_rule(template):
        raise internal(wrong)
    group = SecurityGroup(
        cloud.store.security_groups.next_id(),
        name,
        {key: values for key, values in template.items() if key != "NAME"},
        uid=caller.user.oid,
        gid=caller.user.gid,
        uname=caller.user.name,
        gname=caller.gname,
    )
    cloud.store.security_groups.save(group)
    return group.oid


@calls.add("one.secgroup.info", "i|b")
def info_group(cloud: Cloud, caller: Caller, group_id: int, _decrypt: bool = False) -> str:
    group = cloud.store.security_groups.get(group_id)
    caller.require(("USE", group))
    return bodies.security_group_body(cloud.store, group)


@calls.add("one.secgrouppool.info", "iii")
def group_pool_info(cloud: Cloud, caller: Caller, flag: int, start: int, end: int) -> str:
    shown = page(visible(caller, cloud.store.security_groups, flag), start, end)
    return element("SECURITY_GROUP_POOL", *(bodies.security_group_body(cloud.store, group) for group in shown))


@calls.add("one.secgroup.update", "isi")
def update_group(cloud: Cloud, caller: Caller, group_id: int, text: str, how: int) -> int:
    """Every VM in the group gets the new rules, those that run from the driver a moment later."""
    group = cloud.store.security_groups.get(group_id)
    caller.require(("MANAGE", group))
    template = edits.updated(group.template, text, how)
    if wrong := _wrong_rule(template):
        raise wrong_state(wrong)
    group.template = template
    cloud.store.security_groups.save(group)
    _spread(cloud, group, _members(cloud, group_id))
    return group_id


@calls.add("one.secgroup.commit", "ib")
def commit_group(cloud: Cloud, caller: Caller, group_id: int, recovery: bool) -> int:
    """Give the VMs in the group its rules once more; with `recovery` only those that have not got them."""
    group = cloud.store.security_groups.get(group_id)
    caller.require(("MANAGE", group))
    behind = {*group.error_vms, *group.updating_vms}
    _spread(cloud, group, [vm for vm in _members(cloud, group_id) if not recovery or vm.oid in behind])
    return group_id


def booted(cloud: Cloud, vm: Vm) -> None:
    """Under the lock: the machine was started just now, and with the rules that its groups have."""
    for group in cloud.store.security_groups:
        if vm.oid in group.error_vms:
            group.error_vms.remove(vm.oid)
            cloud.store.security_groups.save(group)


def _members(cloud: Cloud, group_id: int) -> list[Vm]:
    return [vm for vm in cloud.store.vms if vm.state != VmState.DONE and group_id in bodies.security_group_ids(vm)]


def _spread(cloud: Cloud, group: SecurityGroup, vms: list[Vm]) -> None:
    for vm in vms:
        for marked in (group.updating_vms, group.error_vms):
            if vm.oid in marked:
                marked.remove(vm.oid)
        runs = vm.state == VmState.ACTIVE and vm.lcm_state in (Lcm.RUNNING, Lcm.UNKNOWN)
        if vm.state == VmState.ACTIVE and not runs and vm.lcm_state not in _BEFORE_BOOT:
            group.error_vms.append(vm.oid)
            continue
        refresh_security_rules(cloud, vm)
        cloud.store.vms.save(vm)
        if runs:
            group.updating_vms.append(vm.oid)
            _tell_driver(cloud, group.oid, vm.oid)
    cloud.store.security_groups.save(group)


def _tell_driver(cloud: Cloud, group_id: int, vm_id: int) -> None:
    def work() -> None:
        error = ""
        with cloud.life.machines.of(vm_id):
            try:
                with cloud.lock:
                    nics = _nics_of(cloud, group_id, vm_id)  # as they are now: another change may have been quicker
                for nic in nics:
                    cloud.hypervisor.update_nic(vm_id, nic)
            except (HypervisorError, OSError) as problem:
                error = str(problem)
        with cloud.lock:
            if (group := cloud.store.security_groups.find(group_id)) is None:
                return
            for marked in (group.updating_vms, group.error_vms):
                if vm_id in marked:
                    marked.remove(vm_id)
            if error:
                log.warning("vm %s did not get the rules of security group %s: %s", vm_id, group_id, error)
                group.error_vms.append(vm_id)
            cloud.store.security_groups.save(group)

    cloud.in_background(work)


def _nics_of(cloud: Cloud, group_id: int, vm_id: int) -> list[NicSpec]:
    """Raises HypervisorError when the VM's host does not answer."""
    vm = cloud.store.vms.find(vm_id)
    if vm is None:
        return []
    require_reachable(cloud, vm)
    nics = vectors(vm.template, "NIC")
    return [nic_spec(cloud, nic) for nic in nics if group_id in group_ids(nic["SECURITY_GROUPS"])]


def _wrong_rule(template: Template) -> str:
    """What is wrong with its rules, if anything."""
    for rule in vectors(template, "RULE"):
        if rule.get("RULE_TYPE", "").upper() not in ("INBOUND", "OUTBOUND"):
            return "Wrong or missing RULE_TYPE, it must be inbound or outbound"
        if rule.get("PROTOCOL", "").upper() not in _PROTOCOLS:
            return "Wrong or missing PROTOCOL"
    return ""


@calls.add("one.secgroup.delete", "i")
def delete_group(cloud: Cloud, caller: Caller, group_id: int) -> int:
    group = cloud.store.security_groups.get(group_id)
    caller.require(("MANAGE", group))
    if group_id == 0:
        raise wrong_state("Cannot delete security group. The default security group (ID 0) cannot be deleted.")
    if any(group_id in bodies.security_group_ids(vm) for vm in cloud.store.vms if vm.etime == 0):
        raise wrong_state("Cannot delete security group. The security group has VMs using it")
    cloud.store.security_groups.delete(group_id)
    return group_id
