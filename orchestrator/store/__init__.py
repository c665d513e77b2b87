"""The database: the only memory. Frozen views come out, named transitions go in."""

from orchestrator.store.bell import Wakeups
from orchestrator.store.clock import Clock
from orchestrator.store.encoding import Timings
from orchestrator.store.events import EventKind
from orchestrator.store.opened import Store
from orchestrator.store.submitting import MAX_SPEC_BYTES
from orchestrator.store.transitions import Finished, Requeued, StageEntered, VmMoved, VmRequest
from orchestrator.store.views import (
    AttemptRow,
    Beat,
    Claim,
    EventRow,
    Launch,
    LeaderRow,
    Lease,
    QueuePlace,
    QueueRow,
    RunnerRow,
    ScheduleRow,
    TaskRow,
    Throughput,
    VmCount,
    VmRow,
)

__all__ = [
    "MAX_SPEC_BYTES",
    "AttemptRow",
    "Beat",
    "Claim",
    "Clock",
    "EventKind",
    "EventRow",
    "Finished",
    "Launch",
    "LeaderRow",
    "Lease",
    "QueuePlace",
    "QueueRow",
    "Requeued",
    "RunnerRow",
    "ScheduleRow",
    "StageEntered",
    "Store",
    "TaskRow",
    "Throughput",
    "Timings",
    "VmCount",
    "VmMoved",
    "VmRequest",
    "VmRow",
    "Wakeups",
]
