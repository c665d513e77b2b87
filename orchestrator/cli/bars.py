"""Progress for people: bars and a live stage line on a terminal, plain lines when piped. Always on stderr."""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed
from rich.status import Status

from orchestrator.cli import output
from orchestrator.domain.task import Stage

_WORDS = {
    Stage.PROVISIONING: "getting a fresh machine",
    Stage.CONNECTING: "waiting for it to boot",
    Stage.PREPARING: "checking what it has",
    Stage.SEALING: "checking its seal",
    Stage.STAGING_IN: "copying inputs in",
    Stage.EXECUTING: "running",
    Stage.STAGING_OUT: "copying outputs out",
    Stage.DESTROYING: "destroying the machine",
}

_RATE_SECONDS = 5.0
_REDRAW_SECONDS = 0.1


class BuildBars:
    """Fits `provisioning.ports.Progress`: one line a step, with a bar where the fraction is known."""

    def __init__(self) -> None:
        self._drawn = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.fields[step]}"),
            BarColumn(bar_width=24),
            Elapsed(),
            TextColumn("{task.fields[line]}"),
            console=output.err,
            disable=not output.err.is_terminal,
        )
        self._step = ""
        self._bar: TaskID | None = None
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        self._drawn.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._drawn.stop()

    def __call__(self, step: str, fraction: float | None, text: str) -> None:
        line = output.printable(text)
        if not output.err.is_terminal:
            if step != self._step or text:
                output.note(f"{time.monotonic() - self._began:7.1f} s  {step}: {line}")
            self._step = step
            return
        if step != self._step or self._bar is None:
            if self._bar is not None:
                self._drawn.update(self._bar, total=1.0, completed=1.0)
            self._step = step
            self._bar = self._drawn.add_task(step, total=None, step=step, line="")
        self._drawn.update(
            self._bar, total=None if fraction is None else 1.0, completed=fraction or 0.0, line=line[:80]
        )


class StageLine:
    """The stage a task is in: a spinner that changes on a terminal, a line a stage when piped."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._live = None if quiet or not output.err.is_terminal else Status("", console=output.err)
        self._began = time.monotonic()
        self._rate: Rate | None = None
        self._drawn = 0.0

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def show(self, text: str) -> None:
        """What is going on now."""
        if self._live:
            self._live.update(f"{text}…")
        elif not self._quiet:
            output.note(f"{time.monotonic() - self._began:7.1f} s  {text}")

    def stage(self, stage: Stage) -> None:
        """The stage that was entered."""
        self.show(_WORDS[stage])

    def transfer(self, direction: str, done: int, total: int) -> None:
        """Bytes that went in or out. A bar with the rate on the live line; when piped, a line when all went."""
        if not total or self._quiet:
            return
        now = time.monotonic()
        if self._rate is None or self._rate.of != direction:
            self._rate = Rate(direction, now)
        self._rate.add(done, now)
        if self._live and (done >= total or now - self._drawn >= _REDRAW_SECONDS):
            self._drawn = now
            self._live.update(f"copying {direction}: {bar(done, total)} {self._rate.text(done, total)}…")
        elif not self._live and done >= total:
            self.show(f"copied {direction}: {self._rate.whole(done)}")


def bar(done: int, total: int, width: int = 24) -> str:
    """How much of it is done, drawn.

    >>> bar(1, 4, 8)
    '━━──────'
    """
    full = width * min(done, total) // total
    return "━" * full + "─" * (width - full)


class Rate:
    """How fast bytes went in the last seconds. `of`: which bytes. Times in seconds, of any clock that goes forward."""

    def __init__(self, of: str, now: float) -> None:
        self.of = of
        self._began = now
        self._seen = deque([(now, 0)])

    def add(self, done: int, now: float) -> None:
        """So many bytes were done by then."""
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] <= now - _RATE_SECONDS:
            self._seen.popleft()

    @property
    def now(self) -> float | None:
        """Bytes a second; None while nobody can tell."""
        (then, before), (last, done) = self._seen[0], self._seen[-1]
        return (done - before) / (last - then) if last - then >= _REDRAW_SECONDS else None

    def text(self, done: int, total: int) -> str:
        """Done, all of it, percent, rate and the seconds that the rest will take."""
        said = f"{output.size(done)} of {output.size(total)} ({100 * done // total} %)"
        if not (rate := self.now):
            return said
        return f"{said}, {output.size(int(rate))}/s, {(total - done) / rate:.0f} s left"

    def whole(self, done: int) -> str:
        """All of it, and the rate over the whole time."""
        seconds = self._seen[-1][0] - self._began
        return output.size(done) + (f", {output.size(int(done / seconds))}/s" if seconds >= _REDRAW_SECONDS else "")
