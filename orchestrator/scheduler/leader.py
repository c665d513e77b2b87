"""Which of several schedulers acts: the one that holds the leader's lease in the database, and is sure of it.

Each time that the lease changes hands it has a new term. A scheduler acts in one term only: it stops when its lease has
run out by its own clock, whatever keeps it from asking, and before each chore it looks that its term is still the last.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import uuid
from contextlib import suppress
from dataclasses import dataclass, field

from orchestrator.store import Store
from orchestrator.trouble import TROUBLE

NAME = "scheduler"
LEADER_SECONDS = 15.0
RENEWALS_PER_LEASE = 4

_log = logging.getLogger(__name__)


def holder_name() -> str:
    """A name for this scheduler that no other ever has."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


@dataclass
class Leadership:
    """Our standing for the lease `NAME`; `term` is None while another leads. Seconds by the loop's clock."""

    store: Store
    seconds: float = LEADER_SECONDS
    holder: str = field(default_factory=holder_name)
    term: int | None = None
    _sure_until: float = 0.0
    _ending: tuple[asyncio.Task[object], ...] = ()

    async def ask(self) -> bool:
        """Ask for the lease, or for more of it. False: we do not lead, or not in the term that we led in."""
        asked_at = asyncio.get_running_loop().time()
        term = await self.store.leaders.lead(NAME, self.holder, seconds=self.seconds, now=await self.store.clock.sync())
        before, self.term = self.term, term
        if term is None or before not in (None, term):
            self.term = None
            return False
        self._sure_until = asked_at + self.seconds
        return True

    @property
    def sure(self) -> bool:
        """Whether the lease cannot have run out yet, however long we have not been able to ask."""
        return self.term is not None and asyncio.get_running_loop().time() < self._sure_until

    async def holds(self) -> bool:
        """Whether our term is the last one, as the database has it."""
        if not self.sure:
            return False
        leader = await self.store.leaders.get(NAME)
        return leader is not None and (leader.holder, leader.term) == (self.holder, self.term) and self.sure

    async def won(self, stop: asyncio.Event) -> bool:
        """Wait until we lead (True) or `stop` (False)."""
        told = ""
        while not stop.is_set():
            pause, line = self.seconds / RENEWALS_PER_LEASE, "another scheduler leads"
            try:
                if await self.ask():
                    return True
                leader = await self.store.leaders.get(NAME)
                if leader is not None:  # as soon as its lease has run out
                    line = f"{leader.holder} leads, in term {leader.term}"
                    left = (leader.expires_at - self.store.clock.now()).total_seconds()
                    pause = min(pause, max(left, 0.0) + 0.05)
            except TROUBLE as trouble:
                line = f"cannot ask who leads: {trouble}"
            if line != told:
                _log.info("%s", line)
                told = line
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), pause)
        return False

    async def kept(self, stop: asyncio.Event) -> None:
        """Keep the lease; come back when it is lost, or at `stop`."""
        renewing = asyncio.create_task(self._renew(), name="the leader's lease")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            while self.sure and not (renewing.done() or stopping.done()):
                left = self._sure_until - asyncio.get_running_loop().time()
                await asyncio.wait({renewing, stopping}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in (renewing, stopping):
                each.cancel()
            self._ending = (renewing, stopping)  # one that hangs on the database keeps nobody from stopping now
        if not stop.is_set():
            _log.warning("the leader's lease is lost: this scheduler stops acting")

    async def _renew(self) -> None:
        """Until the database says that we lead no more. One that does not answer says nothing."""
        while True:
            await asyncio.sleep(self.seconds / RENEWALS_PER_LEASE)
            with suppress(*TROUBLE):
                if not await self.ask():
                    return

    async def settled(self) -> None:
        """Wait for what `kept` left behind."""
        await asyncio.gather(*self._ending, return_exceptions=True)

    async def give_up(self) -> None:
        """Let another lead at once; one that cannot be told will see the lease run out."""
        if self.term is not None:
            self.term = None
            with suppress(*TROUBLE):
                await self.store.leaders.resign(NAME, self.holder)
