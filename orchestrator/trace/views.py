"""Who sees what of findings. The steward, who knows the data, sees all. The researcher sees no name and no byte that
the process could have made up from the data: see `known`. What stays is counts; of these a program that wants to can
make a few bytes, which is why some may want to see even this view only after a release.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from orchestrator.trace.findings import Findings
from orchestrator.trace.known import HIDDEN

SHOWN_PORTS = frozenset(
    {21, 22, 25, 53, 80, 110, 123, 143, 389, 443, 445, 587, 993, 1433, 2049, 3306, 5432, 6379, 8080}
)
"""Of known services. Any other could be part of what a program wants to tell."""


class View(StrEnum):
    """Whose eyes findings are for."""

    RESEARCHER = "researcher"
    STEWARD = "steward"


def seen(findings: Findings, view: View) -> Findings:
    """The findings as `view` has them; what is given is as they are kept."""
    return researcher(findings) if view is View.RESEARCHER else steward(findings)


def steward(findings: Findings) -> Findings:
    """All of them; without the names that the other view has in the place of some."""
    return {**_without_shown(findings), "view": View.STEWARD.value}


def researcher(findings: Findings) -> Findings:
    """The same shape; in the place of names that came up in the run stands where they are."""
    told: Findings = {
        **findings,
        "view": View.RESEARCHER.value,
        "programs": {
            **findings["programs"],
            "listed": [_program(each) for each in findings["programs"]["listed"]],
            "names": _listed(findings["programs"]["names"]),
        },
        "files": {
            each: {deed: _listed(listing) for deed, listing in deeds.items()}
            for each, deeds in findings["files"].items()
        },
        "renamed": _listed(findings["renamed"]),
        "inputs": {**findings["inputs"], "never_read": _listed(findings["inputs"]["never_read"])},
        "network": _attempts(findings["network"]),
        "denied": {**findings["denied"], "files": _listed(findings["denied"]["files"])},
    }
    if tracer := findings.get("tracer"):
        told["tracer"] = {**tracer, "warnings": HIDDEN if tracer.get("warnings") else ""}
    return told


def _program(program: dict[str, Any]) -> dict[str, Any]:
    """Only of the process itself the exit status is told anyway."""
    told = {key: value for key, value in program.items() if key not in ("shown", "argv_shown")}
    code = program["code"] if program["number"] == 0 or program["code"] == 0 else None
    return {**told, "path": program["shown"], "argv": program["argv_shown"], "code": code}


def _listed(listing: dict[str, Any]) -> dict[str, Any]:
    """A list with its shown names; entries that are alike then are put together."""
    together: dict[tuple[Any, ...], dict[str, Any]] = {}
    for entry in listing["listed"]:
        told = {key: entry.get(f"{key}_shown", value) for key, value in entry.items() if not key.endswith("shown")}
        if "shown" in entry:
            told["path"] = entry["shown"]
        _put(together, told)
    return {**listing, "listed": list(together.values())}


def _attempts(listing: dict[str, Any]) -> dict[str, Any]:
    together: dict[tuple[Any, ...], dict[str, Any]] = {}
    for entry in listing["listed"]:
        known = entry["port"] is None or entry["port"] in SHOWN_PORTS
        told = {**entry, "address": HIDDEN, "port": entry["port"] if known else None}
        _put(together, {**told, "first_at": None})
    return {**listing, "listed": list(together.values())}


def _put(together: dict[tuple[Any, ...], dict[str, Any]], entry: dict[str, Any]) -> None:
    key = tuple(value for name, value in entry.items() if name != "times")
    if (before := together.get(key)) is None:
        together[key] = entry
    elif "times" in entry:
        before["times"] += entry["times"]
    else:
        before["alike"] = before.get("alike", 1) + 1


def _without_shown(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_shown(inner) for key, inner in value.items() if key != "shown" and not key.endswith("_shown")
        }
    if isinstance(value, list):
        return [_without_shown(inner) for inner in value]
    return value
