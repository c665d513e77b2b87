"""QEMU's control socket (QMP: JSON, an object a line), one conversation at a time."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.localcloud.hypervisors import HypervisorError

SOCKET = "qmp.sock"


@contextlib.contextmanager
def short_path(directory: Path, name: str) -> Iterator[str]:
    """A path to `directory/name` that fits in a socket address (108 bytes), however deep the directory is."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)


def listen(directory: Path) -> socket.socket:
    """The socket that a new QEMU inherits. Made here, so that a connection is taken from the first moment on."""
    (directory / SOCKET).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_path(directory, SOCKET) as path:
            listener.bind(path)
        listener.listen(8)
    except OSError as error:
        listener.close()
        raise HypervisorError(f"{directory / SOCKET}: {error.strerror}") from error
    return listener


class Qmp:
    """A conversation with one QEMU, `seconds` long at most, the wait for another conversation to end included."""

    def __init__(self, directory: Path, seconds: float = 10.0) -> None:
        self._deadline = time.monotonic() + seconds
        self._buffer = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(seconds)
            with short_path(directory, SOCKET) as path:
                self._socket.connect(path)
            self._read()  # the greeting
            self.execute("qmp_capabilities")
        except OSError as error:
            self._socket.close()
            raise HypervisorError(f"no answer from the machine's QEMU: {error.strerror or error}") from error
        except HypervisorError:
            self._socket.close()
            raise

    def __enter__(self) -> Qmp:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def execute(self, command: str, **arguments: Any) -> Any:
        """The command's return value. Raises HypervisorError with QEMU's own text, or when QEMU goes away."""
        request = {"execute": command}
        if arguments:
            request["arguments"] = {name.replace("_", "-"): value for name, value in arguments.items()}  # type: ignore[assignment]
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise HypervisorError(f"{command}: {error.strerror or error}") from error
        return self._answer(command)

    def give_file(self, name: str, descriptor: int) -> None:
        """Let QEMU have an open file, by a name of ours: `fd:NAME` where a command takes an address."""
        request = {"execute": "getfd", "arguments": {"fdname": name}}
        try:
            socket.send_fds(self._socket, [json.dumps(request).encode() + b"\n"], [descriptor])
        except OSError as error:
            raise HypervisorError(f"getfd: {error.strerror or error}") from error
        self._answer("getfd")

    def _answer(self, command: str) -> Any:
        try:
            while True:
                reply = self._read()
                if "return" in reply:
                    return reply["return"]
                if "error" in reply:
                    raise HypervisorError(f"{command}: {reply['error'].get('desc', reply['error'])}")
        except OSError as error:
            raise HypervisorError(f"{command}: {error.strerror or error}") from error

    def _read(self) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            self._socket.settimeout(max(0.01, self._deadline - time.monotonic()))
            received = self._socket.recv(65536)
            if not received:
                raise ConnectionResetError("QEMU closed the connection")
            self._buffer += received
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message
