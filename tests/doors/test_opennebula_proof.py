"""How it is known that a VM is gone: OpenNebula's DONE with its time, and its disks where this machine can see them."""

import re
import time
from datetime import UTC, datetime

import pyone
import pytest

from orchestrator.domain.errors import CloudDenied, NotDestroyed
from orchestrator.localcloud.hypervisors.simulated import SimulatedHypervisor
from orchestrator.localcloud.knobs import CloudSettings
from orchestrator.localcloud.server import LocalCloud
from orchestrator.opennebula import Cloud
from tests.replay_server import Misbehaviour, ReplayServer, recorded

WITHIN = 20
FAST = {"timeout": 5, "patience": 0.2, "poll_seconds": 0.01, "requests_per_second": 1000}
DONE, DATASTORES, NO_VMS = recorded(108), recorded(9), recorded(185)
DENIED = [False, "[one.vm.info] User [3] : Not authorized to perform USE VM [8].", 512, 8, -1]
GONE = [False, "[one.vm.info] Error getting virtual machine [8].", 1024, 8, -1]


class Keeps(SimulatedHypervisor):
    """Its machines have a disk, which the end of some of them leaves behind."""

    keeps = False

    def boot(self, spec):
        (spec.directory / "disk.0").touch()
        return super().boot(spec)

    def epilog(self, vm_id, directory):
        if not self.keeps:
            super().epilog(vm_id, directory)


@pytest.fixture
def hypervisor():
    simulated = Keeps()
    yield simulated
    simulated.close()


@pytest.fixture
def local(tmp_path, hypervisor):
    knobs = CloudSettings(monitor_interval=0.05, visible_delay=(0.0, 0.001), console_logs_kept=1)
    with LocalCloud(tmp_path / "cloud", hypervisor=hypervisor, knobs=knobs) as running:
        yield running


@pytest.fixture
async def cloud(local):
    async with Cloud(local.url, local.session, **FAST) as connected:
        yield connected


def new_vm(local, *, hold=False):
    one = pyone.OneServer(local.url, session=local.session)
    vm = one.vm.allocate('CPU="0.1"\nMEMORY="64"\nNIC=[NETWORK_ID="1"]', True)
    if not hold:
        one.vm.deploy(vm, 0, False, 0, "")
    return one, vm


def folder(local, vm):
    return str(local.home / "vms" / str(vm))


async def test_the_end_its_time_and_the_disk_that_is_gone(local, cloud):
    one, vm = new_vm(local)
    await cloud.wait_running(vm, within=WITHIN)
    assert await cloud.ended(vm) is None
    proof = await cloud.terminate(vm, within=WITHIN)
    assert (proof.says, proof.cloud_id, proof.state) == (f"OpenNebula says DONE of VM {vm}", vm, "DONE")
    assert proof.ended_at == datetime.fromtimestamp(one.vm.info(vm).ETIME, UTC)
    assert abs(proof.ended_at.timestamp() - time.time()) < WITHIN
    assert (proof.disks.folder, proof.disks.before, proof.disks.left) == (folder(local, vm), ("disk.0",), ())
    assert proof.disks.gone


async def test_a_disk_that_is_left_behind_is_told(local, cloud, hypervisor, caplog):
    hypervisor.keeps = True
    _, vm = new_vm(local)
    await cloud.wait_running(vm, within=WITHIN)
    proof = await cloud.terminate(vm, within=WITHIN)
    assert proof.state == "DONE" and not proof.disks.gone
    assert f"STILL THERE in {folder(local, vm)}: disk.0" in proof.text
    assert "STILL THERE" in caplog.text


async def test_a_vm_that_another_ended(local, cloud):
    """Its disks were never seen, but its folder is: that is where they would be."""
    one, vm = new_vm(local)
    await cloud.wait_running(vm, within=WITHIN)
    one.vm.action("terminate-hard", vm)
    await cloud.until_gone(vm)
    proof = await cloud.terminate(vm, within=WITHIN)
    assert proof.disks.gone and not proof.disks.before
    assert await cloud.ended(vm) == proof


async def test_a_vm_whose_folder_is_gone_too_says_nothing_of_its_disks(local, cloud):
    one, vm = new_vm(local)
    await cloud.wait_running(vm, within=WITHIN)
    one.vm.action("terminate-hard", vm)
    await cloud.until_gone(vm)
    _, later = new_vm(local)
    await cloud.wait_running(later, within=WITHIN)
    await cloud.terminate(later, within=WITHIN)  # console_logs_kept: the older one's folder goes
    async with Cloud(local.url, local.session, **FAST) as another:
        give_up = time.monotonic() + WITHIN
        while (proof := await another.ended(vm)).disks.gone and time.monotonic() < give_up:
            pass
    assert proof.state == "DONE" and proof.disks.why_not == "this machine sees no such folder"


async def test_a_vm_that_came_to_no_host_has_no_disk(local, cloud):
    _, vm = new_vm(local, hold=True)
    proof = await cloud.terminate(vm, within=WITHIN)
    assert proof.state == "DONE" and not proof.disks.gone
    assert proof.disks.why_not == "it came to no host, where it would have had any"


async def test_a_vm_that_is_not_gone_has_no_proof(local, cloud, hypervisor):
    _, vm = new_vm(local)
    await cloud.wait_running(vm, within=WITHIN)
    hypervisor.zombies = True
    with pytest.raises(NotDestroyed):
        await cloud.terminate(vm, within=0.2)
    assert await cloud.ended(vm) is None
    hypervisor.zombies = False
    assert (await cloud.terminate(vm, within=WITHIN)).disks.gone


async def test_a_vm_that_nobody_knows(cloud):
    for proof in (await cloud.ended(4711), await cloud.terminate(4711, within=WITHIN)):
        assert (proof.says, proof.state, proof.ended_at) == ("OpenNebula knows no VM 4711", "", None)
        assert not proof.disks.gone


# -- a cloud that is elsewhere


@pytest.fixture
def server():
    with ReplayServer() as replay:
        yield replay


@pytest.fixture
def remote(server):
    connected = Cloud(server.url, "a:b", **FAST)
    yield connected
    connected.close()


@pytest.mark.parametrize(
    ("datastores", "why"),
    [
        (DATASTORES, "this machine sees no such folder"),
        ([True, "<DATASTORE_POOL></DATASTORE_POOL>", 0], "does not say where datastore 100 is"),
        ([False, "[one.datastorepool.info] no", 512, -1, -1], "does not say where datastore 100 is"),
        (Misbehaviour.GARBAGE, "does not say where datastore 100 is"),
    ],
)
async def test_elsewhere_nobody_can_look(server, remote, datastores, why):
    server.answers["one.vm.info"].append(DONE)
    server.answers["one.datastorepool.info"].append(datastores)
    proof = await remote.ended(int(re.search("<ID>([0-9]+)</ID>", DONE[1])[1]))
    assert proof.state == "DONE" and proof.ended_at is not None
    assert why in proof.disks.why_not and not proof.disks.gone


async def test_where_datastores_are_is_asked_once(server, remote):
    server.answers["one.vm.info"].append(DONE)
    for _ in range(3):
        await remote.ended(int(re.search("<ID>([0-9]+)</ID>", DONE[1])[1]))
    assert len(server.asked("one.datastorepool.info")) == 1


async def test_a_vm_that_may_not_be_seen_is_no_proof(server, remote):
    server.answers["one.vm.info"].append(DENIED)
    with pytest.raises(CloudDenied):
        await remote.ended(8)
    server.answers["one.vm.info"].clear()
    server.answers["one.vm.info"].append(GONE)
    proof = await remote.ended(8)
    assert proof.state == "" and proof.disks.why_not == "OpenNebula names no datastore for them"
