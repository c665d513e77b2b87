"""XML-RPC over HTTP or HTTPS for pyone, with the two things that pyone's own transport lacks.

- A time limit that bounds the whole call, from the first connection attempt to the last byte of the reply, however
  slowly the bytes come, and that stays with this call (pyone's `timeout` sets the process's default socket timeout).
- The error's code: pyone keeps only the text.

OpenNebula answers `Connection: close` to every request, so every call is a connection of its own.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
import xmlrpc.client
from typing import Any
from urllib.parse import urlsplit
from xml.parsers.expat import ExpatError

from orchestrator.domain.errors import (
    CloudDenied,
    CloudError,
    CloudLocked,
    CloudMissing,
    CloudUnreachable,
    CloudWrongState,
    NotPossible,
    QuotaExceeded,
)

_NOT_OPENNEBULA = "is ONE_XMLRPC right? It ends in /RPC2"


class NeverSent(CloudUnreachable):
    """No connection came about: OpenNebula knows nothing of what was asked for, and it may be asked again."""


class Unreadable(CloudUnreachable):
    """Something answered, and not as OpenNebula does. Whether the call was done is not known."""


def refusal(code: int, text: str) -> CloudError:
    """The error for a reply of failure: its kind by the code, its text OpenNebula's own, with a remedy if one is clear.

    The codes are OpenNebula's (XML-RPC reference, "Error codes"). Quota, restricted attributes and locks all come with
    the code of a missing permission. The text tells a quota ("limit of 1 reached for VMS quota in VM") and a restricted
    attribute; of a lock it says nothing, see `locks`.
    """
    text = text or f"refused without a word (code {code})"
    match code:
        case 0x0100:
            return CloudDenied(f"{text} (does the file that ONE_AUTH names hold the right user:password?)", code=code)
        case 0x0200 if "quota" in text:
            return QuotaExceeded(f"{text} (a quota of the account is used up)", code=code)
        case 0x0200 if "restricted attribute" in text:
            return CloudDenied(f"{text} (only an administrator may set it)", code=code)
        case 0x0200:
            return CloudDenied(text, code=code)
        case 0x0400:
            return CloudMissing(text, code=code)
        case 0x0800:
            return CloudWrongState(text, code=code)
        case 0x8000:
            return CloudLocked(text, code=code)
        case _:
            return CloudError(text, code=code)


class BoundedTransport(xmlrpc.client.Transport):
    """One call, one connection, at most `timeout` seconds.

    `request` returns what OpenNebula answered in case of success, and raises in every other: CloudUnreachable when
    there was no whole reply (NeverSent: not even a connection; Unreadable: one that is none of OpenNebula's), the error
    of `refusal` for a reply of failure (with a negative code for an XML-RPC fault). Several threads may use it at once.
    """

    def __init__(self, endpoint: str, timeout: float) -> None:
        """Raises NotPossible when `endpoint` is no `http://` or `https://` address."""
        super().__init__()
        self._endpoint = endpoint
        self._timeout = timeout
        try:
            parts = urlsplit(endpoint)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise NotPossible(
                "ONE_XMLRPC", f"{endpoint!r} is not an address", "give OpenNebula's endpoint, http://HOST:2633/RPC2"
            )
        self._host = parts.hostname
        self._path = parts.path or "/RPC2"
        self._tls: ssl.SSLContext | None = None
        if parts.scheme == "https":
            self._tls = ssl.create_default_context()
            self._tls.sslsocket_class = _TlsSocket
        self._port = port or (http.client.HTTPS_PORT if self._tls else http.client.HTTP_PORT)

    def request(self, host: Any, handler: str, request_body: Any, verbose: bool = False) -> Any:
        """Post `request_body`; host and path are those of the endpoint, whatever the caller says."""
        connection = _Connection(self._host, self._port, time.monotonic() + self._timeout, self._tls)
        try:
            try:
                connection.connect()
            except OSError as error:
                raise NeverSent(f"nothing answers at {self._endpoint}: {_words(error)} (see ONE_XMLRPC)") from error
            try:
                headers = {"Content-Type": "text/xml", "User-Agent": "mayfly"}
                connection.request("POST", self._path, request_body, headers)
                with connection.getresponse() as response:  # which takes the socket over from the connection
                    status, body = response.status, response.read()
            except (OSError, http.client.HTTPException) as error:
                raise CloudUnreachable(f"{self._endpoint} did not answer to the end: {_words(error)}") from error
        finally:
            connection.close()
        return self._value(status, body)

    def _value(self, status: int, body: bytes) -> Any:
        if status >= 500:
            raise CloudUnreachable(f"{self._endpoint} answered with HTTP {status}")
        if status != 200:
            raise CloudError(f"{self._endpoint} answered with HTTP {status}: {_NOT_OPENNEBULA}")
        parser, unmarshaller = self.getparser()
        try:
            parser.feed(body)
            parser.close()
            values: Any = unmarshaller.close()
        except xmlrpc.client.Fault as fault:
            raise CloudError(str(fault.faultString), code=int(fault.faultCode)) from None
        except (ExpatError, xmlrpc.client.Error, ValueError, LookupError, TypeError) as error:
            raise Unreadable(f"{self._endpoint} did not answer in XML-RPC: {_NOT_OPENNEBULA}") from error
        match values:
            case ([True, _, _, *_],):
                return values
            case ([False, str(text), int(code), *_],):
                raise refusal(code, text)
            case _:
                raise Unreadable(f"{self._endpoint} answered, but not as OpenNebula does: {_NOT_OPENNEBULA}")


def _words(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "the time for it is over"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _PlainSocket(socket.socket):
    """A socket whose reads wait, all together, no longer than until `deadline` of the monotonic clock."""

    deadline: float

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        self.settimeout(_left(self.deadline))
        return super().recv_into(buffer, nbytes, flags)


class _TlsSocket(ssl.SSLSocket):
    """The same, encrypted."""

    deadline: float

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        self.settimeout(_left(self.deadline))
        return super().recv_into(buffer, nbytes, flags)


class _Connection(http.client.HTTPConnection):
    def __init__(self, host: str, port: int, deadline: float, tls: ssl.SSLContext | None) -> None:
        super().__init__(host, port)
        self._deadline = deadline
        self._tls = tls

    def connect(self) -> None:
        """Try each address of the host in turn, all of them within the deadline."""
        problem = OSError("the host has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM):
            plain = _PlainSocket(family, kind, protocol)
            plain.deadline = self._deadline
            try:
                plain.settimeout(_left(self._deadline))
                plain.connect(address)
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                plain.settimeout(_left(self._deadline))
                self.sock = plain if self._tls is None else self._encrypted(plain, self._tls)
            except OSError as error:
                plain.close()
                problem = error
            else:
                return
        raise problem

    def _encrypted(self, plain: _PlainSocket, tls: ssl.SSLContext) -> _TlsSocket:
        encrypted = tls.wrap_socket(plain, server_hostname=self.host)
        assert isinstance(encrypted, _TlsSocket)  # sslsocket_class
        encrypted.deadline = self._deadline
        return encrypted
