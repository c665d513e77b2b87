"""The endpoint: XML-RPC over HTTP on loopback, sessions, dispatch; and the cloud that answers there."""

from __future__ import annotations

import itertools
import logging
import random
import socket
import struct
import threading
import time
import xmlrpc.client
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from orchestrator.localcloud import (
    alike,
    clones,
    defaults,
    hosts,
    hotplug,
    images,
    networks,
    replies,
    security_groups,
    system,
    templates,
    troubles,
    users,
    vm_work,
    vms,
)
from orchestrator.localcloud import datastores as datastore_calls
from orchestrator.localcloud.address_block import hold_block
from orchestrator.localcloud.calls import Call
from orchestrator.localcloud.cloud import Cloud
from orchestrator.localcloud.events import Publisher
from orchestrator.localcloud.faults import OURS, DropConnection, Faults
from orchestrator.localcloud.hypervisors import Hypervisor
from orchestrator.localcloud.knobs import CloudSettings
from orchestrator.localcloud.lifecycle import Lifecycle
from orchestrator.localcloud.monitor import Monitor
from orchestrator.localcloud.refusals import CallFault, Code, Refused
from orchestrator.localcloud.replies import Reply
from orchestrator.localcloud.restart import resume_in_flight
from orchestrator.localcloud.scheduler import Scheduler
from orchestrator.localcloud.users import authenticate

log = logging.getLogger(__name__)

CALLS: dict[str, Call] = {
    name: call
    for module in (
        alike,
        system,
        users,
        hosts,
        datastore_calls,
        images,
        networks,
        security_groups,
        templates,
        vms,
        vm_work,
        hotplug,
    )
    for name, call in module.calls.table.items()
}
_LARGEST_REQUEST = 16 << 20
_OUTAGE_POLL = 0.02
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of no seconds: closing resets the connection."""


class Dispatcher:
    """From a request's text to a reply's."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._counting = threading.Lock()
        self._numbers = itertools.count(random.randrange(10_000))

    def answer(self, request: bytes) -> Reply:
        """Raises DropConnection."""
        try:
            values, method = xmlrpc.client.loads(request, use_builtin_types=True)
        except Exception:
            return replies.fault(CallFault(-503, "Call is not valid XML-RPC"))
        name = method or ""
        with self._counting:
            self._cloud.calls[name] += 1
        if name.startswith(OURS):
            return self._reply(name, values)
        return self._in_the_way(name) or self._at_fault(name, values)

    def _in_the_way(self, name: str) -> Reply | None:
        """What comes instead of doing the call; None when it is done. Raises DropConnection."""
        faults = self._cloud.faults
        if (outage := faults.outage_now()) is not None:
            match outage.how:
                case "hang":
                    while faults.outage_now() is outage and not self._cloud.closing.wait(_OUTAGE_POLL):
                        pass
                    raise DropConnection
                case "http_error":
                    return replies.page(outage.status)
                case "garbage":
                    return replies.garbled(replies.page(200), "garbage")
                case _:
                    raise DropConnection(reset=True)
        if faults.take("drop_connection", name) is not None:
            raise DropConnection
        if (hang := faults.take("hang", name)) is not None:
            self._cloud.closing.wait(float(hang["seconds"]))
            raise DropConnection
        if (error := faults.take("http_error", name)) is not None:
            return replies.page(int(error["status"]))
        return None

    def _at_fault(self, name: str, values: tuple[Any, ...]) -> Reply:
        """Do the call, and what goes wrong with its reply. Raises DropConnection."""
        faults = self._cloud.faults
        lost = faults.take("lose_reply", name) is not None
        if faults.take("execute_twice", name) is not None:
            self._reply(name, values)
        reply = self._reply(name, values)
        if (delay := faults.take("delay", name)) is not None:
            time.sleep(float(delay["seconds"]))
        if lost:
            raise DropConnection
        garbled = faults.take("garble", name)
        return reply if garbled is None else replies.garbled(reply, str(garbled["how"]))

    def _reply(self, method: str, values: tuple[Any, ...]) -> Reply:
        try:
            return replies.success(self._result(method, values))
        except Refused as refused:
            return replies.refusal(f"[{method}] {refused.text}", int(refused.code), refused.object_id)
        except CallFault as error:
            return replies.fault(error)

    def _result(self, method: str, values: tuple[Any, ...]) -> object:
        call = CALLS.get(method)
        if call is None:
            raise CallFault(CallFault.NO_SUCH_METHOD, f"Method '{method}' not defined")
        if not values:
            raise CallFault(CallFault.NOT_A_CALL, "Not enough parameters")
        session, *given = values
        if not isinstance(session, str):
            raise CallFault(CallFault.NOT_A_CALL, "Parameter that is supposed to be string is not")
        with self._cloud.lock:
            caller = authenticate(self._cloud.store, session, next(self._numbers) % 10_000)
            arguments = call.arguments(given)
            if (failure := self._cloud.faults.take("fail", method)) is not None:
                raise Refused(int(failure["code"]), str(failure["text"]))
            try:
                result = call.function(self._cloud, caller, *arguments)
                self._cloud.store.flush()
            except (Refused, CallFault):
                raise
            except Exception:
                log.exception("%s failed", method)
                raise Refused(Code.INTERNAL, "Internal error") from None
            return result


class _Handler(BaseHTTPRequestHandler):
    """One request a connection: every reply says `Connection: close`, as the original's do."""

    protocol_version = "HTTP/1.1"
    timeout = 60
    server: _Server

    def do_POST(self) -> None:
        self.close_connection = True
        if self.path not in ("/RPC2", "/"):
            self._send(replies.text(404, "no such place"))
            return
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError:
            length = -1
        if not 0 <= length <= _LARGEST_REQUEST:
            self._send(replies.text(411 if length < 0 else 413, "a Content-Length is needed, and not too much of it"))
            return
        try:
            reply = self.server.answer(self.rfile.read(length))
        except DropConnection as drop:
            if drop.reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            else:
                self.connection.shutdown(socket.SHUT_RDWR)
            return
        self._send(reply)

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type)
        self.send_header("Content-Length", str(reply.length))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(reply.body)

    def log_message(self, format: str, *args: object) -> None:
        log.debug(format, *args)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, answer: Callable[[bytes], Reply]) -> None:
        self.answer = answer
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a connection ended early", exc_info=True)


class LocalCloud:
    """A whole cloud in this process, as a context manager.

        with LocalCloud(tmp_path, hypervisor=SimulatedHypervisor()) as cloud:
            one = pyone.OneServer(cloud.url, session=cloud.session)

    `knobs` are the settings, `faults` what tests inject. Machines outlive it: another one on the same `home` finds them
    again. Nothing keeps two of them off one home; the daemon does, with a lock."""

    def __init__(self, home: Path, *, hypervisor: Hypervisor, knobs: CloudSettings | None = None) -> None:
        self.home = home.absolute()
        self.faults = Faults()
        defaults.make_directories(self.home)
        self.session = defaults.session_of(self.home)
        self.cloud = Cloud(self.home, hypervisor, knobs or CloudSettings(), self.faults)
        self.lifecycle = Lifecycle(self.cloud)
        self.scheduler = Scheduler(self.cloud, self.lifecycle)
        self.monitor = Monitor(self.cloud, self.lifecycle)
        self.publisher = Publisher(self.cloud)
        self._server: _Server | None = None
        self._addresses: socket.socket | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Raises RuntimeError while it does not run."""
        if self._server is None:
            raise RuntimeError("the cloud does not run")
        return f"http://127.0.0.1:{self._server.server_address[1]}/RPC2"

    @property
    def events(self) -> str:
        """Where it publishes what happens to VMs; empty until it runs."""
        return self.publisher.address

    @property
    def auth_path(self) -> Path:
        """The file that ONE_AUTH names."""
        return self.home / "one_auth"

    def inject(self, order: dict[str, Any]) -> None:
        """A fault as a document: see `troubles`. Raises ValueError."""
        troubles.inject(self.cloud, order)

    def start(self) -> None:
        """Serve, on the port of last time if it is free. Raises OSError."""
        self._addresses = hold_block(self.home)
        with self.cloud.lock:
            defaults.fill(self.cloud, self.session)
            self.cloud.store.flush()
        self._server = _listening(self.home, Dispatcher(self.cloud).answer)
        (self.home / "endpoint").write_text(f"{self.url}\n")
        self.publisher.start()
        resume_in_flight(self.cloud)
        clones.prepare_promoted(self.cloud)
        self.scheduler.start()
        self.monitor.start()
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="endpoint", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Answer no more, finish what drivers do just now, close the database; machines keep running."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self.cloud.closing.set()
            self.scheduler.join()
            self.monitor.join()
        self.cloud.close()
        self.publisher.stop()
        if self._addresses is not None:
            self._addresses.close()
        self._server = self._addresses = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _listening(home: Path, answer: Callable[[bytes], Reply]) -> _Server:
    """On the port that `endpoint` names, else on any free one."""
    try:
        kept = int((home / "endpoint").read_text().rsplit(":", 1)[1].split("/")[0])
    except (OSError, ValueError, IndexError):
        kept = 0
    try:
        return _Server(kept, answer)
    except OSError:
        if kept == 0:
            raise
        return _Server(0, answer)
