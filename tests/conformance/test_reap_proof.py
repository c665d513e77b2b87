"""Upkeep closes a VM on proof only: what is missed in a list is asked for alone before its row is closed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyone
import pytest

from orchestrator.artifacts import Artifacts
from orchestrator.decide.reap import Close
from orchestrator.domain.pool import Pool
from orchestrator.domain.proof import CloseProof
from orchestrator.domain.task import TaskSpec
from orchestrator.domain.vm import VmState
from orchestrator.localcloud.hypervisors.simulated import SimulatedHypervisor
from orchestrator.localcloud.knobs import CloudSettings
from orchestrator.localcloud.server import LocalCloud
from orchestrator.opennebula import Cloud
from orchestrator.scheduler.reap import Reap
from orchestrator.scheduler.upkeep import Upkeep
from orchestrator.store import Store, VmMoved, VmRequest, VmRow

WITHIN = 20
SPEC = TaskSpec(pool="small", command=("true",))


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalCloud]:
    hypervisor = SimulatedHypervisor()
    with LocalCloud(tmp_path / "cloud", hypervisor=hypervisor, knobs=CloudSettings(visible_delay=(0.0, 0.001))) as here:
        yield here
    hypervisor.close()


@pytest.fixture
async def cloud(local: LocalCloud) -> AsyncIterator[Cloud]:
    async with Cloud(local.url, local.session, poll_seconds=0.01, requests_per_second=1000) as connected:
        yield connected


@pytest.fixture
def reap(store: Store, cloud: Cloud, tmp_path: Path) -> Reap:
    async def pools() -> Mapping[str, Pool]:
        return {}

    return Reap(Upkeep(store, Artifacts(tmp_path / "artifacts"), cloud, {}, pools))


async def spare(store: Store, local: LocalCloud, cloud: Cloud) -> tuple[VmRow, int, Any]:
    """The row of a READY spare whose runner lives, its VM, and oneadmin's client."""
    now = store.clock.now()
    runner = await store.runners.register(name="r", host="here", pid=1, pools=["small"], now=now)
    wanted = VmRequest("small", "debian-12-1", runner.id, now + timedelta(hours=1))
    row = await store.vms.request(wanted, now=now)
    assert row is not None
    one = pyone.OneServer(local.url, session=local.session)
    tags = f'MAYFLY_VM="{row.id}"\nMAYFLY_INSTALLATION="{store.installation_id}"'
    vm = int(one.vm.allocate(f'CPU="0.1"\nMEMORY="64"\nNIC=[NETWORK_ID="1"]\n{tags}', True))
    one.vm.deploy(vm, 0, False, 0, "")
    await cloud.wait_running(vm, within=WITHIN)
    assert await store.vms.set_cloud_id(row.id, vm, now=now)
    for state in (VmState.BOOTING, VmState.READY):
        assert await store.vms.move(
            VmMoved(row.id, state, runner.id, deadline_at=now + timedelta(hours=1)), now=store.clock.now()
        )
    return row, vm, one


async def test_a_vm_that_is_done_is_closed_with_its_time(
    store: Store, local: LocalCloud, cloud: Cloud, reap: Reap
) -> None:
    row, vm, one = await spare(store, local, cloud)
    one.vm.action("terminate-hard", vm)
    await cloud.until_gone(vm)
    assert await reap.run_once() == []
    [line] = await reap.run_once()
    closed = await store.vms.get(row.id)
    assert closed is not None and closed.state is VmState.DESTROYED
    proof = CloseProof.decode(str(closed.close_proof))
    assert (proof.cloud_id, proof.state) == (vm, "DONE")
    assert proof.ended_at is not None and proof.disks is not None and proof.disks.gone
    assert line == f"vm {row.id} is closed: {proof.text}"


async def test_a_vm_that_is_missing_from_the_list_and_is_there_is_not_closed(
    store: Store, local: LocalCloud, cloud: Cloud, reap: Reap
) -> None:
    row, vm, one = await spare(store, local, cloud)
    one.vm.chown(vm, one.user.allocate("other", "pw", "", []), -1)
    for expected in (
        [],
        [f"not done yet: VM {vm} is there: OpenNebula does not list VM {vm} any more, seen twice, but that is not so"],
    ):
        assert await reap.run_once() == expected
    kept = await store.vms.get(row.id)
    assert kept is not None and kept.state is VmState.READY
    await cloud.terminate(vm, within=WITHIN)
    [line] = await reap.run_once()
    assert f"says DONE of VM {vm}" in line


async def test_a_row_that_a_claim_took_is_not_closed_as_a_spare(
    store: Store, local: LocalCloud, cloud: Cloud, reap: Reap
) -> None:
    row, vm, _ = await spare(store, local, cloud)
    await cloud.terminate(vm, within=WITHIN)
    now = store.clock.now()
    await store.tasks.submit(SPEC, now=now, deadline_at=now + timedelta(days=1))
    [claim] = await store.tasks.claim(
        str(row.runner_id),
        {},
        ready={"small": [row.id]},
        max_vms={},
        lease_seconds=60,
        now=now,
        deadline=lambda _: now + timedelta(days=1),
    )
    close = Close(row.id, "it was missed before the claim", vm, spare=True)
    assert await reap._apply(close) == ""
    taken = await store.vms.get(row.id)
    assert taken is not None and (taken.task_id, taken.state) == (claim.task.id, VmState.IN_USE)
    assert f"vm {row.id} is closed" in await reap._apply(replace(close, spare=False))
