"""`python -m bench transfers`: a large file and many small ones, in and out, beside `scp`, `rsync` and `tar | ssh`.

One machine for all, cold and bare; every tool over an OpenSSH connection that is held open, as Mayfly's is. Contents
are random, so nothing is won by compressing. Mayfly's figures are those of a task: inputs come from the artifact store
and are hashed on both ends, outputs are listed, hashed on both ends and kept in the store, on the disk. The others
hash nothing, and write to the page cache. The image has no rsync: this host's is copied into the machine, with its
libraries, before anything is timed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shlex
import shutil
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from bench.main_job import Place, surroundings
from bench.row import Row, median, table
from bench.start.bare import Bare, bare
from bench.start.held import held
from bench.start.reach import reach
from orchestrator.artifacts import Artifacts
from orchestrator.domain.outcome import Exited
from orchestrator.domain.task import InputSpec, TraceProfile
from orchestrator.guest import TRACE_PATH, Guest, Launch, OutputKind
from orchestrator.trace.command import traced

MIB = 1 << 20
SMALL_BYTES = 4096
LARGE, MANY = "large", "many"
MISSED = (
    "every byte is hashed on both ends, which the floors leave out, and SSH's packets are ours in Python on this side"
)
AIM = "≤ the best of scp, rsync, tar over ssh"
_FAR_RSYNC = "/root/rsync/ld.so --library-path /root/rsync /root/rsync/rsync"

Timed = Callable[[], float]


def transfers(place: Place, mib: int = 1024, files: int = 10_000, rounds: int = 1, *, fresh: bool = False) -> list[Row]:
    """A row for each: a file of so many MiB and so many files of 4 KiB, in and out. Figures are seconds, medians of the
    rounds. fresh: the others also over a connection of their own each time."""
    with (
        tempfile.TemporaryDirectory(prefix="mayfly-transfers-") as scratch,
        bare(place) as machine,
        held(machine) as ssh,
    ):
        folder = Path(scratch)
        make_contents(folder / "contents", mib, files)
        ways = {"": ssh, **({", own connection": machine.ssh} if fresh else {})}
        took: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        with asyncio.Runner() as runner:
            ours = Ours(machine, folder, runner)
            rsync = send_rsync(ssh)
            for number in range(rounds):
                for what in (LARGE, MANY):
                    _note(took[what, "in"]["Mayfly"], f"{what} in, Mayfly", partial(ours.stage_in, what))
                    for name, words in ways.items():
                        floors = Floors(words, folder, f"{number}{len(name)}", rsync=rsync)
                        for tool, send in floors.sending(what).items():
                            _note(took[what, "in"][tool + name], f"{what} in, {tool}{name}", send)
            ours.run_process()
            for number in range(rounds):
                for what in (LARGE, MANY):
                    _note(took[what, "out"]["Mayfly"], f"{what} out, Mayfly", partial(ours.stage_out, what))
                    for name, words in ways.items():
                        floors = Floors(words, folder, f"{number}{len(name)}", rsync=rsync)
                        for tool, receive in floors.receiving(what).items():
                            _note(took[what, "out"][tool + name], f"{what} out, {tool}{name}", receive)
            ours.close()
    return [_row(what, way, figures, mib, files) for (what, way), figures in took.items()]


def _note(seconds: list[float], name: str, run: Timed) -> None:
    seconds.append(run())
    print(f"{name}: {seconds[-1]:.2f} s", flush=True)


def _row(what: str, way: str, figures: dict[str, list[float]], mib: int, files: int) -> Row:
    medians = {tool: median(values) for tool, values in figures.items()}
    ours = medians.pop("Mayfly")
    best = min(medians, key=lambda tool: medians[tool])
    size = mib if what == LARGE else files * SMALL_BYTES / MIB
    return Row(
        name=f"{mib} MiB in one file, {way}" if what == LARGE else f"{files} files of 4 KiB, {way}",
        ours=ours,
        unit="s",
        aim=AIM,
        met=ours <= medians[best],
        floor=medians[best],
        floor_name=best,
        samples=len(figures["Mayfly"]),
        note="" if ours <= medians[best] else MISSED,
        details={"Mayfly, MiB/s": size / ours, **{f"{tool}, s": seconds for tool, seconds in medians.items()}},
    )


def make_contents(folder: Path, mib: int, files: int) -> None:
    """Random contents: `large`, and `many` in a hundred folders."""
    source = random.Random(0)
    folder.mkdir()
    with (folder / LARGE).open("wb") as file:
        for _ in range(mib):
            file.write(source.randbytes(MIB))
    for number in range(files):
        below = folder / MANY / f"{number % 100:02}"
        below.mkdir(parents=True, exist_ok=True)
        (below / f"{number:05}").write_bytes(source.randbytes(SMALL_BYTES))


class Ours:
    """Mayfly's side: one connection to the machine, and an artifact store in `folder`."""

    def __init__(self, machine: Bare, folder: Path, runner: asyncio.Runner) -> None:
        self._runner = runner
        self._artifacts = Artifacts(folder / "store")
        self._tree = {what: self._artifacts.read_tree(folder / "contents" / what) for what in (LARGE, MANY)}
        self._guest: Guest = runner.run(reach(machine))
        self._attempts = 0

    def stage_in(self, what: str) -> float:
        entries = self._artifacts.entries([InputSpec(what, what, self._tree[what])])
        began = time.monotonic()
        self._runner.run(self._guest.stage_in(entries))
        return time.monotonic() - began

    def run_process(self) -> None:
        """Copy the inputs to where outputs are."""
        launch = Launch(
            argv=("cp", "-r", f"/task/in/{LARGE}", f"/task/in/{MANY}", "/task/out"),
            timeout_seconds=3600,
            memory_bytes=1 << 28,
            processes=16,
            trace=traced(TraceProfile.AUDIT, output=TRACE_PATH),
            kill_grace_seconds=5,
        )
        self._runner.run(self._process(launch))

    async def _process(self, launch: Launch) -> None:
        logs = self._artifacts.attempt("0" * 16, 1)
        await self._guest.start(launch)
        outcome, _ = await self._guest.follow(logs.stdout, logs.stderr, logs.trace)
        if outcome != Exited(0):
            raise RuntimeError(f"the copy in the machine ended with {outcome}: {logs.stderr.read()!r}")

    def stage_out(self, what: str) -> float:
        self._attempts += 1
        began = time.monotonic()
        self._runner.run(self._take(what, self._attempts))
        return time.monotonic() - began

    async def _take(self, what: str, number: int) -> None:
        store = Artifacts(self._artifacts.root.with_name(f"taken-{number}"))  # empty: nothing is there already
        listed = await self._guest.list_outputs()
        files = [e for e in listed if e.kind is OutputKind.FILE and e.path.split("/")[0] == what]
        async with store.attempt("0" * 16, number).outputs() as sink:
            await self._guest.stage_out(files, sink, limit_bytes=1 << 40)

    def close(self) -> None:
        self._runner.run(self._guest.close())


class Floors:
    """The others, by these words of `ssh`. mark: what is new in the names of what they write."""

    def __init__(self, ssh: Sequence[str], folder: Path, mark: str, *, rsync: bool) -> None:
        self._ssh = list(ssh)
        self._options, self._to = list(ssh[1:-1]), ssh[-1]
        self._folder = folder
        self._mark = mark
        self._rsync = rsync

    def sending(self, what: str) -> dict[str, Timed]:
        source = self._folder / "contents" / what
        far = {tool: f"/root/{tool}-{what}-{self._mark}" for tool in ("scp", "rsync", "tar")}
        far_tar = f"{shlex.join(self._ssh)} 'tar -C {far['tar']} -xf -'"
        tar = f"tar -C {shlex.quote(str(source.parent))} -cf - {what} | {far_tar}"
        commands = {
            "scp": ["scp", *self._scp(), "-qr", str(source), f"{self._to}:{far['scp']}"],
            "rsync": ["rsync", "-a", *self._by_rsync(), str(source), f"{self._to}:{far['rsync']}"],
            "tar over ssh": ["sh", "-c", tar],
        }
        return {tool: self._timed(commands[tool], far[tool.split()[0]]) for tool in self._tools(commands)}

    def receiving(self, what: str) -> dict[str, Timed]:
        near = {tool: self._folder / f"{tool}-{what}-{self._mark}" for tool in ("scp", "rsync", "tar")}
        tar = f"{shlex.join(self._ssh)} 'tar -C /task/out -cf - {what}' | tar -C {shlex.quote(str(near['tar']))} -xf -"
        commands = {
            "scp": ["scp", *self._scp(), "-qr", f"{self._to}:/task/out/{what}", str(near["scp"])],
            "rsync": ["rsync", "-a", *self._by_rsync(), f"{self._to}:/task/out/{what}", str(near["rsync"])],
            "tar over ssh": ["sh", "-c", tar],
        }
        return {tool: self._timed_here(commands[tool], near[tool.split()[0]]) for tool in self._tools(commands)}

    def _tools(self, commands: dict[str, list[str]]) -> Iterator[str]:
        return (tool for tool in commands if tool != "rsync" or self._rsync)

    def _scp(self) -> list[str]:
        """`ssh` has -p for the port where `scp` has -P."""
        return ["-P" if word == "-p" else word for word in self._options]

    def _by_rsync(self) -> list[str]:
        return ["-e", shlex.join(self._ssh[:-1]), f"--rsync-path={_FAR_RSYNC}"]

    def _timed(self, command: list[str], far: str) -> Timed:
        def run() -> float:
            subprocess.run([*self._ssh, f"mkdir {far}"], check=True)
            began = time.monotonic()
            subprocess.run(command, check=True)
            took = time.monotonic() - began
            # one large file makes room; to delete many would slow down whoever makes files next
            subprocess.run([*self._ssh, f"rm -f {far}/{LARGE}"], check=True)
            return took

        return run

    def _timed_here(self, command: list[str], near: Path) -> Timed:
        def run() -> float:
            near.mkdir()
            began = time.monotonic()
            subprocess.run(command, check=True)
            took = time.monotonic() - began
            shutil.rmtree(near)
            return took

        return run


def send_rsync(ssh: Sequence[str]) -> bool:
    """Put this host's rsync into the machine, with its libraries; False, and said so, when it has none."""
    program = shutil.which("rsync")
    if program is None:
        print("no rsync on this host: left out", flush=True)
        return False
    linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    libraries = [word for word in linked.split() if word.startswith("/")]
    with tempfile.TemporaryDirectory() as scratch:
        for library in libraries:
            name = "ld.so" if Path(library).name.startswith("ld-linux") else Path(library).name
            shutil.copy(os.path.realpath(library), Path(scratch) / name)
        shutil.copy(program, Path(scratch) / "rsync")
        pipe = f"tar -C {scratch} -cf - . | {shlex.join(ssh)} 'mkdir /root/rsync && tar -C /root/rsync -xf -'"
        subprocess.run(["sh", "-c", pipe], check=True)
    return True


def main(words: Sequence[str] = ()) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench transfers", description=__doc__)
    parser.add_argument("--mib", type=int, default=64, help="size of the large file [%(default)s; the aim: 1024]")
    parser.add_argument("--files", type=int, default=2000, help="files of 4 KiB [%(default)s; the aim: 10000]")
    parser.add_argument("--rounds", type=int, default=1, help="of which the median counts [%(default)s]")
    parser.add_argument("--fresh", action="store_true", help="the others also over connections of their own")
    given = parser.parse_args(words)
    with surroundings() as place:
        print(table(transfers(place, given.mib, given.files, given.rounds, fresh=given.fresh)), flush=True)


if __name__ == "__main__":
    main()
