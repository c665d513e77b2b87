"""What is to be run, and the request that starts it."""

from __future__ import annotations

import math
import re
import secrets
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.guest.errors import LaunchFailed
from orchestrator.guest.wire import MAX_REQUEST, request, script

RUN_DIRECTORY = "/run/mayfly-task"
LOG_DIRECTORY = "/var/lib/mayfly-task"
"""Of root, mode 0700: the process cannot see into either."""

TRACE_PATH = f"{LOG_DIRECTORY}/trace"
"""Where strace must write, in the guest."""

DEFAULT_ENVIRONMENT: Mapping[str, str] = {
    "HOME": "/task/tmp",
    "LANG": "C.UTF-8",
    "LOGNAME": "task",
    "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games",
    "SHELL": "/bin/sh",
    "TMPDIR": "/task/tmp",
    "USER": "task",
}

_TOKEN = re.compile(r"[A-Za-z0-9._-]{1,128}")

_OURS = 4
"""Tasks of ours inside the unit, which do not count against the process: strace, and the shell of the exit record."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One process to run in /task/out as the user `task`.

    argv: at least one word. environment: added to DEFAULT_ENVIRONMENT; nothing else is in the process's environment.
    timeout_seconds: wall-clock; then SIGTERM, and after kill_grace_seconds SIGKILL.
    memory_bytes, processes: limits for the process and its children together; no swap.
    trace: the words in front of the command, from `orchestrator.trace.command`; they must write to TRACE_PATH.
    max_log_bytes: of each of stdout, stderr and trace; what is over it stays in the guest.
    token: says whose launch it is, so that one whose answer was lost can be repeated, and another can take it over by
    the same token: 1 to 128 of letters, digits, ".", "_" and "-".
    """

    argv: tuple[str, ...]
    timeout_seconds: float
    memory_bytes: int
    processes: int
    trace: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    kill_grace_seconds: float = 5.0
    max_log_bytes: int = 1 << 30
    token: str = field(default_factory=lambda: secrets.token_hex(8))

    def __post_init__(self) -> None:
        if not _TOKEN.fullmatch(self.token):
            raise ValueError(f"no token: {self.token!r}")
        if not self.argv:
            raise ValueError("argv is empty")
        texts = (*self.argv, *self.environment, *self.environment.values())
        if any("\0" in text for text in texts):
            raise ValueError("a NUL in argv or environment")
        if any(not name or "=" in name for name in self.environment):
            raise ValueError("the name of a variable is empty or holds '='")
        if not (0 < self.timeout_seconds < math.inf and 0 < self.kill_grace_seconds < math.inf):
            raise ValueError("a time-out or grace that is not a positive number of seconds")
        if self.memory_bytes <= 0 or self.processes <= 0 or self.max_log_bytes <= 0:
            raise ValueError("a limit that is not positive")


def start_request(launch: Launch) -> str:
    """The text of the request. Raises LaunchFailed when command and environment are longer than a request may be."""
    text = request(
        "start",
        launch.token,
        f"{launch.timeout_seconds:.3f}",
        f"{launch.kill_grace_seconds:.3f}",
        str(launch.memory_bytes),
        str(launch.processes + _OURS),
        str(launch.max_log_bytes),
        launch=_command(launch),
        record=script("record.sh"),
        attend=script("attend.py"),
        body="start.sh",
    )
    if len(text.encode(errors="surrogateescape")) > MAX_REQUEST:
        raise LaunchFailed(
            f"command and environment are too long: quoted, and with what starts them, more than {MAX_REQUEST} bytes"
        )
    return text


def _command(launch: Launch) -> str:
    """What the unit runs, as root: a script of quoted words. systemd would expand `$` and `%` in them."""
    environment = {**DEFAULT_ENVIRONMENT, **launch.environment}
    argv = list(launch.argv)
    if "=" in argv[0]:  # env would take it for a variable
        argv = ["/bin/sh", "-c", 'exec "$@"', "sh", *argv]
    words = [*launch.trace, "env", "-i", *(f"{name}={value}" for name, value in environment.items()), *argv]
    return (
        f": >{RUN_DIRECTORY}/launched\n"
        "export LC_ALL=C\n"
        f"exec >{RUN_DIRECTORY}/stdout 2>{RUN_DIRECTORY}/stderr\n"
        f"exec {shlex.join(words)}\n"
    )
