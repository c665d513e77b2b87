"""Nothing can be reached from a sealed machine, by the process or by root, and the trace says what was tried."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.driver import Mayfly, TestCloud

TRY = """
import errno, json, socket, sys
tried = []
for kind, address, port in json.loads(sys.argv[1]):
    family = socket.AF_INET6 if ':' in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM if kind == 'udp' else socket.SOCK_STREAM) as s:
        s.settimeout(2)
        try:
            s.connect((address, port))
            if kind == 'udp':
                s.send(b'\\x12\\x34\\x01\\x00\\x00\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x02\\x00\\x01')
                s.recv(512)
            tried.append([address, port, 'REACHED'])
        except TimeoutError:
            tried.append([address, port, 'timeout'])
        except OSError as error:
            tried.append([address, port, errno.errorcode.get(error.errno, str(error))])
print(json.dumps(tried))
"""


@contextmanager
def listener(address: str) -> Iterator[tuple[int, list[str]]]:
    """A server on `address` that notes whoever connects: the proof from the outside."""
    seen: list[str] = []
    with socket.create_server((address, 0)) as server:
        server.settimeout(0.2)
        stop = threading.Event()

        def accept() -> None:
            while not stop.is_set():
                try:
                    connection, peer = server.accept()
                except TimeoutError:
                    continue
                seen.append(str(peer))
                connection.close()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield server.getsockname()[1], seen
        finally:
            stop.set()
            thread.join()


def own_address() -> str:
    """The host's own address: the one that it would use to go out; loopback when it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1, RFC 5737: nothing is sent by connecting a UDP socket
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def test_no_address_can_be_reached_and_the_trace_has_every_try(mayfly: Mayfly, cloud: TestCloud) -> None:
    own = own_address()
    with (
        mayfly.running("run", "--name", "neighbour", "--", "sh", "-c", "echo ready; sleep 60"),
        listener("127.0.0.1") as (loopback_port, on_loopback),
        listener(own) as (own_port, on_own),
    ):
        [vm] = cloud.client().vmpool.infoextended(-2, -1, -1, -1).VM
        targets = [
            ("tcp", "127.0.0.1", loopback_port),  # the host's loopback, as the guest would name it
            ("tcp", "10.0.2.2", loopback_port),  # the host's loopback, as QEMU's user networking names it
            ("tcp", own, own_port),
            ("tcp", vm.TEMPLATE["NIC"]["IP"], 2222),  # another VM
            ("udp", "10.0.2.3", 53),  # DNS
            ("tcp", "10.0.2.3", 53),
            ("udp", "9.9.9.9", 53),
            ("tcp", "169.254.169.254", 80),  # a cloud's metadata service
            ("tcp", "1.1.1.1", 443),  # a public address
            ("tcp", "fe80::2", 22),
        ]
        done = mayfly("run", "--name", "reach", "--", "python3", "-c", TRY, json.dumps(targets))
    assert done.exit_code == 0, done.stderr
    assert [entry for entry in json.loads(done.stdout) if entry[2] == "REACHED"] == []
    assert len(json.loads(done.stdout)) == len(targets)
    assert on_loopback == []
    assert on_own == []

    task = next(each["id"] for each in mayfly("list", "--json").json() if each["name"] == "reach")
    network = mayfly("trace", task, "--view", "steward", "--json").json()["network"]["listed"]
    assert {(each["address"], each["port"]) for each in network} >= {(address, port) for _, address, port in targets}
    # 127.0.0.0/8 is the process's own, in a network namespace where nobody listens: begun there, and refused
    begun = [each["address"] for each in network if each["outcome"] in ("ok", "EINPROGRESS")]
    assert [address for address in begun if not address.startswith("127.")] == []
    probes = mayfly("show", task, "--json").json()["attempts"][0]["machine"]["seal"]
    assert len(probes) >= 5
    assert [probe for probe in probes if probe["reached"]] == []


def test_a_seal_that_does_not_hold_means_no_data(mayfly: Mayfly, cloud: TestCloud) -> None:
    """On the open network the probes do reach something: the task fails before its input is copied."""
    inventory = mayfly.home.parent / "inventory.yml"
    inventory.write_text(
        "pools:\n  hosts:\n    leaky:\n"
        "      mayfly_image: debian-12\n      mayfly_network: open\n      ansible_port: 2222\n"
    )
    leaky = mayfly.with_environment(MAYFLY_INVENTORY=str(inventory))
    done = leaky("run", "-p", "leaky", "-i", "examples/penguins/data", "--", "ls", "/task/in")
    assert done.exit_code == 125
    told = leaky("show", leaky("list", "--json").json()[0]["id"], "--json").json()
    assert told["reason"] == "seal_broken"
    stages = [stage["stage"] for stage in told["attempts"][0]["stages"]]
    assert "SEALING" in stages
    assert "STAGING_IN" not in stages
    assert any(probe["reached"] for probe in told["attempts"][0]["machine"]["seal"])
