"""What OpenNebula says of a VM's NICs and groups: out of recorded replies, and out of the local cloud's."""

import re
from datetime import UTC, datetime

import pyone
import pyone.bindings
import pytest

from orchestrator.domain.errors import CloudError, CloudMissing, CloudUnreachable
from orchestrator.domain.outside import Direction, Nic, NicKind, Rule
from orchestrator.localcloud.hypervisors.simulated import SimulatedHypervisor
from orchestrator.localcloud.knobs import CloudSettings
from orchestrator.localcloud.server import LocalCloud
from orchestrator.opennebula import Cloud
from orchestrator.opennebula.outside import read_outside
from tests.replay_server import Misbehaviour, ReplayServer, recorded, transcript

FAST = {"timeout": 5, "patience": 0.2, "poll_seconds": 0.01, "requests_per_second": 1000}
NOW = datetime(2026, 1, 2, tzinfo=UTC)
RUNNING, DONE = 26, 108
ALL_RULES = {
    Rule(0, "ALL", Direction.OUTBOUND),
    Rule(0, "ALL", Direction.INBOUND),
    Rule(100, "TCP", Direction.INBOUND, "22"),
    Rule(100, "ALL", Direction.OUTBOUND),
}


def infos():
    """Every recorded VM: its place and its XML."""
    for row in transcript():
        match row["method"], row["reply"]:
            case "one.vm.info", [True, str(body), _]:
                yield row["line"], body


def view(body):
    vm = pyone.bindings.parseString(body.encode())
    return read_outside(vm, int(vm.ID), NOW)


def running(*changes):
    """The recorded VM that runs with one NIC in the groups 0 and 100, with something changed."""
    body = recorded(RUNNING)[1]
    for pattern, becomes in changes:
        changed = re.sub(pattern, becomes, body, count=1, flags=re.DOTALL)
        assert changed != body
        body = changed
    return body


@pytest.mark.parametrize("line", [line for line, _ in infos()])
def test_every_recorded_vm_has_a_view_unless_it_is_done_or_has_no_nic(line):
    body = dict(infos())[line]
    if "<STATE>6<" in body:
        with pytest.raises(CloudMissing, match="is DONE"):
            view(body)
    elif "<NIC>" not in body:
        with pytest.raises(CloudError, match="has no NIC"):
            view(body)
    else:
        seen = view(body)
        assert len(seen.nics) == body.count("<NIC>")
        assert len(seen.rules) == body.count("<SECURITY_GROUP_RULE>")


def test_a_view_whole():
    seen = view(running())
    assert seen.nics == (Nic("dummynet", "10.78.0.10", "02:00:0a:4e:00:0a", (0, 100)),)
    assert set(seen.rules) == ALL_RULES and len(seen.rules) == 4
    assert seen.at == NOW


def test_a_nic_that_is_being_plugged_in_counts():
    plugging = next(body for _, body in infos() if "NIC><AR_ID><![CDATA[0]]></AR_ID><ATTACH>" in body)
    assert len(view(plugging).nics) == 2


def test_an_alias_and_what_is_led_to_it_from_outside():
    alias = (
        "<NIC_ALIAS><EXTERNAL>YES</EXTERNAL><IP>198.51.100.7</IP><MAC>02:00:c6:33:64:07</MAC><NETWORK>public</NETWORK>"
        "<NETWORK_ID>3</NETWORK_ID><NIC_ID>1</NIC_ID><PARENT>NIC0</PARENT><PARENT_ID>0</PARENT_ID>"
        "<SECURITY_GROUPS>0</SECURITY_GROUPS></NIC_ALIAS>"
    )
    nics = view(running(("</NIC>", f"</NIC>{alias}"))).nics
    assert [nic.kind for nic in nics] == [NicKind.NIC, NicKind.ALIAS]
    assert nics[1] == Nic("public", "198.51.100.7", "02:00:c6:33:64:07", (0,), NicKind.ALIAS, external=True)
    assert not nics[0].external


@pytest.mark.parametrize(
    ("device", "network"),
    [
        ("<TYPE>NIC</TYPE><NETWORK>fast</NETWORK><MAC>02:00:00:00:00:01</MAC><CLASS>0200</CLASS>", "fast"),
        ("<CLASS>0207</CLASS><VENDOR>15b3</VENDOR>", ""),
        ("<CLASS>0302</CLASS><VENDOR>10de</VENDOR>", None),
    ],
)
def test_a_device_that_is_passed_through_is_a_nic_if_it_is_one(device, network):
    found = [nic for nic in view(running(("</NIC>", f"</NIC><PCI>{device}</PCI>"))).nics if nic.kind is NicKind.PCI]
    assert [nic.network for nic in found] == ([] if network is None else [network])


def test_a_nic_without_groups_has_none():
    assert view(running(("<SECURITY_GROUPS>.*?</SECURITY_GROUPS>", ""))).nics[0].security_groups == ()
    assert view(running(("<SECURITY_GROUPS>.*?</SECURITY_GROUPS>", "<SECURITY_GROUPS/>"))).nics[0].security_groups == ()


def test_a_nic_with_an_address_of_version_6():
    assert (
        view(running(("<IP>.*?</IP>", "<IP6_LINK>fe80::1</IP6_LINK><IP6_GLOBAL>2001:db8::a</IP6_GLOBAL>"))).nics[0].ip
        == "2001:db8::a"
    )


@pytest.mark.parametrize(
    ("words", "ports", "addresses"),
    [
        ("<RANGE>80,443, 1024:65535</RANGE>", "80,443,1024:65535", ""),
        ("<RANGE>22</RANGE><IP>10.0.0.4</IP><SIZE>16</SIZE><NETWORK_ID>7</NETWORK_ID>", "22", "10.0.0.4/16"),
        ("<RANGE>22</RANGE><NETWORK_ID>7</NETWORK_ID>", "22", "network 7"),
        ("", "", ""),
    ],
)
def test_ports_and_addresses_of_a_rule(words, ports, addresses):
    rules = view(running((r"<RANGE><!\[CDATA\[22\]\]></RANGE>", words or "<!-- -->"))).rules
    assert Rule(100, "TCP", Direction.INBOUND, ports, addresses) in rules


@pytest.mark.parametrize(
    ("pattern", "becomes", "says"),
    [
        ("<TEMPLATE>.*</TEMPLATE><USER", "<TEMPLATE/><USER", "no TEMPLATE"),
        ("<NIC>.*</NIC>", "", "no NIC"),
        ("<NIC>.*</NIC>", "<NIC>10.0.0.1</NIC>", "no vector"),
        ("<NIC>.*</NIC>", "<NIC/>", "no vector"),
        ("<MAC>.*?</MAC>", "<MAC><A>1</A></MAC>", "no vector"),
        (r"<NETWORK><!\[CDATA\[dummynet.*?</NETWORK>", "", "without NETWORK"),
        ("<MAC>.*?</MAC>", "<MAC/>", "MAC"),
        ("<SECURITY_GROUPS>.*?</SECURITY_GROUPS>", "<SECURITY_GROUPS>0;100</SECURITY_GROUPS>", "'0;100'"),
        ("<SECURITY_GROUPS>.*?</SECURITY_GROUPS>", "<SECURITY_GROUPS>0,-1</SECURITY_GROUPS>", "'-1'"),
        (
            "<SECURITY_GROUP_RULE>.*?</SECURITY_GROUP_RULE>",
            "<SECURITY_GROUP_RULE>all</SECURITY_GROUP_RULE>",
            "no vector",
        ),
        ("<RULE_TYPE>.*?</RULE_TYPE>", "<RULE_TYPE>both</RULE_TYPE>", "both"),
        ("<RULE_TYPE>.*?</RULE_TYPE>", "", "SECURITY_GROUP_RULE"),
        ("<PROTOCOL>.*?</PROTOCOL>", "<PROTOCOL>SCTP</PROTOCOL>", "SCTP"),
        ("<RANGE>.*?</RANGE>", "<RANGE>ssh</RANGE>", "ssh"),
        ("<SECURITY_GROUP_ID>.*?</SECURITY_GROUP_ID>", "", "SECURITY_GROUP_ID"),
    ],
)
def test_a_strange_view_is_an_error(pattern, becomes, says):
    with pytest.raises(CloudError, match=re.escape(says)) as caught:
        view(running((pattern, becomes)))
    assert "cannot be read" in str(caught.value)


@pytest.mark.parametrize("answer", ["<HOST><ID>0</ID></HOST>", running(("<STATE>3<", "<STATE>99<"))])
def test_what_is_no_vm_is_an_error(answer):
    with pytest.raises(CloudError, match="cannot be read"):
        read_outside(pyone.bindings.parseString(answer.encode()), 0, NOW)


@pytest.fixture
def server():
    with ReplayServer() as replay:
        yield replay


@pytest.fixture
def cloud(server):
    connected = Cloud(server.url, "a:b", **FAST)
    yield connected
    connected.close()


async def test_one_request(server, cloud):
    server.answers["one.vm.info"].append(recorded(RUNNING))
    seen = await cloud.outside_view(0)
    assert [nic.network for nic in seen.nics] == ["dummynet"]
    assert server.requests == [("one.vm.info", 0)]


async def test_the_view_of_another_vm_is_none(server, cloud):
    server.answers["one.vm.info"].append(recorded(RUNNING))
    with pytest.raises(CloudError, match="asked for VM 7, it shows VM 0"):
        await cloud.outside_view(7)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (recorded(DONE), CloudError),
        ([False, "[one.vm.info] Error getting virtual machine [0].", 1024, 0, -1], CloudMissing),
        ([True, "", 0], CloudError),
        ([True, 5, 0], CloudError),
        (Misbehaviour.GARBAGE, CloudUnreachable),
        (Misbehaviour.DROP, CloudUnreachable),
    ],
)
async def test_no_view(server, cloud, answer, error):
    server.answers["one.vm.info"].append(answer)
    with pytest.raises(error):
        await cloud.outside_view(0)


SSH = 'RULE=[PROTOCOL="TCP",RULE_TYPE="inbound",RANGE="22"]'
SEALED_RULES = {Rule(100, "TCP", Direction.INBOUND, "22")}


@pytest.fixture
def home(tmp_path):
    """Of a local cloud; what it simulates outlives a restart."""
    hypervisor = SimulatedHypervisor()
    yield lambda: LocalCloud(tmp_path / "cloud", hypervisor=hypervisor, knobs=CloudSettings(visible_delay=(0.0, 0.0)))
    hypervisor.close()


def begun(local, network):
    """A client of the local cloud, and the id of a VM in the network with this id, which need not run for a view."""
    one = pyone.OneServer(local.url, session=local.session)
    return one, one.vm.allocate(f'CPU="0.1"\nMEMORY="64"\nNIC=[NETWORK_ID="{network}"]', True)


async def seen_of(local, vm):
    async with Cloud(local.url, local.session, **FAST) as cloud:
        return await cloud.outside_view(vm)


async def test_a_sealed_vm_and_an_open_one(home):
    with home() as local:
        _, vm = begun(local, 1)
        sealed = await seen_of(local, vm)
        assert [(nic.network, nic.security_groups, nic.kind) for nic in sealed.nics] == [
            ("sealed", (100,), NicKind.NIC)
        ]
        assert sealed.nics[0].ip.startswith("127.") and sealed.nics[0].mac
        assert set(sealed.rules) == SEALED_RULES
        open_one = await seen_of(local, begun(local, 0)[1])
        assert {(rule.protocol, rule.direction, rule.ports) for rule in open_one.rules} == {
            ("ALL", Direction.INBOUND, ""),
            ("ALL", Direction.OUTBOUND, ""),
        }


async def test_a_group_that_is_opened_meanwhile(home):
    with home() as local:
        one, vm = begun(local, 1)
        one.secgroup.update(100, f'{SSH}\nRULE=[PROTOCOL="TCP",RULE_TYPE="outbound",RANGE="443"]', 0)
        opened = {*SEALED_RULES, Rule(100, "TCP", Direction.OUTBOUND, "443")}
        assert set((await seen_of(local, vm)).rules) == opened
    with home() as local:
        assert set((await seen_of(local, vm)).rules) == opened
        one = pyone.OneServer(local.url, session=local.session)
        one.secgroup.update(100, SSH, 0)
        assert set((await seen_of(local, vm)).rules) == SEALED_RULES


async def test_a_nic_that_comes_and_goes(home):
    with home() as local:
        one, vm = begun(local, 1)
        one.vm.deploy(vm, 0, False, 0, "")
        async with Cloud(local.url, local.session, **FAST) as cloud:
            await cloud.wait_running(vm, within=20)
            one.vm.attachnic(vm, 'NIC=[NETWORK_ID="0"]')
            both = await cloud.outside_view(vm)
            assert [nic.network for nic in both.nics] == ["sealed", "open"]
            assert {rule.group for rule in both.rules} == {0, 100}
            await cloud.wait_running(vm, within=20)
            one.vm.detachnic(vm, 1)
            await cloud.wait_running(vm, within=20)
            left = await cloud.outside_view(vm)
            assert ([nic.network for nic in left.nics], set(left.rules)) == (["sealed"], SEALED_RULES)
            await cloud.terminate(vm, within=20)
            with pytest.raises(CloudMissing, match="is DONE"):
                await cloud.outside_view(vm)
