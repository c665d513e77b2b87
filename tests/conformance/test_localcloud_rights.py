"""Who may do what: permissions, restricted attributes, quotas, locks, tokens; and what pools show to whom."""

import pyone
import pytest

from tests.conformance.localcloud_world import world


@pytest.fixture
def here(tmp_path):
    with world(tmp_path) as found:
        yield found


@pytest.fixture
def alice(here):
    return here.user("alice")


@pytest.fixture
def bob(here):
    return here.user("bob")


def usable(here, *, network=0, extra=""):
    """A template that others may use."""
    template = here.template(extra, network)
    here.one.template.chmod(template, -1, -1, -1, -1, -1, -1, 1, -1, -1)
    return template


def hers(here, alice, hold=True):
    vm = alice[1].template.instantiate(usable(here), "hers", hold, "", False)
    here.wait(vm, "HOLD" if hold else "RUNNING")
    return vm


def refusal(call, *arguments):
    with pytest.raises(pyone.OneAuthorizationException) as refused:
        call(*arguments)
    return str(refused.value)


def test_a_template_of_others_needs_a_right_on_it_and_on_its_security_groups(here, alice):
    group = here.one.secgroup.allocate('NAME=g RULE=[PROTOCOL=TCP,RULE_TYPE=inbound,RANGE="22"]')
    template = here.one.template.allocate(
        f'NAME=t CPU=0.1 MEMORY=64 DISK=[IMAGE_ID={here.image()}] NIC=[NETWORK_ID=0,SECURITY_GROUPS="{group}"]'
    )
    uid, one = alice
    denied = f"[one.template.instantiate] User [{uid}] : Not authorized to perform USE TEMPLATE [{template}]; "
    denied += f"Not authorized to perform USE SECGROUP [{group}]."
    assert refusal(one.template.instantiate, template, "x", True, "", False) == denied
    here.one.template.chmod(template, -1, -1, -1, -1, -1, -1, 1, -1, -1)
    here.one.secgroup.chmod(group, -1, -1, -1, -1, -1, -1, 1, -1, -1)
    vm = one.template.instantiate(template, "x", True, "", False)
    info = one.vm.info(vm)
    assert (uid, "alice", "users") == (info.UID, info.UNAME, info.GNAME)
    assert info.PERMISSIONS.OWNER_U == 1 and info.PERMISSIONS.GROUP_U == info.PERMISSIONS.OTHER_U == 0


def test_an_image_of_others_needs_a_right_in_vm_allocate(here, alice):
    image = here.image()
    text = f"CPU=0.1 MEMORY=64 DISK=[IMAGE_ID={image}]"
    assert f"Not authorized to perform USE IMAGE [{image}]." in refusal(alice[1].vm.allocate, text, True)
    here.one.image.chmod(image, -1, -1, -1, -1, -1, -1, 1, -1, -1)
    assert alice[1].vm.allocate(text, True) >= 0


def test_names_mean_the_callers_own(here, alice):
    _, one = alice
    template = here.one.template.allocate('NAME=t CPU=0.1 MEMORY=64 NIC=[NETWORK="open"]')
    here.one.template.chmod(template, -1, -1, -1, -1, -1, -1, 1, -1, -1)
    with pytest.raises(pyone.OneException) as refused:
        one.template.instantiate(template, "x", True, "", False)
    assert str(refused.value) == (
        "[one.template.instantiate] Error allocating a new virtual machine template. User 2 does not own a network "
        "with name: open . Set NETWORK_UNAME or NETWORK_UID of owner in NIC."
    )
    vm = one.template.instantiate(template, "x", True, 'NIC=[NETWORK="open",NETWORK_UNAME="oneadmin"]', False)
    assert one.vm.info(vm).TEMPLATE["NIC"]["NETWORK_ID"] == "0"


def test_a_vm_is_its_owners(here, alice, bob):
    vm = hers(here, alice)
    uid, one = bob
    prefix = f"User [{uid}] : Not authorized to perform"
    assert refusal(one.vm.info, vm) == f"[one.vm.info] {prefix} USE VM [{vm}]."
    assert refusal(one.vm.monitoring, vm) == f"[one.vm.monitoring] {prefix} USE VM [{vm}]."
    for method, arguments in (
        (one.vm.action, ("terminate-hard", vm)),
        (one.vm.rename, (vm, "stolen")),
        (one.vm.update, (vm, "A=1", 1)),
        (one.vm.chmod, (vm, 1, 1, 0, 1, 0, 0, 1, 0, 0)),
        (one.vm.lock, (vm, 1, False)),
        (one.vm.disksaveas, (vm, 0, "x", "", -1)),
        (one.vm.attachnic, (vm, "NIC=[NETWORK_ID=0]")),
        (one.vm.resize, (vm, "CPU=1", False)),
    ):
        assert refusal(method, *arguments).endswith(f"{prefix} MANAGE VM [{vm}].")
    assert one.vmpool.info(-2, -1, -1, -1).VM == []
    assert one.vmpool.info(alice[0], -1, -1, -1).VM == []
    alice[1].vm.chmod(vm, -1, -1, -1, -1, -1, -1, 1, -1, -1)
    assert one.vm.info(vm).NAME == "hers"
    refusal(one.vm.rename, vm, "stolen")
    alice[1].vm.chmod(vm, -1, -1, -1, -1, -1, -1, 1, 1, -1)
    assert one.vm.rename(vm, "given") == vm


def test_what_only_administrators_may(here, alice):
    vm = hers(here, alice)
    uid, one = alice
    prefix = f"User [{uid}] : Not authorized to perform"
    for method, arguments, right in (
        (one.vm.deploy, (vm, 0, False, -1, ""), f"ADMIN VM [{vm}]"),
        (one.vm.recover, (vm, 3), f"ADMIN VM [{vm}]"),
        (one.vm.migrate, (vm, 0, False, False, -1, 0), f"ADMIN VM [{vm}]"),
        (one.vm.chown, (vm, 0, -1), "MANAGE USER [0]"),
        (one.host.info, (0,), "USE HOST [0]"),
        (one.host.allocate, ("h", "d", "d", -1), "CREATE HOST; Not authorized to perform ADMIN CLUSTER [0]"),
        (one.vn.allocate, ("NAME=n VN_MAD=d", -1), "CREATE NET; Not authorized to perform ADMIN CLUSTER [0]"),
        (one.user.info, (0,), "USE USER [0]"),
        (one.user.allocate, ("x", "y", "", []), "CREATE USER"),
        (one.user.quota, (uid, "VM=[VMS=9]"), f"ADMIN USER [{uid}]"),
        (one.user.delete, (uid,), f"ADMIN USER [{uid}]"),
        (one.user.passwd, (0, "mine"), "MANAGE USER [0]"),
    ):
        assert refusal(method, *arguments).endswith(f"{prefix} {right}."), method
    assert "oneadmin group" in refusal(one.system.config)


def test_pools_of_an_ordinary_user(here, alice):
    _, one = alice
    assert one.hostpool.info().HOST == []
    assert one.clusterpool.info().CLUSTER == []
    assert [item.ID for item in one.datastorepool.info().DATASTORE] == [2, 1, 0]
    assert [item.NAME for item in one.userpool.info().USER] == ["alice"]
    assert [item.NAME for item in one.vnpool.info(-2, -1, -1).VNET] == ["sealed", "open"]


@pytest.mark.parametrize(
    ("call", "text", "word"),
    [
        ("template.allocate", 'NAME=t CPU=1 NIC=[NETWORK_ID=0,MAC="02:00:00:00:00:09"] RAW=[DATA="x"]', "MAC"),
        ("vm.allocate", 'CPU=1 MEMORY=64 CONTEXT=[FILES="/etc/passwd"]', "FILES"),
        ("vm.allocate", 'CPU=1 MEMORY=64 RAW=[TYPE="kvm",DATA="<x/>"]', "DATA"),
        ("vm.allocate", 'CPU=1 MEMORY=64 EMULATOR="/bin/sh"', "EMULATOR"),
    ],
)
def test_restricted_attributes(here, alice, call, text, word):
    noun, verb = call.split(".")
    arguments = (text, True) if noun == "vm" else (text,)
    assert refusal(getattr(getattr(alice[1], noun), verb), *arguments) == (
        f"[one.{call}] User [2] : VM Template includes a restricted attribute {word}."
    )
    assert getattr(getattr(here.one, noun), verb)(*arguments) >= 0


@pytest.mark.parametrize(
    ("extra", "word"),
    [('NIC=[NETWORK_ID=0,MAC="02:00:00:00:00:09"]', "NIC"), ('RAW=[DATA="x"]', "RAW"), ("DEPLOY_ID=1", "DEPLOY_ID")],
)
def test_restricted_attributes_of_instantiate(here, alice, extra, word):
    assert refusal(alice[1].template.instantiate, usable(here), "x", True, extra, False) == (
        f"[one.template.instantiate] User [2] : User Template includes a restricted attribute {word}."
    )


@pytest.mark.parametrize(
    "extra", ["MEMORY=400", "NIC=[NETWORK_ID=1]", 'CONTEXT=[A="b"]', 'OS=[KERNEL="/x"]', 'SCHED_REQUIREMENTS="ID=1"']
)
def test_what_ordinary_users_may_override(here, alice, extra):
    assert alice[1].template.instantiate(usable(here), "x", True, extra, False) >= 0


@pytest.mark.parametrize(
    ("quota", "words"),
    [
        ('VM=[VMS="1"]', "limit of 1 reached for VMS quota in VM."),
        ('VM=[CPU="0.15"]', "limit of 0.15 reached for CPU quota in VM."),
        ('VM=[MEMORY="100"]', "limit of 100 reached for MEMORY quota in VM."),
        ('NETWORK=[ID="0",LEASES="1"]', "limit of 1 reached for LEASES quota in NETWORK with ID: 0."),
    ],
)
def test_quotas(here, alice, quota, words):
    uid, one = alice
    template = usable(here)
    here.one.user.quota(uid, quota)
    first = one.template.instantiate(template, "first", True, "", False)
    said = refusal(one.template.instantiate, template, "over", True, "", False)
    assert said == f"[one.template.instantiate] User [{uid}] : user [{uid}] {words}"
    assert here.one.vn.info(0).USED_LEASES == 1
    one.vm.action("terminate", first)
    second = one.template.instantiate(template, "again", True, "", False)
    here.one.user.quota(uid, 'VM=[VMS="-2",CPU="-2",MEMORY="-2"]\nNETWORK=[ID="0",LEASES="-2"]')
    assert one.template.instantiate(template, "more", True, "", False) > second
    info = here.one.user.info(uid)
    assert int(info.VM_QUOTA.VM[0].VMS_USED) == 2
    assert uid == here.one.userpool.info().QUOTAS[0].ID


@pytest.mark.parametrize("text", ["VM=[VMS=many]", "VM=["])
def test_quotas_that_are_no_quotas(here, alice, text):
    with pytest.raises(pyone.OneInternalException):
        here.one.user.quota(alice[0], text)


def test_a_lock_stops_its_owner_too(here, alice):
    vm = hers(here, alice)
    _, one = alice
    one.vm.lock(vm, 2, False)
    assert one.vm.info(vm).LOCK.LOCKED == 2
    assert refusal(one.vm.action, "terminate", vm).endswith(f"Not authorized to perform MANAGE VM [{vm}].")
    assert one.vm.unlock(vm) == vm
    one.vm.action("terminate", vm)
    with pytest.raises(pyone.OneApiException):
        here.one.vm.lock(vm, 7, False)


def test_login_tokens_and_passwords(here, alice):
    _, one = alice
    token = one.user.login("alice", "", 3600, -1)
    by_token = pyone.OneServer(here.cloud.url, session=f"alice:{token}")
    assert by_token.user.info(-1).NAME == "alice"
    assert token == one.user.info(-1).LOGIN_TOKEN[0].TOKEN
    one.user.login("alice", token, 0, -1)
    with pytest.raises(pyone.OneAuthenticationException):
        by_token.user.info(-1)
    refusal(one.user.login, "oneadmin", "", 3600, -1)
    one.user.passwd(-1, "new")
    with pytest.raises(pyone.OneAuthenticationException):
        one.user.info(-1)
    assert pyone.OneServer(here.cloud.url, session="alice:new").user.info(-1).PASSWORD not in ("new", "")


def test_a_deleted_user_leaves_things_behind(here, alice):
    vm = hers(here, alice)
    here.one.user.delete(alice[0])
    with pytest.raises(pyone.OneAuthenticationException):
        alice[1].vm.info(vm)
    assert here.one.vm.info(vm).UNAME == "alice"
    with pytest.raises(pyone.OneActionException):
        here.one.user.delete(0)


def test_giving_a_vm_away(here, alice):
    vm = here.vm(hold=True)
    here.one.vm.chown(vm, alice[0], 1)
    info = alice[1].vm.info(vm)
    assert (info.UNAME, info.GNAME) == ("alice", "users")


# ── pools ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def ids(pool):
    return [vm.ID for vm in pool.VM]


def test_vm_pools(here, alice):
    held = [here.vm("TAG=x", hold=True) for _ in range(5)]
    running = here.vm()
    gone = held.pop(0)
    here.one.vm.action("terminate", gone)
    mine = hers(here, alice)
    pool = here.one.vmpool
    newest = [mine, running, *reversed(held)]
    assert ids(pool.info(-2, -1, -1, -1)) == newest
    assert ids(pool.info(-2, -1, -1, -2)) == [*newest, gone]
    assert ids(pool.info(-2, -1, -1, 6)) == [gone]
    assert ids(pool.info(-2, -1, -1, 2)) == [mine, *reversed(held)]
    assert ids(pool.info(-2, -1, -1, 3)) == [running]
    assert ids(pool.info(-3, -1, -1, -1)) == [running, *reversed(held)]
    assert ids(pool.info(alice[0], -1, -1, -1)) == [mine]
    assert ids(pool.info(-2, held[0], held[1], -1)) == [held[1], held[0]]
    assert ids(pool.info(-2, running, -1, -1)) == [mine, running]
    assert ids(pool.info(-2, 0, -3, -1)) == newest[:3]
    assert ids(pool.info(-2, 3, -3, -1)) == newest[3:6]
    assert ids(pool.infoset(f"{running},{held[0]},99999", False)) == [running, held[0]]
    assert ids(alice[1].vmpool.info(-2, -1, -1, -2)) == [mine]
    assert ids(alice[1].vmpool.info(-4, -1, -1, -2)) == [mine]


def test_bodies_in_pools(here):
    vm = here.vm("TAG=x\nLABELS=l")
    [short] = here.one.vmpool.info(-2, -1, -1, -1).VM
    assert (short.TEMPLATE["CPU"], short.TEMPLATE["NIC"]["NETWORK_ID"]) == ("0.1", "0")
    assert "OS" not in short.TEMPLATE and short.USER_TEMPLATE == {"LABELS": "l"}
    [whole] = here.one.vmpool.infoextended(-2, -1, -1, -1).VM
    raw = here.one._do_request("one.vmpool.infoset", (here.cloud.session, str(vm), True))[1]
    assert "<PERMISSIONS>" in raw and raw.count("<CONTEXT>") == 0
    assert whole.USER_TEMPLATE == {"TAG": "x", "LABELS": "l"}
    assert whole.TEMPLATE["OS"]["UUID"] == here.one.vm.info(vm).TEMPLATE["OS"]["UUID"]
    assert vm == here.one.vmpool.infoset(str(vm), True).VM[0].ID


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((-5, -1, -1, -1), pyone.OneApiException, "Incorrect filter_flag"),
        ((-2, -1, -1, 99), pyone.OneApiException, "Incorrect state filter 99"),
        (
            (-2, -1, -1, -1, "TAG=x"),
            pyone.OneInternalException,
            "JSON query search is not supported by the SQL backend",
        ),
    ],
)
def test_pool_calls_that_are_refused(here, arguments, error, words):
    with pytest.raises(error) as refused:
        here.one.vmpool.info(*arguments)
    assert str(refused.value) == f"[one.vmpool.info] {words}"


def test_every_other_pool_binds(here, alice):
    here.image()
    here.template()
    here.vm()
    one = here.one
    for pool, kind in (
        (one.userpool.info(), "USER"),
        (one.grouppool.info(), "GROUP"),
        (one.hostpool.info(), "HOST"),
        (one.clusterpool.info(), "CLUSTER"),
        (one.datastorepool.info(), "DATASTORE"),
        (one.imagepool.info(-2, -1, -1), "IMAGE"),
        (one.vnpool.info(-2, -1, -1), "VNET"),
        (one.secgrouppool.info(-2, -1, -1), "SECURITY_GROUP"),
        (one.templatepool.info(-2, -1, -1), "VMTEMPLATE"),
        (one.zonepool.info(), "ZONE"),
        (one.acl.info(), "ACL"),
        (one.hostpool.monitoring(), "MONITORING"),
        (one.vmpool.accounting(-2, -1, -1), "HISTORY"),
    ):
        assert getattr(pool, kind), kind
    assert one.group.info(-1).NAME == "oneadmin"
    assert one.system.config().API_LIST_ORDER == ["DESC"]


@pytest.mark.parametrize("family", ["vm", "vn", "template", "image"])
def test_whoever_locked_a_thing_must_unlock_it_first(here, family):
    """A lock is refused with the code of a missing right."""
    uid, alice = here.user("alice")
    thing = {"vm": lambda: here.vm(hold=True), "vn": lambda: 0, "template": here.template, "image": here.image}[
        family
    ]()
    calls, mine = getattr(here.one, family), getattr(alice, family)
    calls.chown(thing, uid, -1)
    assert mine.lock(thing, 1, False) == thing
    assert int(calls.info(thing).LOCK.LOCKED) == 1
    with pytest.raises(pyone.OneAuthorizationException, match="Not authorized to perform MANAGE"):
        mine.rename(thing, "another")
    assert mine.unlock(thing) == thing
    assert mine.rename(thing, "another") == thing


def test_a_quota_of_a_group_holds_for_all_in_it(here, alice, bob):
    template = usable(here)
    here.one.group.quota(1, 'VM=[VMS="1"]')
    vm = alice[1].template.instantiate(template, "first", True, "", False)
    with pytest.raises(pyone.OneAuthorizationException, match=r"group \[1\] limit of 1 reached for VMS quota in VM"):
        bob[1].template.instantiate(template, "second", True, "", False)
    [quota] = bob[1].group.info(-1).VM_QUOTA.VM
    assert (quota.VMS, quota.VMS_USED, quota.MEMORY_USED) == ("1", "1", "64")
    alice[1].vm.action("terminate-hard", vm)
    bob[1].template.instantiate(template, "second", True, "", False)
    with pytest.raises(pyone.OneAuthorizationException, match=r"ADMIN GROUP \[1\]"):
        bob[1].group.quota(1, 'VM=[VMS="9"]')
