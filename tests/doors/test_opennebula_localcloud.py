"""The verbs against the local cloud: a whole server on the wire, with a server's bad days."""

import asyncio

import pytest

from orchestrator.domain.errors import (
    CloudDenied,
    CloudMissing,
    CloudUnreachable,
    NotDestroyed,
    NotFound,
    ProvisionFailed,
)
from orchestrator.localcloud.hypervisors.simulated import SimulatedHypervisor
from orchestrator.localcloud.knobs import CloudSettings
from orchestrator.localcloud.server import LocalCloud
from orchestrator.opennebula import Cloud, Images, Phase, VmRequest, read_session
from orchestrator.provisioning.ports import BuildMachine, CloudObject, VersionTemplate

TAGS = {"MAYFLY_INSTALLATION": "home", "MAYFLY_VM": "vm-1", "MAYFLY_TASK": "task-1", "MAYFLY_ATTEMPT": "1"}
CONTEXT = {"NETWORK": "YES", "SET_HOSTNAME": "mayfly", "SSH_PUBLIC_KEY": 'ssh-ed25519 AAAA "us"\\here'}
REQUEST = VmRequest("mayfly-vm-1", 1, 256 * 2**20, "sealed", CONTEXT, TAGS)
WITHIN = 30
FAST = {"poll_seconds": 0.01, "requests_per_second": 1000}


@pytest.fixture
def hypervisor():
    simulated = SimulatedHypervisor()
    yield simulated
    simulated.close()


@pytest.fixture
def server(tmp_path, hypervisor):
    """A server whose machines are all gone at the end, or the test failed."""
    knobs = CloudSettings(monitor_interval=0.05, crash_visible_after=0.1, shutdown_poll=0.02, shutdown_timeout=0.3)
    with LocalCloud(tmp_path / "cloud", hypervisor=hypervisor, knobs=knobs) as running:
        yield running


@pytest.fixture
async def cloud(server, hypervisor):
    async with Cloud(server.url, server.session, timeout=10, patience=5, **FAST) as connected:
        yield connected
        server.faults.clear()
        hypervisor.zombies = False
        for vm in await connected.vms():
            await connected.terminate(vm.id, within=WITHIN)
    assert not hypervisor.machines()


@pytest.fixture
async def version(cloud, tmp_path):
    return await base_image(cloud, tmp_path)


async def base_image(cloud, tmp_path):
    """The promoted version 1 of the base image `small`."""
    images = Images(cloud, CloudObject)
    ids = []
    for kind in ("OS", "KERNEL", "RAMDISK"):
        file = tmp_path / kind.lower()
        file.write_bytes(b"QFI\xfb" + bytes(508) if kind == "OS" else b"kernel")
        ids.append(await images.register_image(f"small-{kind}", file, kind, {"MAYFLY_IMAGE": "small"}, within=WITHIN))
    tags = {"MAYFLY_IMAGE": "small", "MAYFLY_VERSION": "1", "MAYFLY_STATE": "candidate"}
    template = await images.register_template(VersionTemplate("small-1", *ids, "console=ttyS0", tags))
    with pytest.raises(NotFound, match="no version of 'small' is promoted"):
        await cloud.promoted("small")
    await images.tag_template(template, {"MAYFLY_STATE": "promoted"})
    return await cloud.promoted("small")


async def test_it_answers_with_a_version(cloud):
    assert await cloud.version()


async def test_a_wrong_password(server):
    async with Cloud(server.url, "oneadmin:wrong", patience=0) as cloud:
        with pytest.raises(CloudDenied, match="ONE_AUTH") as caught:
            await cloud.version()
    assert caught.value.code == 256


async def test_the_session_of_its_own_file(server):
    async with Cloud(server.url, read_session(server.auth_path)) as cloud:
        assert await cloud.vms() == []


async def test_a_version_whole(version):
    assert (version.image, version.version, version.state) == ("small", 1, "promoted")
    assert len({version.disk_image, version.kernel_image, version.ramdisk_image}) == 3


async def test_a_vm_from_request_to_done(cloud, version, hypervisor):
    vm_id = await cloud.instantiate(version.template_id, REQUEST)
    seen = []
    vm = await cloud.wait_running(vm_id, within=WITHIN, on_change=lambda vm: seen.append(vm.state_name))
    assert seen[-1] == "RUNNING"
    assert TAGS.items() <= (await cloud.vm(vm_id)).tags.items()
    assert vm.address is not None and vm.address.startswith("127.")
    assert vm.host == "localhost"
    machine = hypervisor.machines()[vm_id]
    assert (machine.cpus, machine.memory_mb, machine.kernel_cmdline) == (1, 256, "console=ttyS0")
    assert machine.context["SSH_PUBLIC_KEY"] == CONTEXT["SSH_PUBLIC_KEY"]
    assert [nic.outbound for nic in machine.nics] == [False]
    assert [one.id for one in await cloud.vms("home")] == [vm_id]
    assert await cloud.vms("another") == []

    await cloud.terminate(vm_id, within=WITHIN)
    assert vm_id not in hypervisor.machines()
    assert await cloud.vms("home") == []
    assert (await cloud.vm(vm_id)).phase is Phase.DONE
    assert [one.id for one in await cloud.vms("home", done=True)] == [vm_id]


async def test_placed_without_the_scheduler(cloud, version, server):
    server.faults.stall_scheduler()
    vm_id = await cloud.instantiate(version.template_id, REQUEST)
    assert (await cloud.wait_running(vm_id, within=WITHIN)).phase is Phase.RUNNING


async def test_a_scheduler_that_stopped_is_told_by_the_state(cloud, version, server):
    server.faults.stall_scheduler()
    server.faults.fail("one.vm.deploy", 512, "[one.vm.deploy] Not authorized")
    vm_id = await cloud.instantiate(version.template_id, REQUEST)
    with pytest.raises(ProvisionFailed, match="it is PENDING"):
        await cloud.wait_running(vm_id, within=0.2)


async def test_no_room_is_told_by_the_schedulers_words(cloud, version):
    request = VmRequest("big", 5000, 2**20, "sealed", {}, TAGS)
    vm_id = await cloud.instantiate(version.template_id, request)

    async def said() -> bool:
        return bool((await cloud.vm(vm_id)).sched_message)

    async with asyncio.timeout(WITHIN):
        while not await said():
            await asyncio.sleep(0.01)
    with pytest.raises(ProvisionFailed, match=r"it is PENDING: .*CPU"):
        await cloud.wait_running(vm_id, within=0.05)


async def test_a_lost_reply_makes_one_vm(cloud, version, server):
    server.faults.lose_reply("one.template.instantiate")
    vm_id = await cloud.instantiate(version.template_id, REQUEST)
    assert [vm.id for vm in await cloud.vms("home")] == [vm_id]
    await cloud.wait_running(vm_id, within=WITHIN)


async def test_a_request_that_never_arrived_makes_no_vm(cloud, version, server):
    cloud.patience = 0.1
    server.faults.drop_connection("one.template.instantiate")
    with pytest.raises(CloudUnreachable):
        await cloud.instantiate(version.template_id, REQUEST)
    assert await cloud.vms("home") == []


async def test_of_a_request_that_was_done_twice_both_are_found_by_the_tag(cloud, version, server):
    server.faults.execute_twice("one.template.instantiate")
    vm_id = await cloud.instantiate(version.template_id, REQUEST)
    assert vm_id in {vm.id for vm in await cloud.vms("home") if vm.tags["MAYFLY_VM"] == "vm-1"}
    assert len(await cloud.vms("home")) == 2


async def test_lost_replies_everywhere(cloud, version, server):
    for method in ("one.vm.info", "one.vm.action", "one.vm.deploy", "one.vnpool.info", "one.hostpool.info"):
        server.faults.lose_reply(method, times=2)
    vm_id = await cloud.instantiate(version.template_id, REQUEST)
    await cloud.wait_running(vm_id, within=WITHIN)
    for method in ("one.vm.info", "one.vm.action"):
        server.faults.lose_reply(method, times=2)
    await cloud.terminate(vm_id, within=WITHIN)


@pytest.mark.parametrize(("step", "state"), [("boot", "BOOT_FAILURE"), ("prolog", "PROLOG_FAILURE")])
async def test_a_step_that_fails_is_told_and_its_vm_can_be_ended(cloud, version, hypervisor, step, state):
    hypervisor.fail_next(step, "the disk is on fire")
    vm_id = await cloud.instantiate(version.template_id, REQUEST)
    with pytest.raises(ProvisionFailed, match=f"VM {vm_id} will not run, it is {state}: .*the disk is on fire"):
        await cloud.wait_running(vm_id, within=WITHIN)
    await cloud.terminate(vm_id, within=WITHIN)


async def test_a_machine_that_dies_shows_as_powered_off(cloud, version, hypervisor):
    vm_id = await cloud.instantiate(version.template_id, REQUEST)
    await cloud.wait_running(vm_id, within=WITHIN)
    hypervisor.crash(vm_id)
    async with asyncio.timeout(WITHIN):
        while (await cloud.vm(vm_id)).phase is not Phase.OFF:
            await asyncio.sleep(0.01)
    with pytest.raises(ProvisionFailed, match="it is POWEROFF"):
        await cloud.wait_running(vm_id, within=WITHIN)
    await cloud.terminate(vm_id, within=WITHIN)


async def test_a_vm_that_starts_is_ended_as_soon_as_it_can_be(cloud, version, hypervisor):
    hypervisor.boot_takes = 0.3
    vm_id = await cloud.instantiate(version.template_id, REQUEST)
    await cloud.terminate(vm_id, within=WITHIN)
    assert (await cloud.vm(vm_id)).phase is Phase.DONE


async def test_a_termination_that_comes_to_nothing_is_asked_for_again(cloud, version, server):
    vm_id = await cloud.instantiate(version.template_id, REQUEST)
    await cloud.wait_running(vm_id, within=WITHIN)
    server.faults.fall_back("terminate-hard")
    await cloud.terminate(vm_id, within=WITHIN)
    assert (await cloud.vm(vm_id)).phase is Phase.DONE


async def test_a_vm_that_takes_too_long_to_end_is_not_forgotten(cloud, version, hypervisor):
    vm_id = await cloud.instantiate(version.template_id, REQUEST)
    await cloud.wait_running(vm_id, within=WITHIN)
    hypervisor.destroy_takes = 0.5
    with pytest.raises(NotDestroyed, match=f"onevm recover --delete {vm_id}") as caught:
        await cloud.terminate(vm_id, within=0.1)
    assert caught.value.vm_id == vm_id
    await cloud.terminate(vm_id, within=WITHIN)


async def test_ending_twice_and_ending_what_never_was(cloud, version):
    vm_id = await cloud.instantiate(version.template_id, REQUEST)
    await asyncio.gather(*(cloud.terminate(vm_id, within=WITHIN) for _ in range(3)))
    await cloud.terminate(vm_id, within=WITHIN)
    await cloud.terminate(999_999, within=WITHIN)
    with pytest.raises(CloudMissing):
        await cloud.vm(999_999)


async def test_twenty_at_once(cloud, version):
    requests = [VmRequest(f"vm-{n}", 1, 2**26, "sealed", {}, {**TAGS, "MAYFLY_VM": f"vm-{n}"}) for n in range(20)]
    ids = await asyncio.gather(*(cloud.instantiate(version.template_id, request) for request in requests))
    vms = await asyncio.gather(*(cloud.wait_running(vm_id, within=WITHIN) for vm_id in ids))
    assert len({vm.address for vm in vms}) == 20
    await asyncio.gather(*(cloud.terminate(vm_id, within=WITHIN) for vm_id in ids))


async def test_an_ordinary_user_is_served_by_the_scheduler(cloud, version, server):
    await cloud.client.order("user.allocate", "ann", "secret", "", [])
    for kind, number in (
        ("template", version.template_id),
        ("image", version.disk_image),
        ("image", version.kernel_image),
        ("image", version.ramdisk_image),
    ):
        await cloud.client.order(f"{kind}.chmod", number, *[-1] * 6, 1, -1, -1)
    async with Cloud(server.url, "ann:secret", **FAST) as hers:
        assert await hers.hosts() == []
        assert await hers.promoted("small") == version
        vm_id = await hers.instantiate(version.template_id, REQUEST)
        await hers.wait_running(vm_id, within=WITHIN)
        assert (await hers.vm(vm_id)).owner == "ann"
        assert await cloud.vms("home") == []
        await hers.terminate(vm_id, within=WITHIN)


async def test_a_stranger_may_not_end_it(cloud, version, server):
    await cloud.client.order("user.allocate", "bob", "secret", "", [])
    vm_id = await cloud.instantiate(version.template_id, REQUEST)
    async with Cloud(server.url, "bob:secret") as his:
        with pytest.raises(CloudDenied):
            await his.terminate(vm_id, within=WITHIN)
        with pytest.raises(NotFound):
            await his.promoted("small")


async def test_a_server_that_restarts_keeps_its_vms(hypervisor, tmp_path):
    with LocalCloud(tmp_path / "cloud", hypervisor=hypervisor) as server:
        cloud = Cloud(server.url, server.session, patience=0, **FAST)
        vm_id = await cloud.instantiate((await base_image(cloud, tmp_path)).template_id, REQUEST)
        await cloud.wait_running(vm_id, within=WITHIN)
    with pytest.raises(CloudUnreachable):
        await cloud.vm(vm_id)
    waiting = asyncio.create_task(cloud.wait_running(vm_id, within=WITHIN))
    await asyncio.sleep(0)
    with LocalCloud(tmp_path / "cloud", hypervisor=hypervisor) as server:
        assert (await waiting).phase is Phase.RUNNING
        await cloud.terminate(vm_id, within=WITHIN)
        assert await cloud.vms() == []
    cloud.close()
    assert not hypervisor.machines()


# ── base images ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_disk_saved_as_an_image_and_everything_removed(cloud, version, server):
    images = Images(cloud, CloudObject)
    machine = BuildMachine(version.template_id, "build", 1, 256, "open", {"NETWORK": "YES"}, {"MAYFLY_VM": "build-1"})
    vm_id = await images.instantiate(machine)
    assert (await images.wait_running(vm_id, within=WITHIN)).startswith("127.")
    assert [one.tags["MAYFLY_VM"] for one in await images.list_machines()] == ["build-1"]
    await images.power_off(vm_id, within=WITHIN)
    saved = await images.save_disk(vm_id, 0, "small-saved", within=WITHIN)
    await images.tag_image(saved, {"MAYFLY_IMAGE": "small", "MAYFLY_VERSION": "2"})
    await images.destroy(vm_id, within=WITHIN)
    listed = {image.id: image for image in await images.list_images()}
    assert (listed[saved].name, listed[saved].tags["MAYFLY_VERSION"]) == ("small-saved", "2")
    await images.delete_template(version.template_id)
    for image_id in listed:
        await images.delete_image(image_id, within=WITHIN)
    assert await images.list_images() == await images.list_templates() == await images.list_machines() == []


async def test_a_guest_that_ignores_the_power_button(cloud, version, hypervisor):
    images = Images(cloud, CloudObject)
    vm_id = await cloud.instantiate(version.template_id, REQUEST)
    await cloud.wait_running(vm_id, within=WITHIN)
    hypervisor.ignores_power_button = True
    pressed = asyncio.create_task(images.power_off(vm_id, within=WITHIN))
    async with asyncio.timeout(WITHIN):
        while (await cloud.vm(vm_id)).state_name != "SHUTDOWN_POWEROFF":
            await asyncio.sleep(0.005)
        while (await cloud.vm(vm_id)).state_name == "SHUTDOWN_POWEROFF":
            await asyncio.sleep(0.005)
    hypervisor.ignores_power_button = False
    await pressed
    assert (await cloud.vm(vm_id)).state_name == "POWEROFF"


async def test_replies_that_are_lost_make_one_of_each(cloud, version, server, tmp_path):
    images = Images(cloud, CloudObject)
    before = len(await images.list_images()), len(await images.list_templates())
    (tmp_path / "file").write_bytes(b"kernel")
    for method in ("one.image.allocate", "one.template.allocate"):
        server.faults.lose_reply(method)
    kernel = await images.register_image("k", tmp_path / "file", "KERNEL", {"MAYFLY_IMAGE": "x"}, within=WITHIN)
    await images.register_template(VersionTemplate("t", version.disk_image, kernel, kernel, "", {"MAYFLY_IMAGE": "x"}))
    assert (len(await images.list_images()), len(await images.list_templates())) == (before[0] + 1, before[1] + 1)
