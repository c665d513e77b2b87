"""Ready machines that are real: each is another one, serves one task, and is gone afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.driver import Mayfly, TestCloud
from tests.machines.test_adoption import PATIENCE_SECONDS, runner

INVENTORY = """
pools:
  hosts:
    small:
      mayfly_image: debian-12
      mayfly_memory: 256M
      mayfly_max_vms: 2
      mayfly_min_ready: {min_ready}
      ansible_port: 2222
"""
IDENTITY = """
cat /proc/sys/kernel/random/boot_id /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub
hostname
head -c 16 /dev/urandom | od -An -tx1
"""


def until(what: str, condition: Callable[[], Any]) -> Any:
    """Poll until `condition` gives something true."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < give_up:
        if found := condition():
            return found
        time.sleep(0.2)
    raise AssertionError(f"never: {what}")


def test_each_task_gets_a_ready_machine_of_its_own(mayfly: Mayfly, cloud: TestCloud, tmp_path: Path) -> None:
    inventory = tmp_path / "pools.yml"
    inventory.write_text(INVENTORY.format(min_ready=2))
    mayfly = mayfly.with_environment(MAYFLY_INVENTORY=str(inventory))

    def ready() -> list[str]:
        return [vm["id"] for vm in mayfly("vm", "list", "--json").json() if vm["state"] == "READY"]

    def told(task: str) -> dict[str, Any] | None:
        report: dict[str, Any] = mayfly("show", task, "--json").json()
        return report if report["state"] in ("FINISHED", "FAILED", "CANCELED") else None

    with runner(mayfly) as process:
        reports, identities = [], []
        for _ in range(3):
            until("one stands ready", ready)
            task = mayfly("submit", "--json", "-p", "small", "--", "sh", "-c", IDENTITY).json()["id"]
            reports.append(until("the task is over", lambda task=task: told(task)))
            identities.append(mayfly("logs", task).stdout.splitlines())
        inventory.write_text(INVENTORY.format(min_ready=0))
        until("none is wanted any more, and none is left", lambda: not cloud.machines())
        process.terminate()
        assert process.wait(timeout=60) == 0

    assert [report["message"] for report in reports] == ["exited with 0"] * 3
    attempts = [report["attempts"][0] for report in reports]
    assert all(attempt["machine"]["ready"] for attempt in attempts)
    assert all("PROVISIONING" not in {stage["stage"] for stage in attempt["stages"]} for attempt in attempts)
    assert all(not probe["reached"] for attempt in attempts for probe in attempt["machine"]["seal"])
    assert len({attempt["vm"]["cloud_id"] for attempt in attempts}) == 3
    for each in zip(*identities, strict=True):
        assert len(set(each)) == 3, each
