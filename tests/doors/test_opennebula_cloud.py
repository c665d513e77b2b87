"""The verbs against a real OpenNebula's bytes, and against what it was seen to do."""

import asyncio
import logging
import re
import time
from collections import Counter, deque

import pytest

from orchestrator.decide.admission import stalled
from orchestrator.domain.errors import (
    CloudDenied,
    CloudLocked,
    CloudMissing,
    CloudUnreachable,
    NotDestroyed,
    NotFound,
    NotPossible,
    ProvisionFailed,
    QuotaExceeded,
)
from orchestrator.domain.outcome import Reason
from orchestrator.opennebula import Cloud, Phase, VmRequest
from orchestrator.opennebula import cloud as clouds
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
    connected = Cloud(server.url, "a:b", timeout=5, patience=0.2, poll_seconds=0.01, requests_per_second=1000)
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


def pool(*replies):
    return [True, f"<VM_POOL>{''.join(reply[1] for reply in replies)}</VM_POOL>", 0]


def shown(server, *replies):
    """What the ticks show of VM 0 (a recorded VM, whichever it was, or a misbehaviour), one after the other; the last
    for ever. `one.vm.info` shows the last."""
    for reply in replies:
        if not isinstance(reply, Misbehaviour):
            reply = pool([True, re.sub("<ID>[0-9]+</ID>", "<ID>0</ID>", reply[1], count=1), 0])
        server.answers["one.vmpool.infoset"].append(reply)
    server.answers["one.vm.info"].append(replies[-1])


def unknown(server):
    """VM 0 never was."""
    server.answers["one.vmpool.infoset"].append(recorded(185))
    server.answers["one.vm.info"].append(GONE)


def looked(server):
    """How often VMs were looked at."""
    return len(server.asked("one.vmpool.infoset"))


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


async def test_an_account_that_may_not_place_tries_it_once(server, cloud):
    server.answers["one.template.instantiate"].append([True, 12, 0])
    server.answers["one.vm.deploy"].append([False, "Not authorized to perform ADMIN VM [12].", 512, -1, -1])
    server.answers["one.vm.info"].append(recorded(115))  # HOLD
    server.answers["one.vm.action"].append([True, 12, 0])
    for _ in range(3):
        await cloud.instantiate(0, REQUEST)
    assert len(server.asked("one.vm.deploy")) == 1
    assert [asked[2] for asked in server.asked("one.template.instantiate")] == [True, False, False]
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
        QuotaExceeded, match=r"limit of 1 reached for VMS quota.*a quota of the account is used up"
    ) as caught:
        await cloud.instantiate(0, REQUEST)
    assert caught.value.code == 512
    assert caught.value.reason is Reason.QUOTA


async def test_a_locked_template_names_the_command_that_unlocks_it(server, cloud):
    locked = version(0, "d", 1, "promoted").replace("<REGTIME>", "<LOCK><LOCKED>1</LOCKED></LOCK><REGTIME>")
    server.answers["one.template.instantiate"].append(recorded(168))
    server.answers["one.template.info"].append([True, locked, 0])
    with pytest.raises(CloudLocked, match=r"Not authorized to perform USE TEMPLATE.*onetemplate unlock 0"):
        await cloud.instantiate(0, REQUEST)


async def test_a_template_that_may_not_be_used_is_not_said_to_be_locked(server, cloud):
    server.answers["one.template.instantiate"].append(recorded(168))
    server.answers["one.template.info"].append([True, version(0, "d", 1, "promoted"), 0])
    with pytest.raises(CloudDenied, match="Not authorized to perform USE TEMPLATE") as caught:
        await cloud.instantiate(0, REQUEST)
    assert type(caught.value) is CloudDenied


# ── waiting for it ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_each_new_state_is_told_until_it_runs(server, cloud):
    shown(server, recorded(25), recorded(25), recorded(118), BOOTING, BOOTING, RUNNING)
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
    shown(server, recorded(25), recorded(line))
    with pytest.raises(ProvisionFailed, match=why):
        await cloud.wait_running(0, within=30)


async def test_a_vm_that_waits_for_ever_says_what_for(server, cloud):
    shown(server, changed(25, SCHED_MESSAGE="[HOST] Not enough CPU on hosts: 0"))
    with pytest.raises(
        ProvisionFailed, match=r"not RUNNING after 0.05 s, it is PENDING: \[HOST\] Not enough CPU on hosts: 0"
    ):
        await cloud.wait_running(0, within=0.05)


async def test_a_vm_that_never_was(server, cloud):
    unknown(server)
    with pytest.raises(CloudMissing):
        await cloud.wait_running(0, within=30)


async def test_an_opennebula_that_comes_back_in_time_is_waited_for(server, cloud):
    shown(server, *[Misbehaviour.BAD_GATEWAY] * 6, RUNNING)
    assert (await cloud.wait_running(0, within=30)).phase is Phase.RUNNING


@pytest.mark.timeout(60)
async def test_an_opennebula_that_never_answers_does_not_hold_the_wait(server):
    async with Cloud(server.url, "a:b", timeout=2, patience=0, poll_seconds=0.01) as cloud:
        shown(server, Misbehaviour.SILENCE)
        with pytest.raises(ProvisionFailed, match="in a state that nobody could ask for"):
            await cloud.wait_running(0, within=0.1)


# ── ending it ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_it_returns_on_done_not_on_accepted(server, cloud):
    shown(server, RUNNING, RUNNING, SHUTDOWN, recorded(107), DONE)
    server.answers["one.vm.action"].append([True, 0, 0])
    await cloud.terminate(0, within=30)
    assert server.asked("one.vm.action") == [("terminate-hard", 0)]
    assert looked(server) == 5
    assert not server.asked("one.vm.info")


async def test_a_vm_that_starts_is_asked_once_it_may_be_ended(server, cloud):
    shown(server, BOOTING, BOOTING, BOOTING, RUNNING, SHUTDOWN, DONE)
    server.answers["one.vm.action"].append([True, 0, 0])
    await cloud.terminate(0, within=30)
    assert len(server.asked("one.vm.action")) == 1


async def test_a_vm_that_silently_runs_again_is_asked_again(server, cloud):
    shown(server, RUNNING, SHUTDOWN, RUNNING, SHUTDOWN, DONE)
    server.answers["one.vm.action"].append([True, 0, 0])
    await cloud.terminate(0, within=30)
    assert len(server.asked("one.vm.action")) == 2


async def test_a_vm_that_is_powering_off_is_asked_when_it_is_off(server, cloud):
    shown(server, recorded(35), POWEROFF, DONE)
    server.answers["one.vm.action"].append([True, 0, 0])
    await cloud.terminate(0, within=30)
    assert len(server.asked("one.vm.action")) == 1


async def test_a_vm_that_is_gone_is_ended(server, cloud):
    unknown(server)
    await cloud.terminate(0, within=30)
    assert not server.asked("one.vm.action")


async def test_a_vm_that_is_done_is_not_asked(server, cloud):
    shown(server, DONE)
    await cloud.terminate(0, within=30)
    assert not server.asked("one.vm.action")


async def test_a_vm_in_a_failure_state_is_ended(server, cloud):
    shown(server, recorded(265), recorded(270), DONE)
    server.answers["one.vm.action"].append([True, 0, 0])
    await cloud.terminate(0, within=30)
    assert server.asked("one.vm.action") == [("terminate-hard", 0)]


async def test_lost_replies_do_not_end_the_wait(server, cloud):
    shown(server, *[Misbehaviour.BAD_GATEWAY] * 5, RUNNING, SHUTDOWN, DONE)
    server.answers["one.vm.action"].append(Misbehaviour.DROP)
    await cloud.terminate(0, within=30)


async def test_a_vm_that_hangs_is_named_with_its_state_and_the_way_out(server, cloud):
    shown(server, recorded(107))  # EPILOG
    with pytest.raises(
        NotDestroyed, match=r"VM 0 is not DONE after 0.05 s, it is EPILOG.*onevm recover --delete 0"
    ) as caught:
        await cloud.terminate(0, within=0.05)
    assert (caught.value.vm_id, caught.value.state) == (0, "EPILOG")


async def test_a_vm_that_refuses_for_ever_says_the_last_word(server, cloud):
    shown(server, RUNNING)
    server.answers["one.vm.action"].append(recorded(280))
    with pytest.raises(NotDestroyed, match=r"it is RUNNING; OpenNebula's last word: .*wrong state BOOT"):
        await cloud.terminate(0, within=0.05)


async def test_a_vm_that_nobody_could_look_at_says_why(server, cloud):
    server.answers["one.vmpool.infoset"].append(Misbehaviour.BAD_GATEWAY)
    with pytest.raises(NotDestroyed, match=r"in a state that nobody could ask for; .*HTTP 502"):
        await cloud.terminate(0, within=0.1)


async def test_a_vm_of_somebody_else_is_refused_at_once(server, cloud):
    shown(server, RUNNING)
    server.answers["one.vm.action"].append(DENIED)
    with pytest.raises(CloudDenied, match="MANAGE VM") as caught:
        await cloud.terminate(0, within=30)
    assert type(caught.value) is CloudDenied
    assert len(server.asked("one.vm.action")) == 1


async def test_a_vm_that_may_not_be_seen_is_refused_at_once(server, cloud):
    server.answers["one.vmpool.infoset"].append(recorded(185))
    server.answers["one.vm.info"].append(recorded(179))
    for wait in (cloud.terminate(0, within=30), cloud.wait_running(0, within=30)):
        with pytest.raises(CloudDenied, match="USE VM"):
            await wait


async def test_a_locked_vm_names_the_command_that_unlocks_it(server, cloud):
    lock = "<LOCK><LOCKED>2</LOCKED><OWNER>0</OWNER><TIME>1795246264</TIME><REQ_ID>7</REQ_ID></LOCK>"
    shown(server, RUNNING)
    server.answers["one.vm.info"] = deque([[True, RUNNING[1].replace("<PERMISSIONS>", f"{lock}<PERMISSIONS>"), 0]])
    server.answers["one.vm.action"].append(DENIED)
    with pytest.raises(CloudLocked, match="onevm unlock 0"):
        await cloud.terminate(0, within=30)


# ── what there is room for ──────────────────────────────────────────────────────────────────────────────────────────


async def test_a_scheduler_that_stopped_is_told_to_the_log_once(server, cloud, caplog):
    caplog.set_level(logging.WARNING)  # whatever a command that ran in this process has set
    server.answers["one.hostpool.info"].append(NO_HOSTS)
    server.answers["one.user.info"].append(recorded(165))
    server.answers["one.group.info"].append(DENIED)
    waiting = pool(recorded(25))  # since 2026, and its scheduler says nothing of it
    waiting[1] = re.sub("<STIME>[0-9]+<", f"<STIME>{int(time.time()) - 600}<", waiting[1])
    server.answers["one.vmpool.infoextended"].extend([waiting, waiting, recorded(185), waiting])
    words = []
    for _ in range(4):
        capacity = await cloud.capacity()
        words.append(bool(stalled(capacity)))
        cloud.forget()
    assert words == [True, True, False, True]
    assert caplog.text.count("OpenNebula's scheduler places nothing") == 2
    assert server.asked("one.vmpool.infoextended")[0] == (-3, -1, -1, 1)


async def test_capacity_is_asked_for_once_in_a_while(server, cloud):
    server.answers["one.user.info"].append(recorded(2))
    server.answers["one.vmpool.infoextended"].append(recorded(185))
    await asyncio.gather(*(cloud.capacity() for _ in range(20)))
    assert sorted(request[0] for request in server.requests) == [
        "one.hostpool.info",
        "one.user.info",
        "one.vmpool.infoextended",
        "one.vnpool.info",
    ]


async def test_what_a_vm_gives_back_is_seen_soon(server, cloud, monkeypatch):
    monkeypatch.setattr(clouds, "_FREED_SECONDS", 0.0)
    server.answers["one.user.info"].append(recorded(2))
    server.answers["one.vmpool.infoextended"].append(recorded(185))
    shown(server, DONE)
    await cloud.capacity()
    await cloud.terminate(0, within=30)
    for _ in range(3):
        await cloud.capacity()
    asked = Counter(request[0] for request in server.requests)
    assert (asked["one.hostpool.info"], asked["one.user.info"], asked["one.vnpool.info"]) == (2, 2, 1)


# ── what only an administrator can end ──────────────────────────────────────────────────────────────────────────────

UNKNOWN = [True, RUNNING[1].replace("<LCM_STATE>3<", "<LCM_STATE>16<"), 0]
DENIED_RECOVER = recorded(192)


@pytest.fixture
def impatient(server):
    connected = Cloud(server.url, "a:b", patience=0, poll_seconds=0.01, requests_per_second=1000, stuck_seconds=0.05)
    yield connected
    connected.close()


async def test_a_vm_stuck_on_its_way_is_recovered_by_an_administrator(server, impatient):
    shown(server, *[SHUTDOWN] * 40, DONE)
    server.answers["one.vm.recover"].append([True, 0, 0])
    await impatient.terminate(0, within=30)
    assert set(server.asked("one.vm.recover")) == {(0, 3)}
    assert not server.asked("one.vm.action")


async def test_a_vm_stuck_on_its_way_is_not_forgotten_by_an_ordinary_user(server, impatient):
    shown(server, SHUTDOWN)
    server.answers["one.vm.recover"].append(DENIED_RECOVER)
    for _ in range(2):
        with pytest.raises(NotDestroyed, match=r"it is SHUTDOWN; .*onevm recover --delete 0"):
            await impatient.terminate(0, within=0.5)
    assert len(server.asked("one.vm.recover")) == 1


async def test_a_vm_is_stuck_by_all_the_time_that_it_was_waited_for(server, impatient):
    shown(server, BOOTING)
    server.answers["one.vm.recover"].append([True, 0, 0])
    while not server.asked("one.vm.recover"):
        with pytest.raises(NotDestroyed):
            await impatient.terminate(0, within=0.05)
    assert not server.asked("one.vm.action")


async def test_a_vm_whose_host_is_gone_is_deleted_by_an_administrator(server, cloud):
    shown(server, UNKNOWN, DONE)
    server.answers["one.vm.recover"].append([True, 0, 0])
    await cloud.terminate(0, within=30)
    assert server.asked("one.vm.recover") == [(0, 3)]
    assert not server.asked("one.vm.action")


async def test_a_vm_whose_host_is_gone_is_left_alone_by_an_ordinary_user_until_the_host_is_back(server, cloud):
    shown(server, *[UNKNOWN] * 30, RUNNING, SHUTDOWN, DONE)
    server.answers["one.vm.recover"].append(DENIED_RECOVER)
    server.answers["one.vm.action"].append([True, 0, 0])
    await cloud.terminate(0, within=30)
    assert len(server.asked("one.vm.recover")) == 1
    assert server.asked("one.vm.action") == [("terminate-hard", 0)]


async def test_recovering_what_is_gone_and_what_may_not_be_recovered(server, cloud):
    server.answers["one.vm.recover"].extend([GONE, DENIED_RECOVER])
    await cloud.recover_delete(0)
    with pytest.raises(CloudDenied, match="ADMIN VM"):
        await cloud.recover_delete(0)


async def test_stuck_vms_are_those_that_two_looks_show_alike(server, cloud):
    def own(*replies):
        bodies = [re.sub("<ID>[0-9]+</ID>", f"<ID>{n}</ID>", reply[1], count=1) for n, reply in enumerate(replies)]
        server.answers["one.vmpool.infoextended"].append([True, f"<VM_POOL>{''.join(bodies)}</VM_POOL>", 0])

    own(SHUTDOWN, BOOTING, UNKNOWN, RUNNING)
    own(SHUTDOWN, RUNNING, UNKNOWN, RUNNING)
    found = await cloud.stuck(apart=0.01)
    assert [(vm.vm_id, vm.state, vm.command) for vm in found] == [
        (0, "SHUTDOWN", "onevm recover --delete 0"),
        (2, "UNKNOWN", "onevm recover --delete 2"),
    ]


async def test_a_vm_that_runs_on_a_host_that_does_not_report_is_stuck(server, cloud):
    server.answers["one.hostpool.info"].append(
        [True, recorded(10)[1].replace("<STATE>2</STATE>", "<STATE>3</STATE>"), 0]
    )
    server.answers["one.vmpool.infoextended"].append(pool(RUNNING))
    [stuck] = await cloud.stuck(apart=0.01)
    assert (stuck.state, stuck.why) == ("RUNNING", "dummy1 does not report, the VM may be gone")


async def test_nothing_stuck_is_told_at_once(server, cloud):
    server.answers["one.vmpool.infoextended"].append(pool(RUNNING))
    assert await cloud.stuck(apart=3600) == []


# ── watching ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("line", "name"), [(36, "POWEROFF"), (265, "BOOT_FAILURE"), (108, "DONE")])
async def test_a_vm_that_is_gone_is_told(server, cloud, line, name):
    shown(server, RUNNING, Misbehaviour.BAD_GATEWAY, Misbehaviour.GARBAGE, UNKNOWN, SHUTDOWN, recorded(line))
    async with asyncio.timeout(30):
        assert (await cloud.until_gone(0)).state_name == name


async def test_a_vm_that_never_was_is_gone(server, cloud):
    unknown(server)
    async with asyncio.timeout(30):
        assert (await cloud.until_gone(0)).phase is Phase.DONE


async def test_many_waits_are_one_call_a_tick(server, cloud):
    running = "".join(re.sub("<ID>[0-9]+</ID>", f"<ID>{n}</ID>", RUNNING[1], count=1) for n in range(50))
    booting = running.replace("<LCM_STATE>3<", "<LCM_STATE>2<")
    for bodies in (booting, booting, running):
        server.answers["one.vmpool.infoset"].append([True, f"<VM_POOL>{bodies}</VM_POOL>", 0])
    await asyncio.gather(*(cloud.wait_running(n, within=30) for n in range(50)))
    assert looked(server) == 3
    assert len(server.requests) == 3
    ids, extended = server.asked("one.vmpool.infoset")[0]
    assert sorted(map(int, ids.split(","))) == list(range(50)) and extended is False


async def test_nobody_waits_nothing_is_asked(server, cloud):
    shown(server, RUNNING)
    await cloud.wait_running(0, within=30)
    asked = len(server.requests)
    gone = asyncio.create_task(cloud.until_gone(0))
    async with asyncio.timeout(30):
        while len(server.requests) == asked:
            await asyncio.sleep(0.01)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    await cloud.version()
    asked = len(server.requests)
    await asyncio.sleep(0.05)  # several ticks long
    assert len(server.requests) == asked


async def test_the_address_of_a_vm_that_does_not_run_is_nobodys(server, cloud):
    """OpenNebula shows it all the same; the VM that runs with it is the one that has it."""
    server.answers["one.vm.info"].extend([DONE, RUNNING])
    assert "<IP>" in DONE[1]
    assert (await cloud.vm(0)).address is None
    assert (await cloud.vm(0)).address == "10.78.0.10"


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
