"""Processes and users that mean harm, or do it without meaning to, in real machines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.domain.task import TaskState
from tests.driver import Mayfly, TestCloud
from tests.hostile.machines import MACHINES, MachineAttack, Site

NAMES = (b"a\nb", b"x" * 255, b"\xff\xfe\x80", b"\x1b[2J\x1b[31mred", b" ", b"-rf", b"..x", b"$(id)'\"", b"\xc2\x9b31m")

LEAVES = f"""
import os
print(len(os.listdir("/task/in/many")))
for name in {NAMES!r}:
    with open(name, "wb") as file:
        file.write(name)
os.link("-rf", "hard")
with open("setuid", "w") as file:
    os.fchmod(file.fileno(), 0o6777)
"""

STAYS = """
import os, signal, time
for number in range(1, 65):
    if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33):
        signal.signal(number, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    while os.fork() == 0:
        time.sleep(0.05)
    time.sleep(999)
print("left", flush=True)
os._exit(6)
"""

PRIES = """
import ctypes, os
libc = ctypes.CDLL(None)
for path in ("/etc/shadow", "/etc/ssh/ssh_host_ed25519_key", "/root/.ssh/authorized_keys", "/dev/vda", "/dev/vdb"):
    print("read", path, os.access(path, os.R_OK))
for path in ("/run/mayfly-task/exit", "/var/lib/mayfly-task/trace", "/task/in", "/usr/bin/env", "/proc/sysrq-trigger"):
    print("write", path, os.access(os.path.dirname(path), os.W_OK) or os.access(path, os.W_OK))
print("others", sorted(pid for pid in os.listdir("/proc") if pid.isdigit()) != [str(os.getpid())])
print("namespace", libc.unshare(0x10000000 | 0x00020000))
print("shadow as its root", os.access("/etc/shadow", os.R_OK))
print("traced no more", libc.ptrace(0, 0, 0, 0) == 0)
os.chdir("/task/out")
for _ in range(50):  # a path that no listing takes: of no matter, as no output is asked for
    os.mkdir("d" * 100)
    os.chdir("d" * 100)
"""


def test_many_small_inputs_go_in_and_hostile_names_come_out(mayfly: Mayfly, tmp_path: Path) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for number in range(10_000):
        (many / str(number)).write_text("x" * 100)
    results = tmp_path / "results"
    done = mayfly("run", "-i", many, "-o", "**", "-d", results, "--json", "--", "python3", "-c", LEAVES)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.isascii()
    [attempt] = done.json()["attempts"]
    told = sorted(os.fsencode(file["path"]) for file in attempt["outputs"]["files"])
    assert told == sorted([*NAMES, b"hard", b"setuid"])
    assert {name: (Path(os.fsdecode(os.fsencode(results) + b"/" + name))).read_bytes() for name in NAMES} == {
        name: name for name in NAMES
    }
    assert (results / "setuid").stat().st_mode & 0o7000 == 0
    shown = mayfly("show", done.json()["id"]).stdout
    assert all(letter.isprintable() or letter == "\n" for letter in shown)
    assert mayfly("logs", done.json()["id"]).stdout == "10000\n"


def test_what_will_not_go_goes_with_its_process(mayfly: Mayfly) -> None:
    done = mayfly("run", "--", "python3", "-c", STAYS)
    assert done.exit_code == 6, done.stderr
    assert done.stdout == "left\n"


def test_a_process_that_pries_finds_nothing(mayfly: Mayfly) -> None:
    done = mayfly("run", "--", "python3", "-c", PRIES)
    assert done.exit_code == 0, done.stderr
    found = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert found.pop("namespace") == "-1"
    assert len(found) == 13
    assert set(found.values()) == {"False"}


@pytest.fixture(scope="module")
def site(running_cloud: TestCloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A home for all attacks; what came out of a task before them is the same after them, and tasks run as before."""
    made = Site.made(running_cloud, tmp_path_factory.mktemp("hostile"))
    assert made.honest() is TaskState.FINISHED
    before = made.kept()
    yield made
    assert before.items() <= made.kept().items()
    assert made.honest() is TaskState.FINISHED


@pytest.mark.parametrize("attack", MACHINES, ids=lambda attack: attack.name)
def test_an_attack_in_a_real_machine(attack: MachineAttack, cloud: TestCloud, site: Site) -> None:
    told = site.attacked(attack)
    assert told.wrong() == []
