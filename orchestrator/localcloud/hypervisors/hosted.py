"""Simulated machines in a process of their own: this side of its socket. See `guest_host`."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from orchestrator.localcloud.hypervisors import HypervisorError, MachineSpec, NicSpec, Power
from orchestrator.localcloud.hypervisors.process import Process
from orchestrator.localcloud.hypervisors.qmp import short_path
from orchestrator.localcloud.hypervisors.wire import document_of

SOCKET = "guests.sock"
PID = "guests.pid"
_START_SECONDS = 30.0
_END_SECONDS = 10.0
_POLL = 0.02


class HostedHypervisor:
    """The machines of `home`. Whichever process asks sees the same ones. When their process died they are all off, and
    another is started."""

    name = "simulated"
    saves_memory = True

    def __init__(self, home: Path) -> None:
        self._home = home.absolute()
        self._lock = threading.Lock()
        self._free: list[socket.socket] = []
        self._memory: dict[int, int] = {}

    def close(self) -> None:
        """Hang up. The machines go on."""
        with self._lock:
            free, self._free = self._free, []
        for connection in free:
            connection.close()

    def prolog(self, spec: MachineSpec) -> None:
        self._ask("prolog", vm=spec.vm_id, spec=document_of(spec))

    def boot(self, spec: MachineSpec) -> str:
        return str(self._ask("boot", vm=spec.vm_id, spec=document_of(spec)))

    def shutdown(self, vm_id: int) -> None:
        self._ask("shutdown", vm=vm_id)

    def destroy(self, vm_id: int) -> None:
        self._ask("destroy", vm=vm_id)

    def power(self, vm_id: int) -> Power:
        return Power(self._ask("power", vm=vm_id))

    def running(self, vm_ids: Collection[int]) -> set[int]:
        self._memory = {int(vm_id): int(memory) for vm_id, memory in self._ask("running").items()}
        return self._memory.keys() & set(vm_ids)

    def paused(self, vm_ids: Collection[int]) -> dict[int, str]:
        return {int(vm_id): str(why) for vm_id, why in self._ask("paused").items() if int(vm_id) in set(vm_ids)}

    def epilog(self, vm_id: int, directory: Path) -> None:
        self._ask("epilog", vm=vm_id, directory=str(directory))

    def attach_nic(self, vm_id: int, nic: NicSpec) -> None:
        self._ask("attach_nic", vm=vm_id, nic=document_of(nic))

    def detach_nic(self, vm_id: int, nic_id: int) -> None:
        self._ask("detach_nic", vm=vm_id, nic=nic_id)

    def update_nic(self, vm_id: int, nic: NicSpec) -> None:
        self._ask("update_nic", vm=vm_id, nic=document_of(nic))

    def save_disk(self, vm_id: int, disk_id: int, target: Path) -> None:
        self._ask("save_disk", vm=vm_id, disk=disk_id, target=str(target))

    def monitoring(self, vm_id: int) -> dict[str, float]:
        """Of the machines that ran at the last look."""
        memory = self._memory.get(vm_id)
        return {} if memory is None else {"CPU": 1.0, "MEMORY": memory * 1024.0, "NETRX": 0.0, "NETTX": 0.0}

    def inject(self, order: dict[str, Any]) -> None:
        """A fault as a document: see `machine_faults`. Raises ValueError."""
        self._ask("inject", order=order)

    def _ask(self, what: str, **details: Any) -> Any:
        request = json.dumps({"do": what, **details}).encode() + b"\n"
        try:
            answer = self._exchange(request)
        except OSError:
            self.close()  # its process may have died: once more, with another
            try:
                answer = self._exchange(request)
            except OSError as error:
                raise HypervisorError(f"the simulated machines do not answer: {error}") from error
        if "wrong" in answer:
            raise ValueError(answer["wrong"])
        if "error" in answer:
            raise HypervisorError(answer["error"])
        return answer["ok"]

    def _exchange(self, request: bytes) -> dict[str, Any]:
        """Each conversation at a time has a connection to itself. Raises OSError."""
        with self._lock:
            connection = self._free.pop() if self._free else None
        connection = connection or _connected(self._home)
        try:
            connection.sendall(request)
            received = b""
            while not received.endswith(b"\n"):
                part = connection.recv(1 << 20)
                if not part:
                    raise ConnectionResetError("the process of the simulated machines ended")
                received += part
        except OSError:
            connection.close()
            raise
        with self._lock:
            self._free.append(connection)
        answer: dict[str, Any] = json.loads(received)
        return answer


def end_machines(home: Path) -> bool:
    """End the simulated machines of a home and their process; False when there was none."""
    home = home.absolute()
    try:
        process = Process.of(int((home / PID).read_text()))
        connection = _call(home)
    except (OSError, ValueError):
        return False
    with connection:
        connection.sendall(b'{"do": "end"}\n')
    if process is not None and not process.wait(_END_SECONDS):
        process.kill()
    return True


def _call(home: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_path(home, SOCKET) as path:
            connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection


def _connected(home: Path) -> socket.socket:
    """To the process of the home's machines, which is started if there is none. Raises OSError."""
    try:
        return _call(home)
    except OSError:
        pass
    with (home / "guests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return _call(home)  # somebody else was quicker
        except OSError:
            return _started(home)


def _started(home: Path) -> socket.socket:
    package = str(Path(__file__).resolve().parents[3])
    python_path = os.pathsep.join(part for part in (package, os.environ.get("PYTHONPATH", "")) if part)
    with (home / "guests.log").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.localcloud.hypervisors.guest_host", str(home)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env={**os.environ, "PYTHONPATH": python_path},
            start_new_session=True,
        )
    threading.Thread(target=process.wait, daemon=True).start()  # it leaves no zombie when it ends before we do
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            return _call(home)
        except OSError:
            if time.monotonic() > deadline or process.poll() is not None:
                raise
            time.sleep(_POLL)
