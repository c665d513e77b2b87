"""The events that oned publishes by ZeroMQ when a VM changes its state, on a loopback port of this cloud's own.

The frames are those of oned's hook manager (`src/hm_mad/one_hm.rb`, `HookStateVM::format_message` and "Using Hooks" in
OpenNebula's documentation): for each new state two messages of two frames each, the second frame the same HOOK_MESSAGE
in base64, the first a key, which ends in a space:

    EVENT VM 7/ACTIVE/RUNNING
    EVENT STATE VM/ACTIVE/RUNNING/7

One thing is left out on purpose, the VM's CONTEXT: a loopback port is open to every user of the machine, and the
CONTEXT holds the guest's private host key.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import logging
import queue
import threading
from pathlib import Path

import zmq

from orchestrator.localcloud.cloud import Cloud
from orchestrator.localcloud.markup import element, plain
from orchestrator.localcloud.model import Lcm, Vm, VmState
from orchestrator.localcloud.published import address_of, keep_address
from orchestrator.localcloud.vm_bodies import vm_body

log = logging.getLogger(__name__)

_LOOPBACK = "tcp://127.0.0.1:"
_LINGER_MILLISECONDS = 100
"""How long the last messages may take to leave when the cloud stops."""

Message = tuple[bytes, bytes]


class Publisher:
    """Publishes to whoever listens; what a subscriber does not take in time is lost to it, as with oned's."""

    def __init__(self, cloud: Cloud) -> None:
        self.address = ""
        """`tcp://127.0.0.1:PORT`, once it was started."""
        self._cloud = cloud
        self._waiting: queue.SimpleQueue[tuple[Message, ...] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Publish on the port of last time if it is free. Raises zmq.ZMQError."""
        context = zmq.Context()
        socket = context.socket(zmq.PUB)
        socket.setsockopt(zmq.LINGER, _LINGER_MILLISECONDS)
        try:
            socket.bind(_kept(self._cloud.home))
        except zmq.ZMQError:
            socket.bind(f"{_LOOPBACK}*")
        self.address = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        keep_address(self._cloud.home, self.address)
        self._thread = threading.Thread(target=self._publish, args=(context, socket), name="events", daemon=True)
        self._thread.start()
        self._cloud.announce = self.announce

    def stop(self) -> None:
        """What waits is published yet."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()

    def announce(self, vm: Vm) -> None:
        """Under the cloud's lock, which it does not hold up: the VM is in a new state."""
        messages = _messages(vm)
        faults, name = self._cloud.faults, vm.state_name
        if faults.take("lose_event", name) is not None:
            return
        if faults.take("repeat_event", name) is not None:
            messages *= 2
        if (late := faults.take("delay_event", name)) is not None:
            self._cloud.after(float(late["seconds"]), lambda: self._waiting.put(messages))
        else:
            self._waiting.put(messages)

    def _publish(self, context: zmq.Context[zmq.Socket[bytes]], socket: zmq.Socket[bytes]) -> None:
        while (messages := self._waiting.get()) is not None:
            for message in messages:
                with contextlib.suppress(zmq.Again):  # a PUB socket drops what it cannot queue, and does not wait
                    socket.send_multipart(message, zmq.NOBLOCK)
        socket.close()
        context.term()


def _kept(home: Path) -> str:
    address = address_of(home)
    return address if address.startswith(_LOOPBACK) else f"{_LOOPBACK}*"


def _messages(vm: Vm) -> tuple[Message, ...]:
    state, lcm = VmState(vm.state).name, Lcm(vm.lcm_state).name
    shown = dataclasses.replace(vm, template={key: values for key, values in vm.template.items() if key != "CONTEXT"})
    body = element(
        "HOOK_MESSAGE",
        element("HOOK_TYPE", "STATE"),
        element("HOOK_OBJECT", "VM"),
        element("STATE", state),
        element("LCM_STATE", lcm),
        element("RESOURCE_ID", vm.oid),
        plain("REMOTE_HOST", vm.history[-1].hostname) if vm.history else "<REMOTE_HOST/>",
        vm_body(shown),
    )
    content = base64.b64encode(body.encode())
    keys = (f"EVENT VM {vm.oid}/{state}/{lcm} ", f"EVENT STATE VM/{state}/{lcm}/{vm.oid} ")
    return tuple((key.encode(), content) for key in keys)
