"""Makes the machine ready: tells what it is, tries its seal, and arms the unit, all at once; then becomes the attendant
of the process that is started in it.

Words: seconds of grace, bytes of memory, tasks; seconds to listen for what answers the probes, "open" for facts without
probes, or "-" for neither; address and port of each further target of the probes. Environment: LAUNCHER, what the unit
runs; RECORD, what it runs when it is over; PROPERTIES, a line for each further property of the unit; ROOM, bytes of
outputs and of scratch, 0 for no limit, and what becomes of the unit's loopback: "up", "down", "open".

Armed is the unit with its limits, namespaces and tracer, its launcher waiting for what to run. Writes frames:

    i  the facts       p  the probes, from outside of the unit and from inside of its network namespace
    a  an answer: "armed"; "used", it has had its process; "gone", it has restarted since it was armed; "failed" and why

Reads "ping", answered by the frame a "pong"; or "start LENGTH", which LENGTH bytes follow, parted by NULs: token,
time-out, grace, bytes of memory, tasks, bytes of each stream to send, the text to run. That is answered as `start` says
and what follows is the attendant's, see `attend`. When its input ends, it ends; the unit stays armed.
"""
# ruff: noqa: PTH101, PTH103, PTH108, PTH110, PTH208

from __future__ import annotations

import os
import select
import signal
import sys
import time

from orchestrator.guest.scripts.facts import facts
from orchestrator.guest.scripts.frames import send
from orchestrator.guest.scripts.keep import keep
from orchestrator.guest.scripts.modules import close_modules, families
from orchestrator.guest.scripts.place import LAYER, LOGS, RUN, UNIT, read_file, restarted, write_file
from orchestrator.guest.scripts.probe import Probing
from orchestrator.guest.scripts.room import bound
from orchestrator.guest.scripts.start import Lock, start
from orchestrator.guest.scripts.tracing import look_at_tracer
from orchestrator.guest.scripts.within import lower_loopback, probe_within

TYPE_CHECKING = False
if TYPE_CHECKING:  # to load typing takes too long in an emulated machine
    from typing import BinaryIO

PATIENCE_SECONDS = 50.0
ROOM = "64M"
"""Of the disk, which the process cannot take away: a full disk must not end the trace."""

OF_THE_PROCESS = ("stdout", "stderr", "ready")
PIPES = (*OF_THE_PROCESS, "go", "timer", "trace", "tracer")

MOST_FILES = 1 << 20
"""Open at once, of each process: a launch has less, and says so itself."""

PROPERTIES = (
    "StandardInput=null", "StandardOutput=null", "StandardError=null", "UMask=0022", "IgnoreSIGPIPE=no",
    "NoNewPrivileges=yes", "PrivateTmp=yes", "ProtectSystem=strict", "InaccessiblePaths=-/run/dbus",
    f"ReadWritePaths=/task/out /task/tmp {RUN} {LOGS}", "LimitCORE=0", f"LimitNOFILE={MOST_FILES}",
    "CPUAccounting=yes", "IOAccounting=yes", "MemoryAccounting=yes", "MemorySwapMax=0", "OOMPolicy=stop",
    "KillMode=control-group",
    f"ExecStopPost=+/bin/sh {RUN}/record",
)  # fmt: skip


class Arming:
    """One unit being armed: `begin`, anything else, `finish`."""

    def __init__(self, grace: str, memory: str, tasks: str) -> None:
        self.properties = [*PROPERTIES, f"TimeoutStopSec={grace}", f"MemoryMax={memory}", f"TasksMax={tasks}"]
        self.properties += os.environ["PROPERTIES"].splitlines()
        self.launcher = os.environ["LAUNCHER"].encode(errors="surrogateescape")
        self.record = os.environ["RECORD"].encode()
        out, scratch, self.loopback = os.environ["ROOM"].split()
        self.out, self.scratch = int(out), int(scratch)
        sealed = f"grace {grace}\n{os.environ['ROOM']}\n{os.environ['PROPERTIES']}\n"
        self.purpose = sealed.encode() + self.launcher + self.record

    def begin(self) -> str:
        """Why not; nothing when it has begun."""
        try:
            self.spawn_all()
        except OSError as error:
            return f"failed {error.filename or LOGS}: {error.strerror}"
        return ""

    def spawn_all(self) -> None:
        if os.path.exists(RUN + "/launcher"):
            disarm()
        write_file(RUN + "/launcher", self.launcher)
        write_file(RUN + "/record", self.record)
        write_file(RUN + "/launch", b"")
        for name in PIPES:
            os.mkfifo(f"{RUN}/{name}")
            os.chmod(f"{RUN}/{name}", 0o622 if name in OF_THE_PROCESS else 0o600)
        os.chmod(RUN + "/launch", 0o644)
        keep()
        self.ready = os.open(RUN + "/ready", os.O_RDONLY | os.O_NONBLOCK)
        os.makedirs(LAYER, exist_ok=True)  # what is mounted there later, the unit sees
        os.chmod(LAYER, 0o755)  # noqa: S103
        write_file(RUN + "/unbounded", bound(self.out, self.scratch).encode())
        close_modules()
        words = [word for each in (*self.properties, *families()) for word in ("-p", each)]
        self.systemd = spawn(
            "systemd-run", "--quiet", "--collect", f"--unit={UNIT}", "--service-type=exec",
            "--working-directory=/task/out", *words, "/bin/sh", RUN + "/launcher",
        )  # fmt: skip
        # Whatever happens to the machine from here on, it will know that it was armed, and so a process may have run in
        # it. All is written: the file alone would lose its name, for our images have no journal.
        write_file(LOGS + "/mark", b"")
        os.sync()

    def finish(self) -> str:
        until = time.monotonic() + PATIENCE_SECONDS
        if os.waitstatus_to_exitcode(os.waitpid(self.systemd, 0)[1]) != 0:
            return f"failed systemd would not: {said()}"
        select.select([self.ready], [], [], max(0.0, until - time.monotonic()))
        try:
            if not os.read(self.ready, 16):
                return f"failed strace would not: {read_file(RUN + '/said-by-tracer')[-2000:].decode(errors='replace')}"
        except BlockingIOError:
            return f"failed the launcher was not there within {PATIENCE_SECONDS:g} s"
        finally:
            os.close(self.ready)
        try:
            if self.loopback == "down":
                lower_loopback()
        except OSError as error:
            return f"failed to seal the unit: {error}"
        look_at_tracer()
        spawn("fallocate", "--keep-size", "--length", ROOM, LOGS + "/trace")
        write_file(RUN + "/armed", self.purpose)
        return "armed"


def spawn(*words: str) -> int:
    """Start a program; what it says goes to a file."""
    to = (os.POSIX_SPAWN_OPEN, 2, RUN + "/said", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    return os.posix_spawnp(words[0], words, os.environ, file_actions=[to, (os.POSIX_SPAWN_DUP2, 2, 1)])


def said() -> str:
    return read_file(RUN + "/said")[-2000:].decode(errors="replace").strip()


def disarm() -> None:
    """To be armed anew: for something else, or because it was not done."""
    keeper = read_file(RUN + "/keeper")
    if keeper:
        try:  # noqa: SIM105
            os.kill(int(keeper), signal.SIGKILL)
        except ProcessLookupError:
            pass
    os.waitpid(spawn("systemctl", "stop", UNIT), 0)
    for name in os.listdir(RUN):
        if name not in ("lock", "token"):
            os.unlink(f"{RUN}/{name}")


def make_ready(arming: Arming, *, tell: bool) -> str:
    """Arm the unit, unless it is; meanwhile send the facts, if they are to be told. Returns the answer."""
    if restarted():
        tell_facts(tell)
        return "gone"
    os.umask(0o077)
    try:
        for folder in (RUN, LOGS):
            os.makedirs(folder, exist_ok=True)
    except OSError as error:  # its disk is full, say
        tell_facts(tell)
        return f"failed {error.filename}: {error.strerror}"
    with Lock():
        used, armed = bool(read_file(RUN + "/token")), read_file(RUN + "/armed") == arming.purpose
        failure = "" if used or armed else arming.begin()
        tell_facts(tell)
        if used or armed:
            return "used" if used else "armed"
        return failure or arming.finish()


def tell_facts(tell: bool) -> None:
    if tell:
        send(b"i", facts().encode())


def wait(requests: BinaryIO) -> None:
    """For the message that starts the process, and follow it then. What that takes is not waited for by who arms."""
    from orchestrator.guest.scripts.follow import follow
    from orchestrator.guest.scripts.stage_out import serve

    while words := requests.readline().split():
        if words[0] == b"ping":
            send(b"a", b"pong")
            continue
        token, seconds, grace, memory, tasks, limit, launch = requests.read(int(words[1])).split(b"\0", 6)
        answer = start(token, float(seconds), float(grace), memory, tasks, int(limit), launch)
        send(b"a", answer.encode(errors="replace"))
        if answer == "started":
            follow(token.decode(), [0, 0, 0], int(limit))
            serve(requests)
        return


def main(grace: str, memory: str, tasks: str, window: str, *extra: str) -> None:
    arming, tell = Arming(grace, memory, tasks), window != "-"
    probing = Probing(float(window), extra) if window not in ("-", "open") else None
    answer = make_ready(arming, tell=tell)
    if tell:
        within = probe_within(arming.loopback) if probing and answer == "armed" and arming.loopback != "open" else ""
        send(b"p", ((probing.finish() if probing else "") + within).encode())
    send(b"a", answer.encode(errors="replace"))
    if answer in ("armed", "used"):
        wait(os.fdopen(0, "rb"))


if __name__ == "__main__":
    main(*sys.argv[2:])
