"""Which host a VM goes to: placed there, or as OpenNebula's scheduler is told."""

import re
from dataclasses import replace

import pytest

from orchestrator.domain.errors import CloudDenied
from orchestrator.domain.pool import Placement
from orchestrator.localcloud.hypervisors.simulated import SimulatedHypervisor
from orchestrator.localcloud.knobs import CloudSettings
from orchestrator.localcloud.server import LocalCloud
from orchestrator.opennebula import Cloud, Phase, VmRequest, waiting
from tests.doors.test_opennebula_cloud import NO_HOSTS, REQUEST, RUNNING, cloud, server, shown
from tests.doors.test_opennebula_localcloud import base_image
from tests.replay_server import recorded

__all__ = ["cloud", "server"]
PENDING, TEMPLATE = recorded(25), recorded(21)
TWO_HOSTS = [
    True,
    "<HOST_POOL>"
    + "".join(
        re.sub(
            "<MAX_MEM>[0-9]+</MAX_MEM>",
            f"<MAX_MEM>{memory}</MAX_MEM>",
            re.sub("<ID>[0-9]+</ID><NAME>[^<]+</NAME>", f"<ID>{number}</ID><NAME>{name}</NAME>", host, count=1),
        )
        for number, name, memory in ((1, "alpha", 16_000_000), (2, "beta", 32_000_000))
        for host in re.findall("<HOST>.*?</HOST>", recorded(10)[1])[:1]
    )
    + "</HOST_POOL>",
    0,
]


@pytest.mark.parametrize(
    ("how", "host"),
    [
        ({}, 2),
        ({"placement": Placement.PACK}, 1),
        ({"avoid_hosts": ("beta",)}, 1),
        ({"avoid_hosts": ("alpha", "beta")}, 2),
        ({"placement": Placement.PACK, "avoid_hosts": ("alpha",)}, 2),
    ],
)
async def test_an_administrators_vm_goes_where_the_pool_says(server, cloud, how, host):
    server.answers["one.hostpool.info"].append(TWO_HOSTS)
    server.answers["one.template.instantiate"].append([True, 12, 0])
    server.answers["one.vm.deploy"].append([True, 12, 0])
    await cloud.instantiate(0, replace(REQUEST, **how))
    assert [asked[1] for asked in server.asked("one.vm.deploy")] == [host]
    assert "SCHED_REQUIREMENTS" not in server.asked("one.template.instantiate")[0][3]


async def test_room_that_a_vm_gave_back_since_is_seen_before_the_scheduler_is_asked(server, cloud):
    """The hosts that were read a moment ago had none."""
    full = [True, re.sub("<CPU_USAGE>[0-9]+</CPU_USAGE>", "<CPU_USAGE>100000</CPU_USAGE>", TWO_HOSTS[1]), 0]
    server.answers["one.hostpool.info"].extend([full, TWO_HOSTS])
    server.answers["one.template.instantiate"].append([True, 12, 0])
    server.answers["one.vm.deploy"].append([True, 12, 0])
    await cloud.instantiate(0, REQUEST)
    assert len(server.asked("one.hostpool.info")) == 2
    assert [asked[1] for asked in server.asked("one.vm.deploy")] == [2]
    assert not server.asked("one.vm.action")


async def test_hosts_without_room_are_read_twice_at_most(server, cloud):
    full = [True, re.sub("<CPU_USAGE>[0-9]+</CPU_USAGE>", "<CPU_USAGE>100000</CPU_USAGE>", TWO_HOSTS[1]), 0]
    server.answers["one.hostpool.info"].append(full)
    server.answers["one.template.instantiate"].append([True, 12, 0])
    server.answers["one.vm.action"].append([True, 12, 0])
    await cloud.instantiate(0, REQUEST)
    assert len(server.asked("one.hostpool.info")) == 2
    assert server.asked("one.vm.action") == [("release", 12)]


def avoids(server, *avoided, template=None):
    server.answers["one.hostpool.info"].append(NO_HOSTS)
    server.answers["one.template.info"].append(template or TEMPLATE)
    return replace(REQUEST, avoid_hosts=avoided)


async def test_an_ordinary_user_tells_the_scheduler_which_hosts_to_avoid(server, cloud):
    server.answers["one.template.instantiate"].append([True, 12, 0])
    await cloud.instantiate(0, avoids(server, "beta", "al\\pha", 'a"b', "alpha"))
    [(_, _, _, extra, _)] = server.asked("one.template.instantiate")
    assert r'SCHED_REQUIREMENTS="NAME != \"alpha\" & NAME != \"beta\""' in extra


async def test_what_the_template_requires_itself_stays(server, cloud):
    server.answers["one.template.instantiate"].append([True, 12, 0])
    template = [True, TEMPLATE[1].replace("<TEMPLATE>", "<TEMPLATE><SCHED_REQUIREMENTS>A = 1</SCHED_REQUIREMENTS>"), 0]
    await cloud.instantiate(0, avoids(server, "alpha", template=template))
    assert r'SCHED_REQUIREMENTS="(A = 1) & NAME != \"alpha\""' in server.asked("one.template.instantiate")[0][3]


async def test_an_account_that_may_require_nothing_makes_its_vms_all_the_same(server, cloud):
    refused = "[one.template.instantiate] VM Template includes a restricted attribute SCHED_REQUIREMENTS."
    server.answers["one.template.instantiate"].extend([[False, refused, 512, -1, -1], [True, 12, 0]])
    request = avoids(server, "alpha")
    assert await cloud.instantiate(0, request) == 12
    assert await cloud.instantiate(0, request) == 12
    required = ["SCHED_REQUIREMENTS" in asked[3] for asked in server.asked("one.template.instantiate")]
    assert required == [True, False, False]


async def test_another_restricted_attribute_is_told(server, cloud):
    refused = "[one.template.instantiate] VM Template includes a restricted attribute NIC/MAC."
    server.answers["one.template.instantiate"].append([False, refused, 512, -1, -1])
    with pytest.raises(CloudDenied, match="NIC/MAC"):
        await cloud.instantiate(0, avoids(server, "alpha"))


async def test_a_vm_that_waits_for_a_host_takes_any_after_a_time(server, cloud, monkeypatch):
    monkeypatch.setattr(waiting, "LIFTED_AFTER_SECONDS", 0.0)
    server.answers["one.template.instantiate"].append([True, 0, 0])
    server.answers["one.vm.update"].append([True, 0, 0])
    shown(server, PENDING, PENDING, RUNNING)
    assert await cloud.instantiate(0, avoids(server, "alpha")) == 0
    assert (await cloud.wait_running(0, within=30)).phase is Phase.RUNNING
    assert server.asked("one.vm.update") == [(0, 'SCHED_REQUIREMENTS=""', 1)]


async def test_a_vm_that_waits_and_avoids_no_host_is_left_alone(server, cloud, monkeypatch):
    monkeypatch.setattr(waiting, "LIFTED_AFTER_SECONDS", 0.0)
    shown(server, PENDING, RUNNING)
    await cloud.wait_running(0, within=30)
    assert not server.asked("one.vm.update")


# ── against a whole cloud ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def alice(tmp_path):
    """An ordinary user of a cloud of two hosts, and a template that she may use."""
    hypervisor = SimulatedHypervisor()
    with LocalCloud(tmp_path / "cloud", hypervisor=hypervisor, knobs=CloudSettings(hosts=2)) as running:
        async with Cloud(running.url, running.session) as admin:
            version = await base_image(admin, tmp_path)
            await admin.client.order("user.allocate", "alice", "secret", "", [1])
            for kind, number in (("template", version.template_id), ("image", version.disk_image)):
                await admin.client.order(f"{kind}.chmod", number, -1, -1, -1, -1, -1, -1, 1, -1, -1)
            for image in (version.kernel_image, version.ramdisk_image):
                await admin.client.order("image.chmod", image, -1, -1, -1, -1, -1, -1, 1, -1, -1)
            async with Cloud(running.url, "alice:secret", events=running.events) as hers:
                yield hers, version.template_id
                for vm in await hers.vms():
                    await hers.terminate(vm.id, within=30)
    hypervisor.close()


SMALL = VmRequest("mayfly", 1, 2**28, "open", {}, {"MAYFLY_VM": "vm-1"})


async def test_the_scheduler_avoids_what_it_is_told_to(alice):
    cloud, template = alice
    assert await cloud.hosts() == []
    for avoided, host in (("localhost", "localhost-1"), ("localhost-1", "localhost")):
        vm_id = await cloud.instantiate(template, replace(SMALL, avoid_hosts=(avoided,)))
        assert (await cloud.wait_running(vm_id, within=30)).host == host


async def test_where_all_hosts_are_to_be_avoided_any_will_do_in_the_end(alice, monkeypatch):
    monkeypatch.setattr(waiting, "LIFTED_AFTER_SECONDS", 0.5)
    cloud, template = alice
    vm_id = await cloud.instantiate(template, replace(SMALL, avoid_hosts=("localhost", "localhost-1")))
    assert (await cloud.wait_running(vm_id, within=30)).phase is Phase.RUNNING
