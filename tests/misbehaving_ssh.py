"""An SSH server on paramiko, an implementation independent of ours, that misbehaves as it is told.

`MisbehavingServer(on_connection=…, on_exec=…)`: `on_connection` is a list of what each connection in turn meets (the
last stays), `on_exec` what a request meets. It listens on loopback (`address`) until closed, and counts. `transport`: a
paramiko.Transport that differs; `later_host_key`: what it shows from the second connection on.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum

import paramiko

Channel = paramiko.Channel
Answer = Callable[[Channel, list[str]], None]


class Meets(Enum):
    """What a connection meets."""

    SERVICE = "a server that works"
    CLOSED = "it is closed at once"
    SILENCE = "nothing is ever said"
    BANNER = "the server's name, and then nothing"
    GARBAGE = "bytes that are not SSH"
    CLOSED_AFTER_AUTH = "it is closed when the client, logged in, asks for the first thing"
    DENIAL = "no key is accepted"
    ENDLESS = "lines before the server's name, without end"
    LONG_NAME = "a server's name without end"


class _Interface(paramiko.ServerInterface):
    def __init__(self, server: MisbehavingServer, meets: Meets) -> None:
        self._server = server
        self._meets = meets

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        known = username == "root" and f"{key.get_name()} {key.get_base64()}" in self._server.client_key
        return paramiko.AUTH_SUCCESSFUL if known and self._meets is not Meets.DENIAL else paramiko.AUTH_FAILED

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: Channel, command: bytes) -> bool:
        words = command.split(b"\n")[0].decode().split()[2:]
        self._server.asked.append(words)
        number = len(self._server.asked)
        threading.Thread(target=self._server.answer, args=(number, channel, words), daemon=True).start()
        return True


class MisbehavingServer:
    """`connections` counts those taken; `asked` holds the words of each request, in order."""

    def __init__(
        self,
        host_key: paramiko.PKey,
        client_key: str,
        *,
        on_connection: Sequence[Meets] = (Meets.SERVICE,),
        on_exec: Answer | Sequence[Answer] = (),
        address: tuple[str, int] = ("127.0.0.1", 0),
        transport: type[paramiko.Transport] = paramiko.Transport,
        later_host_key: paramiko.PKey | None = None,
    ) -> None:
        self.client_key = client_key
        self.connections = 0
        self.asked: list[list[str]] = []
        self._host_keys = [host_key, later_host_key or host_key]
        self._transport = transport
        self._on_connection = list(on_connection)
        self._on_exec = [on_exec] if callable(on_exec) else list(on_exec)
        self._open: list[socket.socket | paramiko.Transport] = []
        self._listener = socket.create_server(address)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def answer(self, number: int, channel: Channel, words: list[str]) -> None:
        """Give the answer for the request of this number, from 1; the last answer stays."""
        answer = self._on_exec[min(number, len(self._on_exec)) - 1]
        with suppress(OSError, EOFError, paramiko.SSHException):
            _heard(channel)  # the client knows by now that its request was taken
            answer(channel, words)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for each in self._open:
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            meets = self._on_connection[min(self.connections, len(self._on_connection) - 1)]
            self.connections += 1
            self._meet(sock, meets)

    def _meet(self, sock: socket.socket, meets: Meets) -> None:
        match meets:
            case Meets.CLOSED:
                sock.close()
            case Meets.SILENCE:
                self._open.append(sock)
            case Meets.BANNER:
                sock.sendall(b"SSH-2.0-nobody\r\n")
                self._open.append(sock)
            case Meets.GARBAGE:
                sock.sendall(b"HTTP/1.0 400 Bad Request\r\n" * 2000)
                self._open.append(sock)
            case Meets.ENDLESS | Meets.LONG_NAME:
                self._open.append(sock)
                line = b"welcome\r\n" if meets is Meets.ENDLESS else b"SSH-2.0-"
                threading.Thread(target=_repeat, args=(sock, line * 1000), daemon=True).start()
            case _:
                transport = self._transport(sock)
                self._open.append(transport)
                transport.add_server_key(self._host_keys[self.connections > 1])
                transport.start_server(event=threading.Event(), server=_Interface(self, meets))
                if meets is Meets.CLOSED_AFTER_AUTH:
                    threading.Thread(target=_close_after_auth, args=(transport,), daemon=True).start()


def _repeat(sock: socket.socket, data: bytes) -> None:
    with suppress(OSError):
        while True:
            sock.sendall(data)


def _close_after_auth(transport: paramiko.Transport) -> None:
    if transport.accept(30) is not None:
        transport.close()


def _heard(channel: Channel) -> None:
    """Return when the client has taken in all that was sent: it answers a question that it does not understand."""
    channel.get_transport().global_request("heard@example.org", wait=True)


# What a request can meet. Each is an Answer, or makes one.


def never_answers(channel: Channel, words: list[str]) -> None:
    """Nothing comes, and the channel stays open."""


def says(output: bytes, status: int | None = 0, stderr: bytes = b"") -> Answer:
    """This output and status; no status at all when it is None."""

    def answer(channel: Channel, words: list[str]) -> None:
        channel.sendall(output)
        channel.sendall_stderr(stderr)
        if status is not None:
            channel.send_exit_status(status)
        channel.close()

    return answer


def drops_after(output: bytes) -> Answer:
    """This output, and the connection is gone."""

    def answer(channel: Channel, words: list[str]) -> None:
        channel.sendall(output)
        _heard(channel)
        channel.get_transport().close()

    return answer


def stays_after(output: bytes) -> Answer:
    """This output, and nothing more; the channel stays open."""

    def answer(channel: Channel, words: list[str]) -> None:
        channel.sendall(output)

    return answer


def drips(output: bytes) -> Answer:
    """This output, a byte at a time."""

    def answer(channel: Channel, words: list[str]) -> None:
        for at in range(len(output)):
            channel.sendall(output[at : at + 1])
        channel.send_exit_status(0)
        channel.close()

    return answer


def floods(channel: Channel, words: list[str]) -> None:
    """Output without end."""
    while True:
        channel.sendall(b"x" * 65536)


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    """One frame of the attendant's."""
    return kind + len(payload).to_bytes(4, "big") + payload
