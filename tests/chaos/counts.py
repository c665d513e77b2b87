"""What is left when all is over: nothing lost, nothing run twice, nothing left behind, nothing stuck."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.domain.task import Delivery, TaskState
from orchestrator.store import TaskRow
from tests.chaos.load import Wanted
from tests.chaos.world import World

ROWS = 10_000


@dataclass
class Counts:
    """A line for each thing that is not as promised."""

    tasks: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    again: int = 0
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not (self.lost or self.twice or self.leaked or self.stuck)


async def count(world: World, wanted: Mapping[str, Wanted], runs: Mapping[str, list[int]]) -> Counts:
    """`runs`: of each task the VMs (OpenNebula's ids) in which its process began, as the processes themselves say."""
    counts = Counts(tasks=len(wanted))
    store = world.house.store
    rows: dict[str, TaskRow] = {}
    for state in TaskState:
        rows |= {task.id: task for task in await store.tasks.list(states=(state,), limit=ROWS)}
    for task_id, want in wanted.items():
        began = runs.get(task_id, [])
        counts.starts += len(began)
        counts.again += max(0, len(began) - 1)
        _count_runs(counts, want, began, world.harmed)
        task = rows.get(task_id)
        if task is None:
            counts.lost.append(f"{task_id}: no such row")
        elif not task.state.over:
            counts.stuck.append(f"{task_id}: {task.state} {task.stage or ''} {task.reason or ''} {task.message}")
        else:
            counts.ends[f"{task.state}{'' if task.reason is None else ' ' + task.reason}"] += 1
            _count_end(world, counts, want, task, began)
    counts.leaked += [f"row of VM {vm.cloud_id} ({vm.id}) is {vm.state}" for vm in await store.vms.open()]
    counts.leaked += [
        f"VM {vm.id} is {vm.state_name}"
        for vm in await world.cloud.vms(store.installation_id)
        if vm.state_name != "DONE"
    ]
    return counts


def _count_runs(counts: Counts, want: Wanted, began: list[int], harmed: set[int]) -> None:
    """A process may begin again only when the machine in which it ran before was destroyed under it, by a fault."""
    if want.delivery is Delivery.AT_MOST_ONCE and len(began) > 1:
        counts.twice.append(f"{want.task_id}: at most once, and it began in VMs {began}")
    elif len(set(began)) < len(began):
        counts.twice.append(f"{want.task_id}: began twice in one VM: {began}")
    elif any(vm not in harmed for vm in began[:-1]):
        counts.twice.append(f"{want.task_id}: began again though no fault took its machine: {began}")


def _count_end(world: World, counts: Counts, want: Wanted, task: TaskRow, began: list[int]) -> None:
    match task.state:
        case TaskState.FINISHED:
            said = world.house.artifacts.log(task.id, task.attempt, "stdout").read(limit=1 << 20)
            outputs = world.house.artifacts.outputs(task.id, task.attempt)
            if said != want.stdout:
                counts.lost.append(f"{task.id}: stdout is {said!r}")
            if outputs is None or [file.path for file in outputs.files] != ["result.txt"]:
                counts.lost.append(f"{task.id}: its output is not there")
            if not began:
                counts.lost.append(f"{task.id}: FINISHED, and its process never began")
        case TaskState.CANCELED if want.cancel_after is not None:
            pass
        case TaskState.FAILED if want.delivery is Delivery.AT_MOST_ONCE and set(began) & world.harmed:
            pass
        case _:
            counts.lost.append(f"{task.id}: {task.state} {task.reason} {task.message}")


def runs_by_task(records: list[dict[str, object]]) -> dict[str, list[int]]:
    """Of each task, in order, the VMs in which its process began."""
    began: dict[str, list[int]] = defaultdict(list)
    for record in records:
        if record["event"] == "started":
            began[str(record["task"])].append(int(str(record["vm"])))
    return began
