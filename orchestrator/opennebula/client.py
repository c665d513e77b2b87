"""pyone in threads: how one call of OpenNebula's API is made, bounded and repeated."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import xmlrpc.client
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pyone

from orchestrator.domain.errors import (
    CloudDenied,
    CloudError,
    CloudLocked,
    CloudMissing,
    CloudUnreachable,
    CloudWrongState,
    QuotaExceeded,
)
from orchestrator.opennebula.limiter import Limiter
from orchestrator.opennebula.transport import BoundedTransport, NeverSent

T = TypeVar("T")
OnRequest = Callable[[str, str, float], None]
"""Told of each request when it is over: method ("vm.info"), result ("ok", or what kind of failure), and the seconds
that it took, its turn not counted. Of one for whose answer nobody waited nothing is told."""

log = logging.getLogger(__name__)

_OUTSIDE_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot carry ("Char"), and the carriage return, which it turns into a newline."""

_NAME_LOOKUP_SECONDS = 5.0
"""How much longer than its time limit a call may take: looking up a host's name cannot be interrupted."""


class Client:
    """Calls by name ("vm.info"), answers as pyone's objects.

    timeout: seconds for one call, connecting included. patience: for how many seconds a call that may be repeated is
    repeated while nothing answers. connections: how many at once, one urgent call not counted; OpenNebula takes 15 from
    all its clients together (MAX_CONN), and makes the next one wait a second. requests_per_second, burst: see
    `Limiter`. on_request: see `OnRequest`; it is called in the event loop and must not raise.
    """

    def __init__(
        self,
        endpoint: str,
        session: str,
        *,
        timeout: float = 30.0,
        patience: float = 10.0,
        connections: int = 12,
        requests_per_second: float = 28.0,
        burst: int = 60,
        on_request: OnRequest | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._on_request = on_request
        self._timeout = timeout
        self._patience = patience
        self._session = session
        self._limiter = Limiter(requests_per_second, burst)
        self._slots = asyncio.Semaphore(connections)
        self._urgent_slot = asyncio.Semaphore(1)
        self._threads = ThreadPoolExecutor(connections + 1, thread_name_prefix="opennebula")
        self._transport = BoundedTransport(endpoint, timeout)
        self._server = pyone.OneServer(endpoint, session, protocol="xmlrpc")
        self._server._ServerProxy__transport = self._transport  # pyone makes its own, and takes none

    def close(self) -> None:
        """Start no further call. Those under way end by themselves, at their time limit at the latest."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def once(self, method: str, *arguments: Any) -> Any:
        """Call `one.<method>`, and never twice.

        Raises CloudUnreachable when there is no whole reply within the time limit (NeverSent: OpenNebula knows nothing
        of the call), CloudDenied, CloudMissing, CloudWrongState or CloudError, with OpenNebula's code, when it refuses.
        """
        for argument in arguments:
            if isinstance(argument, str) and (bad := _OUTSIDE_XML.search(argument)):
                raise CloudError(f"one.{method}: the character {bad.group()!r} cannot be sent to OpenNebula")
        return await self._bounded(method, lambda: self._call(method, arguments), urgent=False)

    async def raw(self, method: str, *arguments: str | int | bool, urgent: bool = False) -> str:
        """Call `one.<method>`, and return the XML as it came: pyone's bindings are slow for a thousand VMs.

        Never repeated; raises as `once` does. urgent: it waits for no turn, see `Limiter`, and behind no other call but
        an urgent one.
        """
        return await self._bounded(method, lambda: self._call_raw(method, arguments), urgent=urgent)

    async def _bounded(self, method: str, call: Callable[[], T], *, urgent: bool) -> T:
        await self._limiter.turn(urgent=urgent)
        async with self._urgent_slot if urgent else self._slots:
            began, result = time.monotonic(), "failed"
            calling = asyncio.get_running_loop().run_in_executor(self._threads, call)
            try:
                async with asyncio.timeout(self._timeout + _NAME_LOOKUP_SECONDS):
                    answer = await calling
                result = "ok"
                return answer
            except TimeoutError as error:
                result = "unreachable"
                raise CloudUnreachable(f"{self.endpoint} did not answer one.{method}") from error
            except CloudError as error:
                result = _kind(error)
                raise
            except asyncio.CancelledError:
                result = ""
                raise
            finally:
                if self._on_request is not None and result:
                    self._on_request(method, result, time.monotonic() - began)

    async def order(self, method: str, *arguments: Any) -> Any:
        """Call `one.<method>`, which changes something: again only as long as it never left this machine."""
        return await self._repeated(NeverSent, method, lambda: self.once(method, *arguments))

    async def ask(self, method: str, *arguments: Any) -> Any:
        """Call `one.<method>`, which may be called twice without harm: again whenever the reply is lost."""
        return await self._repeated(CloudUnreachable, method, lambda: self.once(method, *arguments))

    async def ask_raw(self, method: str, *arguments: str | int | bool) -> str:
        """The same, with the XML as it came, see `raw`."""
        return await self._repeated(CloudUnreachable, method, lambda: self.raw(method, *arguments))

    async def _repeated(self, lost: type[CloudUnreachable], method: str, call: Callable[[], Awaitable[T]]) -> T:
        give_up = time.monotonic() + self._patience
        pause = 0.1
        while True:
            try:
                return await call()
            except lost as error:
                if time.monotonic() + pause > give_up:
                    raise
                log.info("one.%s: %s; asking again", method, error)  # who waits for the answer tells that it is late
            await asyncio.sleep(pause)
            pause = min(2 * pause, 1.0)

    def _call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        try:
            return getattr(self._server, method)(*arguments)
        except CloudError:
            raise
        except Exception as error:  # pyone's bindings raise what their XML parsers raise
            raise CloudError(f"one.{method} answered with what pyone cannot read: {error}") from error

    def _call_raw(self, method: str, arguments: tuple[Any, ...]) -> str:
        request = xmlrpc.client.dumps((self._session, *arguments), f"one.{method}").encode()
        match self._transport.request("", "", request):
            case ([True, str(body), *_],):
                return body
            case _:
                raise CloudError(f"one.{method} answered with no text")


def _kind(error: CloudError) -> str:
    match error:
        case CloudUnreachable():
            return "unreachable"
        case QuotaExceeded():
            return "quota"
        case CloudLocked():
            return "locked"
        case CloudDenied():
            return "denied"
        case CloudMissing():
            return "missing"
        case CloudWrongState():
            return "wrong_state"
        case _:
            return "failed"
