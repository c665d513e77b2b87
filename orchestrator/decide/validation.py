"""Is this submission right? All that can be said from it and the pools alone; what its files are is for the artifact
store to see. Every refusal names the field and the remedy."""

from __future__ import annotations

import difflib
import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime

from orchestrator.decide import layers
from orchestrator.decide.entrypoint import TASK_OUT, argv_of
from orchestrator.decide.outputs import parts
from orchestrator.domain.errors import InvalidTask
from orchestrator.domain.pool import Pool
from orchestrator.domain.task import MAX_PRIORITY, MIN_PRIORITY, InputSpec, Limits, TaskSpec, Terms

LONGEST_COMMAND = 100_000
"""Bytes of all arguments and variables together, quoted as for a shell within a shell: they travel to the guest in one
such argument, with what starts them."""
LEAST_MEMORY = 16 * 2**20
"""Bytes, with which a small process can start: the shell that starts it, and strace beside it, count as its own."""
LEAST_FILES = 16
LEAST_SCRATCH = 2**20
LARGEST = 2**60
"""Bytes: more than any disk has."""
LONGEST_TITLE = 200
MOST_ATTEMPTS = 100
MOST_DEPENDENCIES = 1000
LONGEST_NAME = 255
LONGEST_PATH = 4000
_PIN = re.compile(r"sha256:[0-9a-f]{64}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def validate(spec: TaskSpec, pools: Mapping[str, Pool], *, now: datetime | None = None) -> None:
    """Raise InvalidTask, the first of `problems`."""
    for problem in problems(spec, pools, now=now):
        raise problem


def problems(spec: TaskSpec, pools: Mapping[str, Pool], *, now: datetime | None = None) -> Iterator[InvalidTask]:
    """All that is wrong with `spec`. `now`: when it is submitted; None leaves out what depends on it."""
    yield from _pool(spec, pools)
    yield from _name(spec.name)
    yield from _words(spec)
    try:
        argv_of(spec)
    except InvalidTask as problem:
        yield problem
    yield from _inputs(spec)
    yield from _outputs(spec)
    yield from _environment(spec)
    if spec.pool in pools:
        yield from _limits(spec.limits, pools[spec.pool])
        yield from _profiles(spec, pools[spec.pool])
        yield from layers.problems(spec, pools)
    yield from _terms(spec.terms)
    if spec.pool in pools and now is not None:
        yield from _instant(spec.terms.not_before, pools[spec.pool], now)


def _pool(spec: TaskSpec, pools: Mapping[str, Pool]) -> Iterator[InvalidTask]:
    if spec.pool in pools:
        return
    near = difflib.get_close_matches(spec.pool, pools, n=3, cutoff=0.5)
    if near:
        remedy = f"did you mean {' or '.join(near)}?"
    elif pools:
        remedy = f"there is {', '.join(sorted(pools))}"
    else:
        remedy = "the inventory's group `pools` is empty: add a host to it"
    yield InvalidTask("pool", f"no pool {spec.pool!r}", remedy)


def _name(name: str) -> Iterator[InvalidTask]:
    if len(name) > LONGEST_TITLE:
        yield InvalidTask("name", f"has {len(name)} characters", f"use at most {LONGEST_TITLE}")
    if not name.isprintable():
        yield InvalidTask("name", f"{name[:LONGEST_TITLE]!r} has characters that cannot be shown", "use plain text")


def _words(spec: TaskSpec) -> Iterator[InvalidTask]:
    for number, word in enumerate(spec.command, 1):
        if "\0" in word:
            yield InvalidTask("command", f"word {number} has a NUL in it", "no program can be given one; remove it")
    variables = (f"{name}={value}" for name, value in spec.environment.items())
    total = _bytes(shlex.quote(shlex.join([*spec.command, *variables])))
    if total > LONGEST_COMMAND:
        problem = f"has {total} bytes with its environment, quoted; at most {LONGEST_COMMAND} can be sent"
        yield InvalidTask("command", problem, "put long words and lists in a file, and give that with -i")


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _inputs(spec: TaskSpec) -> Iterator[InvalidTask]:
    seen: dict[tuple[str, ...], str] = {}
    for given in spec.inputs:
        yield from _pinned(given)
        if "\0" in given.source:
            yield InvalidTask("input", f"{given.source!r} has a NUL in it", "no file can have such a name")
        wrong = _wrong_dest(given.dest)
        if wrong:
            yield InvalidTask(
                "input",
                f"dest {given.dest[:200]!r} {wrong}",
                "name a place below /task/in, as in -i SRC:data/table.csv",
            )
            continue
        names = tuple(given.dest.split("/"))
        for other, dest in seen.items():
            if names == other:
                yield InvalidTask(
                    "input", f"two inputs have the dest {dest!r}", "give one of them another, as SRC:DEST"
                )
            elif names[: len(other)] == other or other[: len(names)] == names:
                inner, outer = sorted((given.dest, dest), key=len, reverse=True)
                yield InvalidTask(
                    "input", f"dest {inner!r} lies inside dest {outer!r}", "give one of them another, as SRC:DEST"
                )
        seen.setdefault(names, given.dest)


def _wrong_dest(dest: str) -> str:
    names = dest.split("/")
    if not dest:
        return "is empty"
    if "\0" in dest:
        return "has a NUL in it"
    if dest.startswith("/"):
        return "is absolute"
    if ".." in names:
        return "leaves /task/in"
    if "" in names or "." in names:
        return "is not in its plainest form"
    if max(_bytes(name) for name in names) > LONGEST_NAME or _bytes(dest) > LONGEST_PATH:
        return "is too long"
    return ""


def _pinned(given: InputSpec) -> Iterator[InvalidTask]:
    if given.pinned and not _PIN.fullmatch(given.pinned):
        problem = f"the hash that {given.dest!r} is pinned to, {given.pinned[:100]!r}, is not of the right kind"
        yield InvalidTask("pin", problem, "write sha256: and 64 hexadecimal digits, as mayfly hash prints it")


def _profiles(spec: TaskSpec, pool: Pool) -> Iterator[InvalidTask]:
    """The seal and the trace are two that the pool allows."""
    if pool.seal_named(spec.seal) is None:
        allowed = ", ".join(seal.name for seal in pool.seals)
        yield InvalidTask("seal", f"pool {pool.name} does not allow the profile {spec.seal!r}", f"it allows {allowed}")
    if spec.trace not in pool.traces:
        allowed = ", ".join(pool.traces)
        yield InvalidTask("trace", f"pool {pool.name} does not allow the profile {spec.trace}", f"it allows {allowed}")


def _outputs(spec: TaskSpec) -> Iterator[InvalidTask]:
    for pattern in spec.outputs:
        names = pattern.split("/")
        if "\0" in pattern:
            yield InvalidTask("output", f"{pattern!r} has a NUL in it", "no file can have such a name")
        elif pattern.startswith("/"):
            inside = pattern.startswith(f"{TASK_OUT}/") and ".." not in names
            remedy = f"write {pattern.removeprefix(f'{TASK_OUT}/')!r}" if inside else f"only {TASK_OUT} is kept"
            yield InvalidTask("output", f"{pattern!r} is absolute; patterns are relative to {TASK_OUT}", remedy)
        elif ".." in names:
            yield InvalidTask("output", f"{pattern!r} leaves {TASK_OUT}", "only what is below it is kept; leave out ..")
        elif not parts(pattern):
            yield InvalidTask("output", f"{pattern!r} names nothing", "use '**' for everything")


def _environment(spec: TaskSpec) -> Iterator[InvalidTask]:
    for name, value in spec.environment.items():
        if not _VARIABLE.fullmatch(name):
            yield InvalidTask("env", f"{name!r} is no name of a variable", "use letters, digits and _, no digit first")
        if "\0" in value:
            yield InvalidTask("env", f"the value of {name!r} has a NUL in it", "no program can be given one; remove it")


def _limits(limits: Limits, pool: Pool) -> Iterator[InvalidTask]:
    seconds = limits.timeout_seconds
    if seconds is not None:
        if not seconds > 0 or math.isinf(seconds):
            yield InvalidTask("timeout", f"is {seconds:g} s", "give a number of seconds above 0")
        elif seconds > pool.max_timeout_seconds:
            most = f"{pool.max_timeout_seconds:g}"
            yield InvalidTask(
                "timeout", f"is {seconds:g} s, above the {most} s of pool {pool.name}", f"give at most {most}"
            )
    yield from _amount("memory", limits.memory_bytes, LEAST_MEMORY, pool.process_memory_bytes, _size, pool)
    yield from _amount("processes", limits.processes, 1, pool.max_processes, lambda n: f"{n} processes", pool)
    yield from _amount("open_files", limits.open_files, LEAST_FILES, pool.max_open_files, lambda n: f"{n} files", pool)
    yield from _amount("output_size", limits.output_bytes, 1, pool.max_output_bytes, _size, pool)
    most_scratch = LARGEST if pool.max_scratch_bytes is None else pool.max_scratch_bytes
    yield from _amount("scratch_size", limits.scratch_bytes, LEAST_SCRATCH, most_scratch, _size, pool)


def _amount(
    field: str, asked: int | None, least: int, most: int, shown: Callable[[int], str], pool: Pool
) -> Iterator[InvalidTask]:
    if asked is None:
        return
    if asked < least:
        yield InvalidTask(field, f"is {shown(asked)}", f"give at least {shown(least)}")
    elif asked > most:
        problem = f"is {shown(asked)}, above the {shown(most)} of pool {pool.name}"
        yield InvalidTask(field, problem, f"give at most {shown(most)}")


def _terms(terms: Terms) -> Iterator[InvalidTask]:
    if not MIN_PRIORITY <= terms.priority <= MAX_PRIORITY:
        yield InvalidTask("priority", f"is {terms.priority}", f"give {MIN_PRIORITY} to {MAX_PRIORITY}")
    if terms.max_attempts is not None and not 1 <= terms.max_attempts <= MOST_ATTEMPTS:
        yield InvalidTask("attempts", f"is {terms.max_attempts}", f"give 1 to {MOST_ATTEMPTS}")
    if len(terms.depends_on) > MOST_DEPENDENCIES:
        problem = f"names {len(terms.depends_on)} tasks"
        yield InvalidTask(
            "depends_on", problem, f"at most {MOST_DEPENDENCIES}; let tasks between them gather the others"
        )


def _instant(not_before: datetime | None, pool: Pool, now: datetime) -> Iterator[InvalidTask]:
    if not_before is None:
        return
    if not_before.tzinfo is None:
        yield InvalidTask("not_before", f"{not_before.isoformat()} has no time zone", "add Z, or an offset as +01:00")
    elif (not_before - now).total_seconds() > pool.max_queue_seconds:
        problem = f"{not_before.isoformat()} is further ahead than a task of pool {pool.name} may wait"
        yield InvalidTask("not_before", problem, f"at most {pool.max_queue_seconds / 3600:g} h ahead")


def _size(count: int) -> str:
    """As `--memory` takes it: in whole MiB, rounded down, or in bytes when it is less than one.

    >>> _size(384 * 2**20)
    '384M'
    """
    return f"{count >> 20}M" if count >= 2**20 else str(count)
