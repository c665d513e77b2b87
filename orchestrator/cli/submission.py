"""The options that say what to run, shared by `run`, `submit` and `schedule add`: a checked TaskSpec, its inputs in the
store, a task in the queue."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from orchestrator.bootstrap import House, load_pools
from orchestrator.cli.who import me
from orchestrator.decide.deadlines import of_queued
from orchestrator.decide.entrypoint import check_contents
from orchestrator.decide.validation import validate
from orchestrator.domain.errors import InvalidTask, NotFound
from orchestrator.domain.pool import Pool
from orchestrator.domain.task import Delivery, Entrypoint, InputSpec, Limits, Packages, TaskSpec, Terms, TraceProfile
from orchestrator.provisioning.quantities import size_in_bytes, time_in_seconds
from orchestrator.store import TaskRow

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
Timeout = Annotated[
    str | None, typer.Option("--timeout", metavar="TIME", help="Wall-clock limit of the process, as 90s or 2h.")
]
Memory = Annotated[
    str | None, typer.Option("--memory", metavar="SIZE", help="Memory limit of the process, as 256M or 2G.")
]
EntrypointName = Annotated[
    Entrypoint, typer.Option("--entrypoint", help="How the command is made of code and data: see `docs/reference`.")
]
Code = Annotated[
    list[str] | None,
    typer.Option("--code", metavar="SRC[:DEST]", help="An input that is a program, and no data. Repeatable."),
]
Pins = Annotated[
    list[str] | None,
    typer.Option(
        "--pin", metavar="DEST=HASH", help="Refuse that input unless `mayfly hash` says this of it. Repeatable."
    ),
]
OpenFiles = Annotated[int | None, typer.Option("--open-files", metavar="COUNT", help="Files open at once.")]
OutputSize = Annotated[
    str | None, typer.Option("--output-size", metavar="SIZE", help="Limit of what is in /task/out, as 1G.")
]
ScratchSize = Annotated[
    str | None, typer.Option("--scratch-size", metavar="SIZE", help="Limit of what is in /task/tmp and /tmp, as 1G.")
]
Requirements = Annotated[
    Path | None, typer.Option("--requirements", metavar="FILE", help="Python packages to install before, with pip.")
]
DebianPackages = Annotated[
    list[str] | None, typer.Option("--package", metavar="NAME", help="A Debian package to install before. Repeatable.")
]
SealName = Annotated[str, typer.Option("--seal", metavar="PROFILE", help="A seal profile that the pool allows.")]
Trace = Annotated[TraceProfile, typer.Option("--trace", help="What strace records.")]
Name = Annotated[str, typer.Option("--name", help="A name for people.")]
Priority = Annotated[int, typer.Option("--priority", help="-100 to 100; the higher goes first.")]
DeliveryName = Annotated[
    Delivery, typer.Option("--delivery", help="at_most_once: never a second process once one may have started.")
]
Attempts = Annotated[
    int | None, typer.Option("--attempts", metavar="COUNT", help="Tries in all, if the platform fails.")
]
RetryJob = Annotated[bool, typer.Option("--retry-job", help="Try again when the process itself ends badly, too.")]
NotBefore = Annotated[
    str | None, typer.Option("--not-before", metavar="WHEN", help="2026-11-30T08:00+01:00, or +2h: from now on.")
]
After = Annotated[
    list[str] | None, typer.Option("--after", metavar="TASK", help="Only once this task has FINISHED. Repeatable.")
]
Key = Annotated[
    str | None, typer.Option("--key", help="Submitting again under the same key gives the task that there is.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

LONGEST_KEY = 200
LONGEST_REQUIREMENTS = 256 * 1024


@dataclass(frozen=True)
class Work:
    """What to run, as the options say it."""

    command: Command = None
    pool: PoolName = "default"
    inputs: Inputs = None
    outputs: Outputs = None
    environment: Environment = None
    timeout: Timeout = None
    memory: Memory = None
    open_files: OpenFiles = None
    output_size: OutputSize = None
    scratch_size: ScratchSize = None
    code: Code = None
    pins: Pins = None
    requirements: Requirements = None
    packages: DebianPackages = None
    entrypoint: EntrypointName = Entrypoint.COMMAND
    seal: SealName = ""
    trace: Trace = TraceProfile.AUDIT
    name: Name = ""
    priority: Priority = 0
    delivery: DeliveryName = Delivery.AT_LEAST_ONCE
    attempts: Attempts = None
    retry_job: RetryJob = False


@dataclass(frozen=True)
class Submission(Work):
    """What to run, and when."""

    not_before: NotBefore = None
    after: After = None
    key: Key = None


_Options = TypeVar("_Options", bound=Work)


def taking(kind: type[_Options]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command of a function whose first parameter is a `kind`: its own parameters come first, then the options
    that are the fields of `kind`."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        first, *own = inspect.signature(function, eval_str=True).parameters.values()
        hints = get_type_hints(kind, include_extras=True)
        fields = [
            inspect.Parameter(
                each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=hints[each.name]
            )
            for each in dataclasses.fields(kind)
        ]

        def command(**said: Any) -> None:
            options = kind(**{each.name: said.pop(each.name) for each in fields})
            function(**{first.name: options}, **said)

        parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own] + fields
        vars(command)["__signature__"] = inspect.Signature(parameters)
        command.__annotations__ = {each.name: each.annotation for each in parameters}
        command.__name__, command.__doc__ = function.__name__, function.__doc__
        return command

    return decorate


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


def parse_environment(words: list[str]) -> dict[str, str]:
    """`NAME=VALUE` words. Raises InvalidTask."""
    environment = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise InvalidTask("env", f"{word!r} has no =", "write NAME=VALUE")
        environment[name] = value
    return environment


_T = TypeVar("_T")


def parse(field: str, read: Callable[[object], _T], text: str) -> _T:
    """What `read` (of `provisioning.quantities`) makes of an option's text. Raises InvalidTask."""
    try:
        return read(text)
    except ValueError as error:
        raise InvalidTask(field, f"{text!r} is not right", str(error)) from error


def parse_instant(field: str, text: str, now: datetime) -> datetime:
    """An instant in ISO 8601 with its time zone, or `+2h`, counted from `now`. Raises InvalidTask.

    >>> from datetime import UTC
    >>> parse_instant("not_before", "+1h30m", datetime(2026, 3, 1, tzinfo=UTC)).isoformat()
    '2026-03-01T01:30:00+00:00'
    """
    if text.startswith("+"):
        try:
            return now + timedelta(seconds=parse(field, time_in_seconds, text[1:]))
        except OverflowError as error:
            raise InvalidTask(field, f"{text!r} is further ahead than there are years", "write it as +2h") from error
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidTask(field, f"{text!r} is no instant", "write it as 2026-11-30T08:00+01:00, or as +2h") from error


def _terms(work: Work, now: datetime) -> Terms:
    terms = Terms(
        priority=work.priority,
        delivery=work.delivery,
        max_attempts=work.attempts,
        retry_job=work.retry_job,
    )
    if not isinstance(work, Submission):
        return terms
    not_before = None if work.not_before is None else parse_instant("not_before", work.not_before, now)
    return dataclasses.replace(terms, not_before=not_before, depends_on=tuple(work.after or ()))


def _inputs(work: Work) -> Iterator[InputSpec]:
    """The inputs, those that are code marked so, each pinned to the hash that was said. Raises InvalidTask."""
    pins: dict[str, str] = {}
    for text in work.pins or ():
        dest, equals, pin = text.rpartition("=")
        if not equals:
            raise InvalidTask("pin", f"{text!r} has no =", "write DEST=sha256:…, as mayfly hash prints it")
        pins[dest] = pin
    said = ((False, work.inputs or ()), (True, work.code or ()))
    for each in [dataclasses.replace(parse_input(text), code=code) for code, texts in said for text in texts]:
        yield dataclasses.replace(each, pinned=pins.pop(each.dest, ""))
    for dest in pins:
        raise InvalidTask("pin", f"no input has the dest {dest!r}", "give the dest of an input, as DEST=sha256:…")


def read_requirements(path: Path) -> str:
    """The text of a requirements.txt. Raises InvalidTask when it cannot be read, or is too long to be one."""
    try:
        with path.open("rb") as file:
            content = file.read(LONGEST_REQUIREMENTS + 1)
        if len(content) > LONGEST_REQUIREMENTS:
            problem = f"{path} has more than {LONGEST_REQUIREMENTS} bytes"
            raise InvalidTask("requirements", problem, "name what is needed, and not all that there is")
        return content.decode()
    except OSError as error:
        raise InvalidTask("requirements", f"{path} cannot be read: {error.strerror}", "give a file") from error
    except UnicodeDecodeError as error:
        raise InvalidTask("requirements", f"{path} is not text in UTF-8", "give a requirements.txt") from error


async def prepare(house: House, work: Work) -> tuple[TaskSpec, Pool]:
    """The specification, checked against the pools, its inputs read into the artifact store. Raises UserError."""
    now = house.store.clock.now()
    spec = TaskSpec(
        pool=work.pool,
        command=tuple(work.command or ()),
        entrypoint=work.entrypoint,
        inputs=tuple(_inputs(work)),
        outputs=tuple(work.outputs or ()),
        environment=parse_environment(work.environment or []),
        limits=Limits(
            timeout_seconds=None if work.timeout is None else parse("timeout", time_in_seconds, work.timeout),
            memory_bytes=None if work.memory is None else parse("memory", size_in_bytes, work.memory),
            open_files=work.open_files,
            output_bytes=None if work.output_size is None else parse("output_size", size_in_bytes, work.output_size),
            scratch_bytes=None
            if work.scratch_size is None
            else parse("scratch_size", size_in_bytes, work.scratch_size),
        ),
        seal=work.seal,
        packages=Packages(
            "" if work.requirements is None else await asyncio.to_thread(read_requirements, work.requirements),
            tuple(work.packages or ()),
        ),
        trace=work.trace,
        name=work.name,
        terms=_terms(work, now),
    )
    pools = await load_pools(house.settings)
    validate(spec, pools, now=now)
    named = tuple([await whole_id(house, reference) for reference in spec.terms.depends_on])
    kept = []
    for each in spec.inputs:
        blob = await asyncio.to_thread(house.artifacts.read_tree, Path(each.source))
        if each.pinned not in ("", f"sha256:{blob}"):
            problem = f"{each.dest!r} is sha256:{blob}, and not what was approved, {each.pinned}"
            raise InvalidTask("pin", problem, "have it approved again, or give what was approved")
        kept.append(dataclasses.replace(each, blob=blob))
    spec = dataclasses.replace(spec, inputs=tuple(kept), terms=dataclasses.replace(spec.terms, depends_on=named))
    check_contents(spec, await asyncio.to_thread(house.artifacts.contents, kept))
    return spec, pools[spec.pool]


async def whole_id(house: House, reference: str) -> str:
    """The id of a task that may be named by a part of it; what names none is left for the store to refuse."""
    try:
        return (await house.store.tasks.get(reference)).id
    except NotFound:
        return reference


async def enqueue(house: House, spec: TaskSpec, pool: Pool, *, key: str | None = None, hold: bool = False) -> TaskRow:
    """Put it into the queue. Raises InvalidTask and NotPossible (the queue is full, the key is another task's)."""
    if key is not None and not (0 < len(key) <= LONGEST_KEY and key.isprintable()):
        raise InvalidTask("idempotency_key", "is empty, too long or not plain text", f"1 to {LONGEST_KEY} characters")
    now = house.store.clock.now()
    return await house.store.tasks.submit(
        spec,
        now=now,
        deadline_at=of_queued(spec.terms, pool, now),
        submitted_by=me(),
        idempotency_key=key,
        hold=hold,
        max_waiting=pool.max_waiting,
    )
