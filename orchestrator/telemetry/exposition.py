"""`GET /metrics` and `GET /-/healthy`, by a thread beside the event loop; any other path is not found.

Healthy means that the loop turns: a process that is stuck answers 503, whatever its thread could say.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socketserver
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import make_wsgi_app

from orchestrator.domain.errors import NotPossible
from orchestrator.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

LOOPBACK = "127.0.0.1"
REQUEST_SECONDS = 10.0
"""How long a client may take to ask."""
BEAT_SECONDS = 0.5
STUCK_SECONDS = 10.0
"""An event loop that has not turned for so long is stuck."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. Port 0: any that is free."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def read_address(text: object) -> Address:
    """`HOST:PORT`; a port alone is on loopback. Raises ValueError.

    >>> str(read_address("9464")), str(read_address("0.0.0.0:9464")), str(read_address("[::1]:0"))
    ('127.0.0.1:9464', '0.0.0.0:9464', '[::1]:0')
    """
    host, colon, port = str(text).strip().rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("write an IPv6 address in brackets: [::1]:9464")
    if not (port.isascii() and port.isdigit() and int(port) < 2**16):
        raise ValueError("write HOST:PORT, or a port alone for 127.0.0.1, such as 9464")
    if not host and colon and str(text).strip().startswith("["):
        raise ValueError("write HOST:PORT, such as [::1]:9464")
    return Address(host or LOOPBACK, int(port))


@asynccontextmanager
async def exposed(metrics: Metrics, address: Address) -> AsyncIterator[Address]:
    """Serve them for as long as the block runs; yields where. Raises NotPossible when nothing can listen there."""
    turning = _Turning()
    try:
        server = await asyncio.to_thread(_listening, address, _application(metrics, turning))
    except OSError as error:
        problem = f"cannot listen on {address}: {error.strerror or error}"
        raise NotPossible("metrics", problem, "name another HOST:PORT, each process its own") from error
    metrics.exposed = True
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="metrics", daemon=True)
    thread.start()
    beating = asyncio.create_task(turning.beat(), name="metrics: the loop turns")
    try:
        yield Address(address.host, server.server_port)
    finally:
        beating.cancel()
        await asyncio.to_thread(_end, server, thread)


def _listening(address: Address, application: Any) -> _Server:
    server = _Server(address)
    server.set_app(application)
    return server


def _end(server: _Server, thread: threading.Thread) -> None:
    server.shutdown()
    server.server_close()
    thread.join()


class _Turning:
    """Whether the event loop still turns."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    async def beat(self) -> None:
        while True:
            self._last = time.monotonic()
            await asyncio.sleep(BEAT_SECONDS)

    def still_for(self) -> float:
        """Seconds since it last did."""
        return time.monotonic() - self._last


def _application(metrics: Metrics, turning: _Turning) -> Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]:
    of_metrics: Any = make_wsgi_app(metrics.registry)

    def application(asked: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def answer(status: str, words: str) -> list[bytes]:
            start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
            return [f"{words}\n".encode()]

        match asked["REQUEST_METHOD"], asked["PATH_INFO"]:
            case "GET", "/metrics":
                found: Iterable[bytes] = of_metrics(asked, start_response)
                return found
            case "GET", "/-/healthy":
                still = turning.still_for()
                if still > STUCK_SECONDS:
                    return answer("503 Service Unavailable", f"the event loop has not turned for {still:.0f} s")
                return answer("200 OK", "healthy")
            case _, "/metrics" | "/-/healthy":
                return answer("405 Method Not Allowed", "only GET")
            case _:
                return answer("404 Not Found", "there are /metrics and /-/healthy")

    return application


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        _log.debug(format, *args)


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """A thread for each request, none of which keeps the process from ending."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, address: Address) -> None:
        self.address_family = AF_INET6 if ":" in address.host else AF_INET
        super().__init__((address.host, address.port), _Handler)

    def server_bind(self) -> None:
        """As `HTTPServer` does, but for its look-up of this machine's name, which may take long."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is no trouble of ours."""
        with contextlib.suppress(Exception):
            _log.info("metrics: a request of %s broke off", client_address, exc_info=True)
