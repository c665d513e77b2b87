"""Whether a run behaved as one that was approved: on real data, say, as on made-up data before.

What matters is a kind of thing that the approved run did not do. How often something was done, which of the inputs were
read and what scratch files are called differs with the data, and does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from orchestrator.trace.files import Deed
from orchestrator.trace.findings import Findings
from orchestrator.trace.known import TASK_IN, FileClass
from orchestrator.trace.views import researcher
from orchestrator.trace.words import DONE, HIDES, KINDS, PLACES, SENDERS


@dataclass(frozen=True, slots=True)
class Difference:
    """`what`: which part of the findings; `said`: in words, without names or bytes of the data."""

    matters: bool
    what: str
    said: str


def differences(approved: Findings, other: Findings) -> tuple[Difference, ...]:
    """What `other` did that `approved` did not, those that matter first. Both as they are kept."""
    first, second = researcher(approved), researcher(other)
    found = [*_ground(first, second), *_new(first, second), *_small(first, second)]
    return tuple(sorted(found, key=lambda each: not each.matters))


def _ground(first: Findings, second: Findings) -> Iterator[Difference]:
    """Whether the two can be compared at all, and are of the same program."""
    for name, findings in (("the approved run", first), ("the other run", second)):
        for why in _not_whole(findings):
            yield Difference(True, "trace", f"{name} cannot be known in full: {why}")
    one, two = first["task"], second["task"]
    if one["trace_profile"] != two["trace_profile"]:
        yield Difference(
            True, "trace", f"the approved run was traced as {one['trace_profile']}, the other as {two['trace_profile']}"
        )
    codes = [sorted((each["dest"], each["blob"]) for each in task["inputs"] if each["code"]) for task in (one, two)]
    if codes[0] != codes[1]:
        yield Difference(True, "code", "it is not the same code")
    if one["layer"] != two["layer"]:
        yield Difference(True, "code", "it has not the same packages")
    if _command(first) != _command(second):
        yield Difference(True, "code", "it is not the same command")
    ends = [_end(findings) for findings in (first, second)]
    if ends[0] != ends[1]:
        yield Difference(True, "end", f"the approved run {ends[0]}, the other {ends[1]}")


def _not_whole(findings: Findings) -> Iterator[str]:
    if findings["trace"]["cut"]:
        yield "its trace was cut"
    if (tracer := findings["tracer"]) and tracer.get("lost"):
        yield f"the tracer was lost: {tracer['lost']}"
    if findings["trace"]["lines_unread"]:
        yield f"{findings['trace']['lines_unread']} lines of its trace were not understood"
    if any(each["call"] == "io_uring_setup" for each in findings["watched"]):
        yield "it used io_uring, by which files and network are reached without a recorded call"
    for what, listing in (
        ("programs", findings["programs"]["names"]),
        ("attempts to reach a network", findings["network"]),
        ("refusals", findings["denied"]["files"]),
        ("renames", findings["renamed"]),
    ):
        if listing["not_listed"]:
            yield f"{listing['not_listed']} {what} are not listed"


def _new(first: Findings, second: Findings) -> Iterator[Difference]:
    """Kinds of things that only the second did."""
    kinds = (
        ("program", _programs, "ran {0}, a program {1}"),
        ("file", _deeds, "{0} files {1}"),
        ("file", _of_the_system, "{0} {1}, a file of the machine's own system"),
        ("rename", _renames, "renamed files {0} to files {1}"),
        ("network", _network, "tried to reach {0}, {1}, port {2} ({3}): {4}"),
        ("denied", _denied, "was refused {0} of {1}, a file {2}: {3}"),
        ("call", _calls, "was refused {0}: {1}"),
        ("signal", _signals, "got the signal {0} from {1}"),
        ("watched", _watched, "used {0}"),
    )
    for what, of, words in kinds:
        before, now = of(first), of(second)
        for each in sorted(now - before, key=str):
            said = words.format(*("any" if part is None else part for part in each))
            yield Difference(True, what, f"it {said}")
        for each in sorted(before - now, key=str):
            said = words.format(*("any" if part is None else part for part in each))
            yield Difference(False, what, f"the approved run alone {said}")


def _small(first: Findings, second: Findings) -> Iterator[Difference]:
    """Numbers."""
    for words, one in _numbers(first).items():
        two = _numbers(second)[words]
        if one != two:
            yield Difference(False, "count", f"{words}: {two}, {one} in the approved run")


def _numbers(findings: Findings) -> dict[str, float]:
    programs, inputs = findings["programs"], findings["inputs"]
    return {
        "programs run": len(programs["listed"]) + programs["not_listed"],
        "system calls recorded": findings["calls"]["total"],
        "files of the data opened": inputs["read"],
        "files of the data never opened": inputs["files"] - inputs["read"],
        "seconds": round(findings["trace"]["seconds"], 1),
    }


def _command(findings: Findings) -> list[str]:
    """The words, data's names left out."""
    data = [f"{TASK_IN}/{each['dest']}" for each in findings["task"]["inputs"] if not each["code"]]
    code = [f"{TASK_IN}/{each['dest']}" for each in findings["task"]["inputs"] if each["code"]]

    def told(word: str) -> str:
        owner = max(
            (root for root in (*data, *code) if word == root or word.startswith(f"{root}/")), key=len, default=""
        )
        return "data" if owner in data else word

    return [told(word) for word in findings["task"]["command"]]


def _end(findings: Findings) -> str:
    listed = findings["programs"]["listed"]
    own = [each for each in listed if each["parent"] is None or each["number"] == 0][:1]
    outcome = findings["task"]["outcome"]
    if outcome is not None:
        words = ", ".join(f"{key} {value}" for key, value in sorted(outcome.items()) if key in ("code", "name"))
        return f"ended as {outcome['kind']}" + (f" ({words})" if words else "")
    return f"ended as {own[0]['end']}" if own else "ran nothing"


def _programs(findings: Findings) -> set[tuple[Any, ...]]:
    return {(each["path"], PLACES[each["class"]]) for each in findings["programs"]["names"]["listed"]}


def _deeds(findings: Findings) -> set[tuple[Any, ...]]:
    return {
        (DONE[Deed(deed)], PLACES[FileClass(file_class)])
        for file_class, deeds in findings["files"].items()
        for deed, listing in deeds.items()
        if listing["listed"] or listing["not_listed"]
    }


def _of_the_system(findings: Findings) -> set[tuple[Any, ...]]:
    """Those that were changed in some way, by name. Which are read hangs on the data: a module more, a locale."""
    return {
        (DONE[Deed(deed)], each["path"])
        for deed, listing in findings["files"][FileClass.SYSTEM].items()
        for each in listing["listed"]
        if deed != Deed.READ
    }


def _renames(findings: Findings) -> set[tuple[Any, ...]]:
    return {(PLACES[each["from_class"]], PLACES[each["to_class"]]) for each in findings["renamed"]["listed"]}


def _network(findings: Findings) -> set[tuple[Any, ...]]:
    return {
        (KINDS[each["kind"]], each["family"], each["port"], each["call"], each["outcome"])
        for each in findings["network"]["listed"]
    }


def _denied(findings: Findings) -> set[tuple[Any, ...]]:
    return {
        (each["call"], each["path"], PLACES[each["class"]], each["error"])
        for each in findings["denied"]["files"]["listed"]
    }


def _calls(findings: Findings) -> set[tuple[Any, ...]]:
    return {(each["call"], each["error"]) for each in findings["denied"]["calls"]}


def _signals(findings: Findings) -> set[tuple[Any, ...]]:
    """But for the one that tells a process that one of its own has ended."""
    return {
        (each["signal"], SENDERS[each["sender"]]) for each in findings["signals"]["listed"] if each["signal"] != "CHLD"
    }


def _watched(findings: Findings) -> set[tuple[Any, ...]]:
    return {(HIDES.get(each["call"], each["call"]),) for each in findings["watched"]}
