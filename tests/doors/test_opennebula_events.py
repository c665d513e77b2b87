"""OpenNebula's events: they make the client look at once, and it believes nothing else of them."""

import asyncio
import base64
import logging
import re
import socket as sockets
from collections import Counter

import pytest
import zmq

from orchestrator.domain.errors import NotDestroyed, NotPossible
from orchestrator.localcloud.hypervisors.simulated import SimulatedHypervisor
from orchestrator.localcloud.server import LocalCloud
from orchestrator.opennebula import Cloud, Phase, VmRequest, events_address
from orchestrator.opennebula.events import EventStream, checked_address, read_key
from tests.doors.test_opennebula_localcloud import base_image
from tests.replay_server import ReplayServer, recorded

WITHIN = 30
RARELY = {"poll_seconds": 3600, "tick_seconds": 3600}
"""So rarely that no test that waits for a tick would end."""
RUNNING, BOOTING, SHUTDOWN, DONE, POWEROFF = (recorded(line) for line in (26, 119, 106, 108, 36))


class Oned:
    """Publishes as oned's hook manager does, and whatever else a test wants."""

    def __init__(self, address="tcp://127.0.0.1:*"):
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.XPUB)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(address)
        self.address = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    async def subscribed(self):
        """Return when somebody has subscribed."""
        async with asyncio.timeout(WITHIN):
            while not self.socket.poll(0) or not self.socket.recv().startswith(b"\x01"):
                await asyncio.sleep(0.01)

    def tell(self, state, vm_id=0):
        self.send(f"EVENT STATE VM/{state}/{vm_id} ".encode(), base64.b64encode(b"<HOOK_MESSAGE/>"))

    def send(self, *frames):
        self.socket.send_multipart(frames)

    def close(self):
        self.socket.close()
        self.context.term()


@pytest.fixture
def oned():
    running = Oned()
    yield running
    running.close()


@pytest.fixture
def server():
    with ReplayServer() as replay:
        yield replay


@pytest.fixture
def cloud(server, oned):
    connected = Cloud(
        server.url, "a:b", timeout=5, patience=0.2, requests_per_second=1000, events=oned.address, **RARELY
    )
    yield connected
    connected.close()


def shown(server, *replies):
    """What the looks show of VM 0, one after the other; the last for ever."""
    for reply in replies:
        body = re.sub("<ID>[0-9]+</ID>", "<ID>0</ID>", reply[1], count=1)
        server.answers["one.vmpool.infoset"].append([True, f"<VM_POOL>{body}</VM_POOL>", 0])


def looked(server):
    return len(server.asked("one.vmpool.infoset"))


async def until(condition):
    async with asyncio.timeout(WITHIN):
        while not condition():
            await asyncio.sleep(0.01)


# -- keys


@pytest.mark.parametrize(
    ("frame", "name", "settled"),
    [
        (b"EVENT STATE VM/ACTIVE/RUNNING/7 ", "RUNNING", True),
        (b"EVENT STATE VM/ACTIVE/RUNNING/7", "RUNNING", True),
        (b"EVENT STATE VM/DONE/LCM_INIT/7 ", "DONE", True),
        (b"EVENT STATE VM/POWEROFF/LCM_INIT/7 ", "POWEROFF", True),
        (b"EVENT STATE VM/ACTIVE/BOOT_FAILURE/7 ", "BOOT_FAILURE", True),
        (b"EVENT STATE VM/ACTIVE/UNKNOWN/7 ", "UNKNOWN", True),
        (b"EVENT STATE VM/ACTIVE/BOOT/7 ", "BOOT", False),
        (b"EVENT STATE VM/ACTIVE/EPILOG/7 ", "EPILOG", False),
        (b"EVENT STATE VM/HOLD/LCM_INIT/7 ", "HOLD", False),
    ],
)
def test_what_a_key_says(frame, name, settled):
    announced = read_key(frame)
    assert (announced.vm_id, announced.state_name, announced.settled) == (7, name, settled)


HOSTILE = [
    b"",
    b"EVENT STATE VM/",
    b"EVENT STATE VM/ACTIVE/RUNNING/",
    b"EVENT STATE VM/ACTIVE/RUNNING/-1 ",
    b"EVENT STATE VM/ACTIVE/RUNNING/7\n",
    b"EVENT STATE VM/ACTIVE/RUNNING/7  ",
    b"EVENT STATE VM/ACTIVE/RUNNING/" + b"9" * 10,
    b"EVENT STATE VM/ACTIVE/RUNNING/" + "\u0667".encode() + b" ",
    b"EVENT STATE VM/active/running/7 ",
    b"EVENT STATE VM/ACTIVE/NO_SUCH_STATE/7 ",
    b"EVENT STATE VM/NO_SUCH_STATE/RUNNING/7 ",
    b"EVENT STATE VM/__CLASS__/MRO/7 ",
    b"EVENT STATE VM/" + b"A" * 100 + b"/RUNNING/7 ",
    b"EVENT STATE VM/DONE/7 ",
    b"EVENT STATE HOST/ERROR//7 ",
    b"EVENT VM 7/ACTIVE/RUNNING ",
    b"EVENT STATE VM/ACTIVE/RUNNING/7 \x00",
    b"\xff\xfe",
]


@pytest.mark.parametrize("frame", HOSTILE)
def test_what_is_no_key(frame):
    assert read_key(frame) is None


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        ("http://localhost:2633/RPC2", "tcp://localhost:2101"),
        ("https://cloud.example.org/RPC2", "tcp://cloud.example.org:2101"),
        ("http://[2001:db8::1]:2633/RPC2", "tcp://[2001:db8::1]:2101"),
    ],
)
def test_where_events_are_by_default(endpoint, address):
    assert checked_address(events_address(endpoint)) == address


@pytest.mark.parametrize(
    "address",
    ["", "localhost:2101", "http://localhost:2101", "tcp://localhost", "tcp://:2101", "tcp://a:b", "tcp://a:1/x"],
)
def test_an_address_that_is_none(address):
    with pytest.raises(NotPossible, match="ONE_ZMQ"):
        EventStream(address)


# -- looking at once


async def test_a_start_is_seen_when_it_is_announced(server, oned, cloud):
    shown(server, BOOTING, RUNNING)
    waiting = asyncio.create_task(cloud.wait_running(0, within=WITHIN))
    await oned.subscribed()
    await until(lambda: looked(server) == 1)
    oned.tell("ACTIVE/RUNNING")
    assert (await waiting).phase is Phase.RUNNING
    assert looked(server) == 2


async def test_an_end_is_seen_when_it_is_announced(server, oned, cloud):
    shown(server, RUNNING, SHUTDOWN, DONE)
    server.answers["one.vm.action"].append([True, 0, 0])
    ending = asyncio.create_task(cloud.terminate(0, within=WITHIN))
    await oned.subscribed()
    await until(lambda: server.asked("one.vm.action"))
    oned.tell("ACTIVE/SHUTDOWN")
    oned.tell("ACTIVE/EPILOG")
    oned.tell("DONE/LCM_INIT")
    await until(lambda: looked(server) == 2)
    await ending
    assert server.asked("one.vm.action") == [("terminate-hard", 0)]


async def test_a_machine_that_died_is_seen_when_it_is_announced(server, oned, cloud):
    shown(server, RUNNING, POWEROFF)
    gone = asyncio.create_task(cloud.until_gone(0))
    await oned.subscribed()
    await until(lambda: looked(server) == 1)
    oned.tell("POWEROFF/LCM_INIT")
    assert (await gone).state_name == "POWEROFF"


async def test_only_the_vm_that_was_announced_is_looked_at(server, oned, cloud):
    both = "".join(re.sub("<ID>[0-9]+</ID>", f"<ID>{n}</ID>", BOOTING[1], count=1) for n in (0, 1))
    server.answers["one.vmpool.infoset"].append([True, f"<VM_POOL>{both}</VM_POOL>", 0])
    shown(server, RUNNING)
    waits = [asyncio.create_task(cloud.wait_running(n, within=WITHIN)) for n in (0, 1)]
    await oned.subscribed()
    await until(lambda: looked(server) == 1)
    oned.tell("ACTIVE/RUNNING")
    assert (await waits[0]).phase is Phase.RUNNING
    assert [asked[0] for asked in server.asked("one.vmpool.infoset")] == ["0,1", "0"]
    waits[1].cancel()
    await asyncio.gather(*waits, return_exceptions=True)


async def test_what_is_announced_before_it_is_written_is_looked_at_again(server, oned, cloud):
    """oned publishes a state a moment before its database has it."""
    shown(server, BOOTING, BOOTING, BOOTING, RUNNING)
    waiting = asyncio.create_task(cloud.wait_running(0, within=WITHIN))
    await oned.subscribed()
    await until(lambda: looked(server) == 1)
    oned.tell("ACTIVE/RUNNING")
    assert (await waiting).phase is Phase.RUNNING
    assert looked(server) == 4


async def test_passing_states_and_repeated_ones_cause_no_look(server, oned, cloud):
    shown(server, RUNNING, POWEROFF)
    gone = asyncio.create_task(cloud.until_gone(0))
    await oned.subscribed()
    await until(lambda: looked(server) == 1)
    for state in ("ACTIVE/PROLOG", "ACTIVE/BOOT", "ACTIVE/RUNNING", "ACTIVE/RUNNING", "ACTIVE/SHUTDOWN_POWEROFF"):
        oned.tell(state)
    oned.tell("POWEROFF/LCM_INIT", 1)
    oned.tell("POWEROFF/LCM_INIT")
    await gone
    assert looked(server) == 2


# -- what is forged


async def test_a_forged_end_closes_nothing(server, oned, cloud):
    """Only OpenNebula's API says that a VM is DONE."""
    shown(server, RUNNING)
    gone = asyncio.create_task(cloud.until_gone(0))
    await oned.subscribed()
    await until(lambda: looked(server) == 1)
    oned.tell("DONE/LCM_INIT")
    await until(lambda: looked(server) >= 5)  # one look, and three more: oned may be about to write it
    assert not gone.done()
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)


async def test_a_vm_that_is_said_to_be_done_is_ended_all_the_same(server, oned, cloud):
    shown(server, RUNNING)
    server.answers["one.vm.action"].append([True, 0, 0])
    ending = asyncio.create_task(cloud.terminate(0, within=0.5))
    await oned.subscribed()
    for _ in range(10):
        oned.tell("DONE/LCM_INIT")
    with pytest.raises(NotDestroyed):
        await ending


async def test_a_forged_start_gives_nobody_an_address(server, oned, cloud):
    shown(server, BOOTING)
    waiting = asyncio.create_task(cloud.wait_running(0, within=WITHIN))
    await oned.subscribed()
    await until(lambda: looked(server) == 1)
    oned.send(
        b"EVENT STATE VM/ACTIVE/RUNNING/0 ",
        base64.b64encode(b"<HOOK_MESSAGE><VM><ID>0</ID><NIC><IP>192.0.2.66</IP></NIC></VM></HOOK_MESSAGE>"),
    )
    await until(lambda: looked(server) == 5)
    assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_a_flood_causes_no_more_looks_than_polling_would(server, oned):
    shown(server, RUNNING)
    cloud = Cloud(
        server.url, "a:b", requests_per_second=1000, events=oned.address, poll_seconds=3000, tick_seconds=3600
    )
    try:
        gone = asyncio.create_task(cloud.until_gone(0))
        await oned.subscribed()
        await until(lambda: looked(server) == 1)
        for state in ("DONE/LCM_INIT", "POWEROFF/LCM_INIT") * 500:
            oned.tell(state)
        oned.tell("ACTIVE/BOOT_FAILURE")
        await until(lambda: cloud._watch._early.moment() != float("inf") and looked(server) == 6)
        for _ in range(20):
            oned.tell("DONE/LCM_INIT")
            await asyncio.sleep(0.01)
        assert looked(server) == 6  # the first, and five at once; the next is a poll's time away
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
    finally:
        cloud.close()


async def test_events_of_a_vm_that_may_not_be_seen_are_no_reason_to_look_on(server, oned, cloud):
    server.answers["one.vmpool.infoset"].append([True, "<VM_POOL></VM_POOL>", 0])
    server.answers["one.vm.info"].append([False, "Not authorized to perform USE VM [0].", 512, -1, -1])
    gone = asyncio.create_task(cloud.until_gone(0))
    await oned.subscribed()
    await until(lambda: len(server.asked("one.vm.info")) == 1)
    oned.tell("DONE/LCM_INIT")
    await until(lambda: cloud._watch._early.moment() == float("inf") and looked(server) == 5)
    assert not gone.done()
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)


async def test_what_cannot_be_read_is_told_once_and_passed_over(server, oned, cloud, caplog):
    caplog.set_level(logging.INFO, logger="orchestrator.opennebula")
    shown(server, RUNNING, POWEROFF)
    gone = asyncio.create_task(cloud.until_gone(0))
    await oned.subscribed()
    await until(lambda: looked(server) == 1)
    for frame in HOSTILE:
        if frame.startswith(b"EVENT STATE VM/"):
            oned.send(frame, b"!!! no base64")
    oned.send(b"EVENT STATE VM/POWEROFF/LCM_INIT/0 ")
    oned.send(b"EVENT STATE VM/POWEROFF/LCM_INIT/0 ", b"", b"")
    oned.send(b"EVENT STATE VM/" + bytes(100_000), b"")
    assert looked(server) == 1
    oned.tell("POWEROFF/LCM_INIT")
    await gone
    assert caplog.text.count("is no event that we know") == 1


async def test_a_message_that_is_too_large_is_not_taken_in(server, oned, cloud):
    """The connection ends, and comes again."""
    shown(server, RUNNING, POWEROFF)
    gone = asyncio.create_task(cloud.until_gone(0))
    await oned.subscribed()
    await until(lambda: cloud._watch.stream.connected)
    oned.send(b"EVENT STATE VM/POWEROFF/LCM_INIT/0 ", bytes(2 << 20))
    await oned.subscribed()
    await until(lambda: cloud._watch.stream.connected)
    assert looked(server) <= 2
    oned.tell("POWEROFF/LCM_INIT")
    await gone


# -- a stream that is not there


def unused_address():
    with sockets.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


async def test_nobody_publishes_told_once_and_polled(server, caplog):
    caplog.set_level(logging.INFO, logger="orchestrator.opennebula")
    shown(server, *([BOOTING] * 30), RUNNING)
    address = unused_address()
    async with Cloud(server.url, "a:b", requests_per_second=1000, poll_seconds=0.02, events=address) as cloud:
        assert (await cloud.wait_running(0, within=WITHIN)).phase is Phase.RUNNING
        assert await cloud.events_come(within=WITHIN) is False
    assert [each.message.split(",")[0] for each in caplog.records if "nobody answers" in each.message] == [
        f"nobody answers at {address}"
    ]


async def test_an_address_that_is_guessed_is_tried_once(server):
    address = unused_address()
    async with Cloud(server.url, "a:b", events=address, events_once=True) as cloud:
        assert await cloud.events_come(within=WITHIN) is False
        await until(lambda: cloud._watch.stream._context is None)
        oned = Oned(address)
        try:
            shown(server, RUNNING)
            await cloud.wait_running(0, within=WITHIN)
            assert not oned.socket.poll(300)
        finally:
            oned.close()


async def test_an_address_that_was_given_is_tried_on(server):
    address = unused_address()
    async with Cloud(server.url, "a:b", events=address) as cloud:
        assert await cloud.events_come(within=WITHIN) is False
        oned = Oned(address)
        try:
            await until(lambda: cloud._watch.stream.connected)
        finally:
            oned.close()


async def test_an_address_that_zeromq_cannot_take_is_told_and_no_hindrance(server, caplog):
    shown(server, BOOTING, RUNNING)
    async with Cloud(server.url, "a:b", requests_per_second=1000, poll_seconds=0.02, events="tcp://e x:1") as cloud:
        assert (await cloud.wait_running(0, within=WITHIN)).phase is Phase.RUNNING
        assert await cloud.events_come(within=WITHIN) is False
    assert caplog.text.count("cannot be had from tcp://e x:1") == 1


async def test_what_is_no_publisher(server):
    """Something that takes connections and says nothing."""
    with sockets.create_server(("127.0.0.1", 0)) as mute:
        address = f"tcp://127.0.0.1:{mute.getsockname()[1]}"
        shown(server, BOOTING, RUNNING)
        async with Cloud(server.url, "a:b", requests_per_second=1000, poll_seconds=0.02, events=address) as cloud:
            assert (await cloud.wait_running(0, within=WITHIN)).phase is Phase.RUNNING
            assert await cloud.events_come(within=0.1) is False


async def test_without_events_nothing_listens(server):
    async with Cloud(server.url, "a:b") as cloud:
        assert cloud.events_address is None
        assert await cloud.events_come(within=WITHIN) is False


async def test_a_stream_that_goes_is_told_and_does_without(server, oned, caplog):
    caplog.set_level(logging.INFO, logger="orchestrator.opennebula")
    shown(server, BOOTING, RUNNING)
    async with Cloud(
        server.url, "a:b", requests_per_second=1000, poll_seconds=0.05, tick_seconds=3600, events=oned.address
    ) as cloud:
        waiting = asyncio.create_task(cloud.wait_running(0, within=WITHIN))
        await oned.subscribed()
        await until(lambda: looked(server) == 1)
        oned.tell("ACTIVE/RUNNING")
        await waiting
        await until(lambda: cloud._watch.relies_on_events)
        gone = asyncio.create_task(cloud.terminate(0, within=WITHIN))
        oned.close()
        await until(lambda: not cloud._watch.relies_on_events)
        server.answers["one.vmpool.infoset"].clear()
        shown(server, DONE)
        server.answers["one.vm.action"].append([True, 0, 0])
        await gone
    assert caplog.text.count("come no more") == 1


# -- against a whole cloud


REQUEST = VmRequest("mayfly", 1, 256 * 2**20, "sealed", {}, {"MAYFLY_VM": "vm-1"})
NO_HURRY = {"poll_seconds": 0.2, "tick_seconds": 1.0, "requests_per_second": 1000}


class Far:
    """A local cloud, a client of it that follows its events or does not, and what that asked."""

    def __init__(self, running, cloud, asked):
        self.running, self.cloud, self.asked = running, cloud, asked

    async def live(self):
        """One VM from its making to its end, watched in between; its requests that are no pool calls."""
        version = await self.cloud.promoted("small")
        before = Counter(self.asked)
        vm_id = await self.cloud.instantiate(version.template_id, REQUEST)
        assert (await self.cloud.wait_running(vm_id, within=WITHIN)).phase is Phase.RUNNING
        watching = asyncio.create_task(self.cloud.until_gone(vm_id))
        await asyncio.sleep(0)
        await self.cloud.terminate(vm_id, within=WITHIN)
        assert (await watching).phase in (Phase.DONE, Phase.OFF)
        assert (await self.cloud.vm(vm_id)).phase is Phase.DONE
        return [name for name in (Counter(self.asked) - before).elements() if "pool." not in name]


@pytest.fixture(params=["events", "no events"])
async def far(request, tmp_path):
    hypervisor = SimulatedHypervisor()
    asked = []
    with LocalCloud(tmp_path / "cloud", hypervisor=hypervisor) as running:
        events = running.events if request.param == "events" else None
        async with Cloud(
            running.url,
            running.session,
            events=events,
            on_request=lambda method, result, seconds: asked.append(method),
            **NO_HURRY,
        ) as cloud:
            await base_image(cloud, tmp_path)
            yield Far(running, cloud, asked)
        assert not hypervisor.machines()
    hypervisor.close()


async def test_a_vms_life_takes_few_requests(far):
    """Three of ours; the fourth is the test's own look at what is left."""
    for _ in range(3):
        assert sorted(await far.live()) == ["template.instantiate", "vm.action", "vm.deploy", "vm.info"]


async def test_an_account_that_may_not_place_asks_no_more(far):
    far.running.inject({"kind": "fail", "method": "one.vm.deploy", "code": 512, "text": "Not authorized"})
    asked = await far.live()
    assert len(asked) - 1 <= 6, asked


@pytest.mark.parametrize("far", ["events"], indirect=True)
@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "lose_event", "method": "RUNNING"},
        {"kind": "lose_event", "method": "DONE"},
        {"kind": "lose_event", "method": "*"},
        {"kind": "repeat_event", "method": "*"},
        {"kind": "delay_event", "method": "*", "seconds": 0.7},
        {"kind": "delay_event", "method": "RUNNING", "seconds": 1.5},
    ],
    ids=lambda fault: f"{fault['kind']}-{fault['method']}",
)
async def test_whatever_becomes_of_events_vms_live_and_end(far, fault):
    await far.live()
    far.running.inject(fault | {"times": 1000})
    for _ in range(2):
        await far.live()
    far.running.faults.clear()
    await far.live()


@pytest.mark.parametrize("far", ["events"], indirect=True)
async def test_events_are_relied_on_as_long_as_they_come(far, caplog):
    caplog.set_level(logging.INFO, logger="orchestrator.opennebula")
    watch = far.cloud._watch
    await until_relied(far, watch)
    far.running.inject({"kind": "lose_event", "method": "*", "times": 1000})
    async with asyncio.timeout(WITHIN):
        while watch.relies_on_events:
            await far.live()
    assert "an event of OpenNebula's is missing" in caplog.text
    far.running.faults.clear()
    await until_relied(far, watch)


async def until_relied(far, watch):
    async with asyncio.timeout(WITHIN):
        while not watch.relies_on_events:
            await far.live()


@pytest.mark.parametrize("far", ["events"], indirect=True)
async def test_a_tick_is_slower_while_events_come(far):
    watch = far.cloud._watch
    await until_relied(far, watch)
    with watch.waiting(10**6, urgent=True):
        assert watch._interval() == pytest.approx(1.0)
        watch.stream.connected = False
        assert watch._interval() == pytest.approx(0.2)
        watch.stream.connected = True
    with watch.waiting(10**6, urgent=False):
        assert watch._interval() == pytest.approx(5.0)


async def test_events_come_again_from_a_cloud_that_starts_again(tmp_path):
    """As when oned is restarted: machines go on, and the stream is there again."""
    hypervisor = SimulatedHypervisor()
    home = tmp_path / "cloud"
    with LocalCloud(home, hypervisor=hypervisor) as running:
        url, session, events = running.url, running.session, running.events
        cloud = Cloud(url, session, events=events, **NO_HURRY)
        version = await base_image(cloud, tmp_path)
        vm_id = await cloud.instantiate(version.template_id, REQUEST)
        await cloud.wait_running(vm_id, within=WITHIN)
        stream = cloud._watch.stream
        await until(lambda: stream.connected)
    await until(lambda: not stream.connected)
    with LocalCloud(home, hypervisor=hypervisor) as running:
        assert (running.url, running.events) == (url, events)
        await until(lambda: stream.connected)
        heard = []
        stream._heard = lambda announced: heard.append((announced.vm_id, announced.state_name))
        await cloud.terminate(vm_id, within=WITHIN)
        await until(lambda: (vm_id, "DONE") in heard)
        cloud.close()
    assert not hypervisor.machines()
    hypervisor.close()
