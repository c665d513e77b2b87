"""What a simulated guest's process does: the command says it.

argv is one statement, or `sh -c TEXT` holds several, parted by `;`. The statements:

    true · false · exit N           ends with that status
    echo WORD… [> FILE]             writes to stdout (`>&2`: stderr), or to a file of /task/out
    write FILE BYTES                makes an output of that many bytes
    link FILE                       makes an output that is a symbolic link
    flood BYTES                     writes so much to stdout
    sleep SECONDS                   as it says; ends on SIGTERM
    hang                            for ever, and SIGTERM does not end it
    kill -SIGNAL $$ · crash         ends by that signal · by SEGV
    oom                             is killed at its memory limit
    drop                            every connection to the guest drops, and the process goes on
    poweroff                        the machine goes off
    mute                            once it has ended, the guest never says which outputs there are
    count WORD                      says so in the cloud's log of what ran (see `runs`)
    python3 /task/in/build.py       does as BUILD says

Anything else is not found: 127, as a shell has it.
"""

from __future__ import annotations

import asyncio
import shlex
import signal
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

BUILD = (
    'echo \'{"packages": [{"name": "six", "version": "1.16.0"}], "debian": []}\' > resolved.json; '
    "echo hsqs > layer.squashfs"
)
"""What a task does that installs packages for others."""

Note = Callable[[str, Mapping[str, Any]], None]
"""Takes down that the process started, counted a word, or ended."""


def _unheard(event: str, details: Mapping[str, Any]) -> None:
    pass


class _End(Exception):
    """The process ends: with a status, or by a signal."""

    def __init__(self, code: str, status: str, *, oom: bool = False) -> None:
        self.code, self.status, self.oom = code, status, oom


class Scenario:
    """One process. `logs`: its stdout, stderr and trace; `outputs`: its files (None: a symbolic link); `record`: how it
    ended, as lines of key=value, or "" while it runs; `mute`: nobody is told of its outputs."""

    def __init__(
        self,
        argv: list[str],
        seconds: float,
        grace: float,
        memory: int,
        *,
        drop: Callable[[], Awaitable[None]],
        power_off: Callable[[], Awaitable[None]],
        note: Note = _unheard,
    ) -> None:
        self.logs = (bytearray(), bytearray(), bytearray())
        self.outputs: dict[str, bytes | None] = {}
        self.record = ""
        self.mute = False
        self._drop = drop
        self._power_off = power_off
        self._note = note
        self._grace = grace
        self._memory = memory
        self._terminated = asyncio.Event()
        self._killed = asyncio.Event()
        self._expired = False
        self._grown: list[asyncio.Future[None]] = []
        self._task = asyncio.create_task(self._run(argv, seconds))

    def growth(self) -> asyncio.Future[None]:
        """Done when a log has grown since this call, or the process has ended."""
        grown = asyncio.get_running_loop().create_future()
        self._grown.append(grown)
        return grown

    async def stop(self, grace: float) -> None:
        """SIGTERM, and after the grace SIGKILL; returns when the process has ended."""
        self._terminated.set()
        await asyncio.wait([self._task], timeout=min(grace, self._grace))
        self._killed.set()
        await asyncio.wait([self._task])

    def abandon(self) -> None:
        """Its machine is gone."""
        self._task.cancel()

    async def _run(self, argv: list[str], seconds: float) -> None:
        self._note("started", {"argv": argv})
        self._write(2, f'1 1700000000.000000 execve("/bin/{argv[0]}", [], 0x1 /* 7 vars */) = 0\n')
        clock = asyncio.create_task(self._expire(seconds))
        try:
            await self._act(argv)
            end = _End("exited", "0")
        except _End as ended:
            end = ended
        finally:
            clock.cancel()
        how = f"exited with {end.status}" if end.code == "exited" else f"killed by SIG{end.status}"
        self._write(2, f"1 1700000001.000000 +++ {how} +++\n")
        result = "oom-kill" if end.oom else "success"
        lines = [f"result={result}", f"code={end.code}", f"status={end.status}", "launched=yes", "traced=yes"]
        lines += ["expired=yes"] if self._expired else []
        lines += [f"oom_kill={int(end.oom)}", f"memory_peak={self._memory if end.oom else 1 << 20}", "cpu_usec=1000"]
        self.record = "\n".join(lines) + "\n"
        self._note("ended", {"record": dict(line.split("=", 1) for line in lines)})
        self._tell()

    async def _expire(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self._expired = True
        self._terminated.set()
        await asyncio.sleep(self._grace)
        self._killed.set()

    async def _act(self, argv: list[str]) -> None:
        if argv[:2] == ["sh", "-c"] and len(argv) > 2:
            statements = [shlex.split(part) for part in argv[2].split(";") if part.strip()]
        else:
            statements = [argv]
        for words in statements:
            await self._do(words)

    async def _do(self, words: list[str]) -> None:
        match words:
            case ["true"]:
                pass
            case ["false"]:
                raise _End("exited", "1")
            case ["exit", status]:
                raise _End("exited", status)
            case ["echo", *text, ">", name]:
                self.outputs[name] = (" ".join(text) + "\n").encode(errors="surrogateescape")
            case ["echo", *text, ">&2"]:
                self._write(1, " ".join(text) + "\n")
            case ["echo", *text]:
                self._write(0, " ".join(text) + "\n")
            case ["write", name, size]:
                self.outputs[name] = bytes(int(size))
            case ["link", name]:
                self.outputs[name] = None
            case ["flood", size]:
                self._write(0, "x" * int(size))
            case ["sleep", seconds]:
                await self._wait(float(seconds))
            case ["hang"]:
                await self._killed.wait()
                raise _End("killed", "KILL")
            case ["kill", number, "$$"]:
                raise _End("killed", _signal_name(number))
            case ["crash"]:
                raise _End("dumped", "SEGV")
            case ["oom"]:
                raise _End("killed", "KILL", oom=True)
            case ["count", word]:
                self._note("counted", {"count": word})
            case ["python3", "/task/in/build.py"]:
                await self._act(["sh", "-c", BUILD])
            case ["drop"]:
                await self._drop()
            case ["mute"]:
                self.mute = True
            case ["poweroff"]:
                await self._power_off()
                await asyncio.Event().wait()
            case _:
                self._write(1, f"{words[0]}: not found\n")
                raise _End("exited", "127")

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._terminated.wait()
        except TimeoutError:
            return
        raise _End("killed", "TERM")

    def _write(self, number: int, text: str) -> None:
        self.logs[number].extend(text.encode(errors="surrogateescape"))
        self._tell()

    def _tell(self) -> None:
        for grown in self._grown:
            if not grown.done():
                grown.set_result(None)
        self._grown.clear()


def _signal_name(word: str) -> str:
    name = word.removeprefix("-")
    return signal.Signals(int(name)).name.removeprefix("SIG") if name.isdigit() else name.removeprefix("SIG")
