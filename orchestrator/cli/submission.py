"""The options that `run` and `submit` share, and what is made of them: a checked TaskSpec, its inputs in the store."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.bootstrap import House, load_pools
from orchestrator.decide.entrypoint import check_contents
from orchestrator.decide.validation import validate
from orchestrator.domain.errors import InvalidTask
from orchestrator.domain.task import Entrypoint, InputSpec, Limits, TaskSpec, TraceProfile

Command = Annotated[
    list[str] | None, typer.Argument(help="The command, after --.", metavar="-- CMD…", show_default=False)
]
PoolName = Annotated[str, typer.Option("--pool", "-p", help="The pool to run in.")]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input", "-i", metavar="SRC[:DEST]", help="File or folder to copy in, to /task/in/DEST. Repeatable."
    ),
]
Outputs = Annotated[
    list[str] | None,
    typer.Option("--output", "-o", metavar="GLOB", help="Files of /task/out to keep; ** crosses folders. Repeatable."),
]
Environment = Annotated[
    list[str] | None, typer.Option("--env", "-e", metavar="NAME=VALUE", help="A variable for the process. Repeatable.")
]
Timeout = Annotated[float | None, typer.Option("--timeout", metavar="SECONDS", help="Wall-clock limit of the process.")]
Memory = Annotated[
    str | None, typer.Option("--memory", metavar="SIZE", help="Memory limit of the process, as 256M or 2G.")
]
EntrypointName = Annotated[
    Entrypoint, typer.Option("--entrypoint", help="How the command is made of code and data: see `docs/reference`.")
]
Trace = Annotated[TraceProfile, typer.Option("--trace", help="What strace records.")]
Name = Annotated[str, typer.Option("--name", help="A name for people.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_input(text: str) -> InputSpec:
    """`SRC[:DEST]`; DEST defaults to SRC's last name. A colon in a path that exists belongs to the path.

    Raises InvalidTask when SRC is empty, as an unset variable of a shell is: it would be the whole current folder.

    >>> parse_input("/data/set:cohort").dest
    'cohort'
    """
    source, dest = text, ""
    if not Path(text).expanduser().exists() and ":" in text:
        source, dest = text.rsplit(":", 1)
    if not source:
        raise InvalidTask(
            "input", f"{text!r} names no file or folder", "write SRC or SRC:DEST; the current folder is ."
        )
    path = Path(source).expanduser().absolute()
    return InputSpec(source=str(path), dest=dest or path.resolve().name)


def parse_size(text: str) -> int:
    """Bytes from `256M`, `2G`, `1048576`. Raises InvalidTask."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidTask("memory", f"{text!r} is not a size", "write a number with K, M or G, such as 256M")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def parse_environment(words: list[str]) -> dict[str, str]:
    """`NAME=VALUE` words. Raises InvalidTask."""
    environment = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise InvalidTask("env", f"{word!r} has no =", "write NAME=VALUE")
        environment[name] = value
    return environment


async def prepare(
    house: House,
    *,
    pool: str,
    command: list[str] | None,
    inputs: list[str] | None,
    outputs: list[str] | None,
    environment: list[str] | None,
    seconds: float | None,
    memory: str | None,
    entrypoint: Entrypoint,
    trace: TraceProfile,
    name: str,
) -> TaskSpec:
    """The specification, checked against the pools, its inputs read into the artifact store. Raises UserError."""
    spec = TaskSpec(
        pool=pool,
        command=tuple(command or ()),
        entrypoint=entrypoint,
        inputs=tuple(parse_input(text) for text in inputs or ()),
        outputs=tuple(outputs or ()),
        environment=parse_environment(environment or []),
        limits=Limits(timeout_seconds=seconds, memory_bytes=None if memory is None else parse_size(memory)),
        trace=trace,
        name=name,
    )
    validate(spec, await load_pools(house.settings))
    kept = []
    for each in spec.inputs:
        blob = await asyncio.to_thread(house.artifacts.read_tree, Path(each.source))
        kept.append(dataclasses.replace(each, blob=blob))
    spec = dataclasses.replace(spec, inputs=tuple(kept))
    check_contents(spec, await asyncio.to_thread(house.artifacts.contents, kept))
    return spec
