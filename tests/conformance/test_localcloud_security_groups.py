"""Security groups: what a VM shows of their rules, and what a change does to the VMs that are in them."""

import pyone
import pytest

from orchestrator.localcloud.hypervisors.simulated import SimulatedHypervisor
from orchestrator.localcloud.model import Lcm
from tests.conformance.localcloud_world import until, world

SSH = 'RULE=[PROTOCOL="TCP",RULE_TYPE="inbound",RANGE="22"]'
OUT = 'RULE=[PROTOCOL="ALL",RULE_TYPE="outbound"]'
SEALED = 100
"""The group that the network 1 gives."""


@pytest.fixture
def here(tmp_path):
    with world(tmp_path) as made:
        yield made


def sealed_vm(here, wait="RUNNING"):
    vm = int(here.one.template.instantiate(here.template(network=1), "sealed", False, "", False))
    here.wait(vm, wait)
    return vm


def rules(here, vm):
    """Group and direction of each rule that the VM shows."""
    found = here.one.vm.info(vm).TEMPLATE.get("SECURITY_GROUP_RULE", [])
    return sorted(
        (int(rule["SECURITY_GROUP_ID"]), rule["RULE_TYPE"].lower(), rule.get("RANGE", ""))
        for rule in (found if isinstance(found, list) else [found])
    )


def lists(here, group):
    """What the group says of its VMs: which have its rules, are about to get them, could not."""
    shown = here.one.secgroup.info(group)
    return {
        name: sorted(map(int, getattr(shown, f"{name}_VMS").ID))
        for name in ("UPDATED", "OUTDATED", "UPDATING", "ERROR")
    }


def settled(here, group):
    return until("the group is at rest", lambda: (found := lists(here, group)) and not found["UPDATING"] and found)


def outbound(here, vm):
    return [nic.outbound for nic in here.hypervisor.machines()[vm].nics]


def test_a_vm_shows_the_rules_of_the_groups_of_all_its_nics(here):
    vm = sealed_vm(here)
    assert rules(here, vm) == [(SEALED, "inbound", "22")]
    here.one.vm.attachnic(vm, 'NIC=[NETWORK_ID="0"]')
    here.wait(vm, "RUNNING")
    assert rules(here, vm) == [(0, "inbound", ""), (0, "outbound", ""), (SEALED, "inbound", "22")]
    assert outbound(here, vm) == [False, True]
    here.one.vm.detachnic(vm, 1)
    here.wait(vm, "RUNNING")
    until("the NIC is gone", lambda: outbound(here, vm) == [False])
    assert rules(here, vm) == [(SEALED, "inbound", "22")]


@pytest.mark.parametrize(("how", "count"), [(0, 1), (1, 2)])
def test_a_changed_group_changes_the_vms_in_it(here, how, count):
    vm, other = sealed_vm(here), here.vm()
    here.one.secgroup.update(SEALED, OUT if how == 0 else f"{SSH}\n{OUT}", how)
    assert (SEALED, "outbound", "") in rules(here, vm) and len(rules(here, vm)) == count
    assert settled(here, SEALED) == {"UPDATED": [vm], "OUTDATED": [], "UPDATING": [], "ERROR": []}
    assert outbound(here, vm) == [True]
    assert all(group == 0 for group, _, _ in rules(here, other))
    here.one.secgroup.update(SEALED, SSH, 0)
    settled(here, SEALED)
    assert (rules(here, vm), outbound(here, vm)) == ([(SEALED, "inbound", "22")], [False])


def test_a_vm_that_is_off_gets_the_rules_without_a_driver(here):
    vm = sealed_vm(here)
    here.act(vm, "poweroff-hard", "POWEROFF")
    here.one.secgroup.update(SEALED, f"{SSH}\n{OUT}", 0)
    assert lists(here, SEALED)["UPDATED"] == [vm]
    assert len(rules(here, vm)) == 2
    here.act(vm, "resume", "RUNNING")
    assert outbound(here, vm) == [True]


def test_a_driver_that_cannot_is_an_error_until_the_next_commit(here):
    vm, sound = sealed_vm(here), sealed_vm(here)
    here.hypervisor.fail_next("update_nic")
    here.one.secgroup.update(SEALED, f"{SSH}\n{OUT}", 0)
    assert len(rules(here, vm)) == len(rules(here, sound)) == 2
    (failed,) = settled(here, SEALED)["ERROR"]
    assert outbound(here, failed) == [False]
    here.hypervisor.fail_next("update_nic")
    here.one.secgroup.commit(SEALED, True)
    assert settled(here, SEALED)["ERROR"] == [failed]
    here.one.secgroup.commit(SEALED, True)
    assert settled(here, SEALED)["ERROR"] == []
    assert outbound(here, vm) == outbound(here, sound) == [True]


def test_a_machine_that_is_started_again_has_the_rules(here):
    vm = sealed_vm(here)
    here.hypervisor.fail_next("update_nic")
    here.one.secgroup.update(SEALED, f"{SSH}\n{OUT}", 0)
    assert settled(here, SEALED)["ERROR"] == [vm]
    here.act(vm, "poweroff-hard", "POWEROFF")
    here.act(vm, "resume", "RUNNING")
    assert lists(here, SEALED)["ERROR"] == []
    assert outbound(here, vm) == [True]


def test_a_vm_between_two_states_keeps_its_rules_until_the_next_commit(tmp_path):
    hypervisor = SimulatedHypervisor()
    with world(tmp_path, hypervisor=hypervisor) as here:
        hypervisor.hold("boot")
        vm = sealed_vm(here, wait=Lcm.BOOT.name)
        here.one.secgroup.update(SEALED, f"{SSH}\n{OUT}", 0)
        assert lists(here, SEALED)["ERROR"] == [vm]
        assert rules(here, vm) == [(SEALED, "inbound", "22")]
        hypervisor.let_go("boot")
        here.wait(vm, "RUNNING")
        here.one.secgroup.commit(SEALED, False)
        settled(here, SEALED)
        assert len(rules(here, vm)) == 2
        assert outbound(here, vm) == [True]


def test_what_a_done_vm_shows_stays(here):
    vm = sealed_vm(here)
    here.act(vm, "terminate-hard", "DONE")
    here.one.secgroup.update(SEALED, f"{SSH}\n{OUT}", 0)
    assert rules(here, vm) == [(SEALED, "inbound", "22")]
    assert lists(here, SEALED)["UPDATED"] == []


@pytest.mark.parametrize("rule", ['RULE=[PROTOCOL="TCP"]', 'RULE=[PROTOCOL="SCTP",RULE_TYPE="inbound"]'])
def test_a_wrong_rule_changes_nothing(here, rule):
    vm = sealed_vm(here)
    with pytest.raises(pyone.OneActionException, match="Wrong or missing"):
        here.one.secgroup.update(SEALED, rule, 0)
    assert rules(here, vm) == [(SEALED, "inbound", "22")]


def test_only_who_may_manage_a_group_changes_it(here):
    _, ordinary = here.user("somebody")
    for call in (
        lambda: ordinary.secgroup.update(SEALED, OUT, 1),
        lambda: ordinary.secgroup.commit(SEALED, False),
    ):
        with pytest.raises(pyone.OneAuthorizationException, match=r"MANAGE SECGROUP \[100\]"):
            call()
    with pytest.raises(pyone.OneNoExistsException):
        here.one.secgroup.commit(999, False)


def test_a_restart_changes_neither_rules_nor_lists(tmp_path):
    hypervisor = SimulatedHypervisor()
    with world(tmp_path, hypervisor=hypervisor) as here:
        vm = sealed_vm(here)
        hypervisor.fail_next("update_nic")
        here.one.secgroup.update(SEALED, f"{SSH}\n{OUT}", 0)
        before = settled(here, SEALED), rules(here, vm)
    with world(tmp_path, hypervisor=hypervisor) as here:
        assert (lists(here, SEALED), rules(here, vm)) == before
