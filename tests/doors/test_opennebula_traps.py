"""OpenNebula's own traps, each played by the local cloud; and what a VM's life costs in requests."""

import asyncio
import contextlib
import re
from collections import Counter
from dataclasses import replace

import pytest

from orchestrator.decide.admission import QuotaOf, stalled
from orchestrator.domain.errors import CloudDenied, CloudLocked, NotDestroyed, ProvisionFailed, QuotaExceeded
from orchestrator.localcloud.hypervisors.simulated import SimulatedHypervisor
from orchestrator.localcloud.knobs import CloudSettings
from orchestrator.localcloud.server import LocalCloud
from orchestrator.opennebula import Cloud, Phase
from tests.doors.test_opennebula_localcloud import FAST, REQUEST, TAGS, WITHIN, base_image

KNOBS = CloudSettings(
    hosts=2, monitor_interval=0.05, unknown_after=0.1, crash_visible_after=0.1, shutdown_poll=0.02, shutdown_timeout=0.3
)


@pytest.fixture
def server(tmp_path):
    hypervisor = SimulatedHypervisor()
    with LocalCloud(tmp_path / "cloud", hypervisor=hypervisor, knobs=KNOBS) as running:
        yield running
    hypervisor.close()


@pytest.fixture
async def cloud(server):
    """An administrator's. No VM survives the test."""
    async with Cloud(server.url, server.session, timeout=5, patience=2, stuck_seconds=0.2, **FAST) as connected:
        yield connected
        server.faults.clear()
        for host in await connected.hosts():
            unreachable(server, host.id, False)
        for vm in (await connected.client.ask("vmpool.infoextended", -2, -1, -1, -1)).VM:
            await connected.recover_delete(int(vm.ID))
            await connected.terminate(int(vm.ID), within=WITHIN)


@pytest.fixture
async def version(cloud, tmp_path):
    return await base_image(cloud, tmp_path)


@pytest.fixture
async def ann(cloud, version, server):
    """An ordinary user's, who may use the base image."""
    user_id = await cloud.client.order("user.allocate", "ann", "secret", "", [])
    for kind, number in (
        ("template", version.template_id),
        ("image", version.disk_image),
        ("image", version.kernel_image),
        ("image", version.ramdisk_image),
    ):
        await cloud.client.order(f"{kind}.chmod", number, *[-1] * 6, 1, -1, -1)
    async with Cloud(server.url, "ann:secret", timeout=5, patience=2, stuck_seconds=0.2, **FAST) as hers:
        hers.user_id = user_id
        yield hers


def unreachable(server, host_id, yes):
    server.inject({"kind": "unreachable_host", "host": host_id, "unreachable": yes})


async def until(condition):
    async with asyncio.timeout(WITHIN):
        while not await condition():
            await asyncio.sleep(0.01)


@contextlib.contextmanager
def counted(cloud):
    """The requests that the client makes inside the block, by method."""
    made = Counter()
    request = cloud.client._transport.request

    def count(host, handler, body, verbose=False):
        made[re.search(r"<methodName>(.*?)</methodName>", body.decode())[1]] += 1
        return request(host, handler, body, verbose)

    cloud.client._transport.request = count
    yield made
    cloud.client._transport.request = request


async def running(cloud, version, number=1, **changes):
    request = replace(REQUEST, name=f"vm-{number}", tags={**TAGS, "MAYFLY_VM": f"vm-{number}"}, **changes)
    vm_id = await cloud.instantiate(version.template_id, request)
    await cloud.wait_running(vm_id, within=WITHIN)
    return vm_id


# ── what a life costs ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_life_is_three_requests_beside_the_ticks(cloud, version):
    lives = 40

    async def live(number):
        vm_id = await running(cloud, version, number)
        gone = asyncio.create_task(cloud.until_gone(vm_id))
        await cloud.terminate(vm_id, within=WITHIN)
        assert (await gone).phase is Phase.DONE

    with counted(cloud) as made:
        await asyncio.gather(*(live(number) for number in range(lives)))
    ticks = made.pop("one.vmpool.infoset")
    assert made["one.template.instantiate"] == made["one.vm.deploy"] == made["one.vm.action"] == lives
    assert sum(made.values()) <= 3 * lives + 10, made
    assert ticks < lives


async def test_an_ordinary_users_life_is_two_requests_beside_the_ticks(ann, version):
    with counted(ann) as made:
        vm_id = await running(ann, version)
        await ann.terminate(vm_id, within=WITHIN)
    del made["one.vmpool.infoset"]
    assert made == {
        "one.hostpool.info": 1,
        "one.vnpool.info": 1,
        "one.template.instantiate": 1,
        "one.vm.action": 1,
        "one.datastorepool.info": 1,  # once a minute
    }


# ── accepted is not done, refused is "not yet" ──────────────────────────────────────────────────────────────────────


async def test_a_vm_that_starts_is_not_asked_to_end_before_it_can(cloud, version, server):
    server.cloud.hypervisor.boot_takes = 0.3
    with counted(cloud) as made:
        vm_id = await cloud.instantiate(version.template_id, REQUEST)
        await cloud.terminate(vm_id, within=WITHIN)
    assert made["one.vm.action"] == 1


async def test_an_end_that_silently_comes_to_nothing_is_asked_for_again_at_once(cloud, version, server):
    vm_id = await running(cloud, version)
    server.faults.fall_back("terminate-hard")
    with counted(cloud) as made:
        await cloud.terminate(vm_id, within=WITHIN)
    assert made["one.vm.action"] == 2


async def test_an_end_that_is_refused_once_is_asked_for_again(cloud, version, server):
    vm_id = await running(cloud, version)
    server.faults.fail("one.vm.action", 2048, "[one.vm.action] wrong state HOTPLUG_NIC.")
    await cloud.terminate(vm_id, within=WITHIN)


async def test_a_vm_stuck_in_shutdown_is_recovered_by_an_administrator(cloud, version, server):
    vm_id = await running(cloud, version)
    server.faults.stick("terminate-hard")
    with counted(cloud) as made:
        await cloud.terminate(vm_id, within=WITHIN)
    assert made["one.vm.recover"] == 1
    assert (await cloud.vm(vm_id)).phase is Phase.DONE


async def test_a_vm_stuck_in_shutdown_is_listed_for_an_ordinary_user_with_the_way_out(ann, cloud, version, server):
    vm_id = await running(ann, version)
    server.faults.stick("terminate-hard")
    with pytest.raises(NotDestroyed, match=f"it is SHUTDOWN.*onevm recover --delete {vm_id}"):
        await ann.terminate(vm_id, within=0.5)
    [stuck] = await ann.stuck("home", apart=0.05)
    assert (stuck.vm_id, stuck.state, stuck.command) == (vm_id, "SHUTDOWN", f"onevm recover --delete {vm_id}")
    assert await ann.stuck("another", apart=0.05) == []
    with pytest.raises(CloudDenied):
        await ann.recover_delete(vm_id)
    await cloud.recover_delete(vm_id)
    await ann.terminate(vm_id, within=WITHIN)
    assert await ann.stuck("home", apart=0.05) == []


# ── a host that does not answer ─────────────────────────────────────────────────────────────────────────────────────


async def lost(cloud, version, server):
    """A VM whose host does not report: OpenNebula shows it UNKNOWN."""
    vm_id = await running(cloud, version)
    name = (await cloud.vm(vm_id)).host
    admin = Cloud(server.url, server.session, **FAST)
    [host] = [host for host in await admin.hosts() if host.name == name]
    admin.close()
    unreachable(server, host.id, True)

    async def unknown():
        return (await cloud.vm(vm_id)).phase is Phase.UNKNOWN

    await until(unknown)
    return vm_id, host


async def test_a_vm_on_a_lost_host_is_deleted_by_an_administrator(cloud, version, server):
    vm_id, _ = await lost(cloud, version, server)
    await cloud.terminate(vm_id, within=WITHIN)
    assert (await cloud.vm(vm_id)).phase is Phase.DONE


async def test_a_vm_on_a_lost_host_waits_for_an_ordinary_user_until_the_host_is_back(ann, cloud, version, server):
    vm_id, host = await lost(ann, version, server)
    with pytest.raises(NotDestroyed, match="it is UNKNOWN"):
        await ann.terminate(vm_id, within=0.3)
    assert [stuck.state for stuck in await ann.stuck(apart=0.05)] == ["UNKNOWN"]
    ending = asyncio.create_task(ann.terminate(vm_id, within=WITHIN))
    unreachable(server, host.id, False)
    await ending
    assert (await ann.vm(vm_id)).phase is Phase.DONE


async def test_a_lost_vm_is_listed_and_nothing_more_is_placed_on_its_host(cloud, version, server):
    """An accepted poweroff falls back to RUNNING for a moment, although nothing is known of the machine."""
    vm_id, host = await lost(cloud, version, server)
    await cloud.client.order("vm.action", "poweroff", vm_id)

    async def listed():
        return [stuck.vm_id for stuck in await cloud.stuck(apart=0.01)] == [vm_id]

    await until(listed)
    cloud.forget()
    other = await running(cloud, version, 2)
    assert (await cloud.vm(other)).host != host.name


# ── where it goes, and what there is ────────────────────────────────────────────────────────────────────────────────


async def test_another_host_than_those_to_avoid(cloud, version):
    first = (await cloud.vm(await running(cloud, version, 1))).host
    for number in range(2, 6):
        vm = await cloud.vm(await running(cloud, version, number, avoid_hosts=[first]))
        assert vm.host != first
    names = [host.name for host in await cloud.hosts()]
    assert (await cloud.vm(await running(cloud, version, 6, avoid_hosts=names))).host in names


async def test_capacity_knows_what_was_placed_since_the_hosts_were_read(cloud, version):
    before = await cloud.capacity()
    await running(cloud, version)
    after = await cloud.capacity()
    assert before.hosts is not None and after.hosts is not None
    assert sum(host.cpus_free for host in before.hosts) - sum(host.cpus_free for host in after.hosts) == 1
    cloud.forget()
    assert (await cloud.capacity()).hosts == after.hosts
    assert before.networks["sealed"] & before.hosts[0].clusters
    assert (before.quotas, before.pending, stalled(before)) == ((), 0, "")


async def test_quotas_are_known_before_they_refuse_and_told_when_they_do(ann, cloud, version):
    await cloud.client.order("user.quota", ann.user_id, 'VM=[VMS="1",CPU="-2",MEMORY="1024"]')
    before = {room.what: room.left for room in (await ann.capacity()).quotas}
    assert before == {QuotaOf.VMS: 1, QuotaOf.MEMORY: 2**30}
    await running(ann, version)
    rest = {QuotaOf.VMS: 0, QuotaOf.MEMORY: 2**30 - REQUEST.memory_bytes}
    assert {room.what: room.left for room in (await ann.capacity()).quotas} == rest
    ann.forget()
    assert {room.what: room.left for room in (await ann.capacity()).quotas} == rest
    with pytest.raises(QuotaExceeded, match="VMS quota"):
        await ann.instantiate(version.template_id, replace(REQUEST, tags={**TAGS, "MAYFLY_VM": "vm-2"}))


async def test_a_scheduler_that_stands_still_is_seen_by_what_is_pending(ann, version, server):
    server.faults.stall_scheduler()
    vm_id = await ann.instantiate(version.template_id, REQUEST)
    with pytest.raises(ProvisionFailed, match="it is PENDING"):
        await ann.wait_running(vm_id, within=0.1)
    capacity = await ann.capacity()
    assert (capacity.hosts, capacity.pending, capacity.sched_message) == (None, 1, "")
    await ann.instantiate(version.template_id, replace(REQUEST, tags={**TAGS, "MAYFLY_VM": "vm-2"}))
    assert (await ann.capacity()).pending == 2
    server.faults.clear()
    await ann.wait_running(vm_id, within=WITHIN)


async def test_what_somebody_locked_names_the_command_that_unlocks_it(ann, cloud, version):
    vm_id = await running(ann, version)
    await cloud.client.order("vm.lock", vm_id, 2, False)
    with pytest.raises(CloudLocked, match=f"onevm unlock {vm_id}"):
        await ann.terminate(vm_id, within=WITHIN)
    await cloud.client.order("vm.unlock", vm_id)
    await ann.terminate(vm_id, within=WITHIN)


# ── replies that are lost, late, doubled or nonsense ────────────────────────────────────────────────────────────────


async def test_of_a_request_done_twice_whose_reply_is_lost_one_vm_is_left(cloud, version, server):
    server.faults.execute_twice("one.template.instantiate")
    server.faults.lose_reply("one.template.instantiate")
    vm_id = await cloud.instantiate(version.template_id, REQUEST)

    async def alone():
        return [vm.id for vm in await cloud.vms("home")] == [vm_id]

    await until(alone)
    await cloud.wait_running(vm_id, within=WITHIN)


@pytest.mark.parametrize("how", ["garbage", "cut", "html"])
async def test_a_reply_that_nobody_can_read_makes_one_vm(cloud, version, server, how):
    server.faults.garble("one.template.instantiate", how)
    server.faults.garble("one.vmpool.infoset", how)
    server.faults.garble("one.vm.deploy", how)
    vm_id = await cloud.instantiate(version.template_id, REQUEST)
    assert [vm.id for vm in await cloud.vms("home")] == [vm_id]
    await cloud.wait_running(vm_id, within=WITHIN)


@pytest.mark.parametrize("how", ["reset", "http_error", "garbage"])
async def test_waits_outlive_an_outage(cloud, version, server, how):
    vm_id = await cloud.instantiate(version.template_id, REQUEST)
    server.faults.outage(how, 0.5)
    await cloud.wait_running(vm_id, within=WITHIN)
    gone = asyncio.create_task(cloud.until_gone(vm_id))
    server.faults.outage(how, 0.5)
    await cloud.terminate(vm_id, within=WITHIN)
    assert (await gone).phase is Phase.DONE


async def test_a_cloud_that_hangs_is_told_by_the_end_of_the_wait(server, cloud, version):
    vm_id = await running(cloud, version)
    server.faults.outage("hang", 60)
    with pytest.raises(NotDestroyed, match="in a state that nobody could ask for"):
        await cloud.terminate(vm_id + 1, within=0.2)
    server.faults.outage("hang", 0)


# ── whose address it is ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_address_belongs_to_the_vm_that_runs(cloud, version):
    first = await running(cloud, version, 1)
    address = (await cloud.vm(first)).address
    await cloud.terminate(first, within=WITHIN)
    shown = await cloud.client.ask("vm.info", first)
    assert shown.TEMPLATE["NIC"]["IP"] == address
    assert (await cloud.vm(first)).address is None
    for number in range(2, 9):
        vm = await cloud.vm(await running(cloud, version, number))
        if vm.address == address:
            return
        await cloud.terminate(vm.id, within=WITHIN)
    pytest.fail("the local cloud gave the address to nobody else")
