"""What oned's hook manager tells of VMs: an unauthenticated stream, which is believed in nothing.

oned publishes each change of a VM's state by ZeroMQ, at port 2101 of its front-end ("Using Hooks" in OpenNebula's
documentation; `src/hm_mad/one_hm.rb`). A message is two frames, `EVENT STATE VM/<STATE>/<LCM_STATE>/<ID> ` and the VM's
body in base64. Whoever can reach us at that address could say anything there, so only the first frame is read, and it
says no more than which VM to look at: what is true is what the API answers (docs/decisions/0014).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from orchestrator.domain.errors import NotPossible
from orchestrator.opennebula.states import LcmState, Phase, State, phase, state_name

log = logging.getLogger(__name__)

PORT = 2101
"""OpenNebula's default (`HM_MAD` in oned.conf), where it listens on the front-end's loopback only."""

_TOPIC = b"EVENT STATE VM/"
_KEY = re.compile(rb"EVENT STATE VM/([A-Z_]{1,40})/([A-Z_]{1,40})/([0-9]{1,9}) ?")
_LARGEST_KEY = 128
_LARGEST_FRAME = 1 << 20
_QUEUED = 200
"""Messages that may wait for us: with the largest frame this bounds the memory that a stranger can fill."""
_AGAIN_SECONDS = 1.0
_OPTIONS = {
    zmq.LINGER: 0,
    zmq.RCVHWM: _QUEUED,
    zmq.MAXMSGSIZE: _LARGEST_FRAME,
    zmq.CONNECT_TIMEOUT: 5_000,
    zmq.HANDSHAKE_IVL: 5_000,
    zmq.RECONNECT_IVL: 200,
    zmq.RECONNECT_IVL_MAX: 10_000,
    zmq.HEARTBEAT_IVL: 5_000,
    zmq.HEARTBEAT_TIMEOUT: 10_000,
    zmq.IPV6: 1,
}
_SETTLED = frozenset({Phase.RUNNING, Phase.OFF, Phase.FAILED, Phase.UNKNOWN, Phase.DONE})


@dataclass(frozen=True, slots=True)
class Announced:
    """What a message says: that this VM is in this state now. `settled`: a state that does not pass by itself, of which
    a waiter wants to know."""

    vm_id: int
    state_name: str
    settled: bool


def read_key(frame: bytes) -> Announced | None:
    """From a message's first frame; None for any other, and for a state that we do not know.

    >>> read_key(b"EVENT STATE VM/ACTIVE/RUNNING/7 ")
    Announced(vm_id=7, state_name='RUNNING', settled=True)
    """
    found = _KEY.fullmatch(frame)
    if found is None:
        return None
    try:
        state, lcm_state = State[found[1].decode()], LcmState[found[2].decode()]
    except KeyError:
        return None
    return Announced(int(found[3]), state_name(state, lcm_state), phase(state, lcm_state) in _SETTLED)


def events_address(endpoint: str) -> str:
    """Where the OpenNebula of this endpoint publishes by default.

    >>> events_address("https://cloud.example.org/RPC2")
    'tcp://cloud.example.org:2101'
    """
    host = urlsplit(endpoint).hostname or "localhost"
    return f"tcp://[{host}]:{PORT}" if ":" in host else f"tcp://{host}:{PORT}"


def checked_address(address: str) -> str:
    """The same. Raises NotPossible when it is no `tcp://HOST:PORT`."""
    try:
        parts = urlsplit(address)
        right = parts.scheme == "tcp" and parts.hostname and parts.port and parts.path == "" and not parts.query
    except ValueError:
        right = False
    if not right:
        raise NotPossible(
            "ONE_ZMQ", f"{address!r} is not an address", f"give OpenNebula's, tcp://HOST:{PORT}, or none for no events"
        )
    return address


class EventStream:
    """A subscription to what happens to VMs, in one event loop.

    heard: called with each message that can be read. changed: called when the stream comes, and when it goes.
    once: an address that only may be right; when nobody answers there at first, it is not tried again. What is missed
    while nobody answers is lost. Connecting, losing the connection and not being answered is each told once to the log.
    """

    def __init__(
        self,
        address: str,
        *,
        once: bool = False,
        heard: Callable[[Announced], None] = lambda announced: None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.address = checked_address(address)
        self.connected = False
        self._once = once
        self._heard = heard
        self._changed = changed
        self._decided = asyncio.Event()
        self._tried = False
        self._unreadable_told = False
        self._context: zmq.asyncio.Context | None = None
        self._sockets: list[zmq.asyncio.Socket] = []
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to listen, in the running loop. It is fine to say so again."""
        if self._context is not None or self._decided.is_set():
            return
        self._context = zmq.asyncio.Context()
        socket = self._context.socket(zmq.SUB)
        for option, value in _OPTIONS.items():
            socket.setsockopt(option, value)
        monitor = socket.get_monitor_socket()
        monitor.setsockopt(zmq.LINGER, 0)
        self._sockets = [socket, monitor]
        socket.setsockopt(zmq.SUBSCRIBE, _TOPIC)
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._listen(socket), name="hear of VMs"),
            loop.create_task(self._follow(monitor), name="follow the stream of events"),
        ]
        try:
            socket.connect(self.address)
        except zmq.ZMQError as error:  # it is no reason to do without the VMs
            log.warning("OpenNebula's events cannot be had from %s: %s", self.address, error)
            self.close()

    def close(self) -> None:
        """Listen no more."""
        self._decided.set()
        self.connected = False
        for task in self._tasks:
            task.cancel()
        self._tasks = []
        for socket in self._sockets:
            socket.close()
        self._sockets = []
        if self._context is not None:
            self._context.term()
            self._context = None

    async def reached(self, within: float) -> bool:
        """Whether somebody answers at the address, as far as that is known after so many seconds."""
        self.start()
        try:
            async with asyncio.timeout(within):
                await self._decided.wait()
        except TimeoutError:
            pass
        return self.connected

    async def _listen(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            frames = await socket.recv_multipart(copy=False)
            announced = read_key(frames[0].bytes) if len(frames) == 2 and len(frames[0]) <= _LARGEST_KEY else None
            if announced is not None:
                self._heard(announced)
            elif not self._unreadable_told:
                self._unreadable_told = True
                log.info("%s sends what is no event that we know; it is ignored", self.address)
            await asyncio.sleep(0)  # a flood of messages leaves room for others

    async def _follow(self, monitor: zmq.asyncio.Socket) -> None:
        while True:
            message = await recv_monitor_message(monitor)
            match zmq.Event(message["event"]):
                case zmq.Event.HANDSHAKE_SUCCEEDED:
                    self._came()
                case zmq.Event.DISCONNECTED:
                    self._went()
                case zmq.Event.CONNECT_RETRIED | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL:
                    self._unanswered()
                case zmq.Event.HANDSHAKE_FAILED_PROTOCOL | zmq.Event.HANDSHAKE_FAILED_AUTH:
                    self._unanswered()
                case _:
                    pass

    def _came(self) -> None:
        self.connected = self._tried = True
        self._decided.set()
        log.info("OpenNebula's events come from %s", self.address)
        self._changed()

    def _went(self) -> None:
        if self.connected:
            self.connected = False
            asyncio.get_running_loop().call_later(_AGAIN_SECONDS, self._again)
            log.warning("OpenNebula's events come no more from %s; VMs are looked at more often", self.address)
            self._changed()

    def _again(self) -> None:
        """libzmq connects again by itself, but not to a peer that broke the protocol, as with a frame too large."""
        if self._sockets and not self.connected:
            socket = self._sockets[0]
            with contextlib.suppress(zmq.ZMQError):
                socket.disconnect(self.address)
            socket.connect(self.address)

    def _unanswered(self) -> None:
        self._decided.set()
        if self._tried:
            return
        self._tried = True
        log.info("nobody answers at %s, where OpenNebula's events would be; VMs are looked at more often", self.address)
        if self._once:
            asyncio.get_running_loop().call_soon(self.close)
