"""Attacks inside real machines: of the process, and of a root that has turned.

Root is reached over SSH with the key that the installation's runners have, once the process has said "ready": so it is
as if the machine had been taken over from inside, whatever keeps the process from that.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh

from orchestrator.artifacts import Artifacts
from orchestrator.domain.outcome import Reason
from orchestrator.domain.task import TaskState
from tests.driver import Mayfly, TestCloud
from tests.hostile.attacks import Attack, Told, ours

PATIENCE_SECONDS = 600.0
INVENTORY = """
pools:
  hosts:
    hostile:
      mayfly_image: debian-12
      mayfly_memory: 512M
      mayfly_max_vms: 2
      mayfly_max_attempts: 1
      mayfly_max_output: 8M
      mayfly_max_log: 4M
      mayfly_max_output_files: 1000
      mayfly_max_output_depth: 8
      mayfly_max_processes: 128
      mayfly_disclosure: open
      ansible_port: 2222
"""
RECONNECT_SECONDS = 20.0
"""For a connection that dropped; it is 120 s in life."""
SHORTENED = (
    "-c",
    "import runpy; from orchestrator.runner import launching; "
    f"launching.RECONNECT_SECONDS = {RECONNECT_SECONDS}; runpy.run_module('orchestrator', run_name='__main__')",
)
SECRET = "4be1f6c9-nobody-may-read-this"

TRIES = r"""
import ctypes, errno, os, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
PLACE = b"/task/out/place"
os.mkdir(PLACE)

def call(number, *words):
    done = libc.syscall(number, *words)
    return None if done >= 0 else ctypes.get_errno()

def asked(ask):
    try:
        ask()
    except OSError as error:
        return error.errno
    return None

TRIED = {
    "remount /": lambda: call(165, b"none", b"/", None, 32 | 4096, None),
    "mount a file system": lambda: call(165, b"none", PLACE, b"tmpfs", 0, None),
    "mount in a namespace of its own":
        lambda: call(272, 0x10000000 | 0x20000) or call(165, b"none", b"/", None, 32, None),
    "enter init's namespaces": lambda: asked(lambda: os.open("/proc/1/ns/net", os.O_RDONLY)),
    "open a raw socket": lambda: asked(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)),
    "open a packet socket": lambda: asked(lambda: socket.socket(17, socket.SOCK_RAW, 3)),
    "connect by vsock to the host": lambda: asked(lambda: connect(socket.AF_VSOCK, (2, 22))),
    "connect to the gateway": lambda: asked(lambda: connect(socket.AF_INET, ("10.0.2.2", 22))),
    "load a module": lambda: call(313, -1, b"", 0),
    "load a BPF program": lambda: call(321, 5, None, 0),
    "use the kernel's keyring": lambda: call(250, 0, -3, 1),
    "load another kernel": lambda: call(246, 0, 0, None, 0),
    "open a performance counter": lambda: call(298, None, 0, -1, -1, 0),
    "use io_uring": lambda: call(425, 1, ctypes.create_string_buffer(120)),
    "trace init": lambda: call(101, 16, 1, 0, 0),
    "read the disk": lambda: asked(lambda: os.open("/dev/vda", os.O_RDONLY)),
    "read the machine's memory": lambda: asked(lambda: os.open("/dev/mem", os.O_RDONLY)),
    "change a setting of the kernel": lambda: asked(lambda: os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY)),
    "reboot": lambda: call(169, 0xFEE1DEAD, 672274793, 0x1234567, 0),
    "become root": lambda: asked(lambda: os.setuid(0)),
}

def connect(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(3)
        sock.connect(address)

for what, attempt in TRIED.items():
    number = attempt()
    how = "SUCCEEDED" if number is None else errno.errorcode.get(number, "time-out")
    print(what, how, sep="\t", flush=True)
"""

FORKS = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
MILLION = "for n in range(10**6):\n    open(f'{n:07d}', 'w').close()"
ODD = r"""
for name in (b"a\nb", b"\x1b[2J\x1b[31mred", b"\xff\xfe", "caf\u00e9", "cafe\u0301", "\u202egpj.exe"):
    with open(name, "w") as file:
        file.write("1")
"""
KINDS = r"""
import os, socket
os.symlink("/etc/shadow", "shadow"); os.symlink("/", "root"); os.mkfifo("pipe")
socket.socket(socket.AF_UNIX).bind("socket")
open("good", "w").write("good")
"""
DEEP = "import os\nfor _ in range(30):\n    os.mkdir('d'); os.chdir('d')\nopen('f', 'w').close()"
SWAPPED = r"""
import os, time
os.mkdir("d")
for n in range(40):
    with open(f"d/{n:02d}", "wb") as file:
        file.write(b"ours" * 25000)
print("ready", flush=True)
time.sleep(8)
"""
WAITS = "echo ready; sleep 20; echo late; echo 1 > out.txt"

FORGE = r"""
for file in $(find /var/lib /run -path '*mayfly*' -type f ! -name 'stage*' ! -name '*.state' ! -name exit); do
    head -c 20000 /dev/urandom >>$file
    printf '\n1 1.0 execve("/bin/forged", ["\033[2J"], 0x1) = 0\n' >>$file
done
"""
SWAP = rf"""
echo {SECRET} >/root/secret; chmod 644 /root/secret; chmod 755 /root
systemd-run -q --no-block sh -c '
cd /task/out; mkdir e
while :; do
    for n in 00 07 13 21 39; do ln -sf /root/secret e/$n; done
    mv -T d aside; ln -s e d; rm d; mv -T aside d
    for n in 05 11 30; do mv d/$n keep; ln -s /root/secret d/$n; rm d/$n; mv keep d/$n; done
done'
"""
LIES = r"""
mv /usr/bin/python3.11 /usr/bin/python3.real
printf '#!/bin/sh\nexec yes "$(printf "\\033[2J")"\n' >/usr/bin/python3.11; chmod 755 /usr/bin/python3.11
pkill -KILL -f '[p]ython3 -IS'; true
"""


@dataclass(frozen=True)
class MachineAttack(Attack):
    """command: of the process. root: what root does once the process has said "ready", a shell script. outputs: the
    patterns. tried: each line that the process prints is a
    thing that it tried, and how that ended."""

    command: tuple[str, ...] = ()
    root: str = ""
    outputs: tuple[str, ...] = ("**",)
    tried: bool = False


def python(code: str) -> tuple[str, ...]:
    return ("python3", "-c", code)


def shell(code: str) -> tuple[str, ...]:
    return ("sh", "-c", code)


FAILED, FINISHED = TaskState.FAILED, TaskState.FINISHED
LOST, STAGING = Reason.CONNECTION_LOST, Reason.STAGING_FAILED

MACHINES = (
    MachineAttack(
        "what a process may not do",
        "its process remounts, makes namespaces, opens raw sockets, loads modules, …",
        FINISHED,
        command=python(TRIES),
        outputs=(),
        tried=True,
    ),
    MachineAttack(
        "a fork bomb",
        "its process forks without end",
        FAILED,
        Reason.TIMED_OUT,
        timeout=15,
        command=python(FORKS),
    ),
    MachineAttack(
        "a full disk",
        "its process writes a file without end",
        FAILED,
        Reason.EXIT_NONZERO,
        timeout=240,
        command=shell("cat /dev/zero >big"),
        outputs=("*.txt",),
        also=((FAILED, Reason.DISK_FULL), (FAILED, Reason.SIGNALED)),
    ),
    MachineAttack(
        "a stdout without end",
        "its process writes to stdout without end",
        FAILED,
        Reason.TIMED_OUT,
        timeout=15,
        command=("yes",),
    ),
    MachineAttack(
        "10^6 files, really",
        "its process makes a million files, or as many as it can in 60 s",
        FAILED,
        Reason.TIMED_OUT,
        timeout=60,
        command=python(MILLION),
        notes="not all of the outputs were taken: ",
        also=((FAILED, Reason.EXIT_NONZERO), (FAILED, Reason.DISK_FULL), (FAILED, STAGING)),
    ),
    MachineAttack(
        "a sparse file of 1 TiB",
        "its process leaves a file of a tebibyte, of which nothing is on the disk",
        FAILED,
        STAGING,
        says="at most 8388608 are taken",
        command=("truncate", "-s", "1T", "huge"),
    ),
    MachineAttack(
        "odd names, really",
        "its process leaves names with newlines, escapes, bytes that are not UTF-8, and look-alikes",
        FINISHED,
        command=python(ODD),
        kept=("\x1b[2J\x1b[31mred", "a\nb", "cafe\u0301", "caf\u00e9", "\u202egpj.exe", "\udcff\udcfe"),
    ),
    MachineAttack(
        "links, pipes and sockets for outputs",
        "its process leaves links to /etc/shadow and /, a pipe and a socket",
        FAILED,
        STAGING,
        says="a symbolic link, which is never followed",
        command=python(KINDS),
        kept=("good",),
    ),
    MachineAttack(
        "a file 30 folders deep",
        "its process leaves a file 30 folders deep where 8 are taken",
        FAILED,
        STAGING,
        says="30 folders deep; at most 8 are taken",
        command=python(DEEP),
    ),
    MachineAttack(
        "links swapped during copying",
        "root puts links to a secret in the place of files and folders, over and over, while they are copied",
        FINISHED,
        command=python(SWAPPED),
        root=SWAP,
        also=((FAILED, STAGING),),
    ),
    MachineAttack(
        "a tracer that is killed",
        "root kills strace while the process runs: what is traced of it fails from then on, and the trace is cut",
        FAILED,
        Reason.EXIT_NONZERO,
        command=shell(WAITS),
        root="pkill -KILL strace",
        also=((FINISHED, None), (FAILED, Reason.SIGNALED)),
    ),
    MachineAttack(
        "a trace that root writes to",
        "root writes noise and forged lines into every file of the tracer and the keeper",
        FINISHED,
        command=shell(WAITS),
        root=FORGE,
        also=((FAILED, Reason.GUEST_FAILED),),
    ),
    MachineAttack(
        "an sshd that is killed",
        "root kills the sshd, and lets none start",
        FAILED,
        LOST,
        says="did not come back",
        command=shell(WAITS),
        root="systemctl mask --runtime --now ssh.service ssh.socket; pkill -KILL sshd",
    ),
    MachineAttack(
        "a machine that stands still",
        "root stops the sshd and all Python, and answers nothing any more",
        FAILED,
        LOST,
        says="did not come back",
        command=shell(WAITS),
        root="systemd-run -q --no-block sh -c 'sleep 1; pkill -STOP python3; pkill -STOP sshd'",
    ),
    MachineAttack(
        "a python that lies",
        "root puts a program that says yes in the place of Python, and kills what attends",
        FAILED,
        Reason.GUEST_FAILED,
        command=shell(WAITS),
        root=LIES,
        also=((FAILED, LOST),),
    ),
    MachineAttack(
        "a machine that is reset",
        "root resets the machine while the process runs",
        FAILED,
        LOST,
        command=shell(WAITS),
        root="echo 1 >/proc/sys/kernel/sysrq; systemd-run -q --no-block sh -c 'sleep 1; echo b >/proc/sysrq-trigger'",
    ),
    MachineAttack(
        "a machine that is switched off",
        "root switches the machine off while the process runs",
        FAILED,
        LOST,
        says="went away",
        command=shell(WAITS),
        root="systemd-run -q --no-block sh -c 'sleep 1; poweroff -ff'",
    ),
)


@dataclass
class Site:
    """A home for the attacks, and the cloud. baseline: bytes that a runner needs for a task that means no harm."""

    mayfly: Mayfly
    cloud: TestCloud
    baseline: int = 0

    @classmethod
    def made(cls, cloud: TestCloud, folder: Path) -> Site:
        inventory = folder / "pools.yml"
        inventory.write_text(INVENTORY)
        environment = {
            "MAYFLY_HOME": str(folder / "home"),
            "MAYFLY_INVENTORY": str(inventory),
            "ONE_XMLRPC": cloud.url,
            "ONE_AUTH": str(cloud.auth),
        }
        return cls(Mayfly(environment, SHORTENED), cloud)

    @property
    def artifacts(self) -> Artifacts:
        return Artifacts(self.mayfly.home / "artifacts")

    def honest(self) -> TaskState:
        """A task that means no harm, in the same home."""
        told, peak, _ = self._run(("sh", "-c", "echo out; echo 1 > out.txt"), ("out.txt",), None, lambda task: None)
        self.baseline = self.baseline or peak
        return TaskState(told["state"])

    def attacked(self, attack: MachineAttack) -> Told:
        """Let it happen, and tell what became of it."""
        before = set(self._files())

        def turn(task: str) -> None:
            if attack.root:
                self._as_root(task, attack.root)

        told, peak, seconds = self._run(attack.command, attack.outputs, attack.timeout, turn)
        task = told["id"]
        folder = self.artifacts.root / "attempts" / task
        beside = [
            name
            for name in set(self._files()) - before
            if not name.startswith(str(folder)) and not ours(name.removeprefix(f"{self.mayfly.home}/"))
        ]
        state = TaskState(told["state"])
        reason = told["reason"] and Reason(told["reason"])
        outputs = (told["attempts"][0]["outputs"] or {"files": []})["files"]
        self._no_secret()
        return Told(
            attack.that_ended(state, reason),
            state,
            reason,
            told["message"],
            seconds,
            max(0, peak - self.baseline),
            {path.name: path.stat().st_size for path in sorted((folder / "1").iterdir())},
            tuple(sorted(beside)),
            tuple(sorted(each["path"] for each in outputs)) if attack.kept else attack.kept,
            tuple(note["message"] for note in told["notes"]),
            TaskState.FINISHED,
            self._tried(task) if attack.tried else {},
        )

    def _tried(self, task: str) -> dict[str, str]:
        tried = dict(line.split("\t", 1) for line in self.printed(task).decode().splitlines())
        assert tried, "nothing was tried"
        return tried

    def kept(self) -> dict[str, bytes]:
        """What is kept of tasks: each file of the artifact store with its sha256."""
        root = self.artifacts.root
        files = (path for part in ("attempts", "blobs") for path in (root / part).rglob("*") if path.is_file())
        return {str(path): hashlib.sha256(path.read_bytes()).digest() for path in files}

    def printed(self, task: str) -> bytes:
        return self.artifacts.log(task, 1, "stdout").read()

    def _run(
        self,
        command: tuple[str, ...],
        outputs: tuple[str, ...],
        timeout: float | None,
        turn: Callable[[str], None],
    ) -> tuple[dict[str, Any], int, float]:
        wanted = [word for pattern in outputs for word in ("-o", pattern)]
        limit = ["--timeout", f"{timeout:g}s"] if timeout else []
        before = {each["id"] for each in self.mayfly("list", "--json").json()}
        began = time.monotonic()
        process = self.mayfly.start(
            "run", "-p", "hostile", *wanted, *limit, "--json", "--", *command, stdout=subprocess.DEVNULL
        )
        try:
            [task] = self._until(
                "the task is there", lambda: {each["id"] for each in self.mayfly("list", "--json").json()} - before
            )
            turn(task)
            peak = 0
            while process.poll() is None:
                assert time.monotonic() - began < PATIENCE_SECONDS, "never over"
                peak = max(peak, _peak(process.pid))
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                process.kill()
            _, said = process.communicate()
        seconds = time.monotonic() - began
        told = self.mayfly("show", task, "--json")
        assert told.exit_code == 0, told.stderr + said
        assert self.cloud.machines() == [], "a machine survived"
        return told.json(), peak, seconds

    def _as_root(self, task: str, script: str) -> None:
        self._until("the process is ready", lambda: b"ready" in self.printed(task))
        one = self.cloud.client()
        [vm] = self.cloud.machines()
        address = one.vm.info(vm).TEMPLATE["NIC"]["IP"]
        asyncio.run(_root(address, self.mayfly.home / "keys" / "runner_ed25519", script))

    def _until(self, what: str, condition: Callable[[], Any]) -> Any:
        give_up = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < give_up:
            if found := condition():
                return found
            time.sleep(0.1)
        raise AssertionError(f"never: {what}")

    def _files(self) -> Iterator[str]:
        yield from map(str, self.mayfly.home.parent.rglob("*"))

    def _no_secret(self) -> None:
        for path in (self.mayfly.home / "artifacts").rglob("*"):
            if path.is_file():
                assert SECRET.encode() not in path.read_bytes(), f"{path} holds what was never to come out"


async def _root(address: str, key: Path, script: str) -> None:
    """Run a shell script as root of a machine. It may end with the connection."""
    async with asyncio.timeout(120):
        with contextlib.suppress(asyncssh.ConnectionLost, asyncssh.ChannelOpenError):
            async with asyncssh.connect(
                address,
                2222,
                username="root",
                client_keys=[str(key)],
                known_hosts=None,
                config=None,
                keepalive_interval=2,
            ) as connection:
                await connection.run(script)


def _peak(pid: int) -> int:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    return 0
