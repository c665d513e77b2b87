"""Run a playbook through ansible-runner, in a thread, with a result type of our own.

ansible-runner tells most of its failures by one exit status (254); here the verdict comes from the events that
Ansible itself sent.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from orchestrator.domain.errors import NotPossible
from orchestrator.settings import data_root

_LOG_LINES = 200
_CONTROL_PATH = "ANSIBLE_SSH_CONTROL_PATH_DIR"
_MESSAGE_CHARACTERS = 2000


class PlaybookEnd(StrEnum):
    """How a playbook ended."""

    SUCCEEDED = "succeeded"
    TASK_FAILED = "a task failed"
    UNREACHABLE = "a host was unreachable"
    NOTHING_RAN = "nothing ran"  # a syntax error, a missing role, no host matched
    TIMED_OUT = "it took too long"


@dataclass(frozen=True, slots=True)
class PlaybookEvent:
    """One thing that happened: `kind` is Ansible's (`runner_on_ok`, `runner_on_skipped`, `runner_on_failed`, …),
    `result` what the task returned."""

    kind: str
    task: str
    host: str
    result: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class FailedTask:
    """A task that ended the play for its host, with what it said."""

    host: str
    task: str
    message: str


@dataclass(frozen=True, slots=True)
class PlaybookResult:
    """How it ended; every failure; how many tasks changed something; the last lines that Ansible printed."""

    end: PlaybookEnd
    failed: tuple[FailedTask, ...]
    changed: int
    log: str

    @property
    def succeeded(self) -> bool:
        return self.end is PlaybookEnd.SUCCEEDED

    def explain(self) -> str:
        """For people: what failed where, else the log."""
        if self.failed:
            return "; ".join(f"{failure.task} on {failure.host}: {failure.message}" for failure in self.failed)
        return f"{self.end}: {self.log.strip() or 'Ansible said nothing'}"


async def run_playbook(
    playbook: Path,
    inventory: Path | Mapping[str, Any],
    *,
    within: float,
    variables: Mapping[str, Any] | None = None,
    on_event: Callable[[PlaybookEvent], None] | None = None,
) -> PlaybookResult:
    """Run `playbook` against `inventory` (a path, or the data of one) for at most `within` seconds.

    `variables` are extra variables, the strongest that Ansible has. `on_event` is called in the event loop as the play
    goes on. Cancelling ends Ansible before it raises. Nothing of the run stays on disk.
    """
    loop = asyncio.get_running_loop()
    stop = threading.Event()
    watch = _Watch(None if on_event is None else lambda event: loop.call_soon_threadsafe(on_event, event))
    with tempfile.TemporaryDirectory(prefix="mayfly-play-") as folder:
        work = asyncio.ensure_future(
            asyncio.to_thread(_run, Path(folder), playbook, inventory, dict(variables or {}), within, watch, stop)
        )
        try:
            status = await asyncio.shield(work)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait([work])
            raise
        finally:
            await asyncio.to_thread(_end_workers, Path(folder))
    return watch.result(status)


def _run(
    folder: Path,
    playbook: Path,
    inventory: Path | Mapping[str, Any],
    variables: dict[str, Any],
    within: float,
    watch: _Watch,
    stop: threading.Event,
) -> str:
    import ansible_runner  # half a second to import, and few commands need it

    runner = ansible_runner.run(
        private_data_dir=str(folder),
        playbook=str(playbook.absolute()),
        inventory=str(inventory.absolute()) if isinstance(inventory, Path) else dict(inventory),
        extravars=variables,
        envvars=environment(folder),
        settings={"job_timeout": within, "pexpect_use_poll": True, "suppress_env_files": True},
        quiet=True,
        event_handler=watch.event,
        cancel_callback=stop.is_set,
    )
    return str(runner.status)


def _end_workers(folder: Path) -> None:
    """End what a play that was stopped has left: Ansible's workers are sessions of their own, and ansible-runner ends
    the main process's group alone. They are told by the environment that this run gave them."""
    given = os.fsencode(f"{_CONTROL_PATH}={environment(folder)[_CONTROL_PATH]}")
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and given in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)
        except OSError:  # gone, or not ours
            continue


def environment(folder: Path) -> dict[str, str]:
    """What Ansible is told by its environment. The site's own `ANSIBLE_CONFIG` wins over ours; the Ansible installed
    beside this Python wins over others. Raises NotPossible when there is none."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    if shutil.which("ansible-playbook", path=path) is None:
        raise NotPossible("ansible-playbook", "it is not installed", "install ansible-core")
    return {
        "ANSIBLE_CONFIG": os.environ.get("ANSIBLE_CONFIG") or str(data_root() / "ansible.cfg"),
        "ANSIBLE_ROLES_PATH": str(data_root() / "playbooks" / "roles"),
        _CONTROL_PATH: str(folder / "ssh"),
        "ANSIBLE_NOCOLOR": "1",
        "PATH": path,
    }


class _Watch:
    """Gathers Ansible's events; called from the runner's thread."""

    def __init__(self, tell: Callable[[PlaybookEvent], object] | None) -> None:
        self._tell = tell
        self._failed: list[FailedTask] = []
        self._unreachable = False
        self._hosts: set[str] = set()
        self._changed = 0
        self._log: deque[str] = deque(maxlen=_LOG_LINES)

    def event(self, event: Mapping[str, Any]) -> bool:
        """One event of ansible-runner. Returns False: it need not keep it on disk."""
        if text := event.get("stdout"):
            self._log.append(str(text).replace("\r", ""))
        data = event.get("event_data") or {}
        kind, host, result = str(event.get("event", "")), str(data.get("host", "")), data.get("res")
        if not kind.startswith("runner_"):
            return False
        result = result if isinstance(result, Mapping) else {}
        seen = PlaybookEvent(kind, str(data.get("task", "")), host, result)
        match kind:
            case "runner_on_ok":
                self._hosts.add(host)
                self._changed += bool(result.get("changed"))
            case "runner_on_failed" if not data.get("ignore_errors"):
                self._failed.append(FailedTask(host, seen.task, _message(result)))
            case "runner_on_unreachable":
                self._unreachable = True
                self._failed.append(FailedTask(host, seen.task, _message(result)))
        if self._tell is not None:
            self._tell(seen)
        return False

    def result(self, status: str) -> PlaybookResult:
        if status == "timeout":
            end = PlaybookEnd.TIMED_OUT
        elif self._unreachable:
            end = PlaybookEnd.UNREACHABLE
        elif self._failed:
            end = PlaybookEnd.TASK_FAILED
        elif status == "successful" and self._hosts:
            end = PlaybookEnd.SUCCEEDED
        else:
            end = PlaybookEnd.NOTHING_RAN
        return PlaybookResult(end, tuple(self._failed), self._changed, "\n".join(self._log))


def _message(result: Mapping[str, Any]) -> str:
    """What the task said of its failure, at most 2000 characters."""
    parts = [str(result.get(key, "")).strip() for key in ("msg", "stderr", "module_stderr")]
    if not any(parts):
        parts = [str(result.get("stdout", "")).strip()]
    text = ": ".join(dict.fromkeys(part for part in parts if part))
    return text[-_MESSAGE_CHARACTERS:] or "no message"
