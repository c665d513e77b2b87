"""Pools as operators work with them: the command line, in processes of its own, beside a database and no cloud."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.task import TaskSpec
from orchestrator.domain.vm import VmState
from orchestrator.store import Store, VmMoved, VmRequest
from tests.driver import Mayfly

INVENTORY = """
pools:
  hosts:
    small:
      mayfly_image: debian-12
      mayfly_min_ready: 2
      mayfly_max_failures: 2
      mayfly_periods:
        - {when: "* 19-23 * * *", min_ready: 0}
        - {when: "* * * * sat,sun", min_ready: 1}
        - {when: "* * 31 2 *", time_zone: UTC}
    other: {mayfly_image: debian-13, mayfly_placement: pack, mayfly_layers: small}
"""


def at(home: Path, inventory: Path) -> Mayfly:
    places = {"MAYFLY_HOME": str(home), "MAYFLY_INVENTORY": str(inventory), "MAYFLY_DATABASE_URL": ""}
    return Mayfly({**places, "ONE_XMLRPC": "", "ONE_AUTH": ""})


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Mayfly:
    """One home for all that leaves nothing behind in it. It has read the inventory."""
    home = tmp_path_factory.mktemp("home")
    inventory = tmp_path_factory.mktemp("inventory") / "pools.yml"
    inventory.write_text(INVENTORY)
    mayfly = at(home, inventory)
    done = mayfly("pool", "check")
    assert done.exit_code == 0, done.stderr
    return mayfly


@pytest.fixture
def mayfly(first: Mayfly, tmp_path: Path) -> Mayfly:
    """A home of its own, in which the inventory need not be read by Ansible again."""
    shutil.copytree(first.home / "cache", tmp_path / "home" / "cache")
    return at(tmp_path / "home", Path(first.environment["MAYFLY_INVENTORY"]))


def within(mayfly: Mayfly, work: Callable[[Store], Awaitable[Any]]) -> Any:
    """Do it with the home's database open."""

    async def opened() -> Any:
        async with await Store.open(f"sqlite+aiosqlite:///{mayfly.home / 'mayfly.db'}") as store:
            return await work(store)

    return asyncio.run(opened())


async def spare(store: Store, runner_id: str, state: VmState | None, *, failed: str = "") -> str:
    """A machine that a runner keeps for no task, brought so far; `failed`: its launch went wrong, and how."""
    now = store.clock.now()
    row = await store.vms.request(VmRequest("small", "mayfly-debian-12-3", runner_id, now + timedelta(1)), now=now)
    assert row is not None
    ahead = [VmState.BOOTING, VmState.READY]
    for each in ahead[: ahead.index(state) + 1] if state else ():
        assert await store.vms.move(VmMoved(row.id, each, runner_id, deadline_at=now + timedelta(1)), now=now)
    if failed:
        assert await store.vms.record_launch(row.id, ok=False, message=failed, host="h1", now=now)
    return row.id


async def runner(store: Store) -> str:
    row = await store.runners.register(name="r1", host="h", pid=1, pools=["small", "other"], now=store.clock.now())
    return row.id


def listed(mayfly: Mayfly, name: str = "small") -> dict[str, Any]:
    found = mayfly("pool", "list", "--json")
    assert found.exit_code == 0, found.stderr
    return next(pool for pool in found.json() if pool["name"] == name)


def refused(mayfly: Mayfly, *words: str, names: tuple[str, ...], exit_code: int = 2) -> None:
    done = mayfly(*words)
    assert done.exit_code == exit_code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for name in names:
        assert name in done.stderr


def test_the_list_shows_what_there_is_of_each(mayfly: Mayfly) -> None:
    async def work(store: Store) -> None:
        us = await runner(store)
        for state in (VmState.READY, VmState.READY, VmState.BOOTING, None):
            await spare(store, us, state)
        now = store.clock.now()
        for _ in range(3):
            await store.tasks.submit(TaskSpec(pool="small", command=("true",)), now=now, deadline_at=now + timedelta(1))
        claims = await store.tasks.claim(
            us,
            {"small": 1},
            max_vms={"small": 9},
            lease_seconds=60,
            now=now,
            deadline=lambda _: now + timedelta(1),
        )
        assert len(claims) == 1

    within(mayfly, work)
    found = listed(mayfly)
    assert found["warm"]["min_ready"] == 2
    assert found["warm"]["periods"][0]["when"] == "* 19-23 * * *" and "times" not in found["warm"]["periods"][0]
    counted = {"ready": 2, "launching": 2, "in_use": 1, "waiting": 2}
    assert {name: found["now"][name] for name in counted} == counted
    assert found["now"]["drained_at"] is found["now"]["paused_at"] is found["now"]["rotated_at"] is None
    assert found["now"]["quarantine"] == {}
    none = listed(mayfly, "other")["now"]
    assert {none[name] for name in counted} == {0}


def test_the_list_names_what_is_put_aside(mayfly: Mayfly) -> None:
    async def work(store: Store) -> None:
        us = await runner(store)
        for _ in range(2):
            await spare(store, us, None, failed="no answer over SSH")

    within(mayfly, work)
    [(name, why)] = listed(mayfly)["now"]["quarantine"].items()
    assert name == "mayfly-debian-12-3"
    assert "2 launches in a row failed, the last with: no answer over SSH; until " in why
    assert listed(mayfly, "other")["now"]["quarantine"] == {}
    shown = mayfly("pool", "list")
    assert "mayfly-debian-12-3 in quarantine" in shown.stdout


def test_drain_and_resume(mayfly: Mayfly) -> None:
    done = mayfly("pool", "drain", "small", "--because", "new switches")
    assert (done.exit_code, done.stderr) == (0, "") and "drained" in done.stdout
    now = listed(mayfly)["now"]
    assert now["drained_at"] and now["paused_at"] and now["drained_because"] == "new switches"
    assert "drained: new switches" in mayfly("pool", "list").stdout
    assert mayfly("pool", "drain", "small", "--because", "again", "--json").json() == {
        "pool": "small",
        "state": "drained",
    }
    assert listed(mayfly)["now"]["drained_because"] == "new switches", "the reason that was given first"
    assert mayfly("pool", "resume", "small", "--json").json() == {"pool": "small", "state": "resumed"}
    now = listed(mayfly)["now"]
    assert now["drained_at"] is now["paused_at"] is None and now["drained_because"] == ""
    assert mayfly("pool", "resume", "small").exit_code == 0


def test_rotate(mayfly: Mayfly) -> None:
    before = listed(mayfly)["now"]["rotated_at"]
    assert mayfly("pool", "rotate", "small", "--json").json() == {"pool": "small", "state": "rotated"}
    first = listed(mayfly)["now"]["rotated_at"]
    assert "rotated" in mayfly("pool", "rotate", "small").stdout
    assert before is None and first < listed(mayfly)["now"]["rotated_at"]


@pytest.mark.parametrize("verb", ["drain", "resume", "rotate"])
def test_a_pool_that_there_is_not(first: Mayfly, verb: str) -> None:
    refused(first, "pool", verb, "smal", names=("pool", "'smal'", "other, small"))


def test_a_reason_that_cannot_be_shown(first: Mayfly) -> None:
    for because in ("x" * 501, "a\x1b[2J"):
        refused(first, "pool", "drain", "small", "--because", because, names=("because", "500"))
    assert listed(first)["now"]["drained_at"] is None


def test_check_says_what_is_worth_knowing(first: Mayfly) -> None:
    night, weekend = "period 1 (* 19-23 * * *, UTC)", "period 2 (* * * * sat,sun, UTC)"
    assert first("pool", "check", "--json").json() == [
        {
            "pool": "other",
            "remarks": [
                "its tasks can bring no packages: the seal of pool small is sealed, so that it reaches no index "
                "(its mayfly_seals must begin with open)"
            ],
        },
        {
            "pool": "small",
            "remarks": [
                "period 3 (* * 31 2 *, UTC) never lasts: no month that it names has the day",
                f"{night} and {weekend} overlap: where both last, period 2 counts alone",
            ],
        },
    ]
    shown = first("pool", "check").stdout
    assert "small: in order" in shown and "period 2 counts alone" in shown


@pytest.mark.parametrize("verb", ["check", "apply"])
def test_an_inventory_that_is_wrong(tmp_path: Path, verb: str) -> None:
    inventory = tmp_path / "pools.yml"
    inventory.write_text(INVENTORY.replace("min_ready: 2", "min_ready: 3"))
    home = at(tmp_path / "home", inventory)
    refused(home, "pool", verb, names=("pool small, mayfly_min_ready", "3 is more than max_vms, 2"))


def test_apply_says_who_follows_the_inventory(mayfly: Mayfly) -> None:
    async def work(store: Store) -> None:
        await runner(store)
        now = store.clock.now()
        spec = TaskSpec(pool="former", command=("true",))
        await store.tasks.submit(spec, now=now, deadline_at=now + timedelta(1))

    within(mayfly, work)
    assert mayfly("pool", "apply", "--json").json() == {
        "pools": ["other", "small"],
        "within_seconds": 10.0,
        "runners": [{"runner": "r1", "pools": ["other", "small"]}],
        "stranded": ["former"],
    }
    shown = mayfly("pool", "apply").stdout
    assert "former: tasks wait for it" in shown and "within 10 s; runners: r1" in shown


def test_a_plan_needs_the_cloud(first: Mayfly) -> None:
    refused(first, "pool", "plan", names=("the local cloud does not run", "mayfly cloud start"), exit_code=1)
