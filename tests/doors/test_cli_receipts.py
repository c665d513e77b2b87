"""Receipts, verifying, pins, keys and reviews as people work with them: the command line, in processes of its own."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

from orchestrator.cli.who import me
from orchestrator.store import Store, TaskRow
from tests.driver import Mayfly
from tests.receipted import ENVIRONMENT, Left, Receipted

INVENTORY = """
pools:
  hosts:
    small: {mayfly_image: debian-12, mayfly_disclosure: open}
    reviewed: {mayfly_image: debian-12, mayfly_disclosure: review}
    strict: {mayfly_image: debian-12, mayfly_disclosure: four-eyes}
"""
SECRET = "patient 7"

_T = TypeVar("_T")


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("inventory") / "pools.yml"
    file.write_text(INVENTORY)
    return file


@pytest.fixture
def mayfly(tmp_path: Path, inventory: Path) -> Mayfly:
    """Without a cloud: nothing here needs one."""
    places = {"MAYFLY_HOME": str(tmp_path / "home"), "MAYFLY_INVENTORY": str(inventory), "MAYFLY_DATABASE_URL": ""}
    (tmp_path / "home").mkdir(mode=0o700)
    return Mayfly({**places, "ONE_XMLRPC": "", "ONE_AUTH": ""})


def in_world(mayfly: Mayfly, act: Callable[[Receipted], Coroutine[Any, Any, _T]]) -> _T:
    """Act on the home's own database and artifacts."""

    async def work() -> _T:
        async with await Store.open(f"sqlite+aiosqlite:///{mayfly.home / 'mayfly.db'}") as store:
            return await act(Receipted(store, mayfly.home))

    return asyncio.run(work())


def over(mayfly: Mayfly, pool: str = "small", by: str = "ada", *, disclosure: str = "open") -> TaskRow:
    """A task that is over, whose output and stdout are a secret."""
    left = Left(
        stdout=f"{SECRET}\n".encode(),
        outputs={"table.csv": SECRET.encode()},
        environment={**ENVIRONMENT, "disclosure": disclosure},
    )
    return in_world(mayfly, lambda world: world.over(left=left, pool=pool, by=by))


def notes(mayfly: Mayfly, task: TaskRow) -> list[str]:
    shown = mayfly("events", "--task", task.id, "--json")
    events = [json.loads(line) for line in shown.stdout.splitlines()]
    return [event["data"]["message"] for event in events if event["kind"] == "note"]


# -- a crate, and checking it elsewhere


def test_a_crate_is_checked_elsewhere_with_the_public_key_alone(mayfly: Mayfly, tmp_path: Path) -> None:
    task = over(mayfly)
    made = mayfly("results", task.id, "--crate", tmp_path / "run.zip")
    assert made.exit_code == 0, made.stderr
    pem = mayfly("keys", "show").stdout
    (tmp_path / "mayfly.pem").write_text(pem)
    elsewhere = mayfly.with_environment(MAYFLY_HOME=str(tmp_path / "elsewhere"))
    done = elsewhere("verify", tmp_path / "run.zip", "--key", tmp_path / "mayfly.pem")
    assert done.exit_code == 0, done.stderr
    assert f"good      attempt 1 of task {task.id}: finished, exited with 0; its machine" in done.stdout
    assert not (tmp_path / "elsewhere").exists()
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", tmp_path / "mayfly.pem", "-outform", "DER"],
        capture_output=True,
        check=True,
    )
    key_id = hashlib.sha256(der.stdout).hexdigest()
    found = elsewhere("verify", tmp_path / "run.zip", "--key", tmp_path / "mayfly.pem", "--json").json()
    assert (found["good"], found["key"], found["problems"]) == (True, key_id, [])
    assert found["receipts"][0]["task"]["submitted_by"] == "ada"


def test_what_is_not_good_is_said_and_exits_with_1(mayfly: Mayfly, tmp_path: Path) -> None:
    task = over(mayfly)
    assert mayfly("results", task.id, "--crate", tmp_path / "run").exit_code == 0
    assert mayfly("verify", tmp_path / "run").exit_code == 0
    receipt = tmp_path / "run" / "receipt.json"
    assert mayfly("verify", receipt).exit_code == 0
    (tmp_path / "run" / "outputs" / "table.csv").write_text("other")
    done = mayfly("verify", tmp_path / "run")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "not good: outputs/table.csv was changed" in done.stderr
    receipt.write_bytes(receipt.read_bytes().replace(b"A", b"B", 1))
    done = mayfly("verify", receipt, "--json")
    assert (done.exit_code, done.json()["good"]) == (1, False)
    other = mayfly.with_environment(MAYFLY_HOME=str(tmp_path / "other"))
    assert other("keys", "init").exit_code == 0
    assert "another key" in other("verify", tmp_path / "run").stderr


def test_what_is_no_receipt_is_refused(mayfly: Mayfly, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text")
    (tmp_path / "folder").mkdir()
    without = mayfly("verify", tmp_path / "text")
    assert without.exit_code == 2 and "--key" in without.stderr
    assert mayfly("keys", "init").exit_code == 0
    for what, exit_code in (("nothing", 2), ("text", 1), ("folder", 1)):
        done = mayfly("verify", tmp_path / what)
        assert done.exit_code == exit_code
        assert "Traceback" not in done.stderr


def test_results_want_one_place(mayfly: Mayfly, tmp_path: Path) -> None:
    task = over(mayfly)
    assert mayfly("results", task.id).exit_code == 2
    assert mayfly("results", task.id, tmp_path / "a", "--crate", tmp_path / "b").exit_code == 2
    assert mayfly("results", task.id, "--crate", tmp_path).exit_code == 2  # something is there


# -- keys


def test_keys_are_made_listed_and_rotated(mayfly: Mayfly) -> None:
    assert "no key yet" in mayfly("keys", "list").stderr
    assert mayfly("keys", "show").exit_code == 2
    first = mayfly("keys", "init", "--json").json()["id"]
    assert mayfly("keys", "init", "--json").json()["id"] == first
    old = mayfly("keys", "show").stdout
    assert old.startswith("-----BEGIN PUBLIC KEY-----")
    second = mayfly("keys", "rotate", "--json").json()["id"]
    listed = mayfly("keys", "list", "--json").json()
    assert [(row["id"], row["signs"]) for row in listed] == [(second, True), (first, False)]
    assert mayfly("keys", "show", first[:12]).stdout == old
    assert mayfly("keys", "show", "0000ffff0000").exit_code == 2


def test_a_key_that_others_can_read_signs_nothing(mayfly: Mayfly, tmp_path: Path) -> None:
    task = over(mayfly)
    assert mayfly("keys", "init").exit_code == 0
    (mayfly.home / "keys" / "receipts" / "signing.pem").chmod(0o644)
    done = mayfly("results", task.id, "--crate", tmp_path / "run")
    assert done.exit_code == 2
    assert "read or written by others" in done.stderr and "chmod 600" in done.stderr
    assert not (tmp_path / "run").exists()


# -- pins


def test_a_pin_is_held_to(mayfly: Mayfly, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "run.py").write_text("print(1)\n")
    found = mayfly("hash", code)
    assert found.exit_code == 0 and found.stdout.startswith("sha256:")
    assert not (mayfly.home / "artifacts").exists()
    pin = f"code={found.stdout.strip()}"

    def submit(pin: str) -> Any:
        return mayfly("submit", "-p", "small", "--code", f"{code}:code", "--pin", pin, "--json", "--", "true")

    assert submit(pin).exit_code == 0
    (code / "run.py").write_text("print(2)\n")
    done = submit(pin)
    assert done.exit_code == 2
    assert "pin: 'code' is sha256:" in done.stderr and "not what was approved" in done.stderr
    assert submit("code=sha256:abc").exit_code == 2
    assert submit("code=md5:" + "0" * 32).exit_code == 2
    assert mayfly("hash", tmp_path / "nothing").exit_code == 2


def test_who_submits_is_who_the_process_belongs_to(mayfly: Mayfly) -> None:
    done = mayfly.with_environment(LOGNAME="eve", USER="eve")("submit", "-p", "small", "--json", "--", "true")

    async def submitted_by(world: Receipted) -> str:
        return (await world.store.tasks.get(done.json()["id"])).submitted_by

    assert in_world(mayfly, submitted_by) == me()


# -- disclosure and review


@pytest.mark.parametrize(("pool", "disclosure"), [("small", "review"), ("strict", "open")])
def test_the_stricter_of_then_and_now_holds(mayfly: Mayfly, pool: str, disclosure: str) -> None:
    task = over(mayfly, pool, disclosure=disclosure)
    done = mayfly("logs", task.id)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "nobody has released them" in done.stderr and SECRET not in done.stderr


def test_nothing_is_seen_before_it_is_released(mayfly: Mayfly, tmp_path: Path) -> None:
    task = over(mayfly, "reviewed")
    for words in (("logs", task.id), ("logs", task.id, "--stream", "trace"), ("results", task.id, tmp_path / "out")):
        done = mayfly(*words)
        assert (done.exit_code, done.stdout) == (2, "")
        assert "nobody has released them; stdout has 10 B in 1 lines" in done.stderr
        assert SECRET not in done.stderr
    assert not (tmp_path / "out").exists()
    made = mayfly("results", task.id, "--crate", tmp_path / "run")
    assert made.exit_code == 0, made.stderr
    assert "withheld" in made.stderr
    texts = [path.read_text() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not any(SECRET in text for text in texts)
    assert "are withheld" in mayfly("verify", tmp_path / "run").stdout
    assert SECRET not in mayfly("show", task.id, "--json").stdout
    released = mayfly("release", task.id, "--why", "it is only a number")
    assert released.exit_code == 0, released.stderr
    assert mayfly("logs", task.id).stdout == f"{SECRET}\n"
    assert mayfly("results", task.id, tmp_path / "out").exit_code == 0
    assert (tmp_path / "out" / "table.csv").read_text() == SECRET


def test_the_reviewer_looks_and_that_is_written_down(mayfly: Mayfly, tmp_path: Path) -> None:
    task = over(mayfly, "reviewed")
    assert mayfly("logs", task.id, "--unreleased").stdout == f"{SECRET}\n"
    assert mayfly("results", task.id, tmp_path / "out", "--unreleased").exit_code == 0
    assert mayfly("results", task.id, "--crate", tmp_path / "run", "--unreleased").exit_code == 0
    assert (tmp_path / "run" / "outputs" / "table.csv").read_text() == SECRET
    looked = [
        f"{me()} looked at {what}, which nobody has released"
        for what in ("stdout and stderr", "the outputs", "the whole run")
    ]
    assert notes(mayfly, task) == looked


def test_what_is_released_needs_no_note(mayfly: Mayfly) -> None:
    task = over(mayfly)
    assert mayfly("logs", task.id, "--unreleased").stdout == f"{SECRET}\n"
    assert notes(mayfly, task) == []


def test_four_eyes_are_not_those_of_one(mayfly: Mayfly, tmp_path: Path) -> None:
    mine = over(mayfly, "strict", me())
    for words in (("release", mine.id), ("reject", mine.id, "--why", "no"), ("logs", mine.id, "--unreleased")):
        done = mayfly(*words)
        assert (done.exit_code, done.stdout) == (2, "")
        assert f"{me()} submitted it" in done.stderr
    assert notes(mayfly, mine) == []
    unknown = over(mayfly, "strict", "")
    assert "nobody knows who submitted it" in mayfly("release", unknown.id).stderr
    theirs = over(mayfly, "strict", "ada")
    assert mayfly("release", theirs.id, "--json").json()["by"] == me()


def test_the_first_decision_stands(mayfly: Mayfly) -> None:
    task = over(mayfly)
    done = mayfly("reject", task.id, "--why", "counts below 10", "--json")
    assert (done.json()["decision"], done.json()["why"]) == ("rejected", "counts below 10")
    again = mayfly("release", task.id)
    assert again.exit_code == 2 and f"were rejected by {me()}" in again.stderr
    refused = mayfly("logs", task.id)  # although its pool is open
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "they were rejected" in refused.stderr


def test_a_reason_that_is_none_is_refused(mayfly: Mayfly) -> None:
    task = over(mayfly)
    for why in ("  ", "a\nb", "x" * 2001):
        assert mayfly("reject", task.id, "--why", why).exit_code == 2
    assert mayfly("reject", task.id, "--why", "because").exit_code == 0


def test_a_task_that_is_not_over_is_neither_released_nor_rejected(mayfly: Mayfly) -> None:
    held = mayfly("submit", "-p", "reviewed", "--hold", "--json", "--", "true").json()["id"]
    assert mayfly("reject", held, "--why", "no").exit_code == 2
    assert mayfly("release", held).stdout == f"{held} is released\n"
    assert mayfly("release", held).exit_code == 2
    assert "not on hold" in mayfly("release", held).stderr
    task = over(mayfly)
    assert mayfly("release", task.id, "--after", held).exit_code == 2
