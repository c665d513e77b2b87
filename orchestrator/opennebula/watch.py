"""One pool call a tick for all that waits for a VM in this process, and one at once for a VM of which an event tells.

The call is `one.vmpool.infoset` of just the ids that are waited for: unlike `one.vmpool.info` it shows those that are
DONE, too, so that nothing has to be concluded from a VM that is missing, and it shows nobody else's. Its short body has
all that a wait needs (state, address, host), costs OpenNebula less than half of the extended one (observed: 134 pools
of 680 VMs a second against 52), and us too.

What is true is what that call shows. OpenNebula's events, where they can be had, only say when to look (`events`); as
long as they are seen to come (`trust`), the tick is slower.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from orchestrator.domain.errors import CloudDenied, CloudError, CloudMissing
from orchestrator.opennebula.client import Client
from orchestrator.opennebula.events import Announced, EventStream
from orchestrator.opennebula.objects import CloudVm
from orchestrator.opennebula.sights import Sight, read_pool
from orchestrator.opennebula.trust import EarlyLooks, Trust

log = logging.getLogger(__name__)

_SECONDS_PER_URGENT = 0.01
"""So much longer a tick is for each VM whose next state somebody waits for: many are looked at less often."""
_SHARE = 4.0
"""The pool call takes at most one part in so many and one of the time."""
_BACK_OFF_SECONDS = 5.0
_SLOWER = 5.0
"""By how much longer a tick is while events come and VMs are only kept an eye on."""
_KEPT_TICKS = 2.0
"""For how long a sight is kept of which the waiter has left: the next one (to end the VM, say) begins with it."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one tick, `began` at this monotonic time, showed of a VM. `sight` is None when OpenNebula knows no such
    VM."""

    began: float
    sight: Sight | None


@dataclass(eq=False, slots=True)
class Waiter:
    """One wait for one VM. `latest`: what was seen last, if anything; `trouble`: why nothing newer is known;
    `denied`: OpenNebula refuses to show it, which will not change by itself."""

    vm_id: int
    urgent: bool
    latest: Seen | None = None
    trouble: str = ""
    denied: CloudDenied | None = None
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def changed(self, within: float) -> None:
        """Return when the VM is seen in another state than before, or after `within` seconds."""
        try:
            async with asyncio.timeout(max(within, 0.0)):
                await self._news.wait()
        except TimeoutError:
            pass
        self._news.clear()

    def tell(self, seen: Seen) -> None:
        """A tick showed the VM."""
        before, self.latest, self.trouble, self.denied = self.latest, seen, "", None
        if before is None or _name(before) != _name(seen):
            self._news.set()

    def tell_trouble(self, error: Exception) -> None:
        """A tick showed nothing."""
        self.trouble = str(error)
        if isinstance(error, CloudDenied):
            self.denied = error
            self._news.set()


def _name(seen: Seen) -> str:
    return seen.sight.state_name if seen.sight else ""


class Watch:
    """Looks as long as anybody waits.

    fastest: seconds between two looks while a few wait for a start or an end; with more of them (`urgent`) it becomes
    slower, up to `tick`, which is also the pace while VMs are only kept an eye on. events: where OpenNebula publishes;
    see `EventStream` for `events_once`. Raises NotPossible for what is no address.
    """

    def __init__(
        self, client: Client, *, fastest: float, tick: float, events: str | None = None, events_once: bool = False
    ) -> None:
        self._client = client
        self._fastest = min(fastest, tick)
        self._tick = tick
        self._waiters: dict[int, set[Waiter]] = {}
        self._left: dict[int, Seen] = {}
        self._nudge = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._began = float("-inf")
        self._took = 0.0
        self._failures = 0
        self._trust = Trust()
        self._early = EarlyLooks(self._fastest)
        self.stream = (
            EventStream(events, once=events_once, heard=self._heard, changed=self._stream_changed) if events else None
        )

    @property
    def relies_on_events(self) -> bool:
        """Whether they come, so that looking less often is enough."""
        return self.stream is not None and self.stream.connected and self._trust.proven

    @contextmanager
    def waiting(self, vm_id: int, *, urgent: bool, recent: bool = False) -> Iterator[Waiter]:
        """Inside the block the VM is looked at, each tick; soon for the first time. recent: begin with what was seen a
        few seconds ago, if it was."""
        waiter = Waiter(vm_id, urgent, self._recent(vm_id) if recent else None)
        self._waiters.setdefault(vm_id, set()).add(waiter)
        if self.stream is not None:
            self.stream.start()
            if waiter.latest is None and self.relies_on_events:
                self._early.want(vm_id, "", time.monotonic())
        self._nudge.set()
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look_on(), name="watch VMs")
        try:
            yield waiter
        finally:
            others = self._waiters[vm_id]
            others.discard(waiter)
            if not others:
                del self._waiters[vm_id]
                self._early.forget(vm_id)
                if waiter.latest is not None:
                    self._left[vm_id] = waiter.latest
            self._nudge.set()

    def note(self, sight: Sight, began: float) -> None:
        """A VM was asked for alone, `began` then (monotonic clock): a sight that is kept of it is out of date."""
        if sight.id in self._left:
            self._left[sight.id] = Seen(began, sight)

    def close(self) -> None:
        """Look no more: whoever still waits will learn nothing new."""
        if self.stream is not None:
            self.stream.close()
        if self._looking is not None:
            self._looking.cancel()

    def _recent(self, vm_id: int) -> Seen | None:
        for other in self._waiters.get(vm_id, ()):
            if other.latest is not None:
                return other.latest
        left = self._left.pop(vm_id, None)
        return left if left is not None and time.monotonic() - left.began < self._kept_seconds() else None

    def _kept_seconds(self) -> float:
        return _KEPT_TICKS * self._tick * (_SLOWER if self.relies_on_events else 1.0)

    def _heard(self, announced: Announced) -> None:
        """An event came. It is a reason to look, and nothing else."""
        self._trust.heard(announced)
        if not announced.settled:
            return
        vm_id, name = announced.vm_id, announced.state_name
        if vm_id in self._left and _name(self._left[vm_id]) != name:
            del self._left[vm_id]
        waiters = self._waiters.get(vm_id, ())
        if any(waiter.latest is None or _name(waiter.latest) != name for waiter in waiters):
            self._early.want(vm_id, name, time.monotonic())
            self._nudge.set()

    def _stream_changed(self) -> None:
        self._trust.forget()
        self._nudge.set()

    async def _look_on(self) -> None:
        while asked := await self._due():
            began = time.monotonic()
            regular = len(asked) == len(self._waiters)
            if regular:
                self._began = began
            try:
                await self._look(asked, began)
            except CloudError as error:
                self._failed(asked, error)
            except Exception as error:
                log.exception("looking at VMs failed")
                self._failed(asked, error)
            else:
                if self._failures:
                    log.warning("OpenNebula answers again")
                self._failures = 0
            if regular:
                self._took = time.monotonic() - began

    async def _due(self) -> list[int]:
        """Wait until it is time to look; at which VMs: all, those of which events told, or none, when nobody waits any
        more."""
        while self._waiters:
            self._nudge.clear()
            now = time.monotonic()
            regular = self._began + self._interval()
            early = float("inf") if self._failures else self._early.moment()
            if regular <= now:
                return list(self._waiters)
            if early <= now and (wanted := [vm_id for vm_id in self._early.take(now) if vm_id in self._waiters]):
                return wanted
            try:
                async with asyncio.timeout(min(regular, early) - now):
                    await self._nudge.wait()
            except TimeoutError:
                pass
        return []

    def _interval(self) -> float:
        urgent = sum(any(waiter.urgent for waiter in waiters) for waiters in self._waiters.values())
        if self.relies_on_events:
            pace = self._tick if urgent else _SLOWER * self._tick
        else:
            pace = min(self._tick, max(self._fastest, urgent * _SECONDS_PER_URGENT)) if urgent else self._tick
        back_off = min(self._fastest * 2 ** min(self._failures, 10), _BACK_OFF_SECONDS) if self._failures else 0.0
        return max(pace, _SHARE * self._took if not self._failures else 0.0, back_off)

    async def _look(self, asked: list[int], began: float) -> None:
        body = await self._client.raw("vmpool.infoset", ",".join(map(str, sorted(asked))), False, urgent=True)
        try:
            found = await asyncio.to_thread(read_pool, body)
        except ValueError as error:
            raise CloudError(f"one.vmpool.infoset answered with what cannot be read: {error}") from error
        for vm_id in found.keys() & self._waiters.keys():
            self._tell(vm_id, Seen(began, found[vm_id]))
        horizon = began - self._kept_seconds()
        self._left = {vm_id: seen for vm_id, seen in self._left.items() if seen.began >= horizon}
        for vm_id in asked:
            if vm_id not in found:
                await self._look_alone(vm_id, began)
        if self._trust.missed(time.monotonic()):
            log.info("an event of OpenNebula's is missing; VMs are looked at more often until events come again")

    async def _look_alone(self, vm_id: int, began: float) -> None:
        """A VM that the pool leaves out: it never was, or this account may not see it."""
        try:
            vm = CloudVm.read(await self._client.once("vm.info", vm_id))
            self._tell(vm_id, Seen(began, Sight.of(vm)))
        except CloudMissing:
            self._tell(vm_id, Seen(began, None))
        except CloudDenied as error:
            self._early.looked(vm_id, "", began, time.monotonic())
            for waiter in self._waiters.get(vm_id, ()):
                waiter.tell_trouble(error)

    def _tell(self, vm_id: int, seen: Seen) -> None:
        waiters = self._waiters.get(vm_id, set())
        before = next((waiter.latest for waiter in waiters if waiter.latest is not None), None)
        now, name = time.monotonic(), _name(seen)
        if self.stream is not None and self.stream.connected and name:
            self._trust.seen(vm_id, name, _name(before) if before else None, now)
        self._early.looked(vm_id, name, seen.began, now)
        for waiter in waiters:
            waiter.tell(seen)

    def _failed(self, asked: list[int], error: Exception) -> None:
        if not self._failures:
            log.warning("%d VMs cannot be looked at, trying on: %s", len(asked), error)
        self._failures += 1
        for vm_id in asked:
            for waiter in self._waiters.get(vm_id, ()):
                waiter.tell_trouble(error)
