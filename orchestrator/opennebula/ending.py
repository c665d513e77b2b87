"""Ending a VM: asked for until OpenNebula says DONE, whatever it does with the first asking.

What OpenNebula was seen to do with `terminate-hard`, and what is done about it:

- refused while the VM starts or is worked on: asked when it has left that state, not before;
- accepted, and silently nothing comes of it (the VM is RUNNING again): asked again;
- accepted of a VM whose host does not answer (UNKNOWN): it then stays in SHUTDOWN for ever, also when the host is back.
  So it is not asked of a VM in UNKNOWN: deleted by `recover` where the account may, else left until the host is back;
- in SHUTDOWN, EPILOG, BOOT and the like for ever, when a driver never answers or OpenNebula was restarted: only
  `recover` helps, which is an administrator's.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum, auto
from typing import assert_never

from orchestrator.domain.errors import (
    CloudDenied,
    CloudError,
    CloudLocked,
    CloudMissing,
    CloudUnreachable,
    CloudWrongState,
    NotDestroyed,
)
from orchestrator.domain.proof import CloseProof, Disks
from orchestrator.opennebula.client import Client
from orchestrator.opennebula.folders import Folders
from orchestrator.opennebula.sights import Sight
from orchestrator.opennebula.states import Phase, ending
from orchestrator.opennebula.watch import Waiter, Watch

log = logging.getLogger(__name__)

_SETTLE_SECONDS = 2.0
"""For how long after an action was accepted its effect may not be visible yet (20 to 60 ms were seen)."""
_AGAIN_SECONDS = 1.0
"""When an action that was refused, or whose reply was lost, is tried again at the latest."""
_SLOW = 5
_RECOVER_DELETE = 3


class Step(Enum):
    """What a state allows to do about a VM that must go."""

    NOTHING = auto()
    """It is DONE."""
    TERMINATE = auto()
    WATCH = auto()
    """It is on its way, or OpenNebula would refuse: its state has to change."""
    RECOVER = auto()
    """Its host does not answer: terminating would leave it in SHUTDOWN for ever."""


def step(sight: Sight) -> Step:
    """What can be done about a VM seen so."""
    if ending(sight.state, sight.lcm_state):
        return Step.WATCH
    match sight.phase:
        case Phase.DONE:
            return Step.NOTHING
        case Phase.WAITING | Phase.RUNNING | Phase.OFF | Phase.FAILED:
            return Step.TERMINATE
        case Phase.STARTING | Phase.BUSY | Phase.STOPPING:
            return Step.WATCH
        case Phase.UNKNOWN:
            return Step.RECOVER
        case _:
            assert_never(sight.phase)


@dataclass(slots=True)
class Ender:
    """Ends VMs. stuck_seconds: how long a VM may stay in a state on its way to DONE before it counts as stuck; five
    times as long in another state that only passes, a slow PROLOG among them."""

    client: Client
    watch: Watch
    stuck_seconds: float
    folders: Folders
    may_recover: bool = True
    """Until OpenNebula denies it, which it will do again."""
    _since: dict[int, tuple[str, float]] = field(default_factory=dict)
    """In which state each VM that is to go was seen, and since when: kept when a wait for it is given up."""

    async def terminate(self, vm_id: int, within: float) -> CloseProof:
        """See `Cloud.terminate`."""
        with self.watch.waiting(vm_id, urgent=True, recent=True) as waiter:
            last = await _Ending(self, waiter, within).run()
        return await self.proof(vm_id, last)

    async def proof(self, vm_id: int, sight: Sight | None) -> CloseProof:
        """Of a VM that was seen DONE, or is unknown to OpenNebula."""
        self.forget(vm_id)
        if sight is not None and sight.host is None:
            disks = Disks(why_not="it came to no host, where it would have had any")
        else:
            disks = await self.folders.proof(vm_id, None if sight is None else sight.datastore)
        if disks.left:
            log.warning("OpenNebula has ended VM %d, and its disks are %s", vm_id, disks.text)
        if sight is None:
            return CloseProof(f"OpenNebula knows no VM {vm_id}", vm_id, disks=disks)
        ended_at = datetime.fromtimestamp(sight.ended, UTC) if sight.ended else None
        return CloseProof(f"OpenNebula says DONE of VM {vm_id}", vm_id, "DONE", ended_at, disks)

    def since(self, vm_id: int, state: str) -> float:
        """Since when (monotonic clock) the VM is in this state, now that it is seen so."""
        known = self._since.get(vm_id)
        if known is None or known[0] != state:
            known = self._since[vm_id] = (state, time.monotonic())
        return known[1]

    def forget(self, vm_id: int) -> None:
        """It is DONE."""
        self._since.pop(vm_id, None)

    async def recover_delete(self, vm_id: int) -> None:
        """See `Cloud.recover_delete`."""
        try:
            await self.client.ask("vm.recover", vm_id, _RECOVER_DELETE)
        except CloudMissing:
            return
        except CloudDenied:
            self.may_recover = False
            raise

    async def denial(self, vm_id: int, refused: CloudDenied) -> CloudDenied:
        """The same refusal, or that it is for a lock, of which OpenNebula's text says nothing."""
        try:
            vm = await self.client.once("vm.info", vm_id)
        except CloudError:
            return refused
        if getattr(vm, "LOCK", None) is None:
            return refused
        return CloudLocked(f"VM {vm_id} is locked: {refused} (to unlock it: onevm unlock {vm_id})", code=refused.code)


class _Ending:
    """One VM that must go, until it has gone."""

    def __init__(self, ender: Ender, waiter: Waiter, within: float) -> None:
        self._ender = ender
        self._waiter = waiter
        self._within = within
        self._vm_id = waiter.vm_id
        self._acted = float("-inf")  # what was seen before says nothing of what came of it
        self._not_before = float("-inf")
        self._state = ""
        self._stuck_at = float("inf")
        self._refused = ""

    async def run(self) -> Sight | None:
        """How it was seen last: DONE, or not known."""
        deadline = time.monotonic() + self._within
        while True:
            if self._waiter.denied is not None:
                raise self._waiter.denied
            seen = self._waiter.latest
            if seen is not None and seen.began >= self._acted and (seen.sight is None or await self._do(seen.sight)):
                return seen.sight if seen.sight is None or seen.sight.phase is Phase.DONE else None
            now = time.monotonic()
            if now >= deadline:
                state = self._state or "in a state that nobody could ask for"
                raise NotDestroyed(self._vm_id, state, self._within, self._refused or self._waiter.trouble)
            moments = (deadline, now + _AGAIN_SECONDS, self._not_before, self._stuck_at)
            await self._waiter.changed(min(moment for moment in moments if moment > now) - now)

    async def _do(self, sight: Sight) -> bool:
        """Take the next step, if it is time for one; True when nothing is left to do."""
        if sight.phase is not Phase.DONE:
            await self._ender.folders.look(sight.id, sight.datastore)
        on_its_way = ending(sight.state, sight.lcm_state)
        if sight.state_name != self._state:
            if self._state and not on_its_way:
                self._not_before = float("-inf")  # it changed, and not for the end: ask at once
            self._state = sight.state_name
        now = time.monotonic()
        since = self._ender.since(self._vm_id, sight.state_name)
        self._stuck_at = since + self._ender.stuck_seconds * (1 if on_its_way else _SLOW)
        match step(sight):
            case Step.NOTHING:
                return True
            case Step.TERMINATE if now >= self._not_before:
                return await self._act("vm.action", "terminate-hard", self._vm_id)
            case Step.WATCH if now >= max(self._not_before, self._stuck_at):
                return await self._recover(f"it is {sight.state_name} for {now - since:.0f} s")
            case Step.RECOVER if now >= self._not_before:
                return await self._recover("its host does not answer")
            case _:
                return False

    async def _recover(self, because: str) -> bool:
        if not self._ender.may_recover:
            self._refused = f"{because}, and this account may not recover it"
            return False
        log.warning("VM %d is deleted by recover: %s", self._vm_id, because)
        try:
            return await self._act("vm.recover", self._vm_id, _RECOVER_DELETE)
        except CloudLocked:
            raise
        except CloudDenied as error:
            self._ender.may_recover = False
            self._refused = str(error)
            return False

    async def _act(self, method: str, *arguments: str | int) -> bool:
        """Ask for it; True when there is no such VM."""
        try:
            await self._ender.client.once(method, *arguments)
        except CloudMissing:
            return True
        except CloudDenied as error:
            raise await self._ender.denial(self._vm_id, error) from error
        except (CloudWrongState, CloudUnreachable) as error:
            self._refused = str(error)
            self._not_before = time.monotonic() + _AGAIN_SECONDS
        else:
            self._refused = ""
            self._acted = time.monotonic()
            self._not_before = self._acted + _SETTLE_SECONDS
        return False
