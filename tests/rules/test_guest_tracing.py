"""What becomes of a trace between strace and the disk, with the strace of this machine; and what is believed of it."""

from __future__ import annotations

import gzip
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.domain.task import TraceProfile
from orchestrator.guest.scripts import tracing as program
from orchestrator.guest.tracing import Tracing, read_tracing
from orchestrator.trace.command import traced

STRACED = [
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed"),
    pytest.mark.skipif(os.geteuid() != 0, reason="strace -u needs root"),
]
PYTHON = (sys.executable, "-IS", "-c")


class Place:
    """A machine's two folders, and what is read of them afterwards."""

    def __init__(self, folder: Path) -> None:
        self.run, self.logs = folder / "run", folder / "logs"
        for each in (self.run, self.logs):
            each.mkdir()
        os.mkfifo(self.run / "trace")

    @property
    def text(self) -> bytes:
        return gzip.decompress((self.logs / "trace").read_bytes())

    @property
    def told(self) -> Tracing:
        state = (self.run / "trace.state").read_bytes()
        assert state.endswith(b"\ndone")
        return read_tracing(state)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(program, "RUN", str(tmp_path / "run"))
    monkeypatch.setattr(program, "LOGS", str(tmp_path / "logs"))
    return Place(tmp_path)


@contextmanager
def straced(
    place: Place, profile: TraceProfile, *words: str
) -> Iterator[tuple[program.Trace, subprocess.Popen[bytes]]]:
    """The launcher runs, and waits: it is traced, and its trace has a keeper."""
    trace = program.Trace()
    tracer = traced(profile, output=str(place.run / "trace"), user="root")
    wait = ("/bin/sh", "-c", 'echo; read -r go; exec "$@"', "sh")
    with subprocess.Popen([*tracer, *wait, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as launcher:
        assert launcher.stdin and launcher.stdout
        (place.run / "pid").write_text(f"{launcher.pid}\n")
        assert launcher.stdout.readline() == b"\n"
        program.look_at_tracer()
        yield trace, launcher


def keep(trace: program.Trace) -> None:
    """Until strace ends."""
    poller = select.poll()
    poller.register(trace.pipe, select.POLLIN)
    while not poller.poll(60_000) or trace.move():
        pass
    trace.close()


def go_on(launcher: subprocess.Popen[bytes]) -> None:
    assert launcher.stdin
    launcher.stdin.write(b"go\n")
    launcher.stdin.flush()


def kept(place: Place, *words: str, limit: int = 1 << 24, profile: TraceProfile = TraceProfile.AUDIT) -> Tracing:
    with straced(place, profile, *words) as (trace, launcher):
        trace.limit = limit
        go_on(launcher)
        keep(trace)
    return place.told


class Test_with_strace:
    pytestmark = STRACED

    @pytest.mark.parametrize("profile", [TraceProfile.AUDIT, TraceProfile.FULL])
    def test_it_begins_with_the_process_and_ends_with_it(self, place: Place, profile: TraceProfile) -> None:
        told = kept(place, "/bin/sh", "-c", "/bin/true; exit 3", profile=profile)
        first, *_, last = place.text.splitlines()
        assert b'execve("/bin/sh", ["/bin/sh", "-c", "/bin/true; exit 3"]' in first
        assert last.endswith(b"+++ exited with 3 +++")
        assert told == Tracing(fast_path=profile is TraceProfile.AUDIT, detail_bytes=len(place.text))

    def test_past_the_bound_calls_are_counted(self, place: Place) -> None:
        script = "import os\nfor n in range(3000): os.path.exists('/'); os.close(os.open('/', 0))\nos.mkdir('/proc/x')"
        told = kept(place, *PYTHON, script, limit=50_000)
        text = place.text
        assert told.cut and told.lost == ""
        assert told.detail_bytes == len(text) <= 50_000 < len(text) + 200
        assert text.endswith(b"\n")
        opened = text.count(b', "/", O_RDONLY') + told.counts_after_cut["openat"]
        assert opened == 3000
        assert told.counts_after_cut == {"openat": told.counts_after_cut["openat"], "mkdir": 1}

    def test_no_more_is_stored_than_may_be(self, place: Place) -> None:
        """Of what does not get smaller by compressing: names at random."""
        folder = place.run / "made"
        folder.mkdir()
        script = f"import os; os.chdir({str(folder)!r})\nfor n in range(3000): os.mkdir(os.urandom(40).hex())"
        told = kept(place, *PYTHON, script, limit=20_000)
        assert told.cut
        assert (place.logs / "trace").stat().st_size <= 20_000
        assert told.detail_bytes == len(place.text)

    def test_a_full_disk_ends_the_detail_and_not_the_counting(self, place: Place) -> None:
        (place.logs / "trace").symlink_to("/dev/full")
        told = kept(place, "/bin/sh", "-c", "exec 3</; exec 3</")
        assert told.cut and told.lost == "" and told.detail_bytes == 0
        assert told.counts_after_cut["execve"] == 1

    @pytest.mark.parametrize(
        ("script", "used"),
        [
            ("libc.ptrace(0, 0, 0, 0)", ("ptrace",)),
            ("libc.prctl(22, 2, 0, 0, 0)", ("seccomp",)),
            ("libc.syscall(317, 1, 0, 0)", ("seccomp",)),
            ("libc.syscall(425, 1, 0)", ("io_uring",)),
            ("import os; libc.syscall(56, 0x800011, 0, 0, 0, 0) or os._exit(0); os.wait()", ("untraced_child",)),
            ("libc.prctl(38, 1, 0, 0, 0)", ()),
            (r"import os; libc.open(b'x PR_SET_SECCOMP\n1 17.0 ptrace(CLONE_UNTRACED', 0)", ()),
        ],
    )  # fmt: skip
    def test_what_can_hide_something_from_the_tracer_is_told(
        self, place: Place, script: str, used: tuple[str, ...]
    ) -> None:
        told = kept(place, *PYTHON, f"import ctypes\nlibc = ctypes.CDLL(None)\n{script}")
        assert (told.used, told.lost) == (used, "")

    def test_that_is_told_past_the_bound_as_well(self, place: Place) -> None:
        told = kept(place, *PYTHON, "import ctypes; ctypes.CDLL(None).ptrace(0, 0, 0, 0)", limit=1000)
        assert told.cut and told.used == ("ptrace",) and told.counts_after_cut["ptrace"] == 1

    def test_a_tracer_that_is_killed_is_missed(self, place: Place) -> None:
        with straced(place, TraceProfile.AUDIT, "/bin/sh", "-c", "echo begun; read -r word") as (trace, launcher):
            assert launcher.stdin and launcher.stdout
            trace.limit = 1 << 20
            go_on(launcher)
            assert launcher.stdout.readline() == b"begun\n"
            tracer = program.status_of(b"%d" % launcher.pid)[b"TracerPid"]
            os.kill(int(tracer), signal.SIGKILL)
            keep(trace)
            assert launcher.poll() is None
            launcher.kill()
        assert place.told.lost == "the tracer ended before the process did"
        assert not place.told.cut
        assert b"execve(" in place.text

    def test_one_that_is_killed_before_the_process_is_executed_has_seen_nothing(self, place: Place) -> None:
        with straced(place, TraceProfile.AUDIT, "/bin/true") as (trace, launcher):
            os.kill(int(program.status_of(b"%d" % launcher.pid)[b"TracerPid"]), signal.SIGKILL)
            keep(trace)
            launcher.kill()
        assert b"trace_begun" not in (place.run / "trace.state").read_bytes()
        assert (place.logs / "trace").read_bytes() == b""

    def test_a_process_that_outlives_the_one_that_was_started_belongs_to_the_trace(self, place: Place) -> None:
        told = kept(place, "/bin/sh", "-c", "(/bin/sleep 0.3; /bin/true) & exit 0")
        assert told.lost == ""
        assert b'execve("/bin/true"' in place.text


def test_a_command_without_a_tracer_runs_as_the_user(place: Place) -> None:
    words = traced(TraceProfile.NONE, output=str(place.run / "trace"), user="root")
    with subprocess.Popen([*words, "/bin/sh", "-c", "echo; read -r go; exit 3"], stdin=-1, stdout=-1) as launcher:
        assert launcher.stdout
        (place.run / "pid").write_text(f"{launcher.pid}\n")
        launcher.stdout.readline()
        trace = program.Trace()
        program.look_at_tracer()
        launcher.communicate(b"go\n")
        assert launcher.returncode == 3
    trace.close()
    assert (place.run / "trace.state").read_bytes().startswith(b"trace=none\n")
    assert place.told == Tracing(detail_bytes=0)


def test_a_kernel_that_counts_no_filters_leaves_the_fast_path_unknown(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    statuses: dict[bytes, dict[bytes, bytes]] = {b"7": {b"TracerPid": b"5"}, b"5": {}}
    monkeypatch.setattr(program, "status_of", statuses.__getitem__)
    (place.run / "pid").write_text("7\n")
    program.look_at_tracer()
    assert (place.run / "tracing").read_bytes() == b"unknown"
    assert read_tracing(b"trace=unknown\n").fast_path is None


RECORD = b"""result=success
code=exited
trace=fast
trace_bytes=12
trace_cut=yes
trace_lost=process
trace_used=ptrace seccomp
trace_counts=openat:3 execve:1
trace_said=strace: it said this
done"""


def test_what_a_machine_tells_of_a_trace_is_read() -> None:
    assert read_tracing(RECORD).told() == {
        "fast_path": True,
        "detail_bytes": 12,
        "cut": True,
        "counts_after_cut": {"openat": 3, "execve": 1},
        "lost": "the tracer ended before the process did",
        "used": ["ptrace", "seccomp"],
        "warnings": "strace: it said this",
    }


def test_the_fast_path_is_told_of_where_it_was_asked_for() -> None:
    slow = RECORD.replace(b"trace=fast", b"trace=slow")
    assert read_tracing(slow).fast_path is False
    assert read_tracing(slow, fast_asked=False).fast_path is None


def test_a_record_without_it_says_nothing() -> None:
    assert read_tracing(b"result=success\ncode=exited\nstatus=0\n") == Tracing()


Changed = Callable[[Tracing], object]


@pytest.mark.parametrize(
    ("changed", "to", "look", "found"),
    [
        (b"trace=fast", b"trace=\xff", lambda t: t.fast_path, None),
        (b"bytes=12", b"bytes=-1", lambda t: t.detail_bytes, None),
        (b"bytes=12", b"bytes=" + b"9" * 5000, lambda t: t.detail_bytes, None),
        (b"bytes=12", "bytes=١٢".encode(), lambda t: t.detail_bytes, None),
        (b"lost=process", b"lost=<b>\x1b[31m", lambda t: t.lost, "the machine says that some of it is missing"),
        (b"ptrace seccomp", b"ptrace \x1b[31m evil", lambda t: t.used, ("ptrace",)),
        (b"openat:3", b"OPEN:3 \x1b:1 a:b x:1e3 :1 openat:" + b"9" * 40, lambda t: t.counts_after_cut, {"execve": 1}),
        (b"openat:3", b" ".join(b"n%d:1" % n for n in range(5000)), lambda t: len(t.counts_after_cut), 1000),
        (b"it said this", b"\x1b" + b"x" * 9000, lambda t: (len(t.warnings), t.warnings.isprintable()), (2004, True)),
    ],
)  # fmt: skip
def test_what_a_machine_makes_up_is_left_out(changed: bytes, to: bytes, look: Changed, found: object) -> None:
    assert changed in RECORD
    assert look(read_tracing(RECORD.replace(changed, to))) == found
