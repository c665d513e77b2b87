"""Real machines: one local cloud for the whole run, its image built once, outside the checkout; a fresh home a test.

Whatever a test does, no machine may survive it: `cloud` checks that after each test, with OpenNebula and in the process
table.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pyone
import pytest

from tests.driver import Mayfly, TestCloud
from tests.guest_ends import CLIENT, HOST
from tests.machines.real_guests import Boot, Machine

CLOUD_HOME = Path(
    os.environ.get("MAYFLY_TEST_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "mayfly" / "test-home"
).expanduser()


@contextlib.contextmanager
def started_cloud() -> Iterator[TestCloud]:
    """The cloud of the run, with the base image promoted in it."""
    mayfly = Mayfly({"MAYFLY_HOME": str(CLOUD_HOME), "ONE_XMLRPC": "", "ONE_AUTH": ""})
    started = mayfly("cloud", "start", "--json")
    assert started.exit_code == 0, started.stderr
    try:
        built = mayfly("image", "build", "debian-12", "--if-missing", seconds=1800)
        assert built.exit_code == 0, built.stdout + built.stderr
        facts = started.json()
        yield TestCloud(facts["url"], Path(facts["one_auth"]), CLOUD_HOME)
    finally:
        mayfly("cloud", "stop")


@pytest.fixture(scope="session")
def running_cloud() -> Iterator[TestCloud]:
    """The same, for all tests of a run."""
    with started_cloud() as cloud:
        yield cloud


@pytest.fixture
def cloud(running_cloud: TestCloud) -> Iterator[TestCloud]:
    """The cloud; after the test nothing may be left in it."""
    assert running_cloud.machines() == []
    yield running_cloud
    left, processes = running_cloud.machines(), running_cloud.processes()
    for vm in left:
        with contextlib.suppress(pyone.OneException):
            running_cloud.client().vm.action("terminate-hard", vm)
    assert left == [], "VMs survived the test"
    assert processes == [], "QEMU processes survived the test"


@pytest.fixture
def mayfly(cloud: TestCloud, tmp_path: Path) -> Mayfly:
    """`mayfly` on an empty home of its own, pointed at the cloud as at any OpenNebula."""
    return Mayfly({"MAYFLY_HOME": str(tmp_path / "home"), "ONE_XMLRPC": cloud.url, "ONE_AUTH": str(cloud.auth)})


@pytest.fixture
def boot(cloud: TestCloud) -> Iterator[Boot]:
    """Boots a VM of the promoted image in a network of that name; each is destroyed after the test."""
    one = cloud.client()
    made: list[int] = []

    def start(network: str) -> Machine:
        promoted = [each for each in one.templatepool.info(-2, -1, -1).VMTEMPLATE if _is_promoted(each)]
        context = f'NETWORK="YES", SSH_PUBLIC_KEY="{CLIENT.public}", MAYFLY_HOST_KEY_BASE64="{HOST.private_base64}"'
        networks = {each.NAME: each.ID for each in one.vnpool.info(-2, -1, -1).VNET}
        extra = f"CPU=1\nVCPU=1\nMEMORY=512\nNIC=[NETWORK_ID={networks[network]}]\nCONTEXT=[{context}]"
        vm = one.template.instantiate(promoted[-1].ID, "guest-under-test", False, extra)
        made.append(vm)
        nic = one.vm.info(vm).TEMPLATE["NIC"]
        return Machine(nic["IP"], 2222)

    yield start
    for vm in made:
        while one.vm.info(vm).STATE != 6:  # DONE
            with contextlib.suppress(pyone.OneException):  # refused while it starts
                one.vm.action("terminate-hard", vm)


def _is_promoted(template: object) -> bool:
    return dict(template.TEMPLATE).get("MAYFLY_STATE") == "promoted"  # type: ignore[attr-defined]
