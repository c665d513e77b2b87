"""What calls take, give and refuse: codes and texts as a real OpenNebula's."""

import dataclasses
import http.client
import xmlrpc.client

import pyone
import pytest

from tests.conformance.localcloud_world import QUICK, until, world


@pytest.fixture
def here(tmp_path):
    with world(tmp_path) as found:
        yield found


def raw(here, method, *arguments, session=None):
    """The reply as it is on the wire, before pyone reads it."""
    try:
        proxy = xmlrpc.client.ServerProxy(here.cloud.url, allow_none=True)
        return getattr(proxy, method)(here.cloud.session if session is None else session, *arguments)
    except xmlrpc.client.Fault as fault:
        return fault.faultCode, fault.faultString


def test_a_reply_is_three_values_and_a_refusal_five(here):
    assert raw(here, "one.system.version") == [True, "7.2.0", 0]
    assert raw(here, "one.vm.info", 999999) == [
        False,
        "[one.vm.info] Error getting virtual machine [999999].",
        1024,
        999999,
        -1,
    ]


def test_the_wire_itself(here):
    host = here.cloud.url.removeprefix("http://").split("/")[0]
    connection = http.client.HTTPConnection(host)
    body = xmlrpc.client.dumps(("oneadmin:wrong", 1), "one.vm.info")
    connection.request("POST", "/RPC2", body, {"Content-Type": "text/xml"})
    reply = connection.getresponse()
    assert reply.getheader("Connection") == "close"
    assert b"<i8>-1</i8>" in reply.read()
    connection.request("POST", "/elsewhere", body)
    assert connection.getresponse().status == 404
    connection.close()


@pytest.mark.parametrize(
    ("method", "arguments", "fault"),
    [
        ("one.vm.info", ("abc",), (-501, "Parameter that is supposed to be integer is not")),
        ("one.vm.info", (True,), (-501, "Parameter that is supposed to be integer is not")),
        ("one.vm.info", (), (-501, "Not enough parameters")),
        ("one.vm.action", (9, "terminate"), (-501, "Parameter that is supposed to be integer is not")),
        ("one.template.instantiate", (0, "x", "yes"), (-501, "Parameter that is supposed to be boolean is not")),
        ("one.nosuch.method", (1,), (-506, "Method 'one.nosuch.method' not defined")),
    ],
)
def test_malformed_calls_are_faults(here, method, arguments, fault):
    assert raw(here, method, *arguments) == fault


def test_surplus_arguments_are_ignored(here):
    assert raw(here, "one.system.version", 1, "two", [3]) == [True, "7.2.0", 0]


@pytest.mark.parametrize("session", ["oneadmin:wrong", "nobody:x", "oneadmin", "", "oneadmin:"])
def test_one_text_for_every_wrong_session(here, session):
    text = "[one.vm.info] User couldn't be authenticated, aborting call."
    assert raw(here, "one.vm.info", 1, session=session) == [False, text, 256, -1, -1]
    assert raw(here, "one.vm.info", session=session)[2] == 256
    with pytest.raises(pyone.OneAuthenticationException):
        pyone.OneServer(here.cloud.url, session=session or ":").vm.info(1)


@pytest.mark.parametrize(
    ("noun", "words"),
    [
        ("vm", "virtual machine"),
        ("template", "virtual machine template"),
        ("image", "image"),
        ("vn", "virtual network"),
        ("host", "host"),
        ("secgroup", "security group"),
        ("datastore", "datastore"),
        ("user", "user"),
        ("cluster", "cluster"),
    ],
)
def test_what_is_not_there(here, noun, words):
    assert raw(here, f"one.{noun}.info", 999)[1:4] == [f"[one.{noun}.info] Error getting {words} [999].", 1024, 999]


@pytest.mark.parametrize(
    ("text", "code", "error"),
    [
        ('NAME="n"\nCPU="1"\n', 8192, "MEMORY attribute must be a positive integer value."),
        ('NAME="n"\nMEMORY="64"\n', 8192, "CPU attribute must be a positive float or integer value."),
        ("CPU=nan MEMORY=64", 8192, "CPU attribute must be a positive float or integer value."),
        ("CPU=1 MEMORY=-5", 8192, "MEMORY attribute must be a positive integer value."),
        (
            'CPU=1 MEMORY=64 DISK=[IMAGE="nope"]',
            8192,
            "DISK 0: User 0 does not own an image with name: nope . Set IMAGE_UNAME or IMAGE_UID of owner in DISK.",
        ),
        ("CPU=1 MEMORY=64 DISK=[IMAGE_ID=77]", 8192, "DISK 0: Image with ID: 77 does not exist"),
        (
            'CPU=1 MEMORY=64 NIC=[NETWORK="nope"]',
            8192,
            "User 0 does not own a network with name: nope . Set NETWORK_UNAME or NETWORK_UID of owner in NIC.",
        ),
        ("CPU=1 MEMORY=64 NIC=[NETWORK_ID=77]", 8192, "Virtual network with ID: 77 does not exist"),
        (
            'CPU=1 MEMORY=64 NIC=[NETWORK_ID=0,IP="10.99.0.1"]',
            8192,
            "Cannot get IP/MAC lease from virtual network 0.",
        ),
        ("<TEMPLATE><NAME>xmlvm<TEMPLATE>", 8192, "Parse error: XML Template malformed."),
        (f"CPU=1 MEMORY=64 NAME={'n' * 129}", 8192, "Invalid NAME, max length is 128 chars"),
    ],
)
def test_vm_templates_that_are_refused(here, text, code, error):
    assert raw(here, "one.vm.allocate", text, True) == [False, f"[one.vm.allocate] {error}", code, -1, -1]
    assert here.one.vmpool.info(-2, -1, -1, -2).VM == []
    assert here.one.vn.info(0).USED_LEASES == 0


@pytest.mark.parametrize("char", list("/:;|&<>#$\\'\"\t"))
def test_characters_that_names_may_not_have(here, char):
    text = f"<VM><NAME><![CDATA[a{char}b]]></NAME><CPU>0.1</CPU><MEMORY>64</MEMORY></VM>"
    error = f"[one.vm.allocate] Invalid NAME, char '{char}' is not allowed"
    assert raw(here, "one.vm.allocate", text, True)[1:3] == [error, 8192]


def test_names_of_vms(here):
    for name in ("a b", "a.(b)*!,%@`", "ésp äccent 日本"):
        vm = here.one.vm.allocate(f'NAME="{name}" CPU=0.1 MEMORY=64 DESC="<b>&amp; \\"q\\""', True)
        info = here.one.vm.info(vm)
        assert (info.NAME, info.USER_TEMPLATE["DESC"]) == (name, '<b>&amp; "q"')
    again = here.one.vm.allocate('NAME="a b" CPU=0.1 MEMORY=64', True)
    assert here.one.vm.info(again).NAME == "a b"
    nameless = here.one.vm.allocate("CPU=0.1 MEMORY=64", True)
    assert f"one-{nameless}" == here.one.vm.info(nameless).NAME
    here.one.vm.rename(nameless, "b")
    assert here.one.vm.info(nameless).NAME == "b"
    with pytest.raises(pyone.OneActionException, match="char '/' is not allowed"):
        here.one.vm.rename(nameless, "a/b")


def test_names_of_the_rest_are_taken_once(here):
    template = here.one.template.allocate("NAME=t CPU=1")
    assert raw(here, "one.template.allocate", "NAME=t")[1:3] == [
        f"[one.template.allocate] NAME is already taken by TEMPLATE {template}.",
        8192,
    ]
    assert raw(here, "one.template.allocate", "")[1:3] == [
        "[one.template.allocate] Invalid NAME, it cannot be empty",
        8192,
    ]
    image = here.image()
    name = here.one.image.info(image).NAME
    assert raw(here, "one.image.allocate", f'NAME="{name}" SIZE=1 TYPE=DATABLOCK', 1)[1:3] == [
        f"[one.image.allocate] Error allocating a new image. NAME is already taken by IMAGE {image}.",
        16384,
    ]
    here.one.user.allocate("alice", "pw", "", [])
    assert raw(here, "one.user.allocate", "alice", "x")[1:3] == [
        "[one.user.allocate] NAME is already taken by USER 2.",
        8192,
    ]


def test_the_same_bad_syntax_has_two_codes(here):
    vm = here.vm(hold=True)
    text = "Parse error: syntax error, unexpected $end, expecting CBRACKET or VARIABLE at line 1, columns 3:4"
    assert raw(here, "one.vm.update", vm, "K=[", 1)[1:3] == [f"[one.vm.update] {text}", 2048]
    assert raw(here, "one.vm.allocate", "K=[")[1:3] == [f"[one.vm.allocate] {text}", 8192]


def test_update_replaces_or_merges(here):
    vm = here.vm('K="v0"\nMAYFLY_VM="x"', hold=True)
    assert here.one.vm.info(vm).USER_TEMPLATE == {"K": "v0", "MAYFLY_VM": "x"}
    here.one.vm.update(vm, 'K="v1"\nL="w"', 1)
    assert here.one.vm.info(vm).USER_TEMPLATE == {"K": "v1", "L": "w", "MAYFLY_VM": "x"}
    here.one.vm.update(vm, {"K": "v2"}, 0)
    assert here.one.vm.info(vm).USER_TEMPLATE == {"K": "v2"}
    here.one.vm.update(vm, "", 0)
    assert here.one.vm.info(vm).USER_TEMPLATE == {}
    with pytest.raises(pyone.OneApiException):
        here.one.vm.update(vm, "A=1", 2)


def test_instantiate_merges_as_opennebula_does(here):
    template = here.one.template.allocate(
        'NAME="t"\nCPU="0.1"\nMEMORY="64"\nNIC=[NETWORK_ID="0"]\nNIC=[NETWORK_ID="1"]\nTAG="old"\n'
        'CONTEXT=[NETWORK="YES",SSH_PUBLIC_KEY="$USER[SSH_PUBLIC_KEY]",SET_HOSTNAME="$NAME",NONE="$USER[X]"]'
    )
    here.one.user.update(0, 'SSH_PUBLIC_KEY="ssh-ed25519 AAAA"', 1)
    plain = here.one.vm.info(here.one.template.instantiate(template, "plain", True, "", False))
    context = plain.TEMPLATE["CONTEXT"]
    assert (context["SSH_PUBLIC_KEY"], context["SET_HOSTNAME"]) == ("ssh-ed25519 AAAA", "plain")
    assert not context["NONE"]  # empty on the wire, None in pyone
    assert len(plain.TEMPLATE["NIC"]) == 2
    assert context["ETH1_IP"] == "10.0.2.15"
    changed = here.one.vm.info(
        here.one.template.instantiate(
            template, "", True, 'NAME="mine"\nMEMORY="128"\nNIC=[NETWORK_ID="1"]\nCONTEXT=[A="b"]\nNEW="z"', False
        )
    )
    assert changed.NAME == "mine"
    assert changed.TEMPLATE["MEMORY"] == "128"
    assert changed.TEMPLATE["CONTEXT"] == {"A": "b", "DISK_ID": "0", "TARGET": "sda"}
    assert changed.TEMPLATE["NIC"]["NETWORK_ID"] == "1"
    assert changed.TEMPLATE["TEMPLATE_ID"] == str(template)
    assert changed.USER_TEMPLATE == {"TAG": "old", "NEW": "z"}


def test_what_cannot_be_had_is_an_allocate_error_of_instantiate(here):
    template = here.template()
    reply = raw(here, "one.template.instantiate", template, "x", True, 'NIC=[NETWORK_ID=0,IP="1.2.3.4"]', False)
    prefix = "[one.template.instantiate] Error allocating a new virtual machine template. "
    assert reply[1:3] == [f"{prefix}Cannot get IP/MAC lease from virtual network 0.", 16384]
    assert raw(here, "one.template.instantiate", template, "a/b", True, "", False)[2] == 16384


def test_what_the_machine_gets(here):
    kernel, initrd = here.image('TYPE="KERNEL"', 2), here.image('TYPE="RAMDISK"', 2)
    disk = here.image('TYPE="OS"')
    vm = here.vm(
        f'VCPU="3"\nDISK=[IMAGE_ID="{disk}",SIZE="50"]\nDISK=[TYPE="fs",SIZE="7"]\nNIC=[NETWORK_ID="1"]\n'
        f'OS=[KERNEL_DS="$FILE[IMAGE_ID={kernel}]",INITRD_DS="$FILE[IMAGE_ID={initrd}]",KERNEL_CMD="console=ttyS0"]\n'
        'CONTEXT=[NETWORK="YES",K="v w"]'
    )
    spec = here.hypervisor.machines()[vm]
    assert (spec.cpus, spec.memory_mb, spec.kernel_cmdline) == (3, 64, "console=ttyS0")
    assert str(spec.kernel) == here.one.image.info(kernel).SOURCE
    assert str(spec.initrd) == here.one.image.info(initrd).SOURCE
    assert [(item.disk_id, item.format, item.persistent, item.size_mb) for item in spec.disks] == [
        (0, "raw", False, 50),
        (1, "raw", True, 7),
    ]
    assert spec.disks[1].backing.stat().st_size == 7 << 20
    assert (spec.context["K"], spec.context["ETH0_IP"]) == ("v w", "10.0.2.15")
    info = here.one.vm.info(vm)
    [nic] = spec.nics
    assert (nic.address, nic.host_port, nic.outbound) == (info.TEMPLATE["NIC"]["IP"], 2222, False)
    assert nic.address.startswith("127.")
    unsealed = here.vm()
    assert here.hypervisor.machines()[unsealed].nics[0].outbound
    both = here.vm('NIC=[NETWORK_ID="1",SECURITY_GROUPS="0"]')
    assert here.one.vm.info(both).TEMPLATE["NIC"]["SECURITY_GROUPS"] == "0,100"
    assert here.hypervisor.machines()[both].nics[0].outbound


def test_two_homes_have_addresses_of_their_own(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with world(tmp_path / "a") as first, world(tmp_path / "b") as second:
        ranges = [here.one.vn.info(vnet).AR_POOL.AR[0] for here in (first, second) for vnet in (0, 1)]
    assert len({item.IP for item in ranges}) == 4
    assert all(item.IP.startswith("127.") and item.SIZE > 1000 for item in ranges)


# ── images ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "datastore", "code", "error"),
    [
        (
            'NAME=x TYPE=OS PATH="/nonexistent"',
            1,
            8192,
            "Cannot parse image SIZE: cannot access '/nonexistent' (No such file or directory)",
        ),
        (
            'NAME=x TYPE=OS PATH="http://127.0.0.1:1/x"',
            1,
            8192,
            "Cannot parse image SIZE: cannot access 'http://127.0.0.1:1/x' (Permission denied)",
        ),
        ("NAME=x TYPE=OS", 1, 8192, "Cannot parse image SIZE: Wrong number or missing SIZE attribute."),
        ("NAME=x TYPE=OS SIZE=1", 999, 1024, "Error getting datastore [999]."),
        (
            "NAME=x TYPE=OS SIZE=1",
            0,
            16384,
            "Error allocating a new image. New images can only be allocated in a files or image datastore.",
        ),
        (
            "NAME=x TYPE=OS SIZE=1",
            2,
            16384,
            "Error allocating a new image. Only IMAGES of type KERNEL, RAMDISK and CONTEXT can be registered in a "
            "FILE_DS datastore",
        ),
    ],
)
def test_images_that_are_refused(here, text, datastore, code, error):
    assert raw(here, "one.image.allocate", text, datastore, False)[1:3] == [f"[one.image.allocate] {error}", code]
    assert here.one.imagepool.info(-2, -1, -1).IMAGE == []


def test_an_image_is_copied_and_locked_meanwhile(tmp_path):
    with world(tmp_path, dataclasses.replace(QUICK, image_lock_time=0.3)) as here:
        path = here.file(2_000_001)
        image = here.one.image.allocate(f'NAME="i"\nPATH="{path}"\nDEV_PREFIX="vd"\nX="y"', 1, False)
        assert here.one.image.info(image).STATE == 4
        vm = here.one.vm.allocate(f"CPU=0.1 MEMORY=64 DISK=[IMAGE_ID={image}]", False)
        assert here.state(vm) == "CLONING"
        here.wait(vm, "RUNNING")
        info = here.one.image.info(image)
        assert (2, 2, 1, [vm], "raw") == (info.STATE, info.SIZE, info.RUNNING_VMS, info.VMS.ID, info.FORMAT)
        assert info.TEMPLATE == {"DEV_PREFIX": "vd", "X": "y"}
        with open(info.SOURCE, "rb") as copied:
            assert copied.read() == path.read_bytes()
        assert raw(here, "one.image.delete", image)[1:3] == [
            "[one.image.delete] Cannot delete image. There are 1 VMs using it.",
            2048,
        ]
        here.act(vm, "terminate-hard", "DONE")
        assert here.one.image.info(image).STATE == 1
        here.one.image.delete(image)
        with pytest.raises(pyone.OneNoExistsException):
            here.one.image.info(image)


def test_a_persistent_image_is_used_once(here):
    image = here.one.image.allocate("NAME=blk TYPE=DATABLOCK SIZE=16 PERSISTENT=YES", 1, False)
    until("the image is READY", lambda: here.one.image.info(image).STATE == 1)
    vm = here.one.vm.allocate(f"CPU=0.1 MEMORY=64 DISK=[IMAGE_ID={image}]", False)
    here.wait(vm, "RUNNING")
    assert here.hypervisor.machines()[vm].disks[0].persistent
    assert here.one.image.info(image).STATE == 8
    assert raw(here, "one.vm.allocate", f"CPU=0.1 MEMORY=64 DISK=[IMAGE_ID={image}]", True)[1] == (
        f"[one.vm.allocate] DISK 0: Cannot acquire image {image}, it is persistent and already in use"
    )


def test_a_datastore_may_restrict_where_images_come_from(here):
    datastore = here.one.datastore.allocate("NAME=d TYPE=IMAGE_DS DS_MAD=fs TM_MAD=qcow2", -1)
    image = here.one.image.allocate(f'NAME=i PATH="{here.file()}"', datastore, False)
    until("the image is in ERROR", lambda: here.one.image.info(image).STATE == 5)
    assert "Not allowed to copy image file" in here.one.image.info(image).TEMPLATE["ERROR"]
    assert raw(here, "one.vm.allocate", f"CPU=1 MEMORY=1 DISK=[IMAGE_ID={image}]", True)[2] == 8192


@pytest.mark.parametrize("powered_off", [False, True])
def test_disksaveas(here, powered_off):
    disk = here.image()
    vm = here.vm(f"DISK=[IMAGE_ID={disk}]")
    if powered_off:
        here.act(vm, "poweroff-hard", "POWEROFF")
    before = here.state(vm)
    here.hypervisor.hold("save_disk")
    saved = here.one.vm.disksaveas(vm, 0, "saved", "", -1)
    assert here.state(vm) == ("HOTPLUG_SAVEAS_POWEROFF" if powered_off else "HOTPLUG_SAVEAS")
    assert here.one.image.info(saved).STATE == 4
    here.hypervisor.let_go("save_disk")
    here.wait(vm, before)
    until("the image is READY", lambda: here.one.image.info(saved).STATE == 1)
    with open(here.one.image.info(saved).SOURCE) as copied:
        assert copied.read() == f"disk 0 of simulated machine {vm}\n"
    assert raw(here, "one.vm.disksaveas", vm, 7, "other", "", -1) == [
        False,
        "[one.vm.disksaveas] Cannot use DISK. DISK does not exist.",
        8192,
        0,
        -1,
    ]


def test_a_disk_that_cannot_be_saved_is_an_image_in_error(here):
    vm = here.vm(f"DISK=[IMAGE_ID={here.image()}]")
    here.hypervisor.fail_next("save_disk")
    saved = here.one.vm.disksaveas(vm, 0, "saved", "", -1)
    until("the image is in ERROR", lambda: here.one.image.info(saved).STATE == 5)
    here.wait(vm, "RUNNING")
    here.one.image.delete(saved, True)


# ── networks ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_leases(here):
    vnet = here.one.vn.allocate('NAME=n VN_MAD=dummy BRIDGE=b AR=[TYPE=IP4,IP="10.79.0.10",SIZE=3]', -1)
    text = f"CPU=0.1 MEMORY=64 NIC=[NETWORK_ID={vnet}]"
    first = here.one.vm.allocate(text, True)
    nic = here.one.vm.info(first).TEMPLATE["NIC"]
    assert (nic["IP"], nic["MAC"], nic["SECURITY_GROUPS"]) == ("10.79.0.10", "02:00:0a:4f:00:0a", "0")
    here.one.vn.hold(vnet, 'LEASES=[IP="10.79.0.11"]')
    second = here.one.vm.allocate(text, True)
    assert here.one.vm.info(second).TEMPLATE["NIC"]["IP"] == "10.79.0.12"
    info = here.one.vn.info(vnet)
    [item] = info.AR_POOL.AR
    assert [(lease.IP, lease.VM) for lease in item.LEASES.LEASE] == [
        ("10.79.0.10", first),
        ("10.79.0.11", -1),
        ("10.79.0.12", second),
    ]
    assert (info.USED_LEASES, item.IP_END, item.MAC_END) == (3, "10.79.0.12", "02:00:0a:4f:00:0c")
    assert raw(here, "one.vm.allocate", text, True)[2] == 8192
    with pytest.raises(pyone.OneActionException, match="leases in use"):
        here.one.vn.delete(vnet)
    here.one.vn.release(vnet, 'LEASES=[IP="10.79.0.11"]')
    with pytest.raises(pyone.OneActionException):
        here.one.vn.release(vnet, 'LEASES=[IP="10.79.0.11"]')
    with pytest.raises(pyone.OneActionException):
        here.one.vn.hold(vnet, 'LEASES=[IP="10.99.0.11"]')
    here.one.vn.add_ar(vnet, 'AR=[TYPE=IP4,IP="10.80.0.10",SIZE=5]')
    for vm in (first, second):
        here.one.vm.action("terminate", vm)
    assert here.one.vn.info(vnet).USED_LEASES == 0
    here.one.vn.delete(vnet)


@pytest.mark.parametrize("powered_off", [False, True])
def test_attach_and_detach_a_nic(here, powered_off):
    vm = here.vm('CONTEXT=[NETWORK="YES"]')
    if powered_off:
        here.act(vm, "poweroff-hard", "POWEROFF")
    before = here.state(vm)
    here.hypervisor.hold("attach_nic")
    here.one.vm.attachnic(vm, 'NIC=[NETWORK_ID="1"]')
    if not powered_off:
        assert here.state(vm) == "HOTPLUG_NIC"
        with pytest.raises(pyone.OneActionException, match=f"Could not terminate VM {vm}, wrong state HOTPLUG_NIC"):
            here.one.vm.action("terminate-hard", vm)
    here.hypervisor.let_go("attach_nic")
    here.wait(vm, before)
    info = here.one.vm.info(vm)
    assert [nic["NETWORK_ID"] for nic in info.TEMPLATE["NIC"]] == ["0", "1"]
    assert "ATTACH" not in info.TEMPLATE["NIC"][1]
    assert info.TEMPLATE["CONTEXT"]["ETH1_MAC"] == info.TEMPLATE["NIC"][1]["MAC"]
    assert here.one.vn.info(1).USED_LEASES == 1
    here.one.vm.detachnic(vm, 1)
    here.wait(vm, before)
    info = here.one.vm.info(vm)
    assert info.TEMPLATE["NIC"]["NETWORK_ID"] == "0"
    assert "ETH1_MAC" not in info.TEMPLATE["CONTEXT"]
    assert here.one.vn.info(1).USED_LEASES == 0
    with pytest.raises(pyone.OneActionException, match="does not exist"):
        here.one.vm.detachnic(vm, 1)


def test_a_nic_that_cannot_be_attached_is_not_there(here):
    vm = here.vm()
    here.hypervisor.fail_next("attach_nic")
    here.one.vm.attachnic(vm, 'NIC=[NETWORK_ID="1"]')
    until("the error", lambda: "ERROR" in here.one.vm.info(vm).USER_TEMPLATE)
    here.wait(vm, "RUNNING")
    assert here.one.vm.info(vm).TEMPLATE["NIC"]["NETWORK_ID"] == "0"
    assert here.one.vn.info(1).USED_LEASES == 0


def test_what_no_hypervisor_does_is_refused(here):
    vm = here.vm()
    for method, arguments in (
        ("one.vm.snapshotcreate", (vm, "s")),
        ("one.vm.disksnapshotcreate", (vm, 0, "s")),
        ("one.vm.attach", (vm, "DISK=[IMAGE_ID=0]")),
        ("one.vm.detach", (vm, 0)),
        ("one.vm.diskresize", (vm, 0, "10")),
        ("one.vm.migrate", (vm, 0, False, False, -1, 0)),
    ):
        reply = raw(here, method, *arguments)
        assert reply[2] == 2048 and reply[1].endswith("not supported by driver simulated")
    assert raw(here, "one.vm.resize", vm, "CPU=0.2", True)[1:3] == [
        "[one.vm.resize] Hotplug resize not supported by driver simulated",
        2048,
    ]
    here.hypervisor.saves_memory = False
    assert raw(here, "one.vm.action", "suspend", vm)[1:3] == [
        '[one.vm.action] Error performing action "suspend": Saving memory is not supported by driver simulated',
        2048,
    ]
    assert here.state(vm) == "RUNNING"


def test_resize_and_new_context_of_a_vm_that_is_off(here):
    vm = here.vm('CONTEXT=[NETWORK="YES",A="1"]')
    here.act(vm, "poweroff-hard", "POWEROFF")
    here.one.vm.resize(vm, 'CPU="0.2"\nMEMORY="128"\nVCPU="2"', True)
    here.one.vm.updateconf(vm, 'CONTEXT=[B="2"]', 1)
    here.act(vm, "resume", "RUNNING")
    spec = here.hypervisor.machines()[vm]
    assert (spec.cpus, spec.memory_mb, spec.context["A"], spec.context["B"]) == (2, 128, "1", "2")
    here.one.vm.updateconf(vm, 'CONTEXT=[C="3"]', 0)
    context = here.one.vm.info(vm).TEMPLATE["CONTEXT"]
    assert "A" not in context and context["C"] == "3"


# ── what an administrator sets up ───────────────────────────────────────────────────────────────────────────────────


def test_hosts_clusters_and_datastores(here):
    cluster = here.one.cluster.allocate("c")
    assert cluster == 100
    host = here.one.host.allocate("h", "dummy", "dummy", cluster)
    until("the host is MONITORED", lambda: here.one.host.info(host).STATE == 2)
    assert here.one.host.info(host).HOST_SHARE.MAX_CPU == here.one.host.info(0).HOST_SHARE.MAX_CPU
    datastore = here.one.datastore.allocate("NAME=d TYPE=SYSTEM_DS TM_MAD=dummy", cluster)
    info = here.one.cluster.info(cluster)
    assert ([host], [datastore]) == (info.HOSTS.ID, info.DATASTORES.ID)
    with pytest.raises(pyone.OneActionException, match=f"Cluster {cluster} is not empty, it contains 1 hosts"):
        here.one.cluster.delete(cluster)
    here.one.host.status(host, 2)
    assert here.one.host.info(host).STATE == 8
    vm = here.vm()
    with pytest.raises(pyone.OneActionException, match="Can not remove a host with running VMs"):
        here.one.host.delete(0)
    assert [vm] == here.one.host.info(0).VMS.ID
    here.image()
    with pytest.raises(pyone.OneActionException, match="Datastore 1 is not empty"):
        here.one.datastore.delete(1)
    here.one.host.delete(host)
    here.one.datastore.delete(datastore)
    here.one.cluster.delete(cluster)


def test_a_template_can_be_deleted_with_its_images(here):
    image = here.image()
    template = here.template(f'DISK=[IMAGE_ID="{image}"]')
    expanded = here.one.template.info(template, True).TEMPLATE
    assert expanded["DISK"]["SIZE"] == "1" and expanded["NIC"]["NETWORK"] == "open"
    assert here.one.template.delete(template, True) == template
    with pytest.raises(pyone.OneNoExistsException):
        here.one.image.info(image)
    used = here.image()
    vm = here.vm(f"DISK=[IMAGE_ID={used}]")
    other = here.template(f'DISK=[IMAGE_ID="{used}"]')
    assert here.one.template.delete(other, True) == other
    assert [vm] == here.one.image.info(used).VMS.ID
