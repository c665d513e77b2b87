"""Images and templates against a real OpenNebula's bytes."""

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from orchestrator.domain.errors import CloudDenied, CloudError, CloudUnreachable, CloudWrongState, NotPossible
from orchestrator.opennebula import Cloud, Images
from orchestrator.provisioning.ports import BuildMachine, CloudObject, ImageKind, VersionTemplate
from tests.replay_server import Misbehaviour, ReplayServer, recorded

LOCKED, READY, NO_IMAGE = recorded(12), recorded(13), recorded(134)
IN_USE = recorded(281)
POWEROFF, RUNNING, SHUTTING = recorded(36), recorded(26), recorded(35)


class Datastore(NamedTuple):
    id: int
    name: str
    type: int


DEFAULTS = (Datastore(2, "files", 2), Datastore(1, "default", 0), Datastore(0, "system", 1))


def datastores(server, *listed):
    body = "".join(
        f"<DATASTORE><ID>{one.id}</ID><UID>0</UID><GID>0</GID><UNAME>u</UNAME><GNAME>g</GNAME><NAME>{one.name}</NAME>"
        f"<TYPE>{one.type}</TYPE></DATASTORE>"
        for one in listed
    )
    server.answers["one.datastorepool.info"].append([True, f"<DATASTORE_POOL>{body}</DATASTORE_POOL>", 0])


@pytest.fixture
def server():
    with ReplayServer() as replay:
        yield replay


@pytest.fixture
def images(server):
    cloud = Cloud(server.url, "a:b", timeout=5, patience=0.2, poll_seconds=0.01, requests_per_second=1000)
    yield Images(cloud, CloudObject)
    cloud.close()


def failed_image(text):
    return [
        True,
        READY[1].replace("<STATE>1<", "<STATE>5<").replace("<TEMPLATE>", f"<TEMPLATE><ERROR>{text}</ERROR>"),
        0,
    ]


@pytest.mark.parametrize(("kind", "datastore"), [(ImageKind.OS, 1), (ImageKind.KERNEL, 2), (ImageKind.RAMDISK, 2)])
async def test_a_file_goes_where_its_kind_belongs_and_is_waited_for(server, images, kind, datastore):
    datastores(server, *DEFAULTS)
    server.answers["one.image.allocate"].append([True, 0, 0])
    server.answers["one.image.info"].extend([LOCKED, LOCKED, READY])
    assert await images.register_image("base", Path("/tmp/disk.qcow2"), kind, {"MAYFLY_IMAGE": "d"}, within=30) == 0
    [(text, chosen, check)] = server.asked("one.image.allocate")
    assert (chosen, check) == (datastore, False)
    assert 'PATH="/tmp/disk.qcow2"' in text and f'TYPE="{kind}"' in text and 'MAYFLY_IMAGE="d"' in text
    assert len(server.asked("one.image.info")) == 3


async def test_an_image_that_cannot_be_made_says_why_and_leaves_nothing(server, images):
    datastores(server, *DEFAULTS)
    server.answers["one.image.allocate"].append([True, 0, 0])
    server.answers["one.image.info"].extend([LOCKED, failed_image("no space left")])
    server.answers["one.image.delete"].append([True, 0, 0])
    with pytest.raises(CloudError, match=r"image 0 \(dimg\) could not be made: no space left"):
        await images.register_image("base", Path("/x"), "OS", {}, within=30)
    assert server.asked("one.image.delete") == [(0,)]


async def test_an_image_that_stays_locked_is_given_up_and_deleted(server, images):
    datastores(server, *DEFAULTS)
    server.answers["one.image.allocate"].append([True, 0, 0])
    server.answers["one.image.info"].append(LOCKED)
    server.answers["one.image.delete"].append([True, 0, 0])
    with pytest.raises(CloudError, match="image 0 is not READY after"):
        await images.register_image("base", Path("/x"), "OS", {}, within=0.05)
    assert server.asked("one.image.delete") == [(0,)]


async def test_an_image_whose_reply_is_lost_is_found_by_its_name_and_tags(server, images):
    datastores(server, *DEFAULTS)
    server.answers["one.image.allocate"].append(Misbehaviour.DROP)
    body = READY[1].replace("<TEMPLATE>", "<TEMPLATE><MAYFLY_VERSION>3</MAYFLY_VERSION>")
    server.answers["one.imagepool.info"].extend(
        [[True, "<IMAGE_POOL></IMAGE_POOL>", 0], [True, f"<IMAGE_POOL>{body}</IMAGE_POOL>", 0]]
    )
    server.answers["one.image.info"].append(READY)
    assert await images.register_image("dimg", Path("/x"), "OS", {"MAYFLY_VERSION": "3"}, within=30) == 0
    assert len(server.asked("one.image.allocate")) == 1


async def test_another_image_of_that_name_is_not_taken_for_the_lost_one(server, images):
    datastores(server, *DEFAULTS)
    server.answers["one.image.allocate"].append(Misbehaviour.DROP)
    server.answers["one.imagepool.info"].append([True, f"<IMAGE_POOL>{READY[1]}</IMAGE_POOL>", 0])
    with pytest.raises(CloudUnreachable):
        await images.register_image("dimg", Path("/x"), "OS", {"MAYFLY_VERSION": "3"}, within=30)


async def test_a_refused_image_keeps_opennebulas_words(server, images):
    datastores(server, *DEFAULTS)
    server.answers["one.image.allocate"].append(recorded(358))
    with pytest.raises(CloudError, match="cannot access '/nonexistent'") as caught:
        await images.register_image("base", Path("/nonexistent"), "OS", {}, within=30)
    assert caught.value.code == 8192


async def test_the_only_datastore_of_its_kind_needs_no_name(server, images):
    datastores(server, Datastore(107, "ssd", 0), Datastore(2, "files", 2))
    server.answers["one.image.allocate"].append([True, 0, 0])
    server.answers["one.image.info"].append(READY)
    await images.register_image("base", Path("/x"), "OS", {}, within=30)
    assert server.asked("one.image.allocate")[0][1] == 107


async def test_no_datastore_is_guessed(server, images):
    datastores(server, Datastore(107, "ssd", 0), Datastore(108, "hdd", 0))
    with pytest.raises(NotPossible, match="datastore"):
        await images.register_image("base", Path("/x"), "OS", {}, within=30)
    assert not server.asked("one.image.allocate")


async def test_named_datastores(server):
    async with Cloud(server.url, "a:b", poll_seconds=0.01, requests_per_second=1000) as cloud:
        images = Images(cloud, CloudObject, datastores=("hdd", "kernels"))
        datastores(server, *DEFAULTS, Datastore(107, "ssd", 0), Datastore(108, "hdd", 0), Datastore(109, "kernels", 2))
        server.answers["one.image.allocate"].append([True, 0, 0])
        server.answers["one.image.info"].append(READY)
        await images.register_image("base", Path("/x"), "OS", {}, within=30)
        await images.register_image("kernel", Path("/x"), "KERNEL", {}, within=30)
        assert [asked[1] for asked in server.asked("one.image.allocate")] == [108, 109]


async def test_an_image_is_deleted_when_it_is_gone(server, images):
    server.answers["one.image.delete"].append([True, 0, 0])
    server.answers["one.image.info"].extend([READY, READY, NO_IMAGE])
    await images.delete_image(0, within=30)
    assert len(server.asked("one.image.info")) == 3


async def test_an_image_that_a_vm_still_uses_is_deleted_once_it_does_not(server, images):
    server.answers["one.image.delete"].extend([IN_USE, IN_USE, [True, 0, 0]])
    server.answers["one.image.info"].append(NO_IMAGE)
    await images.delete_image(0, within=30)
    assert len(server.asked("one.image.delete")) == 3


async def test_an_image_that_stays_in_use_says_so(server, images):
    server.answers["one.image.delete"].append(IN_USE)
    with pytest.raises(CloudWrongState, match="There are 8 VMs using it"):
        await images.delete_image(0, within=0.05)


async def test_what_is_gone_is_deleted(server, images):
    server.answers["one.image.delete"].append(NO_IMAGE)
    server.answers["one.template.delete"].append(recorded(133))
    await images.delete_image(0, within=30)
    await images.delete_template(999)


async def test_a_template_keeps_its_images(server, images):
    server.answers["one.template.delete"].append([True, 3, 0])
    await images.delete_template(3)
    assert server.asked("one.template.delete") == [(3, False)]


async def test_a_version_template_and_its_tags(server, images):
    server.answers["one.template.allocate"].append([True, 5, 0])
    server.answers["one.template.update"].append([True, 5, 0])
    server.answers["one.image.update"].append([True, 9, 0])
    template = VersionTemplate("mayfly-d-1", 1, 2, 3, "console=ttyS0 quiet", {"MAYFLY_IMAGE": "d"})
    assert await images.register_template(template) == 5
    await images.tag_template(5, {"MAYFLY_STATE": "promoted"})
    await images.tag_image(9, {"MAYFLY_STATE": "promoted"})
    [(text,)] = server.asked("one.template.allocate")
    assert 'KERNEL_CMD="console=ttyS0 quiet"' in text and 'KERNEL_DS="$FILE[IMAGE_ID=2]"' in text
    assert server.asked("one.template.update") == [(5, 'MAYFLY_STATE="promoted"\n', 1)]
    assert server.asked("one.image.update") == [(9, 'MAYFLY_STATE="promoted"\n', 1)]


def in_a_pool(reply):
    return [True, f"<VM_POOL>{reply[1]}</VM_POOL>", 0]


async def test_lists(server, images):
    server.answers["one.vmpool.infoextended"].append([True, f"<VM_POOL>{RUNNING[1]}</VM_POOL>", 0])
    assert await images.list_machines() == [CloudObject(0, "vm-first", {}, 1795246264)]
    assert [image.name for image in await images.list_images()] == ["dimg"]
    assert [template.name for template in await images.list_templates()] == ["dtmpl"]


async def test_a_build_machine(server, images):
    server.answers["one.hostpool.info"].append(recorded(203))
    server.answers["one.template.instantiate"].append([True, 12, 0])
    machine = BuildMachine(7, "build", 2, 1024, "dummynet", {"NETWORK": "YES"}, {"MAYFLY_VM": "b1"})
    assert await images.instantiate(machine) == 12
    template, name, _, extra, _ = server.asked("one.template.instantiate")[0]
    assert (template, name) == (7, "build")
    assert 'MEMORY="1024"' in extra and 'VCPU="2"' in extra


async def test_the_address_of_a_machine_that_runs(server, images):
    server.answers["one.vmpool.infoset"].append(in_a_pool(RUNNING))
    assert await images.wait_running(0, within=30) == "10.78.0.10"


async def test_a_machine_without_address(server, images):
    nowhere = [True, RUNNING[1].replace("<IP>", "<NO>").replace("</IP>", "</NO>"), 0]
    server.answers["one.vmpool.infoset"].append(in_a_pool(nowhere))
    server.answers["one.vm.info"].append(nowhere)
    with pytest.raises(CloudError, match="has no address"):
        await images.wait_running(0, within=30)


async def test_the_button_is_pressed_once_though_running_is_still_shown(server, images):
    server.answers["one.vm.info"].extend([RUNNING, RUNNING, RUNNING, SHUTTING, SHUTTING, POWEROFF])
    server.answers["one.vm.action"].append([True, 0, 0])
    await images.power_off(0, within=30)
    assert server.asked("one.vm.action") == [("poweroff", 0)]


async def test_a_guest_that_ignored_the_button_is_asked_again(server, images):
    server.answers["one.vm.info"].extend([RUNNING, SHUTTING, RUNNING, SHUTTING, POWEROFF])
    server.answers["one.vm.action"].append([True, 0, 0])
    await images.power_off(0, within=30)
    assert len(server.asked("one.vm.action")) == 2


async def test_a_guest_that_ignores_the_button_for_ever(server, images):
    server.answers["one.vm.info"].append(SHUTTING)
    with pytest.raises(CloudWrongState, match=r"VM 0 is not POWEROFF after 0.05 s, it is SHUTDOWN_POWEROFF"):
        await images.power_off(0, within=0.05)


async def test_a_machine_that_is_done_cannot_be_powered_off(server, images):
    server.answers["one.vm.info"].append(recorded(108))
    with pytest.raises(CloudWrongState, match="VM 0 cannot be powered off, it is DONE"):
        await images.power_off(0, within=30)


async def test_a_saved_disk_is_ready_and_its_machine_off_again(server, images):
    saving = [True, recorded(90)[1].replace("<LCM_STATE>26<", "<LCM_STATE>27<"), 0]
    server.answers["one.vm.disksaveas"].append([True, 1, 0])
    server.answers["one.image.info"].extend([LOCKED, READY])
    server.answers["one.vm.info"].extend([saving, saving, POWEROFF])
    assert await images.save_disk(0, 0, "saved", within=30) == 1
    assert server.asked("one.vm.disksaveas") == [(0, 0, "saved", "", -1)]
    assert len(server.asked("one.vm.info")) == 3


async def test_a_disk_that_is_none(server, images):
    server.answers["one.vm.disksaveas"].append(recorded(91))
    with pytest.raises(CloudError, match="DISK does not exist"):
        await images.save_disk(0, 7, "saved", within=30)


async def test_a_machine_that_ends_while_its_disk_is_saved(server, images):
    server.answers["one.vm.disksaveas"].append([True, 1, 0])
    server.answers["one.image.info"].append(READY)
    server.answers["one.vm.info"].append(recorded(108))
    server.answers["one.image.delete"].append([True, 1, 0])
    with pytest.raises(CloudWrongState, match="left POWEROFF"):
        await images.save_disk(0, 0, "saved", within=30)
    assert server.asked("one.image.delete") == [(1,)]


async def test_a_right_that_is_missing(server, images):
    server.answers["one.template.update"].append(recorded(182))
    with pytest.raises(CloudDenied):
        await images.tag_template(5, {"MAYFLY_STATE": "promoted"})


async def test_a_machine_is_destroyed(server, images):
    done = [True, re.sub("<ID>[0-9]+</ID>", "<ID>0</ID>", recorded(108)[1], count=1), 0]
    server.answers["one.vmpool.infoset"].extend([in_a_pool(POWEROFF), in_a_pool(done)])
    server.answers["one.vm.action"].append([True, 0, 0])
    await images.destroy(0, within=30)
    assert server.asked("one.vm.action") == [("terminate-hard", 0)]


async def test_the_digest_of_a_file_that_is_here(server, images, tmp_path):
    file = tmp_path / "disk"
    file.write_bytes(b"x" * 100_000)
    whole = re.sub("<SOURCE>.*?</SOURCE>", f"<SOURCE>{file}</SOURCE>", READY[1])
    server.answers["one.image.info"].append([True, whole, 0])
    assert await images.digest(0) == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("source", ["/var/lib/one/datastores/1/0123", "/", "rbd/one-7", "", "relative/file"])
async def test_a_file_that_is_elsewhere_has_no_digest(server, images, source):
    whole = re.sub("<SOURCE>.*?</SOURCE>", f"<SOURCE>{source}</SOURCE>", READY[1])
    server.answers["one.image.info"].append([True, whole, 0])
    assert await images.digest(0) == ""
