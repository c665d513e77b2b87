"""OpenNebula's side of the wire, out of a recording: recorded requests get the recorded replies, as XML-RPC.

Beyond the recording it can be told what to answer, and how to fail: see `Misbehaviour`.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
import xmlrpc.client
from collections import defaultdict, deque
from collections.abc import Iterator
from enum import Enum
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

TRANSCRIPT = Path(__file__).parent / "data" / "opennebula" / "transcript.jsonl"


class Misbehaviour(Enum):
    """How the next reply to a method fails on the wire."""

    DROP = "the request is read, and the connection closed without a word"
    SILENCE = "the request is read, and nothing comes"
    DRIP = "a reply begins and never ends: a byte of it every few milliseconds"
    HALF = "half of the reply comes, then the connection closes"
    GARBAGE = "200 OK, with a page for people"
    NOT_FOUND = "404"
    BAD_GATEWAY = "502"
    NOT_OPENNEBULA = "XML-RPC, but no reply that OpenNebula would give"


@cache
def transcript() -> tuple[dict[str, Any], ...]:
    """The whole recording."""
    return tuple(json.loads(line) for line in TRANSCRIPT.read_text(encoding="utf-8").splitlines())


def recorded(line: int) -> Any:
    """The reply recorded at this place."""
    return next(row["reply"] for row in transcript() if row["line"] == line)


def encode(reply: Any) -> bytes:
    """A recorded reply as OpenNebula's XML-RPC: the last element of a failure is an i8, which has no name in Python."""
    if isinstance(reply, dict):
        fault = reply["FAULT"]
        return xmlrpc.client.dumps(xmlrpc.client.Fault(fault["faultCode"], fault["faultString"])).encode()
    values = "".join(_value(part, wide=len(reply) == 5 and index == 4) for index, part in enumerate(reply))
    body = f"<params><param><value><array><data>{values}</data></array></value></param></params>"
    return f'<?xml version="1.0" encoding="UTF-8"?>\r\n<methodResponse>{body}</methodResponse>\r\n'.encode()


def _value(part: Any, *, wide: bool) -> str:
    if isinstance(part, bool):
        return f"<value><boolean>{int(part)}</boolean></value>"
    if isinstance(part, int):
        kind = "i8" if wide else "i4"
        return f"<value><{kind}>{part}</{kind}></value>"
    return f"<value><string>{escape(str(part))}</string></value>"


class ReplayServer:
    """Answers on `url` while the `with` block lasts.

    `answers[method]` are replies to come, used before the recorded ones, each once, the last one for ever; a
    `Misbehaviour` may stand for a reply. `requests` lists what was asked, without sessions; `most_at_once` is how many
    requests were under way at the same time at most, which `gate`, when cleared, makes wait.
    """

    def __init__(self, *, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.answers: dict[str, deque[Any]] = defaultdict(deque)
        self.requests: list[tuple[Any, ...]] = []
        self.sessions: list[str] = []
        self.most_at_once = 0
        self.gate = threading.Event()
        self.gate.set()
        self._under_way = 0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._recorded: dict[str, deque[Any]] = defaultdict(deque)
        for row in transcript():
            self._recorded[_key(row["method"], row["args"][1:])].append(row["reply"])
        self._http = _Server(("127.0.0.1", port), _Handler)
        self._http.replay = self
        if tls is not None:
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._http.server_port}/RPC2"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> ReplayServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.gate.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def asked(self, method: str) -> list[tuple[Any, ...]]:
        """The arguments of every request of this method so far."""
        return [request[1:] for request in self.requests if request[0] == method]

    def reply(self, method: str, arguments: tuple[Any, ...]) -> Any:
        with self._lock:
            self.sessions.append(arguments[0] if arguments else "")
            self.requests.append((method, *arguments[1:]))
            for queue in (self.answers[method], self._recorded.get(_key(method, list(arguments[1:])), deque())):
                if queue:
                    return queue.popleft() if len(queue) > 1 else queue[0]
        return {"FAULT": {"faultCode": -506, "faultString": f"Method '{method}' not defined"}}

    def enter(self) -> None:
        with self._lock:
            self._under_way += 1
            self.most_at_once = max(self.most_at_once, self._under_way)
        self.gate.wait()

    def leave(self) -> None:
        with self._lock:
            self._under_way -= 1

    def under_way(self) -> int:
        """How many requests are being answered now."""
        return self._under_way

    def drip(self) -> Iterator[bytes]:
        """Bytes of a reply that has no end, until the server ends."""
        while not self._over.is_set():
            yield b" "
            time.sleep(0.01)

    def silence(self) -> None:
        """Return when the server ends."""
        self._over.wait()


def _key(method: str, arguments: list[Any]) -> str:
    return json.dumps([method, arguments], sort_keys=True)


class _Server(ThreadingHTTPServer):
    replay: ReplayServer
    daemon_threads = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        replay = self.server.replay
        body = self.rfile.read(int(self.headers["Content-Length"]))
        arguments, method = xmlrpc.client.loads(body)
        assert method is not None
        reply = replay.reply(method, arguments)
        replay.enter()
        try:
            self._send(reply)
        finally:
            replay.leave()

    def _send(self, reply: Any) -> None:
        match reply:
            case Misbehaviour.DROP:
                pass
            case Misbehaviour.SILENCE:
                self.server.replay.silence()
            case Misbehaviour.DRIP:
                self._head(200, 10**9)
                for piece in self.server.replay.drip():
                    self.wfile.write(piece)
            case Misbehaviour.HALF:
                whole = encode([True, "7.2.0", 0])
                self._head(200, len(whole))
                self.wfile.write(whole[: len(whole) // 2])
            case Misbehaviour.GARBAGE:
                self._whole(200, b"<!DOCTYPE html><html><body>Welcome<br></body></html>")
            case Misbehaviour.NOT_FOUND:
                self._whole(404, b"no such page")
            case Misbehaviour.BAD_GATEWAY:
                self._whole(502, b"the other end is gone")
            case Misbehaviour.NOT_OPENNEBULA:
                self._whole(200, xmlrpc.client.dumps((42,), methodresponse=True).encode())
            case _:
                self._whole(200, encode(reply))

    def _whole(self, status: int, body: bytes) -> None:
        self._head(status, len(body))
        self.wfile.write(body)

    def _head(self, status: int, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/xml; charset=utf-8")
        self.send_header("Content-Length", str(length))
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what matters of a request is kept in `requests`."""
