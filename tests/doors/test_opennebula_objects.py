"""Values read from recorded replies, through pyone's own bindings."""

import re

import pyone.bindings
import pytest

from orchestrator import opennebula
from orchestrator.opennebula.objects import CloudVm, Host, ImageVersion, Network, VmRequest
from orchestrator.opennebula.states import Phase
from tests.replay_server import recorded, transcript


def read(line):
    return pyone.bindings.parseString(recorded(line)[1].encode())


VM_INFO = [
    row["line"]
    for row in transcript()
    if row["method"] == "one.vm.info" and isinstance(row["reply"], list) and row["reply"][0] is True
]
NOTED = re.compile(r"first sight of state ([A-Z_]+)\(\d+\)/([A-Z_]+)\(\d+\)")
SIGHTS = [
    (row["line"], found[2] if found[1] == "ACTIVE" else found[1])
    for row in transcript()
    if (found := NOTED.match(row.get("note", "")))
]


@pytest.mark.parametrize("line", VM_INFO)
def test_every_recorded_vm_can_be_read(line):
    vm = CloudVm.read(read(line))
    assert vm.name and vm.owner and vm.started > 0


@pytest.mark.parametrize(("line", "name"), SIGHTS)
def test_a_state_has_the_name_that_was_seen(line, name):
    assert CloudVm.read(read(line)).state_name == name


def test_a_running_vm_whole():
    vm = CloudVm.read(read(26))
    assert (vm.id, vm.name, vm.owner, vm.phase) == (0, "vm-first", "oneadmin", Phase.RUNNING)
    assert (vm.address, vm.host) == ("10.78.0.10", "dummy1")
    assert (vm.started, vm.ended) == (1795246264, 0)
    assert vm.tags == {}
    assert vm.why == "RUNNING"


def test_a_pending_vm_has_no_host_and_no_address_yet():
    vm = CloudVm.read(read(25))
    assert vm.phase is Phase.WAITING
    assert vm.host is None
    assert vm.address is None


def test_a_failure_says_why():
    vm = CloudVm.read(read(345))
    assert vm.phase is Phase.FAILED
    assert vm.why.startswith("PROLOG_FAILURE: ")
    assert "Error executing image transfer script" in vm.why


def test_an_old_error_is_not_the_reason_of_a_vm_that_is_well_again():
    reply = recorded(345)[1].replace("<LCM_STATE>39<", "<LCM_STATE>3<")
    vm = CloudVm.read(pyone.bindings.parseString(reply.encode()))
    assert vm.error and vm.why == "RUNNING"


def test_the_first_of_several_nics_is_the_address():
    reply = recorded(26)[1].replace("<NIC><AR_ID>", "<NIC><IP><![CDATA[10.0.0.7]]></IP></NIC><NIC><AR_ID>", 1)
    assert CloudVm.read(pyone.bindings.parseString(reply.encode())).address == "10.0.0.7"


def test_a_vm_without_nic_has_no_address():
    reply = re.sub("<NIC>.*</NIC>", "", recorded(26)[1])
    assert CloudVm.read(pyone.bindings.parseString(reply.encode())).address is None


def test_tags_of_ours_with_one_value_only():
    tags = (
        "<MAYFLY_VM><![CDATA[v1]]></MAYFLY_VM><MAYFLY_TASK>a</MAYFLY_TASK><MAYFLY_TASK>b</MAYFLY_TASK>"
        "<MAYFLY_ATTEMPT></MAYFLY_ATTEMPT><OTHER>x</OTHER>"
    )
    reply = recorded(26)[1].replace("<MYTAG><![CDATA[hello]]></MYTAG>", tags)
    vm = CloudVm.read(pyone.bindings.parseString(reply.encode()))
    assert vm.tags == {"MAYFLY_VM": "v1", "MAYFLY_ATTEMPT": ""}


@pytest.mark.parametrize("line", [226, 227, 228, 229, 230, 231, 235, 236, 237, 187])
def test_the_short_and_the_long_bodies_of_a_pool_can_be_read(line):
    vms = [CloudVm.read(vm) for vm in read(line).VM]
    assert vms and all((vm.address and vm.host) or vm.phase is Phase.DONE for vm in vms)
    assert [vm.id for vm in vms] == sorted((vm.id for vm in vms), reverse=True)


def test_an_empty_pool():
    assert list(read(185).VM) == []


def test_a_host_and_its_room():
    host = Host.read(read(8))
    assert (host.id, host.name, host.cluster_id, host.usable) == (0, "dummy1", 100, True)
    assert (host.cpu_free, host.memory_free_bytes, host.running_vms) == (8.0, 16 * 2**30, 0)


def test_a_host_that_does_not_report_yet_is_not_usable():
    assert not Host.read(read(295)).usable


def test_a_network_and_its_clusters():
    network = Network.read(read(18))
    assert (network.id, network.name, network.owner, network.cluster_ids) == (0, "dummynet", "oneadmin", {100})


TEMPLATE = (
    "<VMTEMPLATE><ID>7</ID><UID>0</UID><GID>0</GID><UNAME>oneadmin</UNAME><GNAME>oneadmin</GNAME><NAME>t</NAME>"
    "<PERMISSIONS/><REGTIME>5</REGTIME><TEMPLATE>%s</TEMPLATE></VMTEMPLATE>"
)
WHOLE = {
    "DISK": "<IMAGE_ID>3</IMAGE_ID>",
    "OS": "<KERNEL_DS>$FILE[IMAGE_ID=4]</KERNEL_DS><INITRD_DS>$FILE[IMAGE_ID=5]</INITRD_DS>",
    "MAYFLY_IMAGE": "debian-12",
    "MAYFLY_VERSION": "2",
    "MAYFLY_STATE": "promoted",
}


def version(**changes):
    content = "".join(f"<{key}>{value}</{key}>" for key, value in {**WHOLE, **changes}.items() if value is not None)
    return ImageVersion.read(pyone.bindings.parseString((TEMPLATE % content).encode()))


def test_an_image_version_whole():
    found = version()
    assert found == ImageVersion(7, "t", "debian-12", 2, "promoted", 3, 4, 5, 5)


def test_what_a_version_was_built_from_and_its_disk():
    found = version(MAYFLY_RECIPE="r1", MAYFLY_DISK_SHA256="d1")
    assert (found.recipe, found.disk_sha256) == ("r1", "d1")
    assert (version().recipe, version().disk_sha256) == ("", "")


def test_a_version_that_boots_by_itself_has_no_kernel():
    found = version(OS=None)
    assert (found.kernel_image, found.ramdisk_image) == (None, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"MAYFLY_IMAGE": None},
        {"MAYFLY_VERSION": None},
        {"MAYFLY_VERSION": "two"},
        {"MAYFLY_VERSION": "²"},
        {"DISK": None},
        {"DISK": "<IMAGE>by name</IMAGE>"},
    ],
)
def test_what_is_no_whole_version_of_ours(changes):
    assert version(**changes) is None


def test_a_request_without_our_name_for_the_vm_is_none():
    with pytest.raises(ValueError, match="MAYFLY_VM"):
        VmRequest("vm", 1, 2**20, "sealed", {}, {"MAYFLY_TASK": "t"})


def test_the_public_names_are_there():
    assert all(hasattr(opennebula, name) for name in opennebula.__all__)
