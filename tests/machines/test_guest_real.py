"""The guest door against real machines: what systemd, strace, tar and the kernel make of it."""

from __future__ import annotations

import asyncio
import socket
import stat
from contextlib import suppress
from dataclasses import replace

import pytest

from orchestrator.domain.errors import SealBroken, StagingFailed
from orchestrator.domain.outcome import Exited, Outcome, OutOfMemory, Signaled, TimedOut
from orchestrator.guest import AlreadyStarted, OutputKind, OutputRefused, require, require_sealed
from orchestrator.trace.findings import Finder, Findings
from tests.guest_ends import Entry, MemoryOutputs, Sinks
from tests.machines.real_guests import MIB, Boot, Machine, launch, reached


def found(sinks: Sinks) -> Findings:
    finder = Finder()
    finder.feed(sinks.trace.text)
    return finder.findings()


LOOK = r"""
id -u; id -g; pwd
grep -E '^(Cap(Inh|Prm|Eff|Amb)|NoNewPrivs)' /proc/self/status
env | sort
echo to stderr >/dev/stderr
cat "/task/in/a b
é"/*; cat /task/in/link; ls -A /task/in/empty; stat -c %U:%a /task/in/run /task/in/secret
for path in /task/in/new /etc/new /usr/new /task/new; do touch $path 2>/dev/null && echo WROTE $path; done
rm -f /task/in/run; echo x >>/task/in/run
ls /run/mayfly-task /var/lib/mayfly-task && echo SAW THE LOGS
kill -9 1; pgrep strace && echo SAW STRACE
python3 -c "import socket; socket.create_connection(('8.8.8.8', 53), 5)"
mkdir -p d/empty; echo 1 >'d/a b'; ln d/'a b' hard; echo 2 >"$(printf 'n\nl\377')"; chmod 4755 hard
ln -s /etc/shadow shadow; mkfifo fifo; echo closed >closed; chmod 000 closed; mkdir shut; echo x >shut/x; chmod 000 shut
ln -s /etc linked
echo last; exit 7
"""


async def test_one_process_from_its_inputs_to_its_outputs(boot: Boot) -> None:
    tree = [
        Entry("a b\né", kind="directory", mode=0o700),
        Entry("a b\né/\udcff", b"odd name\n", mode=0o600),
        Entry("run", b"#!/bin/sh\n", mode=0o750),
        Entry("secret", b"", mode=0o400),
        Entry("empty", kind="directory"),
        Entry("link", kind="symlink", target="run"),
        Entry("big", bytes(5 * MIB)),
    ]
    sinks, outputs = Sinks(), MemoryOutputs()
    async with reached(boot("sealed")) as guest:
        facts, probes = await asyncio.gather(guest.facts(), guest.probe_seal())
        require(facts)
        require_sealed(probes)
        await guest.stage_in(tree)
        await guest.start(launch("sh", "-c", LOOK, "sh", environment={"ODD": "$HOME 'x' %n"}))
        outcome, usage = await guest.follow(*sinks)
        with pytest.raises(AlreadyStarted):
            await guest.start(launch("true"))
        listed = {entry.path: entry for entry in await guest.list_outputs()}
        # a guest that lied about kinds, or a link put in place after the listing: never followed, nor on the way
        lies = [replace(listed["d/a b"], path=path) for path in ("shadow", "linked/passwd", "fifo")]
        wrong_size = replace(listed["hard"], path="d/a b", size=1)
        names = ("closed", "hard", "shut/x", "n\nl\udcff")
        with pytest.raises(OutputRefused) as refused:
            await guest.stage_out([wrong_size, *lies, *(listed[name] for name in names)], outputs, limit_bytes=MIB)
        await guest.stage_out([listed["d/a b"]], outputs, limit_bytes=MIB)
        with pytest.raises(StagingFailed, match="more than 3"):
            await guest.list_outputs(3)
    assert outcome == Exited(7), sinks.stderr.data
    assert sinks.stdout.data.decode(errors="surrogateescape").splitlines() == [
        "1000", "1000", "/task/out",
        "CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000",
        "CapAmb:\t0000000000000000", "NoNewPrivs:\t1",
        "HOME=/task/tmp", "LANG=C.UTF-8", "LOGNAME=task", "ODD=$HOME 'x' %n",
        "PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games", "PWD=/task/out", "SHELL=/bin/sh",
        "TMPDIR=/task/tmp", "USER=task",
        "odd name", "#!/bin/sh", "root:755", "root:444", "last",
    ]  # fmt: skip
    assert sinks.stderr.data.startswith(b"to stderr\n")
    assert b"Network is unreachable" in sinks.stderr.data
    assert {each.path: each.why for each in refused.value.refused} == {
        "d/a b": "it changed while it was read",
        "shadow": "not a regular file",
        "linked/passwd": "Not a directory",
        "fifo": "not a regular file",
        "closed": "Permission denied",
        "shut/x": "Permission denied",
    }
    assert outputs.files == {"d/a b": b"1\n", "hard": b"1\n", "n\nl\udcff": b"2\n"}
    assert {path: listed[path].kind for path in ("d", "d/empty", "fifo", "shadow", "shut/x")} == {
        "d": OutputKind.DIRECTORY,
        "d/empty": OutputKind.DIRECTORY,
        "fifo": OutputKind.FIFO,
        "shadow": OutputKind.SYMLINK,
        "shut/x": OutputKind.FILE,
    }
    assert listed["hard"].mode & stat.S_ISUID
    assert usage.cpu_seconds and usage.memory_peak_bytes
    told = found(sinks)
    assert told["trace"]["lines_unread"] == 0
    assert told["programs"]["listed"][0]["argv"][0] == "sh"
    tried = [(each["address"], each["port"], each["outcome"]) for each in told["network"]["listed"]]
    assert tried == [("8.8.8.8", 53, "ENETUNREACH")]


@pytest.mark.parametrize(
    ("script", "outcome", "stdout"),
    [
        ("echo partial; kill -9 $$", Signaled("KILL"), b"partial\n"),
        ("echo partial; trap 'echo bye; exit 0' TERM; while :; do sleep 0.1; done", TimedOut(4), b"partial\nbye\n"),
        ("echo partial; trap '' TERM; while :; do sleep 0.1; done", TimedOut(4), b"partial\n"),
        ("echo partial; (trap '' TERM; while :; do sleep 0.1; done) & exit 0", Exited(0), b"partial\n"),
        ("echo partial; exec python3 -c 'bytearray(200 << 20)'", OutOfMemory(128 * MIB), b"partial\n"),
        ("echo partial; python3 -c 'bytearray(200 << 20)'; echo after", OutOfMemory(128 * MIB), b"partial\n"),
        ("echo partial; exec nosuch", Exited(127), b"partial\n"),
        ("echo partial; exec /etc/passwd", Exited(126), b"partial\n"),
    ],
)
async def test_an_end_is_told_truthfully(boot: Boot, script: str, outcome: Outcome, stdout: bytes) -> None:
    sinks = Sinks()
    async with reached(boot("sealed")) as guest:
        await guest.start(launch("sh", "-c", script, timeout_seconds=4 if isinstance(outcome, TimedOut) else 60))
        assert (await guest.follow(*sinks))[0] == outcome
    assert sinks.stdout.data == stdout
    assert found(sinks)["programs"]["listed"][0]["argv"][0] == "sh"


async def test_a_process_that_fills_the_disk_does_not_end_its_trace(boot: Boot) -> None:
    """The room of the trace was set aside before. One large file takes most of the disk first, to be quick."""
    sinks = Sinks()
    script = (
        "fallocate -l $(($(stat -f -c '%a * %S' .) - 30000000)) most; cat /dev/zero >rest; echo after >&1; exec ls -l"
    )
    async with reached(boot("sealed")) as guest:
        await guest.start(launch("sh", "-c", script))
        assert (await guest.follow(*sinks))[0] == Exited(0)
    assert b"No space left on device" in sinks.stderr.data or "stderr" in guest.cut
    assert [program["argv"][0] for program in found(sinks)["programs"]["listed"]][-1] == "ls"
    assert sinks.trace.text.endswith(b"+++ exited with 0 +++\n")
    assert "trace" not in guest.cut


async def test_a_stopped_process_keeps_its_partial_outputs_and_trace(boot: Boot) -> None:
    sinks, outputs = Sinks(), MemoryOutputs()
    async with reached(boot("sealed")) as guest:
        await guest.start(launch("sh", "-c", "echo 1 >part; echo partial; sleep 600"))
        following = asyncio.create_task(guest.follow(*sinks))
        while not sinks.stdout.data:
            await asyncio.sleep(0.01)
        await guest.stop(5)
        assert (await following)[0] == Signaled("TERM")
        await guest.stage_out(await guest.list_outputs(), outputs, limit_bytes=MIB)
    assert outputs.files == {"part": b"1\n"}
    assert sinks.stdout.data == b"partial\n"
    assert b"+++ killed by SIGTERM +++" in sinks.trace.text


async def test_a_cut_connection_neither_ends_the_process_nor_loses_a_byte(boot: Boot) -> None:
    machine, sinks = boot("sealed"), Sinks()
    script = "i=0; while [ $i -lt 60 ]; do i=$((i+1)); echo line $i; sleep 0.1; done; exit 3"
    async with _Cutter(machine) as cutter, reached(Machine("127.0.0.1", cutter.port)) as guest:
        await guest.start(launch("sh", "-c", script))
        following = asyncio.create_task(guest.follow(*sinks))
        for _ in range(2):
            seen = len(sinks.stdout.data)
            while len(sinks.stdout.data) == seen:  # it has begun, or it goes on after the last cut
                await asyncio.sleep(0.01)
            cutter.cut()
        assert (await following)[0] == Exited(3)
    assert sinks.stdout.data == b"".join(b"line %d\n" % number for number in range(1, 61))
    assert cutter.connections >= 3


async def test_a_machine_that_is_not_sealed_is_found_out_and_a_sealed_one_reaches_nobody(boot: Boot) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        extra = [("10.0.2.2", listener.getsockname()[1])]  # QEMU's user networking takes this for the host's loopback
        async with reached(boot("sealed")) as guest:
            require_sealed(await guest.probe_seal(extra))
        with pytest.raises(BlockingIOError):
            listener.accept()
        async with reached(boot("open")) as guest:
            probes = await guest.probe_seal(extra)
        listener.accept()[0].close()
    with pytest.raises(SealBroken, match=r"10\.0\.2\.2 TCP \d+ \(connected\)"):
        require_sealed(probes)


class _Cutter:
    """A way to a machine that can be cut; connections made later pass again."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections = 0
        self.port = 0

    async def __aenter__(self) -> _Cutter:
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(self._machine.address, self._machine.port)
        except OSError:  # not yet
            writer.transport.abort()
            return
        self._open |= {writer, back}
        counted = asyncio.create_task(self._copy(there, writer, count=True))
        self._tasks |= {counted, asyncio.create_task(self._copy(reader, back))}

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, count: bool = False) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                self.connections += count
                count = False
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
        self._open.discard(writer)
