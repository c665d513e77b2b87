"""The process in which simulated machines live, so that they and what runs in them outlive the cloud's own.

It listens on `HOME/guests.sock`: a JSON document a line, answered by one of `{"ok": …}`, `{"error": TEXT}` (the step
failed) and `{"wrong": TEXT}` (it makes no sense). It ends when it is told to, when no machine is left and nobody is
connected, or when its socket's file is gone, as after its home was removed.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import socketserver
import sys
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

from orchestrator import log as logs
from orchestrator.localcloud.hypervisors import HypervisorError, MachineSpec
from orchestrator.localcloud.hypervisors.qmp import short_path
from orchestrator.localcloud.hypervisors.runs import FILE
from orchestrator.localcloud.hypervisors.simulated import SimulatedHypervisor
from orchestrator.localcloud.hypervisors.ssh_guest import SimulatedGuest, start_guest
from orchestrator.localcloud.hypervisors.wire import nic_of, spec_of

log = logging.getLogger(__name__)

SOCKET = "guests.sock"
PID = "guests.pid"
_LOOK_SECONDS = 0.5


class GuestHost:
    """The machines of one home."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.connected = 0
        self.ended = threading.Event()
        self.hypervisor = SimulatedHypervisor(guest=self._guest)
        self._guard = threading.Lock()
        self._locks: defaultdict[int, threading.Lock] = defaultdict(threading.Lock)

    def _guest(self, spec: MachineSpec) -> SimulatedGuest | None:
        """None for a machine that nobody could reach: it has no NIC, or was not told whom to let in."""
        if not spec.nics or not {"MAYFLY_HOST_KEY_BASE64", "SSH_PUBLIC_KEY"} <= set(spec.context):
            return None
        for vm_id, other in self.hypervisor.machines().items():
            # Left on a host that nobody reached: its VM is DONE, and its address has been given to another.
            if vm_id != spec.vm_id and other.nics and other.nics[0].address == spec.nics[0].address:
                left = self.hypervisor.guests().get(vm_id)
                if isinstance(left, SimulatedGuest):
                    left.lose_address()
        return start_guest(spec, lambda: self.hypervisor.power_off(spec.vm_id), runs=self.home / FILE)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what is asked."""
        try:
            return {"ok": self._do(request)}
        except (HypervisorError, OSError) as error:
            return {"error": str(error)}
        except (ValueError, KeyError, TypeError) as error:
            return {"wrong": f"{error}"}

    def _do(self, request: dict[str, Any]) -> Any:
        machines = self.hypervisor
        match request:
            case {"do": "running"}:
                specs = machines.machines()
                return {vm_id: specs[vm_id].memory_mb for vm_id in machines.running(specs)}
            case {"do": "paused"}:
                return machines.paused(machines.machines())
            case {"do": "power", "vm": int(vm)}:
                return str(machines.power(vm))
            case {"do": "inject", "order": dict(order)}:
                return machines.inject(order)
            case {"do": "end"}:
                return self.ended.set()
            case {"do": str(step), "vm": int(vm)}:
                # One thing at a time of each machine, also when who asked first is dead by now.
                with self._guard:
                    alone = self._locks[vm]
                with alone:
                    return self._step(step, vm, request)
            case _:
                raise ValueError(f"not a request: {request}")

    def _step(self, step: str, vm: int, request: dict[str, Any]) -> Any:
        machines = self.hypervisor
        match step:
            case "prolog":
                return machines.prolog(spec_of(request["spec"]))
            case "boot":
                return machines.boot(spec_of(request["spec"]))
            case "shutdown":
                return machines.shutdown(vm)
            case "destroy":
                return machines.destroy(vm)
            case "epilog":
                machines.epilog(vm, Path(request["directory"]))
                with self._guard:
                    self._locks.pop(vm, None)
                return None
            case "attach_nic":
                return machines.attach_nic(vm, nic_of(request["nic"]))
            case "detach_nic":
                return machines.detach_nic(vm, int(request["nic"]))
            case "update_nic":
                return machines.update_nic(vm, nic_of(request["nic"]))
            case "save_disk":
                return machines.save_disk(vm, int(request["disk"]), Path(request["target"]))
            case _:
                raise ValueError(f"not a step: {step}")

    def idle(self) -> bool:
        return self.connected == 0 and not self.hypervisor.machines()


class _Conversation(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        while line := self.rfile.readline():
            self.wfile.write(json.dumps(self.server.host.answer(json.loads(line))).encode() + b"\n")


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, path: str, host: GuestHost) -> None:
        self.host = host
        self._counting = threading.Lock()
        super().__init__(path, _Conversation)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        with self._counting:
            self.host.connected += 1
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._counting:
                self.host.connected -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a conversation ended early", exc_info=True)


def serve(home: Path) -> None:
    """Until it is to end."""
    # A guest takes a descriptor to listen, and one for each connection: the usual 1024 are soon used up.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    path = home / SOCKET
    path.unlink(missing_ok=True)
    host = GuestHost(home)
    with short_path(home, SOCKET) as short:
        server = _Server(short, host)
    mine = path.stat().st_ino
    (home / PID).write_text(str(os.getpid()))
    threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
    idle = 0
    while idle < 2 and not host.ended.wait(_LOOK_SECONDS):
        idle = idle + 1 if host.idle() else 0
        if not path.exists() or path.stat().st_ino != mine:
            break
    path.unlink(missing_ok=True)  # from here on, who wants machines starts another
    server.shutdown()
    host.hypervisor.close()


if __name__ == "__main__":
    logs.configure()
    serve(Path(sys.argv[1]))
