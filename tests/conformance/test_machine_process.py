"""Processes told apart, and the console log's bounds."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.localcloud.hypervisors.console import LOG, OLDER, read_console, start_keeper
from orchestrator.localcloud.hypervisors.process import Process


def until(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_a_process_is_alive_until_it_is_killed(sleeper: subprocess.Popen[bytes]) -> None:
    process = Process.of(sleeper.pid)
    assert process is not None
    assert process.alive()
    assert not process.wait(0)
    assert process.kill()
    # It is a zombie now, as we have not waited for it: gone all the same.
    assert not process.alive()
    assert Process.of(sleeper.pid) is None
    assert process.kill()


@pytest.mark.parametrize("change", [{"started": 1}, {"boot": "another boot"}])
def test_a_recycled_pid_is_another_process_and_is_left_alone(
    sleeper: subprocess.Popen[bytes], change: dict[str, object]
) -> None:
    process = Process.of(sleeper.pid)
    assert process is not None
    former = replace(process, **change)  # type: ignore[arg-type]
    assert not former.alive()
    assert former.wait(0)
    assert former.kill()
    assert (former.cpu_seconds(), former.resident_kb()) == (0.0, 0)
    assert process.alive()


def test_a_pid_that_nobody_has_is_no_process() -> None:
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    assert Process.of(ended.pid) is None


def test_what_a_process_uses_is_told() -> None:
    process = Process.of(os.getpid())
    assert process is not None
    assert process.cpu_seconds() > 0
    assert process.age_seconds() >= 0
    assert process.resident_kb() > 1000


def test_a_name_with_blanks_and_brackets_does_not_confuse(tmp_path: Path) -> None:
    odd = tmp_path / "a) R 1 (b"
    odd.symlink_to("/bin/sleep")
    with subprocess.Popen([odd, "60"]) as running:
        process = Process.of(running.pid)
        assert process is not None
        assert abs(process.age_seconds()) < 60
        assert process.kill()


def test_the_console_log_has_what_was_printed_as_it_comes(tmp_path: Path) -> None:
    writing, keeper = start_keeper(tmp_path)
    assert keeper is not None
    os.write(writing, b"Linux version 6\n")
    until(lambda: "Linux version 6\n" in read_console(tmp_path), "the line in the log")
    assert keeper.alive()
    os.close(writing)
    assert keeper.wait(20)
    assert read_console(tmp_path) == "Linux version 6\n"


def test_a_guest_that_prints_for_ever_does_not_fill_the_disk(tmp_path: Path) -> None:
    limit = 10_000
    writing, keeper = start_keeper(tmp_path, limit)
    assert keeper is not None
    for number in range(3000):
        os.write(writing, b"line %06d\n" % number * 10)
    os.close(writing)
    assert keeper.wait(20)
    sizes = [(tmp_path / name).stat().st_size for name in (LOG, OLDER)]
    # A pipe holds 64 KiB, and may be read in one go.
    assert max(sizes) <= max(limit, 65536)
    assert read_console(tmp_path).endswith("line 002999\n")


def test_what_an_earlier_power_cycle_printed_is_still_there(tmp_path: Path) -> None:
    for text in (b"first boot\n", b"second boot\n"):
        writing, keeper = start_keeper(tmp_path)
        assert keeper is not None
        os.write(writing, text)
        os.close(writing)
        assert keeper.wait(20)
    assert read_console(tmp_path) == "first boot\nsecond boot\n"


def test_a_log_that_cannot_be_written_costs_the_log_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / LOG).mkdir()
    (tmp_path / OLDER).mkdir()
    (tmp_path / OLDER / "in the way").touch()
    writing, keeper = start_keeper(tmp_path)
    drained = threading.Thread(target=lambda: [os.write(writing, b"x" * 4096) for _ in range(64)], daemon=True)
    drained.start()
    drained.join(20)
    os.close(writing)
    assert not drained.is_alive()
    assert keeper is None or keeper.wait(20)


def test_reading_is_bounded_and_takes_any_bytes(tmp_path: Path) -> None:
    (tmp_path / LOG).write_bytes(b"\xff\x00" * 1000 + b"end")
    text = read_console(tmp_path, limit=10)
    assert text.endswith("end")
    assert len(text) <= 10
    assert read_console(tmp_path / "nowhere") == ""


def test_the_keeper_is_nobodys_child(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from orchestrator.localcloud.hypervisors.console import start_keeper;"
        "w, k = start_keeper(Path(sys.argv[1])); import os; os.set_inheritable(w, True);"
        "print(k.pid); sys.stdout.flush();"
        "import subprocess;"  # -3: DEVNULL, as whoever holds our pipes keeps us waiting
        "p = subprocess.Popen(['sleep', '60'], pass_fds=[w], stdout=-3, stderr=-3); print(p.pid)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(tmp_path)], capture_output=True, check=True)
    keeper, holder = (Process.of(int(pid)) for pid in done.stdout.split())
    assert keeper is not None and holder is not None
    assert keeper.alive()
    assert holder.kill()
    assert keeper.wait(20)
