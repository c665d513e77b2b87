"""How far OpenNebula's events are relied on, and the looks they cause. Neither believes what an event says. Pure."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from orchestrator.opennebula.events import Announced

_VMS_REMEMBERED, _STATES_REMEMBERED = 1000, 12
_AT_ONCE = 5
"""So many early looks may follow each other at once."""
_AGAIN_SECONDS = (0.05, 0.2, 0.5)
"""When a VM is looked at again that did not show what was announced: oned publishes just before it writes the new state
(`VirtualMachinePool::update`)."""


@dataclass(slots=True)
class Trust:
    """Whether events come, shown by what was announced of VMs that were seen to change.

    A stream proves itself by a change that it announced, and is not relied on any more after one of which nothing was
    heard within `grace` seconds, until it announces one again.
    """

    grace: float = 2.0
    proven: bool = False
    _heard: OrderedDict[int, deque[str]] = field(default_factory=OrderedDict)
    _unannounced: dict[int, tuple[str, float]] = field(default_factory=dict)

    def heard(self, announced: Announced) -> None:
        """A message came."""
        states = self._heard.setdefault(announced.vm_id, deque(maxlen=_STATES_REMEMBERED))
        states.append(announced.state_name)
        self._heard.move_to_end(announced.vm_id)
        while len(self._heard) > _VMS_REMEMBERED:
            self._heard.popitem(last=False)
        waited = self._unannounced.get(announced.vm_id)
        if waited is not None and waited[0] == announced.state_name:
            del self._unannounced[announced.vm_id]
            self.proven = True

    def seen(self, vm_id: int, state: str, before: str | None, now: float) -> None:
        """The API shows the VM in this state, and showed it in that one `before` (None: for the first time)."""
        if state == before:
            return
        if state in self._heard.get(vm_id, ()):
            self.proven = True
        elif before is not None:
            self._unannounced.setdefault(vm_id, (state, now))

    def missed(self, now: float) -> bool:
        """Whether a change was missed that is not forgiven yet; it then is no longer relied on."""
        late = [vm_id for vm_id, (_, since) in self._unannounced.items() if now - since > self.grace]
        for vm_id in late:
            del self._unannounced[vm_id]
        lost = bool(late) and self.proven
        if late:
            self.proven = False
        return lost

    def forget(self) -> None:
        """The stream was interrupted: it has to prove itself again."""
        self.proven = False
        self._heard.clear()
        self._unannounced.clear()


@dataclass(eq=False, slots=True)
class _Early:
    state_name: str
    due: float
    looks: int = 0


class EarlyLooks:
    """VMs to look at before the next tick. `gap`: seconds between two such looks, but for a few; so that nobody who can
    send events can make us look more often than without any."""

    def __init__(self, gap: float) -> None:
        self._gap = gap
        self._slack = (_AT_ONCE - 1) * gap
        self._paid = float("-inf")
        self._wanted: dict[int, _Early] = {}

    def want(self, vm_id: int, state_name: str, now: float) -> None:
        """Look at the VM soon, which is said to be in this state; an empty one: in whatever state it is."""
        self._wanted[vm_id] = _Early(state_name, now)

    def moment(self) -> float:
        """When the next is due; never: infinity."""
        if not self._wanted:
            return float("inf")
        return max(min(each.due for each in self._wanted.values()), self._paid + self._gap)

    def take(self, now: float) -> list[int]:
        """The VMs to look at now."""
        self._paid = max(self._paid + self._gap, now - self._slack)
        return [vm_id for vm_id, each in self._wanted.items() if each.due <= now]

    def looked(self, vm_id: int, state_name: str, began: float, now: float) -> None:
        """A look that `began` then showed the VM in this state (empty: not at all)."""
        wanted = self._wanted.get(vm_id)
        if wanted is None or wanted.due > began:
            return
        if wanted.state_name in ("", state_name) or wanted.looks == len(_AGAIN_SECONDS):
            del self._wanted[vm_id]
        else:
            wanted.due = now + _AGAIN_SECONDS[wanted.looks]
            wanted.looks += 1

    def forget(self, vm_id: int) -> None:
        """Nobody waits for the VM any more."""
        self._wanted.pop(vm_id, None)
