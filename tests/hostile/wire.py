"""Attacks of a machine that only speaks, on a whole Mayfly: a store, an artifact store, a runner, and a task beside it.

Only the far side of the wire is not what it should be (`far.py`). The deadlines are shortened, see DEADLINES, so that a
stall is over in seconds; which deadline ends it is the same.
"""

from __future__ import annotations

import asyncio
import base64
import ctypes
import gc
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

from orchestrator.domain.outcome import Reason
from orchestrator.domain.task import TaskState
from orchestrator.guest import make_key
from orchestrator.localcloud.hypervisors import MachineSpec
from orchestrator.localcloud.hypervisors.ssh_guest import SimulatedGuest
from orchestrator.store import TaskRow
from tests.hostile.attacks import MIB, Attack, Told, ours
from tests.journeys.house import House, make_house

ROOT = Path(__file__).resolve().parents[2]
FINISHED = TaskState.FINISHED
UNREACHABLE, WRONG_KEY, LOST = Reason.UNREACHABLE, Reason.WRONG_HOST_KEY, Reason.CONNECTION_LOST
STAGING = Reason.STAGING_FAILED
STEP = Reason.GUEST_FAILED

DEADLINES = {
    "orchestrator.guest.way._HANDSHAKE_SECONDS": (30.0, 2.0, "an SSH handshake"),
    "orchestrator.guest.wire.STEP_SECONDS": (60.0, 2.0, "an answer to a request"),
    "orchestrator.guest.staging_in.STALLED_SECONDS": (120.0, 2.0, "inputs that do not move"),
    "orchestrator.guest.outputs.STALLED_SECONDS": (120.0, 2.0, "outputs that do not move"),
    "orchestrator.guest.guest._REPORT_SECONDS": (60.0, 2.0, "word that the process has ended, after it must have"),
    "orchestrator.runner.launching.RECONNECT_SECONDS": (120.0, 2.0, "a connection that dropped"),
}
"""By the name of the constant: seconds, those of the tests, and what must come within them."""

POOL = {
    "boot_timeout_seconds": 4.0,
    "staging_timeout_seconds": 20.0,
    "default_timeout_seconds": 2.0,
    "max_log_bytes": 32 * MIB,
    "max_output_bytes": 8 * MIB,
    "max_output_files": 1000,
    "max_output_depth": 8,
}
"""How the pool of the tests differs from any other."""

WIRE = (
    Attack(
        "a banner that never ends",
        "sends lines before the server's name, without end",
        reason=UNREACHABLE,
        says=r"broke off the SSH handshake|did not end the SSH handshake",
    ),
    Attack(
        "a server's name that never ends",
        "sends a name of the server without a line end",
        reason=UNREACHABLE,
        says=r"SSH handshake",
    ),
    Attack(
        "silence after the connection",
        "takes the connection and says nothing",
        reason=UNREACHABLE,
        says=r"said nothing",
    ),
    Attack(
        "silence in the handshake",
        "says its name and nothing more",
        reason=UNREACHABLE,
        says=r"did not end the SSH handshake in time",
    ),
    Attack("another protocol", "answers as a web server", reason=UNREACHABLE, says=r"broke off the SSH handshake"),
    Attack("a login that is always refused", "accepts no key", reason=UNREACHABLE, says=r"refused our key"),
    Attack(
        "another host key", "shows a host key of its own", reason=WRONG_KEY, says=r"a host key that we did not make"
    ),
    Attack(
        "a host key that changes",
        "drops the connection while the process runs, and shows another host key then",
        reason=WRONG_KEY,
        says=r"a host key that we did not make",
    ),
    Attack(
        "a connection that closes after each login",
        "closes the connection when it is asked for the first thing",
        reason=LOST,
        says=r"dropped 3 times",
    ),
    Attack(
        "a channel that is never opened",
        "answers keepalives, and no request for a channel",
        reason=STEP,
        says=r"did not take mayfly-arm within",
    ),
    Attack(
        "questions without end, and no answer read",
        "asks what SSH must answer, without end, while the process runs, and reads no answer",
        reason=LOST,
        says="did not say within|dropped 3 times",
    ),
    Attack(
        "no answer to the first request",
        "takes the request and says nothing",
        reason=STEP,
        says=r"did not answer within",
    ),
    Attack("an answer a byte at a time", "sends a byte every 0.3 s", reason=STEP, says=r"did not answer within"),
    Attack("complaints without end", "writes to stderr without end", reason=STEP, says=r"did not answer within"),
    Attack(
        "an answer of 4 GiB", "announces a frame of 4 GiB", reason=STEP, says=r"announced a frame of 4294967295 bytes"
    ),
    Attack(
        "facts that are no facts", "says that its disk has 10^5000 blocks", reason=STEP, says=r"facts cannot be read"
    ),
    Attack(
        "facts beyond all numbers",
        "says an uptime of inf, a clock of nan",
        reason=STEP,
        says="facts cannot be read: a time that is none",
    ),
    Attack(
        "facts with terminal escapes",
        "names its kernel in terminal escapes, 30 KiB of them",
        state=FINISHED,
        kept=("out.txt",),
    ),
    Attack("inputs that are not taken", "reads none of the inputs", reason=STAGING),
    Attack(
        "a window of 4 GiB, and nothing read",
        "grants a window of 4 GiB for 128 MiB of inputs, and reads nothing",
        reason=STAGING,
        says="inputs did not go in within",
        input_bytes=128 * MIB,
    ),
    Attack(
        "a key exchange that never ends",
        "begins a key exchange while 128 MiB of inputs go in, and does not go on with it",
        reason=STAGING,
        says="took no input for",
        input_bytes=128 * MIB,
    ),
    Attack(
        "inputs that are taken and never acknowledged",
        "reads the inputs and says nothing",
        reason=STAGING,
        says=r"did not end staging in within",
    ),
    Attack(
        "acknowledgements that nothing asked for",
        "acknowledges inputs without end",
        reason=STAGING,
        says=r"nothing asked for|not what was sent",
    ),
    Attack(
        "a start that is never confirmed",
        "never says that the process started",
        reason=STEP,
        says=r"did not answer within",
    ),
    Attack(
        "a process that is started twice",
        "says twice that the process started",
        reason=STEP,
        says=r"a frame of kind b'a'",
    ),
    Attack(
        "a stdout of 100 GB", "sends output without end", reason=STEP, says=r"more of a stream than it was asked for"
    ),
    Attack("a trace of 100 GB", "sends trace without end", reason=STEP, says=r"more of a stream than it was asked for"),
    Attack("frames with nothing in them", "sends empty frames without end", reason=STEP),
    Attack("frames of one byte", "sends output a byte a frame, without end", reason=LOST),
    Attack(
        "an exit status that never comes",
        "lets the process end and never says so",
        reason=LOST,
        says=r"did not say within",
    ),
    Attack("an end of output without an exit status", "closes its output, and says no status", reason=LOST),
    Attack(
        "a connection that drops after each byte",
        "drops the connection after each byte, without end",
        reason=LOST,
        says=r"did not say within|dropped",
    ),
    Attack("an exit status beyond all", "says an exit status of 400 digits", reason=LOST, says=r"systemd says"),
    Attack("figures beyond 64 bits", "says 10^20 bytes and microseconds were used", state=FINISHED, kept=("out.txt",)),
    Attack(
        "an exit record with terminal escapes",
        "says in terminal escapes how the process ended",
        reason=LOST,
        says=r"\\x1b",
    ),
    Attack(
        "an exit record of 100 KiB",
        "sends an exit record of 100 KiB that says nothing",
        reason=STEP,
        says=r"exit record cannot be read",
    ),
    Attack(
        "a trace with forged lines", "writes a trace of lines that strace would not", state=FINISHED, kept=("out.txt",)
    ),
    Attack("a name with ..", "lists ../../../escaped", reason=STEP, says=r"listing cannot be read: path"),
    Attack("an absolute name", "lists /tmp/escaped", reason=STEP, says=r"listing cannot be read: path"),
    Attack("a name of 4 KiB", "lists a name of 4096 letters", reason=STEP, says=r"listing cannot be read: path"),
    Attack("a name with a NUL", "lists a name with a NUL in it", reason=STEP, says=r"listing cannot be read"),
    Attack("a name with a newline", "lists a name with a newline, and sends that file", state=FINISHED, kept=("a\nb",)),
    Attack(
        "a name with terminal escapes",
        "lists a name of terminal escapes and a bidirectional override, and sends that file",
        state=FINISHED,
        kept=("\x1b[2J\x1b]0;owned\x07\u202egpj.exe",),
    ),
    Attack(
        "names that look alike",
        "lists café twice, composed and not, and sends both",
        state=FINISHED,
        kept=(
            "cafe\u0301",
            "caf\u00e9",
        ),
    ),
    Attack("a name that is there twice", "lists a, and a/b", reason=STAGING, says=r"there twice", kept=("a",)),
    Attack(
        "a folder in a folder, and so on",
        "lists a file 999 folders deep",
        reason=STAGING,
        says=r"999 folders deep; at most 8",
    ),
    Attack(
        "a link, a device and a pipe for outputs",
        "lists a link, a device, a pipe and a file",
        reason=STAGING,
        says=r"a symbolic link, which is never followed",
        kept=("good",),
    ),
    Attack("10^6 files", "lists a million files", reason=STAGING, says=r"more than 100000"),
    Attack(
        "names of many megabytes",
        "lists 90,000 names of 3,856 letters",
        reason=STAGING,
        says=r"names of the outputs are more than",
    ),
    Attack(
        "a listing that never ends",
        "sends empty pieces of a listing, without end",
        reason=STAGING,
        says=r"names of the outputs are more than",
    ),
    Attack("a listing that never comes", "never lists anything", reason=STAGING, says=r"sent no output for"),
    Attack(
        "more files than are taken",
        "lists 1,200 files where 1,000 are taken",
        reason=STAGING,
        says=r"more than 1000 outputs",
        kept=tuple(f"{number:07d}" for number in range(1000)),
    ),
    Attack(
        "a bomb of many files",
        "lists 900 files of 100,000 bytes where 8 MiB are taken",
        reason=STAGING,
        says=r"at most 8388608 are taken",
    ),
    Attack(
        "a size of an exbibyte", "says that a file has 2^60 bytes", reason=STAGING, says=r"at most 8388608 are taken"
    ),
    Attack(
        "a size that is no number",
        "says that a file has a size of 5,000 digits",
        reason=STEP,
        says=r"listing cannot be read",
    ),
    Attack(
        "a file that is larger than it was said",
        "announces 100,000 bytes, and sends more without end",
        reason=STEP,
        says=r"more of a file than it announced",
    ),
    Attack(
        "a file that grows without end",
        "lists 2 bytes, announces 10^18, and sends without end",
        reason=STAGING,
        says=r"more than 8388608 bytes in all",
    ),
    Attack(
        "a file that is smaller than it was said",
        "lists 100,000 bytes, and sends 2",
        reason=STAGING,
        says=r"changed while it was read",
    ),
    Attack(
        "a file that stops in the middle",
        "sends 1 byte of 100,000, and nothing more",
        reason=STAGING,
        says=r"sent no output for",
    ),
    Attack(
        "a file in pieces of nothing",
        "sends pieces without a byte in them, without end",
        reason=STEP,
        says=r"in the middle of a file",
    ),
    Attack(
        "a sha256 that is another's",
        "sends a file, and another's sha256",
        reason=STAGING,
        says=r"its sha256 in the guest is not what came",
    ),
    Attack(
        "a refusal with terminal escapes", "refuses a file in 30 KiB of terminal escapes", reason=STAGING, says=r"\\x1b"
    ),
    Attack("files that nothing asked for", "sends a file again and again", state=FINISHED, kept=("out.txt",)),
)


class _Process:
    """The far side of one attack, closed with its machine."""

    def __init__(self, attack: Attack, spec: MachineSpec) -> None:
        sound = SimulatedGuest(spec, lambda: None)
        order = {
            "attack": attack.name,
            "address": spec.nics[0].address,
            "port": spec.nics[0].host_port,
            "keys": [
                base64.b64decode(spec.context["MAYFLY_HOST_KEY_BASE64"]).decode(),
                make_key("another").private,
            ],
            "client_key": spec.context["SSH_PUBLIC_KEY"],
            "facts": sound.facts(),
            "probes": sound._probes(),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.far"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == b"ready\n"

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


async def attacked(attack: Attack, folder: Path) -> Told:
    """Let the attack happen, in a house of its own under `folder`, and tell what became of it."""
    data = folder / "data"
    data.write_bytes(random.Random(attack.name).randbytes(attack.input_bytes))  # nothing that compresses
    with _shortened():
        async with make_house(folder / "home") as house:
            tools = house.with_pool(**{**POOL, **attack.pool})
            pool = tools.pools["small"]
            hostile = await house.submit("true", inputs=(data,), outputs=("**",), timeout=attack.timeout, pool=pool)
            house.guests.behave(hostile, far=partial(_Process, attack))
            beside = await house.submit("echo out; sleep 0.5; echo 1 > out.txt", outputs=("*",), pool=pool)
            before, size = set(_files(folder)), _memory(fresh=True)
            began = time.monotonic()
            ended, neighbour = await asyncio.gather(house.run(hostile, tools), house.run(beside, tools))
            seconds, grown = time.monotonic() - began, _memory()[1] - size[0]
            return Told(
                attack,
                ended.state,
                ended.reason,
                ended.message,
                seconds,
                max(0, grown),
                _written(house, hostile),
                tuple(sorted(_elsewhere(set(_files(folder)) - before, hostile, neighbour))),
                tuple(house.outputs(hostile)),
                tuple(await house.notes(hostile)),
                neighbour.state if house.outputs(neighbour) == ["out.txt"] else TaskState.FAILED,
            )


@contextmanager
def _shortened() -> Iterator[None]:
    with ExitStack() as stack:
        for name, (_, seconds, _) in DEADLINES.items():
            stack.enter_context(mock.patch(name, seconds))
        yield


def _files(folder: Path) -> Iterator[str]:
    """Every name under it, and beside it."""
    yield from (str(path.relative_to(folder)) for path in folder.rglob("*"))
    yield from (f"../{path.name}" for path in folder.parent.iterdir())


def _written(house: House, task: TaskRow) -> dict[str, int]:
    folder = house.artifacts.root / "attempts" / task.id / "1"
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}


def _elsewhere(new: set[str], *tasks: TaskRow) -> Iterator[str]:
    folders = tuple(f"home/artifacts/attempts/{task.id}" for task in tasks)
    for name in new:
        if not name.startswith(folders) and not ours(name.removeprefix("home/")):
            yield name


def _memory(*, fresh: bool = False) -> tuple[int, int]:
    """Bytes that this process holds, and its peak since it was last asked so `fresh`."""
    gc.collect()
    if fresh:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak begins anew
    told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now, peak = (int(told[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM"))
    return now, peak
