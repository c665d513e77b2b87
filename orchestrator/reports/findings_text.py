"""Findings in plain words, for somebody who does not know what a system call is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from orchestrator.trace.compare import Difference
from orchestrator.trace.files import Deed
from orchestrator.trace.findings import Findings
from orchestrator.trace.known import FileClass
from orchestrator.trace.views import View
from orchestrator.trace.words import DONE, HIDES, KINDS, PLACES, SENDERS, counted, often

_SHOWN = 8


def summary(findings: Findings) -> Iterator[str]:
    """A few sentences: what it ran, read, wrote and tried, and what of that is not known."""
    yield _programs(findings)
    yield _inputs(findings)
    yield from _files(findings)
    yield _network(findings)
    yield from _denied(findings)
    yield from _watched(findings)
    yield from _doubts(findings)


def details(findings: Findings) -> Iterator[str]:
    """The lists, a line each. Text in it may come from a guest: whoever prints it makes it printable."""
    for each in findings["programs"]["listed"]:
        yield f"ran       {_shift(each['at'])} {' '.join(each['argv']) or each['path']}  ({each['path']}; {_end(each)})"
    yield from _more(findings["programs"], "ran")
    for each in findings["network"]["listed"]:
        where = f"{each['address']} ({each['kind']})" + ("" if each["port"] is None else f" port {each['port']}")
        yield f"network   {each['call']} {each['family']} {where}: {each['outcome']}{_times(each['times'])}"
    yield from _more(findings["network"], "network")
    for file_class, deeds in findings["files"].items():
        if file_class == FileClass.SYSTEM:  # hundreds of libraries, of which only what was changed tells anything
            deeds = {deed: listing for deed, listing in deeds.items() if deed != Deed.READ}
        for deed, listing in deeds.items():
            for each in listing["listed"]:
                yield f"{deed:<9} {each['path']}{_times(each['times'])}"
            yield from _more(listing, deed)
    for each in findings["renamed"]["listed"]:
        yield f"renamed   {each['from']} → {each['to']}{_times(each['times'])}"
    yield from _more(findings["renamed"], "renamed")
    for each in findings["inputs"]["never_read"]["listed"]:
        alike = f" ({each['alike']} such)" if each.get("alike") else ""
        yield f"unread    {each['path']}{alike}"
    yield from _more(findings["inputs"]["never_read"], "unread")
    for each in findings["denied"]["files"]["listed"]:
        yield f"denied    {each['call']} {each['path']}: {each['error']}{_times(each['times'])}"
    yield from _more(findings["denied"]["files"], "denied")
    for each in findings["signals"]["listed"]:
        yield f"signal    {each['signal']} from {SENDERS[each['sender']]}{_times(each['times'])}"
    busiest = ", ".join(f"{each['call']} {each['times']}" for each in findings["calls"]["busiest"][:_SHOWN])
    yield f"calls     {findings['calls']['total']} recorded, {findings['calls']['failed']} of them failed; {busiest}"
    yield f"trace     {findings['trace']['lines']} lines over {findings['trace']['seconds']:.1f} s"
    if findings["view"] == View.RESEARCHER:
        yield "view      the researcher's: names that came up in the run are left out, see `--view`"


def comparison(found: Sequence[Difference]) -> Iterator[str]:
    """What `trace.compare.differences` found, a line each, and the verdict."""
    for each in found:
        yield f"{'DIFFERS' if each.matters else 'varies':<9} {each.said}"
    differs = any(each.matters for each in found)
    yield "it did NOT behave as the approved run" if differs else "it behaved as the approved run"


def _programs(findings: Findings) -> str:
    names = findings["programs"]["names"]["listed"]
    runs = len(findings["programs"]["listed"]) + findings["programs"]["not_listed"]
    if not runs:
        return "It ran nothing."
    first = findings["programs"]["listed"][0]
    listed = _listing(f"{each['path']}{_times(each['times'])}" for each in names)
    return f"It ran {counted(runs, 'program')}: {listed}. The first {_end(first)}."


def _inputs(findings: Findings) -> str:
    inputs = findings["inputs"]
    if not inputs["files"]:
        return "It was given no data."
    never = inputs["files"] - inputs["read"]
    if not never:
        return f"It opened every file of the data, {inputs['files']} in all."
    named = _listing(each["path"] for each in inputs["never_read"]["listed"])
    return f"It opened {inputs['read']} of the {counted(inputs['files'], 'file')} of the data. Never opened: {named}."


def _files(findings: Findings) -> Iterator[str]:
    for deed in (Deed.WRITTEN, Deed.CHANGED, Deed.DELETED):
        parts = []
        for file_class in FileClass:
            listing = findings["files"][file_class][deed]
            count = len(listing["listed"])
            if file_class == FileClass.SYSTEM and all(each["path"].startswith("/dev/") for each in listing["listed"]):
                count = 0  # /dev/null keeps nothing
            if count or listing["not_listed"]:
                more = "more than " if listing["not_listed"] else ""
                parts.append(f"{more}{counted(count, 'file')} {PLACES[file_class]}")
        if parts:
            yield f"It {DONE[deed]} {'; '.join(parts)}."
    if not any(findings["files"][FileClass.OUTPUT][Deed.WRITTEN].values()):
        yield "It wrote no results."


def _network(findings: Findings) -> str:
    tried = [each for each in findings["network"]["listed"] if each["call"] != "bind"]
    if not tried and not findings["network"]["not_listed"]:
        return "It never tried to reach a network."
    total = sum(each["times"] for each in tried) + findings["network"]["not_listed"]
    where = _listing(dict.fromkeys(KINDS[each["kind"]] for each in tried))
    reached = [each for each in tried if each["outcome"] in ("ok", "EINPROGRESS") and each["kind"] != "loopback"]
    if reached:
        named = _listing(dict.fromkeys(KINDS[each["kind"]] for each in reached))
        return f"It tried to reach a network {often(total)} ({where}). NOT ALL OF THAT FAILED: {named}."
    said = "Of those that are listed, nothing" if findings["network"]["not_listed"] else "Nothing"
    return f"It tried to reach a network {often(total)} ({where}). {said} left the machine."


def _denied(findings: Findings) -> Iterator[str]:
    refused = findings["denied"]["files"]
    if refused["listed"] or refused["not_listed"]:
        total = sum(each["times"] for each in refused["listed"]) + refused["not_listed"]
        named = _listing(dict.fromkeys(each["path"] for each in refused["listed"]))
        yield f"It was refused {often(total)} what it wanted to do with a file: {named}."


def _watched(findings: Findings) -> Iterator[str]:
    for each in findings["watched"]:
        failed = ", which failed each time" if each["failed"] == each["times"] else ""
        yield f"It used {HIDES.get(each['call'], each['call'])} ({often(each['times'])}{failed})."


def _doubts(findings: Findings) -> Iterator[str]:
    trace, tracer = findings["trace"], findings["tracer"] or {}
    if trace.get("cut"):
        yield "The record is not whole: it was longer than is kept. What came after is only counted."
    if tracer.get("lost"):
        yield f"The record is not whole: {tracer['lost']}."
    if trace["lines_unread"]:
        yield f"{counted(trace['lines_unread'], 'line')} of the record could not be understood."


def _end(program: dict[str, Any]) -> str:
    match program["end"]:
        case "exited" if program["code"] == 0:
            return "ended well"
        case "exited" if program["code"] is not None:
            return f"ended with status {program['code']}"
        case "exited":
            return "ended with an error"
        case "signaled":
            return f"was ended by signal {program['signal']}"
        case "replaced":
            return "became another program"
        case _:
            return "had not ended when the record ends"


def _shift(seconds: float) -> str:
    return f"{seconds:8.3f}s"


def _times(times: int) -> str:
    return "" if times == 1 else f" × {times}"


def _more(listing: dict[str, Any], what: str) -> Iterator[str]:
    if listing["not_listed"]:
        yield f"{what:<9} … and {listing['not_listed']} more that are not listed"


def _listing(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return ", ".join(every[:_SHOWN]) + more
