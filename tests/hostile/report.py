"""The table of attacks, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.domain.display import shown_name
from orchestrator.guest.errors import printable
from tests.hostile.attacks import MAX_GROWTH, MIB, Attack, Told
from tests.hostile.machines import MACHINES, RECONNECT_SECONDS
from tests.hostile.wire import DEADLINES, POOL, WIRE

_MESSAGE = 150
_NAMES = 8
_HEAD = """# The hostile guest

What a machine can try on Mayfly, and what comes of it. Written by `python -m tests.hostile --write
docs/reference/hostile-guest.md`, which runs every attack: change the attacks, and not this page. Tests run the same
attacks, and fail unless each ends as here: for a true reason, in a bounded time, with bounded memory on our side,
nothing written outside the attempt's folder, and the task beside it done.

- **ended**: the task's state, its reason, and the message that its submitter reads.
- **seconds**: from the claim to the end, the machine destroyed.
- **MiB**: what the runner's process grew by at its peak; at most {growth} are accepted.
- **written**: what there is in the attempt's folder, in bytes. Contents are blobs, named by their sha256; nothing else
  was written by the attack: the home's listing before and after says so.
"""
_WIRE = """
## A machine that only speaks

The far side is an SSH server built on paramiko, in a process of its own, which answers like a sound machine up to the
step that is attacked. Around it is a whole Mayfly: database, artifact store, runner, another task that runs meanwhile
and must end well. The deadlines are shortened:

| what must come | within, in life | in these runs |
|---|---|---|
{deadlines}

The pool of these runs takes {files} outputs, {depth} folders deep, {output} MiB in all, {log} MiB of each stream;
copying may take {staging:g} s, the process {process:g} s.

"""
_MACHINES = """
## A real machine

The machine is one of the local cloud's, emulated or not; its process does harm, or root does, who comes in over SSH
with the runners' own key once the process runs. A connection that dropped is waited for {reconnect:g} s, not 120.
Before the first and after the last attack a task ended well in the same home, and what the first left was the same
after the last.

"""
_TRIED = """
### What a process may not do

Each was tried by a process in its machine, and this is the error that it got:

| tried | error |
|---|---|
"""
_COLUMNS = "| attack | what the machine does | ended | seconds | MiB | written |\n|---|---|---|---|---|---|\n"


def page(wire: Sequence[Told], machines: Sequence[Told]) -> str:
    """The whole page."""
    ran = {told.attack.name: told for told in machines}
    deadlines = "\n".join(f"| {what} | {life:g} s | {here:g} s |" for life, here, what in DEADLINES.values())
    return "".join(
        [
            _HEAD.format(growth=MAX_GROWTH // MIB),
            _WIRE.format(
                deadlines=deadlines,
                files=f"{POOL['max_output_files']:,}",
                depth=POOL["max_output_depth"],
                output=POOL["max_output_bytes"] // MIB,
                log=POOL["max_log_bytes"] // MIB,
                staging=POOL["staging_timeout_seconds"],
                process=POOL["default_timeout_seconds"],
            ),
            _COLUMNS,
            *map(row, wire),
            _MACHINES.format(reconnect=RECONNECT_SECONDS),
            _COLUMNS,
            *(row(told) if (told := ran.get(each.name)) else _not_run(each) for each in MACHINES),
            *_tried(machines),
        ]
    )


def row(told: Told) -> str:
    """One line of the table."""
    reason = f" `{told.reason.value}`" if told.reason else ""
    message = printable(told.message, _MESSAGE)
    written = ", ".join(f"{shown_name(name)} {size:,}" for name, size in told.written.items()) or "nothing"
    if told.kept:
        more = f" and {len(told.kept) - _NAMES} more" if len(told.kept) > _NAMES else ""
        written += "; taken: " + ", ".join(f"`{shown_name(each)}`" for each in told.kept[:_NAMES]) + more
    grown = "" if told.grown is None else f"{told.grown / MIB:.0f}"
    ended = f"{told.state.value}{reason}: {_cell(message)}"
    cells = (told.attack.name, _cell(told.attack.does), ended, f"{told.seconds:.1f}", grown, _cell(written))
    return f"| {' | '.join(cells)} |\n"


def _not_run(attack: Attack) -> str:
    return f"| {attack.name} | {_cell(attack.does)} | not run when this page was written | - | - | - |\n"


def named(text: str) -> list[str]:
    """The attacks of a page, in order."""
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [cells[0].removeprefix("| ") for cells in rows if len(cells) == 6 and cells[0] != "| attack"]


def all_attacks() -> list[Attack]:
    return [*WIRE, *MACHINES]


def _tried(machines: Sequence[Told]) -> Iterator[str]:
    tried = [each for told in machines for each in told.tried.items()]
    if tried:
        yield _TRIED
        yield from (f"| {what} | `{how}` |\n" for what, how in tried)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
