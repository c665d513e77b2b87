"""Why a task waits (one reason, the one that must go first), how many are before it, and how long that may take."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from orchestrator.decide.admission import Room
from orchestrator.domain.outcome import Reason
from orchestrator.domain.pool import Pool
from orchestrator.domain.task import TaskState

_NAMED = 3


@dataclass(frozen=True, slots=True)
class Waiting:
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class LayerWait:
    """A task's packages are not installed yet. builder: the task that does it; None: it is not known yet which."""

    builder: str | None = None


@dataclass(frozen=True, slots=True)
class Situation:
    """All that may keep a task from starting.

    pool: None when the inventory has no pool_name any more. admitted: it was found ready. unfinished: what it depends
    on and has not FINISHED. last_reason, last_message: why its last attempt did not do it. served: a living runner
    takes tasks of the pool. blocked: what the runners say of the room for its pool. open_vms: those of the pool.
    ahead: how many tasks go before it. layer: of a task that brings packages, until these
    are installed; what does that is not among `unfinished`.
    """

    state: TaskState
    pool: Pool | None
    pool_name: str
    now: datetime
    admitted: bool
    not_before: datetime | None = None
    unfinished: Collection[str] = ()
    attempt: int = 0
    last_reason: Reason | None = None
    last_message: str = ""
    paused: bool = False
    paused_because: str = ""
    served: bool = True
    blocked: Room | None = None
    open_vms: int = 0
    ahead: int | None = None
    layer: LayerWait | None = None


def why(task: Situation) -> Waiting | None:
    """The reason; None of one that does not wait."""
    if task.state is TaskState.NEW:
        return Waiting(Reason.NOT_RELEASED, "it is held until it is released")
    if task.state is not TaskState.QUEUED:
        return None
    name = task.pool_name
    if task.pool is None:
        return Waiting(Reason.NO_SUCH_POOL, f"the inventory has no pool {name!r} any more")
    if task.unfinished:
        return Waiting(Reason.DEPENDS_ON, f"it waits for the end of {_listed(task.unfinished)}")
    if task.layer is not None:
        return Waiting(Reason.LAYER, _unlaid(task.layer))
    if task.not_before is not None and task.not_before > task.now:
        return _later(task, task.not_before)
    if task.paused:
        because = f": {task.paused_because}" if task.paused_because else ""
        return Waiting(Reason.POOL_PAUSED, f"pool {name} is paused{because}")
    if not task.served:
        return Waiting(
            Reason.NO_RUNNER, f"no runner is alive for pool {name}: start one with mayfly up or mayfly runner"
        )
    if task.open_vms >= task.pool.max_vms:
        room = f"pool {name} may have {task.pool.max_vms} machines, and has {task.open_vms}"
        return Waiting(Reason.MAX_VMS, room)
    if task.blocked is not None and task.blocked.count <= 0:
        return Waiting(task.blocked.reason or Reason.NO_CAPACITY, task.blocked.message)
    if not task.admitted:
        return Waiting(Reason.IN_LINE, "it is ready, and about to be let in")
    match task.ahead:
        case None:
            return Waiting(Reason.IN_LINE, "it waits for its turn")
        case 0:
            return Waiting(Reason.IN_LINE, "it is the next one")
        case 1:
            return Waiting(Reason.IN_LINE, "1 task is before it")
        case _:
            return Waiting(Reason.IN_LINE, f"{task.ahead} tasks are before it")


def layer_failed(builder: str, message: str) -> str:
    """Of a task whose packages could not be installed: by which task, and what is said of that.

    >>> layer_failed("01kb", "exited with 1")
    'its packages could not be installed: task 01kb exited with 1'
    """
    return f"its packages could not be installed: task {builder} {message or 'did not do it'}"


class Place(Protocol):
    """Where a ready task is in its queue. higher: tasks of a higher priority; own_before: earlier ones of its own
    frontend and priority; others: how many of that priority each other frontend has."""

    @property
    def higher(self) -> int: ...
    @property
    def own_before(self) -> int: ...
    @property
    def others(self) -> tuple[int, ...]: ...


class Pace(Protocol):
    """ended: how many attempts came to their end in the last window_seconds. mean_seconds: how long they took."""

    @property
    def ended(self) -> int: ...
    @property
    def window_seconds(self) -> float: ...
    @property
    def mean_seconds(self) -> float | None: ...


def position(place: Place) -> int:
    """1: it is the next one. Frontends that hold as many tasks take turns, so that each other goes before it at most
    once more than its own frontend does."""
    turns = place.own_before + 1
    return 1 + place.higher + place.own_before + sum(min(waiting, turns) for waiting in place.others)


def estimate_seconds(position: int, pace: Pace, *, running: int) -> float | None:
    """How long until the task at `position` starts; None when nothing is known of the pace.

    `running` tasks that take `mean_seconds` each make room for running / mean_seconds tasks a second (Little's law).
    While none runs, the pace of the last window stands in for that.
    """
    if pace.mean_seconds is not None and pace.mean_seconds > 0 and running > 0:
        return position * pace.mean_seconds / running
    if pace.ended > 0 and pace.window_seconds > 0:
        return position * pace.window_seconds / pace.ended
    return None


def _unlaid(layer: LayerWait) -> str:
    if layer.builder is None:
        return "it is about to be found out whether its packages are installed already"
    return f"its packages are installed by task {layer.builder}"


def _later(task: Situation, not_before: datetime) -> Waiting:
    when = f"until {not_before.isoformat(timespec='seconds')}"
    if task.attempt == 0:
        return Waiting(Reason.NOT_BEFORE, f"it is to wait {when}")
    told = f": {task.last_message}" if task.last_message else ""
    if task.last_reason in (Reason.QUOTA, Reason.NO_CAPACITY, Reason.MAX_VMS):
        return Waiting(task.last_reason, f"it waits {when}{told}")
    return Waiting(Reason.RETRY, f"it is tried again, and waits {when}; attempt {task.attempt} did not do it{told}")


def _listed(ids: Collection[str]) -> str:
    named = sorted(ids)
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return ", ".join(named[:_NAMED]) + more
