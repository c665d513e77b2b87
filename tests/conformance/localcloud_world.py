"""A local cloud over the simulated hypervisor, driven by unmodified pyone, and the waiting that goes with it."""

from __future__ import annotations

import itertools
import logging
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyone

from orchestrator.localcloud.hypervisors.simulated import SimulatedHypervisor
from orchestrator.localcloud.knobs import CloudSettings
from orchestrator.localcloud.model import Lcm, VmState
from orchestrator.localcloud.server import LocalCloud

DEADLINE = 20.0
QUICK = CloudSettings(
    scheduler_interval=0.01,
    visible_delay=(0.001, 0.003),
    passing_time=0.001,
    monitor_interval=0.02,
    figures_interval=0.02,
    crash_visible_after=0.05,
    shutdown_timeout=0.5,
    shutdown_poll=0.01,
)


def until(what: str, condition: Callable[[], Any]) -> Any:
    """Poll until `condition` gives something true, and return that; fail, naming `what`, at a deadline."""
    give_up = time.monotonic() + DEADLINE
    while time.monotonic() < give_up:
        if found := condition():
            return found
        time.sleep(0.002)
    raise AssertionError(f"never: {what}")


class _Moves(logging.Handler):
    """What the cloud's log says of its VMs' states: none is missed, however short it lasted."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[int, list[str]] = defaultdict(list)

    def emit(self, record: logging.LogRecord) -> None:
        if found := re.fullmatch(r"vm (\d+) is ([A-Z_]+)", record.getMessage()):
            self.of[int(found[1])].append(found[2])


class World:
    """`moves[vm]`: the states that a VM went through. `one` is oneadmin's client; `user(name)` makes another's."""

    def __init__(
        self, cloud: LocalCloud, hypervisor: SimulatedHypervisor, directory: Path, moves: dict[int, list[str]]
    ) -> None:
        self.cloud = cloud
        self.hypervisor = hypervisor
        self.directory = directory
        self.moves = moves
        self.one = pyone.OneServer(cloud.url, session=cloud.session)
        self._names = (f"thing-{number}" for number in itertools.count())

    def user(self, name: str, password: str = "pw") -> tuple[int, Any]:
        uid = self.one.user.allocate(name, password, "", [])
        return uid, pyone.OneServer(self.cloud.url, session=f"{name}:{password}")

    def file(self, size: int = 3000) -> Path:
        path = self.directory / next(self._names)
        path.write_bytes(b"x" * size)
        return path

    def image(self, extra: str = "", datastore: int = 1) -> int:
        name = next(self._names)
        image = self.one.image.allocate(f'NAME="{name}"\nPATH="{self.file()}"\n{extra}', datastore, False)
        until("the image is READY", lambda: self.one.image.info(image).STATE == 1)
        return int(image)

    def template(self, extra: str = "", network: int = 0) -> int:
        text = f'NAME="{next(self._names)}"\nCPU="0.1"\nMEMORY="64"\nNIC=[NETWORK_ID="{network}"]\n{extra}'
        return int(self.one.template.allocate(text))

    def vm(self, extra: str = "", *, hold: bool = False, wait: str = "RUNNING") -> int:
        """A VM in the state `wait`; HOLD if it is to be held."""
        vm = int(self.one.template.instantiate(self.template(), next(self._names), hold, extra, False))
        self.wait(vm, "HOLD" if hold else wait)
        return vm

    def state(self, vm: int) -> str:
        info = self.one.vm.info(vm)
        return Lcm(info.LCM_STATE).name if info.STATE == VmState.ACTIVE else VmState(info.STATE).name

    def wait(self, vm: int, *states: str) -> str:
        """Until the VM is in one of the states; which."""
        seen: list[str] = []

        def reached() -> str | None:
            state = self.state(vm)
            if state not in seen[-1:]:
                seen.append(state)
            return state if state in states else None

        try:
            return str(until(f"VM {vm} in {' or '.join(states)}", reached))
        except AssertionError as never:
            raise AssertionError(f"{never}; seen {' '.join(seen)}") from None

    def act(self, vm: int, action: str, *states: str) -> str:
        """Ask for an action, and wait for its outcome."""
        assert self.one.vm.action(action, vm) == vm
        return self.wait(vm, *states)


@contextmanager
def world(
    directory: Path, knobs: CloudSettings = QUICK, hypervisor: SimulatedHypervisor | None = None
) -> Iterator[World]:
    machines = hypervisor or SimulatedHypervisor()
    moves, logger = _Moves(), logging.getLogger("orchestrator.localcloud.cloud")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(moves)
    try:
        with LocalCloud(directory / "cloud", hypervisor=machines, knobs=knobs) as cloud:
            try:
                yield World(cloud, machines, directory, moves.of)
            finally:
                machines.close()
    finally:
        logger.removeHandler(moves)
        logger.setLevel(level)
