"""`mayfly trace` as people work with it: who sees what before a release, and whether two runs agree."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from orchestrator.domain.outcome import Exited
from orchestrator.store import Store, TaskRow
from tests.driver import Mayfly
from tests.receipted import ENVIRONMENT, Left, Receipted

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = Draft202012Validator(json.loads((ROOT / "docs" / "reference" / "findings.schema.json").read_text()))
INVENTORY = """
pools:
  hosts:
    small: {mayfly_image: debian-12, mayfly_disclosure: open}
    reviewed: {mayfly_image: debian-12, mayfly_disclosure: review}
"""
SECRET = "patient-7"
CALLS = (
    'execve("/usr/bin/python3", ["python3", "code.py"], 0x1 /* 1 var */) = 0',
    f'openat(AT_FDCWD</task/out>, "{SECRET}.csv", O_WRONLY|O_CREAT, 0666) = 3</task/out/{SECRET}.csv>',
    'connect(3, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("9.9.9.9")}, 16) = -1 ENETUNREACH (No net)',
    "+++ exited with 0 +++",
)
MORE = f'7 1.500000 execve("/usr/bin/curl", ["curl", "{SECRET}"], 0x1 /* 1 var */) = 0\n'


def trace_of(*calls: str) -> bytes:
    return "".join(f"7 1.{number:06} {call}\n" for number, call in enumerate(calls)).encode()


@pytest.fixture
def mayfly(tmp_path: Path) -> Mayfly:
    """Without a cloud: nothing here needs one."""
    inventory = tmp_path / "pools.yml"
    inventory.write_text(INVENTORY)
    places = {"MAYFLY_HOME": str(tmp_path / "home"), "MAYFLY_INVENTORY": str(inventory), "MAYFLY_DATABASE_URL": ""}
    (tmp_path / "home").mkdir(mode=0o700)
    return Mayfly({**places, "ONE_XMLRPC": "", "ONE_AUTH": ""})


def over(mayfly: Mayfly, *traces: bytes, pool: str = "small", disclosure: str = "open") -> list[TaskRow]:
    """Tasks that are over, one for each trace."""

    async def work() -> list[TaskRow]:
        async with await Store.open(f"sqlite+aiosqlite:///{mayfly.home / 'mayfly.db'}") as store:
            world = Receipted(store, mayfly.home)
            environment = {**ENVIRONMENT, "disclosure": disclosure}
            return [
                await world.over(left=Left(Exited(0), trace=trace, environment=environment), pool=pool)
                for trace in traces
            ]

    return asyncio.run(work())


def test_all_is_shown_where_nothing_is_withheld(mayfly: Mayfly) -> None:
    [task] = over(mayfly, trace_of(*CALLS))
    shown = mayfly("trace", task.id)
    assert shown.exit_code == 0, shown.stderr
    assert "It ran 1 program: /usr/bin/python3. The first ended well." in shown.stdout
    assert f"written   /task/out/{SECRET}.csv" in shown.stdout
    assert "9.9.9.9 (internet) port 53: ENETUNREACH" in shown.stdout
    findings = mayfly("trace", "show", task.id, "--json").json()
    SCHEMA.validate(findings)
    assert (findings["view"], findings["task"]["id"]) == ("steward", task.id)
    assert findings["tracer"]["fast_path"] is True
    assert mayfly("trace", task.id, "--raw").stdout.encode() == trace_of(*CALLS)
    researchers = mayfly("trace", task.id, "--view", "researcher", "--json")
    assert SECRET not in researchers.stdout
    SCHEMA.validate(researchers.json())


def test_before_a_release_only_the_researchers_view_is_given(mayfly: Mayfly) -> None:
    [task] = over(mayfly, trace_of(*CALLS), pool="reviewed", disclosure="review")
    for words in ((), ("--json",)):
        shown = mayfly("trace", task.id, *words)
        assert shown.exit_code == 0, shown.stderr
        assert SECRET not in shown.stdout + shown.stderr
        assert "9.9.9.9" not in shown.stdout
    for words in (("--view", "steward"), ("--raw",)):
        refused = mayfly("trace", task.id, *words)
        assert refused.exit_code == 2
        assert "nobody has released them" in refused.stderr
        assert SECRET not in refused.stdout + refused.stderr
    assert SECRET in mayfly("trace", task.id, "--unreleased").stdout
    assert "looked at the trace, which nobody has released" in mayfly("events", "--task", task.id).stdout
    assert mayfly("release", task.id, "--why", "looked at it").exit_code == 0
    assert SECRET in mayfly("trace", task.id).stdout


def test_two_runs_that_agree_and_two_that_do_not(mayfly: Mayfly) -> None:
    trace = trace_of(*CALLS)
    approved, same, other = over(mayfly, trace, trace, MORE.encode() + trace, pool="reviewed", disclosure="review")
    agreed = mayfly("trace", "diff", approved.id, same.id)
    assert (agreed.exit_code, agreed.stdout) == (0, "it behaved as the approved run\n")
    differs = mayfly("trace", "diff", approved.id, other.id)
    assert differs.exit_code == 1
    assert "DIFFERS   it ran /usr/bin/curl" in differs.stdout
    assert SECRET not in differs.stdout
    told = mayfly("trace", "diff", approved.id, other.id, "--json")
    assert (told.exit_code, told.json()["same"]) == (1, False)
    assert {"program"} <= {each["what"] for each in told.json()["differences"] if each["matters"]}


def test_what_has_no_trace_is_told(mayfly: Mayfly) -> None:
    [task] = over(mayfly, b"")
    refused = mayfly("trace", task.id)
    assert refused.exit_code == 2
    assert "has no trace: its process never began" in refused.stderr
    submitted = mayfly("submit", "-p", "small", "--json", "--", "true").json()["id"]
    assert "has not run: it is QUEUED" in mayfly("trace", submitted).stderr
    assert mayfly("trace", "diff", task.id, submitted).exit_code == 2
