"""What is to be run, and the requests that get a machine ready for it, and start it."""

from __future__ import annotations

import math
import re
import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.domain.pool import SEALED
from orchestrator.domain.seal import Seal
from orchestrator.guest.errors import LaunchFailed
from orchestrator.guest.unit import loopback, properties
from orchestrator.guest.wire import MAX_REQUEST, awaiting_programs, programs, script

RUN_DIRECTORY = "/run/mayfly-task"
LOG_DIRECTORY = "/var/lib/mayfly-task"
"""Of root, mode 0700: the process cannot see into either."""

TRACE_PATH = f"{RUN_DIRECTORY}/trace"
"""Where strace must write, in the guest: a pipe."""

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

_NOT_A_SHELLS = re.compile(r"[^A-Za-z0-9_]|^[0-9]|^(_|BASH.*|EUID|IFS|LINENO|OPTARG|OPTIND|PPID|PWD|SHELLOPTS|UID)$")
"""Names of variables that a shell would not set, or not to anything, or not pass on as they are."""

MOST_FILES = 1 << 20
"""That any process may have open: the unit's own limit, see `scripts/arm.py`."""

_OURS = 4
"""Tasks of ours inside the unit, which do not count against the process: strace, and the shell of the exit record."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One process to run in /task/out as the user `task`.

    argv: at least one word. environment: added to DEFAULT_ENVIRONMENT; nothing else is in the process's environment.
    timeout_seconds: wall-clock; then SIGTERM, and after kill_grace_seconds SIGKILL.
    memory_bytes, processes: limits for the process and its children together; no swap. open_files: of each process.
    output_bytes: of /task/out. scratch_bytes: of /task/tmp, /tmp and /var/tmp together. None: what the disk has.
    seal: what the process may reach and do.
    trace: the words in front of the command, from `orchestrator.trace.command`; they must write to TRACE_PATH.
    max_log_bytes: of each of stdout and stderr, what is over it stays in the guest; of the trace, plain and as stored:
    past it calls are only counted.
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
    seal: Seal = SEALED
    open_files: int = 4096
    output_bytes: int | None = None
    scratch_bytes: int | None = None
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
        if not 0 < self.open_files <= MOST_FILES:
            raise ValueError(f"not a number of open files, 1 to {MOST_FILES}: {self.open_files}")
        _require_sizes(self.output_bytes, self.scratch_bytes)


@dataclass(frozen=True, slots=True)
class Arming:
    """What is known of a launch before it comes: with this, everything of it is made but the process.

    memory_bytes, processes: a launch may have others. For a launch of which anything else differs the unit is armed
    anew, which takes half a second in an emulated guest.
    """

    memory_bytes: int
    processes: int
    trace: tuple[str, ...]
    kill_grace_seconds: float = 5.0
    seal: Seal = SEALED
    output_bytes: int | None = None
    scratch_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.memory_bytes <= 0 or self.processes <= 0:
            raise ValueError("a limit that is not positive")
        _require_sizes(self.output_bytes, self.scratch_bytes)
        if not 0 < self.kill_grace_seconds < math.inf:
            raise ValueError("a grace that is not a positive number of seconds")

    @classmethod
    def of(cls, launch: Launch) -> Arming:
        return cls(
            launch.memory_bytes,
            launch.processes,
            launch.trace,
            launch.kill_grace_seconds,
            launch.seal,
            launch.output_bytes,
            launch.scratch_bytes,
        )

    def fits(self, launch: Launch) -> bool:
        """That launch can be started in a unit that was armed for this."""
        return replace(Arming.of(launch), memory_bytes=self.memory_bytes, processes=self.processes) == self


def _require_sizes(*sizes: int | None) -> None:
    if any(size is not None and size <= 0 for size in sizes):
        raise ValueError("room for no byte")


def arming_programs() -> bytes:
    """What is to be written to an `arm_request` first."""
    return programs("arm.py")


def arm_request(arming: Arming, probes: Sequence[str] = ("-",)) -> str:
    """The text of the request that arms the unit; it takes `arming_programs`. `probes`: the words of the seal's probes;
    "-" for none, and no facts either; "open" for facts alone."""
    return awaiting_programs(
        "arm",
        f"{arming.kill_grace_seconds:.3f}",
        str(arming.memory_bytes),
        str(arming.processes + _OURS),
        *probes,
        LAUNCHER=_launcher(arming),
        RECORD=script("record.sh"),
        PROPERTIES="\n".join(properties(arming.seal)),
        ROOM=f"{arming.output_bytes or 0} {arming.scratch_bytes or 0} {loopback(arming.seal)}",
    )


def start_message(launch: Launch) -> bytes:
    """What is said to an armed machine. Raises LaunchFailed when command and environment are longer than may be."""
    words = (
        launch.token,
        f"{launch.timeout_seconds:.3f}",
        f"{launch.kill_grace_seconds:.3f}",
        str(launch.memory_bytes),
        str(launch.processes + _OURS),
        str(launch.max_log_bytes),
        _command(launch),
    )
    text = "\0".join(words).encode(errors="surrogateescape")
    if len(text) > MAX_REQUEST:
        raise LaunchFailed(
            f"command and environment are too long: quoted, and with what starts them, more than {MAX_REQUEST} bytes"
        )
    return b"start %d\n" % len(text) + text


def _launcher(arming: Arming) -> str:
    """What the unit runs, as root: the tracer, around a shell of the user's that waits for one line, and then does what
    it finds at its descriptor 4. These descriptors are all that it has of ours: their directory is closed to it. What
    strace has to say does not go to the process's stderr. It has no variables; LC_ALL and PATH are for strace. bash
    gives on some of its own, dash does not."""
    wait = (
        "exec 2>&6 6>&-; unset LC_ALL PATH PWD OLDPWD; echo >&5; exec 5>&-; "
        "read -r go <&3; exec 3<&-; . /dev/fd/4; exec 4<&-; "
        '[ -z "$BASH_VERSION" ] || set -- /usr/bin/env -u PWD -u OLDPWD -u SHLVL -u _ "$@"; exec "$@"'
    )
    return (
        f"echo $$ >{RUN_DIRECTORY}/pid\n"
        f"exec 3<>{RUN_DIRECTORY}/go 4<{RUN_DIRECTORY}/launch 5>{RUN_DIRECTORY}/ready\n"
        f"exec >{RUN_DIRECTORY}/stdout 6>{RUN_DIRECTORY}/stderr 2>{RUN_DIRECTORY}/tracer\n"
        f'exec env -i LC_ALL=C PATH="$PATH" {shlex.join([*arming.trace, "/bin/sh", "-c", wait, "mayfly"])}\n'
    )


def _command(launch: Launch) -> str:
    """What the launcher does when it is told to go on, before it becomes the process: quoted words and variables.

    It becomes the process by itself where it can: env(1) between them takes a tenth of a second in an emulated guest.
    """
    files = f"ulimit -n {launch.open_files}\n"
    environment = {**DEFAULT_ENVIRONMENT, **launch.environment}
    first = launch.argv[0]
    if first.startswith("-") or "=" in first or any(_NOT_A_SHELLS.search(name) for name in environment):
        # env would take a first word with "=" in it for a variable
        argv = ("/bin/sh", "-c", 'exec "$@"', "sh", *launch.argv) if "=" in first else launch.argv
        variables = (f"{name}={value}" for name, value in environment.items())
        return f"{files}set -- {shlex.join(['/usr/bin/env', '-i', *variables, *argv])}\n"
    exports = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
    return f"{files}export {exports}\nset -- {shlex.join(launch.argv)}\n"
