"""The events that the local cloud publishes: oned's frames, on loopback, to nobody's cost."""

import base64
import re
import xml.etree.ElementTree as ElementTree

import pytest
import zmq

from orchestrator.localcloud.hypervisors.simulated import SimulatedHypervisor
from orchestrator.localcloud.published import address_of
from orchestrator.localcloud.server import LocalCloud
from tests.conformance.localcloud_world import QUICK, until, world

WITHIN = 20_000
"""Milliseconds until a message is late."""
LIFE = ("ACTIVE/LCM_INIT", "ACTIVE/PROLOG", "ACTIVE/BOOT", "ACTIVE/RUNNING")
END = ("ACTIVE/SHUTDOWN", "ACTIVE/EPILOG", "DONE/LCM_INIT")


class Listener:
    """A subscriber as OpenNebula's documentation shows one. It has missed what came before it was heard of."""

    def __init__(self, address, topic="EVENT STATE VM/"):
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.SUB)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt_string(zmq.SUBSCRIBE, topic)
        self.socket.connect(address)

    def next(self):
        """Key and content of the next message."""
        assert self.socket.poll(WITHIN), "no message came"
        key, content = self.socket.recv_multipart()
        return key.decode(), content

    def until(self, end):
        """The keys from here to the first that holds this word."""
        keys = [self.next()[0]]
        while end not in keys[-1]:
            keys.append(self.next()[0])
        return keys

    def close(self):
        self.socket.close()
        self.context.term()


@pytest.fixture
def here(tmp_path):
    with world(tmp_path) as found:
        yield found


@pytest.fixture
def listen(here):
    listeners = []

    def begin(topic="EVENT STATE VM/"):
        listener = Listener(here.cloud.events, topic)
        listeners.append(listener)
        heard(listener, here, topic)
        return listener

    yield begin
    for listener in listeners:
        listener.close()


def heard(listener, here, topic):
    """Return once the cloud knows of the subscription: it hears of it after the connection was made."""
    probe = f"{topic}ready".encode()

    def told():
        here.cloud.publisher._waiting.put(((probe, b""),))
        return listener.socket.poll(50)

    until("the cloud knows of the subscriber", told)
    while listener.socket.poll(100):
        listener.socket.recv_multipart()


def test_each_state_of_a_life_in_order(here, listen):
    listener = listen()
    vm = here.one.template.instantiate(here.template(), "life", False, "", False)
    assert listener.until("RUNNING") == [f"EVENT STATE VM/{each}/{vm} " for each in ("PENDING/LCM_INIT", *LIFE)]
    here.act(vm, "terminate-hard", "DONE")
    assert listener.until("DONE") == [f"EVENT STATE VM/{each}/{vm} " for each in END]


def test_the_other_key_begins_with_the_id(here, listen):
    vm = here.vm()
    listener = listen(f"EVENT VM {vm}/")
    other = here.vm()
    for each in (other, vm):
        here.act(each, "terminate-hard", "DONE")
    assert listener.until("DONE") == [f"EVENT VM {vm}/{each} " for each in END]


def test_the_content_is_the_vm_as_it_is_then(here, listen):
    listener = listen("EVENT STATE VM/ACTIVE/RUNNING/")
    vm = here.one.template.instantiate(here.template(), "a (name)", False, 'CONTEXT=[KEY="secret"]\nTAG="1"', False)
    _, content = listener.next()
    message = ElementTree.fromstring(base64.b64decode(content, validate=True))
    assert message.tag == "HOOK_MESSAGE"
    assert {each.tag: each.text for each in message if len(each) == 0} == {
        "HOOK_TYPE": "STATE",
        "HOOK_OBJECT": "VM",
        "STATE": "ACTIVE",
        "LCM_STATE": "RUNNING",
        "RESOURCE_ID": str(vm),
        "REMOTE_HOST": "localhost",
    }
    assert [message.findtext(f"VM/{name}") for name in ("ID", "NAME", "STATE", "LCM_STATE")] == [
        str(vm),
        "a (name)",
        "3",
        "3",
    ]
    assert message.findtext("VM/USER_TEMPLATE/TAG") == "1"
    assert message.findtext("VM/HISTORY_RECORDS/HISTORY/HOSTNAME") == "localhost"
    assert message.find("VM/TEMPLATE/CONTEXT") is None and b"secret" not in base64.b64decode(content)


def test_a_vm_without_a_host(here, listen):
    listener = listen()
    here.one.template.instantiate(here.template(), "held", True, "", False)
    key, content = listener.next()
    assert key.startswith("EVENT STATE VM/HOLD/LCM_INIT/")
    assert ElementTree.fromstring(base64.b64decode(content)).findtext("REMOTE_HOST") == ""


def test_a_machine_that_died_is_told(here, listen):
    vm = here.vm()
    listener = listen()
    here.hypervisor.power_off(vm)
    assert listener.until("POWEROFF") == [f"EVENT STATE VM/POWEROFF/LCM_INIT/{vm} "]


def test_a_subscriber_that_does_not_read_holds_nobody_up(here):
    """It loses messages, and the cloud goes on."""
    context = zmq.Context()
    deaf = context.socket(zmq.SUB)
    deaf.setsockopt(zmq.RCVHWM, 1)
    deaf.setsockopt(zmq.LINGER, 0)
    deaf.setsockopt_string(zmq.SUBSCRIBE, "")
    deaf.connect(here.cloud.events)
    try:
        vm = here.vm()
        for _ in range(5000):  # far more than the queues of both ends and what is between them take
            with here.cloud.cloud.lock:
                here.cloud.publisher.announce(here.cloud.cloud.store.vms.get(vm))
        here.act(vm, "terminate-hard", "DONE")
    finally:
        deaf.close()
        context.term()


def test_an_event_can_be_lost(here, listen):
    listener = listen()
    here.cloud.inject({"kind": "lose_event", "method": "RUNNING"})
    vm = here.vm()
    here.act(vm, "terminate-hard", "DONE")
    assert not any("RUNNING" in key for key in listener.until("DONE"))
    here.vm()
    assert "RUNNING" in listener.until("RUNNING")[-1]


def test_an_event_can_be_repeated(here, listen):
    listener = listen("EVENT STATE VM/ACTIVE/RUNNING/")
    here.cloud.inject({"kind": "repeat_event", "method": "*", "times": 100})
    here.vm()
    assert listener.next() == listener.next()


def test_an_event_can_be_late(here, listen):
    listener = listen()
    here.cloud.inject({"kind": "delay_event", "method": "RUNNING", "seconds": 0.3})
    vm = here.vm()
    here.act(vm, "terminate-hard", "DONE")
    states = [re.fullmatch(r"EVENT STATE VM/\w+/(\w+)/\d+ ", key)[1] for key in listener.until("RUNNING")]
    assert states.index("RUNNING") > states.index("SHUTDOWN")


@pytest.mark.parametrize(
    "order",
    [
        {"kind": "lose_event"},
        {"kind": "delay_event", "method": "RUNNING"},
        {"kind": "delay_event", "method": "RUNNING", "seconds": "soon"},
        {"kind": "repeat_event", "method": "RUNNING", "seconds": 1},
    ],
)
def test_what_is_no_fault_of_events(here, order):
    with pytest.raises(ValueError):
        here.cloud.inject(order)


def test_the_address_stays_over_a_restart(tmp_path):
    hypervisor = SimulatedHypervisor()
    addresses = []
    for _ in range(2):
        with LocalCloud(tmp_path / "cloud", hypervisor=hypervisor, knobs=QUICK) as cloud:
            addresses.append(cloud.events)
            assert address_of(cloud.home) == cloud.events
    assert addresses[0] == addresses[1]
    assert re.fullmatch(r"tcp://127\.0\.0\.1:\d+", addresses[0])
    hypervisor.close()


@pytest.mark.parametrize("kept", ["tcp://0.0.0.0:5000", "no address", "tcp://127.0.0.1:taken"])
def test_a_port_that_is_not_to_be_had_is_another(tmp_path, kept):
    context = zmq.Context()
    taken = context.socket(zmq.PUB)
    port = taken.bind_to_random_port("tcp://127.0.0.1")
    hypervisor = SimulatedHypervisor()
    (tmp_path / "events").write_text(kept.replace("taken", str(port)))
    try:
        with LocalCloud(tmp_path, hypervisor=hypervisor, knobs=QUICK) as cloud:
            assert cloud.events.startswith("tcp://127.0.0.1:") and not cloud.events.endswith(f":{port}")
    finally:
        taken.close()
        context.term()
        hypervisor.close()


def test_a_home_without_a_cloud_has_no_address(tmp_path):
    assert address_of(tmp_path) == ""
