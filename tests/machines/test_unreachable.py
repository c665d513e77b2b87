"""An image that never reaches SSH: the task fails in bounded time, and the machine's console says why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.driver import Mayfly, TestCloud


@pytest.fixture
def broken(cloud: TestCloud) -> Iterator[str]:
    """A promoted image version, "broken", which has no first process: the kernel panics."""
    client = cloud.client()
    templates = client.templatepool.info(-2, -1, -1).VMTEMPLATE
    template = next(each for each in templates if each.TEMPLATE.get("MAYFLY_STATE") == "promoted")
    made = client.template.clone(template.ID, "mayfly-broken-1")
    boot = template.TEMPLATE["OS"]
    words = ", ".join(f'{name}="{boot[name]}"' for name in ("KERNEL_DS", "INITRD_DS"))
    command = f"{boot['KERNEL_CMD']} rdinit=/nothing"
    client.template.update(made, f'OS=[{words}, KERNEL_CMD="{command}"]\nMAYFLY_IMAGE="broken"\n', 1)
    yield "broken"
    client.template.delete(made, False)


def test_the_console_is_kept_and_shown(cloud: TestCloud, broken: str, tmp_path: Path) -> None:
    inventory = tmp_path / "inventory.yml"
    inventory.write_text(
        f"pools:\n  hosts:\n    hopeless:\n      mayfly_image: {broken}\n"
        "      mayfly_boot_timeout: 15s\n      mayfly_disclosure: open\n      ansible_port: 2222\n"
    )
    # on the cloud's own home, which has the console's file; OpenNebula itself has no call that tells it
    mayfly = Mayfly(
        {"MAYFLY_HOME": str(cloud.home), "ONE_XMLRPC": "", "ONE_AUTH": "", "MAYFLY_INVENTORY": str(inventory)}
    )
    done = mayfly("run", "-p", "hopeless", "--", "true")
    assert done.exit_code == 125
    assert "Kernel panic" in done.stderr
    told = mayfly("show", mayfly("list", "--json").json()[0]["id"], "--json").json()
    assert told["reason"] == "unreachable"
    assert "15 s" in told["message"]
    assert "Kernel panic" in mayfly("logs", "--stream", "console", told["id"]).stdout
    assert [stage["stage"] for stage in told["attempts"][0]["stages"]] == ["PROVISIONING", "CONNECTING", "DESTROYING"]
