"""The local cloud as a process of its own: start it in the background, ask for it, stop it.

In the cloud's home: `lock` (held while it runs), `pid` (its id and the process's start time, so that a number that is
used again is not mistaken for it), `endpoint` (its URL), `events` (where it publishes them), `one_auth` (the session),
`cloud.log`.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import xmlrpc.client
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import log as logs
from orchestrator.localcloud.hypervisors import Hypervisor
from orchestrator.localcloud.hypervisors.hosted import HostedHypervisor, end_machines
from orchestrator.localcloud.knobs import CloudSettings
from orchestrator.localcloud.published import address_of

__all__ = [
    "HYPERVISORS",
    "AlreadyRunning",
    "CloudNotStarted",
    "Endpoint",
    "calls",
    "end_machines",
    "fault",
    "make_hypervisor",
    "serve",
    "start",
    "status",
    "stop",
]

log = logging.getLogger(__name__)

HYPERVISORS = ("qemu", "simulated")
_START_SECONDS = 30.0
_STOP_SECONDS = 40.0
_POLL = 0.02
_LARGEST_LOG = 8 << 20
_LOCKED = 3
"""Exit status of a serving process that found the home taken."""


class CloudNotStarted(Exception):
    """The local cloud did not start; the text says why, and where its log is."""


class AlreadyRunning(CloudNotStarted):
    """A local cloud runs on this home already."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a local cloud answers. `auth_path` is what ONE_AUTH names, `events` what ONE_ZMQ does."""

    url: str
    auth_path: Path
    pid: int
    events: str


def start(home: Path, hypervisor: str = "qemu", knobs: CloudSettings | None = None) -> Endpoint:
    """Start a cloud on `home` in the background and wait until it answers. Raises AlreadyRunning, CloudNotStarted."""
    home = home.absolute()
    if hypervisor not in HYPERVISORS:
        raise CloudNotStarted(f"no such hypervisor: {hypervisor} (there are {', '.join(HYPERVISORS)})")
    if (running := status(home)) is not None:
        raise AlreadyRunning(f"a local cloud runs on {home} already, as process {running.pid}")
    from orchestrator.localcloud.defaults import make_directories

    make_directories(home)
    log_path = _fresh_log(home)
    package = str(Path(__file__).resolve().parents[2])
    python_path = os.pathsep.join(part for part in (package, os.environ.get("PYTHONPATH", "")) if part)
    command = [sys.executable, "-m", "orchestrator.localcloud.daemon", "serve", str(home), "--hypervisor", hypervisor]
    if knobs is not None:
        command += ["--knobs", knobs.to_json()]
    with log_path.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env={**os.environ, "PYTHONPATH": python_path},
            start_new_session=True,
        )
    return _wait_until_it_answers(home, process, log_path)


def _fresh_log(home: Path) -> Path:
    path = home / "cloud.log"
    if path.exists() and path.stat().st_size > _LARGEST_LOG:
        path.replace(home / "cloud.log.1")
    return path


def _wait_until_it_answers(home: Path, process: subprocess.Popen[bytes], log_path: Path) -> Endpoint:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        ended = process.poll()
        if ended == _LOCKED:
            raise AlreadyRunning(f"another process holds {home}: a local cloud runs there, or is being started")
        if ended is not None:
            raise CloudNotStarted(f"the local cloud ended at once (status {ended}); {_tail(log_path)}")
        found = status(home)
        if found is not None and found.pid == process.pid and _answers(found.url):
            # Nobody waits for it any more: a thread does, so that it leaves no zombie when it ends before we do.
            threading.Thread(target=process.wait, daemon=True).start()
            return found
        time.sleep(_POLL)
    process.terminate()
    process.wait()
    raise CloudNotStarted(f"the local cloud did not answer within {_START_SECONDS:.0f} s; {_tail(log_path)}")


def _tail(log_path: Path) -> str:
    lines = log_path.read_text(errors="replace").splitlines()[-5:]
    return f"the end of {log_path}: " + " | ".join(lines)


def _answers(url: str) -> bool:
    """Whether something speaks XML-RPC there: a wrong session is answered too."""
    try:
        xmlrpc.client.ServerProxy(url).one.system.version("")
    except (OSError, xmlrpc.client.Error):
        return False
    return True


def status(home: Path) -> Endpoint | None:
    """Where the cloud of this home answers; None when it does not run."""
    home = home.absolute()
    try:
        written = json.loads((home / "pid").read_text())
        pid, started = int(written["pid"]), int(written["started"])
        url = (home / "endpoint").read_text().strip()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Endpoint(url, home / "one_auth", pid, address_of(home)) if _start_time(pid) == started else None


def stop(home: Path) -> bool:
    """End the cloud of this home; its machines keep running. False when it did not run. It is killed if it does not end
    in time."""
    running = status(home)
    if running is None:
        return False
    started = _start_time(running.pid)
    os.kill(running.pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    while _start_time(running.pid) == started:
        if time.monotonic() > deadline:
            log.warning("the local cloud does not end, and is killed")
            os.kill(running.pid, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(_POLL)
    return True


def fault(home: Path, order: dict[str, Any]) -> None:
    """Inject a fault into the cloud of this home, as `mayfly.fault` takes it. Raises ValueError with the cloud's words
    when it is none, CloudNotStarted when no cloud runs, OSError when it does not answer."""
    _ask(home, "mayfly.fault", json.dumps(order))


def calls(home: Path) -> Counter[str]:
    """How often each call of the API came since the cloud of this home started. Raises CloudNotStarted, OSError."""
    return Counter(json.loads(_ask(home, "mayfly.calls")))


def _ask(home: Path, method: str, *arguments: str) -> Any:
    running = status(home)
    if running is None:
        raise CloudNotStarted(f"no local cloud runs on {home}")
    session = running.auth_path.read_text().strip()
    reply: Any = getattr(xmlrpc.client.ServerProxy(running.url), method)(session, *arguments)
    if not reply[0]:
        raise ValueError(reply[1])
    return reply[1]


def _start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when it has ended (a zombie has)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Hold the home's lock. Raises AlreadyRunning."""
    with (home / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(f"a local cloud runs on {home} already") from None
        yield


def serve(home: Path, hypervisor: str, knobs: CloudSettings | None = None) -> None:
    """Serve in the foreground until SIGTERM or SIGINT. Raises AlreadyRunning."""
    # Only here: whoever asks where a cloud is needs nothing of what one is made of.
    from orchestrator.localcloud.defaults import make_directories
    from orchestrator.localcloud.server import LocalCloud

    home = home.absolute()
    make_directories(home)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with _alone(home):
        cloud = LocalCloud(home, hypervisor=make_hypervisor(hypervisor, home, knobs), knobs=knobs)
        with cloud:
            pid_path = home / "pid"
            pid_path.write_text(json.dumps({"pid": os.getpid(), "started": _start_time(os.getpid())}))
            log.info("the local cloud answers at %s", cloud.url)
            ended.wait()
            pid_path.unlink()
        log.info("the local cloud has ended")


def make_hypervisor(name: str, home: Path, knobs: CloudSettings | None = None) -> Hypervisor:
    """Raises ValueError for an unknown name."""
    match name:
        case "qemu":
            # Only here, so that the simulated one needs nothing of what real machines need.
            from orchestrator.localcloud.hypervisors.qemu import QemuHypervisor

            return QemuHypervisor(home, (knobs or CloudSettings()).states_mb)
        case "simulated":
            return HostedHypervisor(home)
        case _:
            raise ValueError(f"no such hypervisor: {name}")


def main(arguments: list[str] | None = None) -> int:
    """`python -m orchestrator.localcloud.daemon serve HOME`."""
    parser = argparse.ArgumentParser(prog="orchestrator.localcloud.daemon")
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("home", type=Path)
    parser.add_argument("--hypervisor", choices=HYPERVISORS, default="qemu")
    parser.add_argument("--knobs", type=CloudSettings.from_json, default=None, help="settings as JSON")
    given = parser.parse_args(arguments)
    logs.configure()
    try:
        serve(given.home, given.hypervisor, given.knobs)
    except AlreadyRunning as refused:
        log.error("%s", refused)
        return _LOCKED
    return 0


if __name__ == "__main__":
    sys.exit(main())
