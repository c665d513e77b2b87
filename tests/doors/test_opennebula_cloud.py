"""The verbs against a real OpenNebula's bytes, and against what it was seen to do."""

import re

import pytest

from orchestrator.domain.errors import (
    CloudDenied,
    CloudMissing,
    CloudUnreachable,
    NotDestroyed,
    NotFound,
    NotPossible,
    ProvisionFailed,
)
from orchestrator.opennebula import Cloud, Phase, VmRequest
from orchestrator.opennebula.transport import NeverSent
from tests.replay_server import Misbehaviour, ReplayServer, recorded

WRONG_STATE = [False, "[one.vm.action] Could not terminate VM 0, wrong state BOOT.", 2048, -1, -1]
GONE = [False, "[one.vm.info] Error getting virtual machine [0].", 1024, 0, -1]
DENIED = [False, "[one.vm.action] User [3] : Not authorized to perform MANAGE VM [0].", 512, -1, -1]

RUNNING, BOOTING, SHUTDOWN, DONE, POWEROFF = (recorded(line) for line in (26, 119, 106, 108, 36))


@pytest.fixture
def server():
    with ReplayServer() as replay:
        yield replay


@pytest.fixture
def cloud(server):
    connected = Cloud(server.url, "a:b", timeout=5, patience=0.2, poll_seconds=0.01)
    yield connected
    connected.close()


def changed(line, **attributes):
    """A recorded VM with these attributes in its USER_TEMPLATE."""
    content = "".join(f"<{key}><![CDATA[{value}]]></{key}>" for key, value in attributes.items())
    return [
        True,
        re.sub("<USER_TEMPLATE>.*</USER_TEMPLATE>", f"<USER_TEMPLATE>{content}</USER_TEMPLATE>", recorded(line)[1]),
        0,
    ]


def pool(reply):
    return [True, f"<VM_POOL>{reply[1]}</VM_POOL>", 0]


async def test_the_version_is_asked_for_once(server, cloud):
    server.answers["one.system.version"].append(Misbehaviour.DROP)
    with pytest.raises(CloudUnreachable):
        await cloud.version()
    assert len(server.requests) == 1


# ── finding things ──────────────────────────────────────────────────────────────────────────────────────────────────


def version(template_id, image, number, state, uid=0):
    return (
        f"<VMTEMPLATE><ID>{template_id}</ID><UID>{uid}</UID><GID>0</GID><UNAME>u{uid}</UNAME><GNAME>g</GNAME>"
        f"<NAME>mayfly-{image}-{number}</NAME><PERMISSIONS/><REGTIME>5</REGTIME><TEMPLATE><DISK><IMAGE_ID>3</IMAGE_ID>"
        f"</DISK><MAYFLY_IMAGE>{image}</MAYFLY_IMAGE><MAYFLY_VERSION>{number}</MAYFLY_VERSION>"
        f"<MAYFLY_STATE>{state}</MAYFLY_STATE></TEMPLATE></VMTEMPLATE>"
    )


def templates(server, *versions):
    server.answers["one.templatepool.info"].append([True, f"<VMTEMPLATE_POOL>{''.join(versions)}</VMTEMPLATE_POOL>", 0])
    server.answers["one.user.info"].append(recorded(165))  # alice, 2


async def test_the_promoted_version(server, cloud):
    templates(
        server,
        version(9, "debian-12", 10, "candidate"),
        version(8, "debian-12", 9, "promoted"),
        version(7, "debian-12", 8, "previous"),
        version(6, "alpine", 11, "promoted"),
    )
    found = await cloud.promoted("debian-12")
    assert (found.template_id, found.version, found.disk_image) == (8, 9, 3)


async def test_the_newest_of_two_promoted_by_number_not_by_text(server, cloud):
    templates(server, version(1, "d", 9, "promoted"), version(2, "d", 10, "promoted"))
    assert (await cloud.promoted("d")).version == 10


async def test_a_strangers_template_is_no_version_whatever_it_says(server, cloud):
    templates(server, version(1, "d", 99, "promoted", uid=3), version(2, "d", 1, "promoted", uid=2))
    assert (await cloud.promoted("d")).version == 1


async def test_a_misspelt_image_names_the_near_ones_and_the_remedy(server, cloud):
    templates(server, version(1, "debian-12", 1, "promoted"), version(2, "alpine", 1, "promoted"))
    with pytest.raises(NotFound, match=r"'debain-12'; there are debian-12 \(mayfly image build debain-12\)"):
        await cloud.promoted("debain-12")


async def test_no_image_at_all(server, cloud):
    templates(server)
    with pytest.raises(NotFound, match=r"OpenNebula has no base image 'debian-12' \(mayfly image build debian-12\)"):
        await cloud.promoted("debian-12")


async def test_an_image_of_which_nothing_is_promoted(server, cloud):
    templates(server, version(2, "d", 2, "candidate"), version(1, "d", 1, "rejected"))
    with pytest.raises(NotFound, match=r"no version of 'd' is promoted; there are 2 \(candidate\), 1 \(rejected\)"):
        await cloud.promoted("d")


def networks(server, *named):
    whole = recorded(18)[1]
    body = "".join(
        whole.replace("<ID>0</ID><UID>0</UID>", f"<ID>{index}</ID><UID>{uid}</UID>", 1).replace(
            "<NAME>dummynet</NAME>", f"<NAME>{name}</NAME>"
        )
        for index, uid, name in named
    )
    server.answers["one.vnpool.info"].append([True, f"<VNET_POOL>{body}</VNET_POOL>", 0])
    server.answers["one.user.info"].append(recorded(165))  # alice, 2


async def test_a_network_by_name_whoever_owns_it(server, cloud):
    networks(server, (4, 0, "open"), (5, 3, "sealed"))
    assert (await cloud.network("sealed")).id == 5


async def test_of_networks_with_one_name_the_trusted_one(server, cloud):
    networks(server, (5, 3, "sealed"), (4, 0, "sealed"))
    assert (await cloud.network("sealed")).id == 4


async def test_of_networks_with_one_name_none_is_guessed(server, cloud):
    networks(server, (5, 2, "sealed"), (4, 0, "sealed"))
    with pytest.raises(NotPossible, match="several virtual networks are called 'sealed': 5 of oneadmin, 4 of oneadmin"):
        await cloud.network("sealed")


async def test_a_misspelt_network(server, cloud):
    networks(server, (4, 0, "sealed"), (5, 0, "zzz"))
    with pytest.raises(NotFound, match="no virtual network 'saeled'; there are sealed "):
        await cloud.network("saeled")


# ── making a VM ─────────────────────────────────────────────────────────────────────────────────────────────────────

REQUEST = VmRequest(
    name="mayfly-1",
    cpus=1,
    memory_bytes=100 * 2**20 + 1,
    network="dummynet",
    context={"NETWORK": "YES"},
    tags={"MAYFLY_VM": "v1", "MAYFLY_INSTALLATION": "home"},
)
NO_HOSTS = recorded(203)


async def test_an_ordinary_user_leaves_placing_to_the_scheduler(server, cloud):
    server.answers["one.hostpool.info"].append(NO_HOSTS)
    server.answers["one.template.instantiate"].append([True, 12, 0])
    assert await cloud.instantiate(0, REQUEST) == 12
    [(template, name, hold, extra, persistent)] = server.asked("one.template.instantiate")
    assert (template, name, hold, persistent) == (0, "mayfly-1", False, False)
    assert 'MEMORY="101"' in extra and 'NETWORK_ID="0"' in extra and 'MAYFLY_VM="v1"' in extra
    assert not server.asked("one.vm.deploy")


async def test_an_administrator_places_it_at_once(server, cloud):
    server.answers["one.template.instantiate"].append([True, 12, 0])
    server.answers["one.vm.deploy"].append([True, 12, 0])
    assert await cloud.instantiate(0, REQUEST) == 12
    assert server.asked("one.template.instantiate")[0][2] is True
    assert server.asked("one.vm.deploy") == [(12, 0, True, -1, "")]
    assert not server.asked("one.vm.action")


@pytest.mark.parametrize(
    "refused",
    [
        [False, "[one.vm.deploy] User [2] : Not authorized to perform ADMIN VM [12].", 512, -1, -1],
        [False, "[one.vm.deploy] Not enough capacity.", 2048, -1, -1],
        [False, "[one.vm.deploy] Cannot get the datastore.", 8192, -1, -1],
    ],
)
async def test_a_vm_that_may_not_be_placed_is_released_to_the_scheduler(server, cloud, refused):
    server.answers["one.template.instantiate"].append([True, 12, 0])
    server.answers["one.vm.deploy"].append(refused)
    server.answers["one.vm.info"].append(recorded(115))  # HOLD
    server.answers["one.vm.action"].append([True, 12, 0])
    assert await cloud.instantiate(0, REQUEST) == 12
    assert server.asked("one.vm.action") == [("release", 12)]


async def test_a_vm_that_fits_nowhere_is_released_to_the_scheduler(server, cloud):
    server.answers["one.template.instantiate"].append([True, 12, 0])
    server.answers["one.vm.action"].append([True, 12, 0])
    request = VmRequest("big", 9, 2**20, "dummynet", {}, {"MAYFLY_VM": "v1"})
    assert await cloud.instantiate(0, request) == 12
    assert not server.asked("one.vm.deploy")
    assert server.asked("one.vm.action") == [("release", 12)]


async def test_a_repeated_deploy_that_the_first_one_did_is_no_failure(server, cloud):
    server.answers["one.template.instantiate"].append([True, 12, 0])
    server.answers["one.vm.deploy"].extend([Misbehaviour.DROP, WRONG_STATE])
    server.answers["one.vm.info"].append(BOOTING)
    assert await cloud.instantiate(0, REQUEST) == 12
    assert len(server.asked("one.vm.deploy")) == 2
    assert not server.asked("one.vm.action")


async def test_a_vm_whose_reply_is_lost_is_found_by_its_tag(server, cloud):
    server.answers["one.hostpool.info"].append(NO_HOSTS)
    server.answers["one.template.instantiate"].append(Misbehaviour.DROP)
    server.answers["one.vmpool.infoextended"].extend(
        [recorded(185), pool(changed(115, MAYFLY_VM="v2")), pool(changed(119, MAYFLY_VM="v1"))]
    )
    assert await cloud.instantiate(0, REQUEST) == 1
    assert len(server.asked("one.template.instantiate")) == 1
    assert server.asked("one.vmpool.infoextended")[0] == (-3, -1, -1, -1)


async def test_a_vm_whose_reply_is_lost_and_that_nobody_finds_is_not_made_twice(server, cloud):
    server.answers["one.hostpool.info"].append(NO_HOSTS)
    server.answers["one.template.instantiate"].append(Misbehaviour.DROP)
    server.answers["one.vmpool.infoextended"].append(recorded(185))
    with pytest.raises(CloudUnreachable) as caught:
        await cloud.instantiate(0, REQUEST)
    assert not isinstance(caught.value, NeverSent)
    assert len(server.asked("one.template.instantiate")) == 1


async def test_a_quota_is_told(server, cloud):
    server.answers["one.template.instantiate"].append(recorded(213))
    with pytest.raises(
        CloudDenied, match=r"limit of 1 reached for VMS quota.*a quota of the account is used up"
    ) as caught:
        await cloud.instantiate(0, REQUEST)
    assert caught.value.code == 512


# ── waiting for it ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_each_new_state_is_told_until_it_runs(server, cloud):
    server.answers["one.vm.info"].extend([recorded(25), recorded(25), recorded(118), BOOTING, BOOTING, RUNNING])
    seen = []
    vm = await cloud.wait_running(0, within=30, on_change=lambda vm: seen.append(vm.state_name))
    assert seen == ["PENDING", "LCM_INIT", "BOOT", "RUNNING"]
    assert vm.address == "10.78.0.10"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (345, "VM 0 will not run, it is PROLOG_FAILURE: .*Error executing image transfer script"),
        (265, "VM 0 will not run, it is BOOT_FAILURE"),
        (36, "VM 0 will not run, it is POWEROFF"),
        (52, "VM 0 will not run, it is SUSPENDED"),
        (108, "VM 0 will not run, it is DONE"),
    ],
)
async def test_a_vm_that_will_not_run(server, cloud, line, why):
    server.answers["one.vm.info"].extend([recorded(25), recorded(line)])
    with pytest.raises(ProvisionFailed, match=why):
        await cloud.wait_running(0, within=30)


async def test_a_vm_that_waits_for_ever_says_what_for(server, cloud):
    server.answers["one.vm.info"].append(changed(25, SCHED_MESSAGE="[HOST] Not enough CPU on hosts: 0"))
    with pytest.raises(
        ProvisionFailed, match=r"not RUNNING after 0.05 s, it is PENDING: \[HOST\] Not enough CPU on hosts: 0"
    ):
        await cloud.wait_running(0, within=0.05)


async def test_a_vm_that_never_was(server, cloud):
    server.answers["one.vm.info"].append(GONE)
    with pytest.raises(CloudMissing):
        await cloud.wait_running(0, within=30)


async def test_an_opennebula_that_comes_back_in_time_is_waited_for(server, cloud):
    server.answers["one.vm.info"].extend([*[Misbehaviour.BAD_GATEWAY] * 6, RUNNING])
    assert (await cloud.wait_running(0, within=30)).phase is Phase.RUNNING


@pytest.mark.timeout(60)
async def test_an_opennebula_that_never_answers_does_not_hold_the_wait(server):
    async with Cloud(server.url, "a:b", timeout=2, patience=0, poll_seconds=0.01) as cloud:
        server.answers["one.vm.info"].append(Misbehaviour.SILENCE)
        with pytest.raises(ProvisionFailed, match="in a state that nobody could ask for"):
            await cloud.wait_running(0, within=0.1)


# ── ending it ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_it_returns_on_done_not_on_accepted(server, cloud):
    server.answers["one.vm.info"].extend([RUNNING, RUNNING, SHUTDOWN, recorded(107), DONE])
    server.answers["one.vm.action"].append([True, 0, 0])
    await cloud.terminate(0, within=30)
    assert server.asked("one.vm.action") == [("terminate-hard", 0)]
    assert len(server.asked("one.vm.info")) == 5


async def test_a_vm_that_starts_is_asked_again_until_it_may_be_ended(server, cloud):
    server.answers["one.vm.info"].extend([BOOTING, BOOTING, BOOTING, SHUTDOWN, DONE])
    server.answers["one.vm.action"].extend([recorded(280), recorded(350), [True, 0, 0]])
    await cloud.terminate(0, within=30)
    assert len(server.asked("one.vm.action")) == 3


async def test_a_vm_that_silently_runs_again_is_asked_again(server, cloud):
    server.answers["one.vm.info"].extend([RUNNING, SHUTDOWN, RUNNING, SHUTDOWN, DONE])
    server.answers["one.vm.action"].append([True, 0, 0])
    await cloud.terminate(0, within=30)
    assert len(server.asked("one.vm.action")) == 2


async def test_a_vm_that_is_powering_off_is_asked_until_it_is_off(server, cloud):
    server.answers["one.vm.info"].extend([recorded(35), POWEROFF, DONE])
    server.answers["one.vm.action"].extend([WRONG_STATE, [True, 0, 0]])
    await cloud.terminate(0, within=30)
    assert len(server.asked("one.vm.action")) == 2


async def test_a_vm_that_is_gone_is_ended(server, cloud):
    server.answers["one.vm.info"].append(GONE)
    await cloud.terminate(0, within=30)
    assert not server.asked("one.vm.action")


async def test_a_vm_that_is_done_is_not_asked(server, cloud):
    server.answers["one.vm.info"].append(DONE)
    await cloud.terminate(0, within=30)
    assert not server.asked("one.vm.action")


async def test_a_vm_in_a_failure_state_is_ended(server, cloud):
    server.answers["one.vm.info"].extend([recorded(265), recorded(270), DONE])
    server.answers["one.vm.action"].append([True, 0, 0])
    await cloud.terminate(0, within=30)
    assert server.asked("one.vm.action") == [("terminate-hard", 0)]


async def test_lost_replies_do_not_end_the_wait(server, cloud):
    server.answers["one.vm.info"].extend([*[Misbehaviour.BAD_GATEWAY] * 5, RUNNING, SHUTDOWN, DONE])
    server.answers["one.vm.action"].append(Misbehaviour.DROP)
    await cloud.terminate(0, within=30)


async def test_a_vm_that_hangs_is_named_with_its_state_and_the_way_out(server, cloud):
    server.answers["one.vm.info"].append(recorded(107))  # EPILOG
    with pytest.raises(
        NotDestroyed, match=r"VM 0 is not DONE after 0.05 s, it is EPILOG.*onevm recover --delete 0"
    ) as caught:
        await cloud.terminate(0, within=0.05)
    assert (caught.value.vm_id, caught.value.state) == (0, "EPILOG")


async def test_a_vm_that_refuses_for_ever_says_the_last_word(server, cloud):
    server.answers["one.vm.info"].append(BOOTING)
    server.answers["one.vm.action"].append(recorded(280))
    with pytest.raises(NotDestroyed, match=r"it is BOOT; OpenNebula's last word: .*wrong state BOOT"):
        await cloud.terminate(0, within=0.05)


async def test_a_vm_of_somebody_else_is_refused_at_once(server, cloud):
    server.answers["one.vm.info"].append(RUNNING)
    server.answers["one.vm.action"].append(DENIED)
    with pytest.raises(CloudDenied, match="MANAGE VM"):
        await cloud.terminate(0, within=30)
    assert len(server.asked("one.vm.action")) == 1


# ── listing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_vms_of_an_installation_in_one_call(server, cloud):
    body = "".join(
        changed(line, MAYFLY_INSTALLATION=installation)[1]
        for line, installation in ((115, "other"), (119, "home"), (26, "home"))
    )
    server.answers["one.vmpool.infoextended"].append([True, f"<VM_POOL>{body}</VM_POOL>", 0])
    assert [vm.id for vm in await cloud.vms("home")] == [1, 0]
    assert len(await cloud.vms()) == 3
    assert len(await cloud.vms(done=True)) == 3
    assert server.asked("one.vmpool.infoextended") == [(-3, -1, -1, -1), (-3, -1, -1, -1), (-3, -1, -1, -2)]


async def test_no_vms(server, cloud):
    server.answers["one.vmpool.infoextended"].append(recorded(185))
    assert await cloud.vms("home") == []


async def test_hosts_of_an_administrator_and_of_a_user(server, cloud):
    server.answers["one.hostpool.info"].extend([recorded(10), NO_HOSTS])
    assert [host.name for host in await cloud.hosts()] == ["dummy1"]
    assert await cloud.hosts() == []
