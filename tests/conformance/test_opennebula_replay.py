"""The local cloud against a real OpenNebula's recorded replies: what differs is listed with its reason."""

import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pyone.bindings
import pytest

from orchestrator.localcloud.hypervisors import MachineSpec, NicSpec
from orchestrator.localcloud.hypervisors.simulated import SimulatedHypervisor
from orchestrator.localcloud.knobs import CloudSettings
from orchestrator.localcloud.server import LocalCloud
from tests.conformance.opennebula_replay import Replay
from tests.conformance.opennebula_steps import EXCEPTIONS, HOPELESS, reasons, steps
from tests.replay_server import transcript

IMPORT = "/var/lib/one/import"
KNOWN = {
    "user": {0: 0},
    "cluster": {0: 0},
    "datastore": {0: 0, 1: 1, 2: 2},
    "secgroup": {0: 0},
}


class Observed(SimulatedHypervisor):
    """Each step lasts until it was seen: until a VM's state was asked for three times, or for a while not at all."""

    looks: Callable[[], int]

    def _seen(self) -> None:
        enough, give_up = self.looks() + 3, time.monotonic() + 0.3
        while self.looks() < enough and time.monotonic() < give_up:
            time.sleep(0.002)

    def prolog(self, spec: MachineSpec) -> None:
        self._seen()
        super().prolog(spec)

    def boot(self, spec: MachineSpec) -> str:
        self._seen()
        return super().boot(spec)

    def destroy(self, vm_id: int) -> None:
        self._seen()
        super().destroy(vm_id)

    def epilog(self, vm_id: int, directory: Path) -> None:
        self._seen()
        super().epilog(vm_id, directory)

    def attach_nic(self, vm_id: int, nic: NicSpec) -> None:
        self._seen()
        super().attach_nic(vm_id, nic)

    def detach_nic(self, vm_id: int, nic_id: int) -> None:
        self._seen()
        super().detach_nic(vm_id, nic_id)

    def save_disk(self, vm_id: int, disk_id: int, target: Path) -> None:
        self._seen()
        super().save_disk(vm_id, disk_id, target)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """One replay of the whole recording."""
    home = tmp_path_factory.mktemp("replay")
    files = home / "import"
    files.mkdir()
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", files / "debian-one.qcow2", "900M"], check=True)
    (files / "vmlinuz").write_bytes(b"a kernel, as far as the cloud can tell")
    hypervisor = Observed(shutdown_takes=0.2)
    knobs = CloudSettings(
        monitor_interval=0.05,
        figures_interval=0.05,
        crash_visible_after=1.0,
        image_lock_time=0.2,
        passing_time=0.2,
        scheduler_window=0.2,
    )
    with LocalCloud(home / "cloud", hypervisor=hypervisor, knobs=knobs) as cloud:
        replay = Replay(
            cloud.url,
            {"oneadmin": cloud.session},
            known=KNOWN,
            bridges=steps(hypervisor, cloud.faults),
            hopeless=HOPELESS,
            rewrite=lambda text: text.replace(IMPORT, str(files)),
        )
        hypervisor.looks = lambda: replay.looks
        result = replay.run(transcript())
    hypervisor.close()
    return result


def test_every_request_is_sent_but_those_that_cannot_be(report):
    assert report.skipped == HOPELESS
    assert len(report.compared) + len(HOPELESS) == len(transcript())
    print(f"\n{len(report.compared)} of {len(transcript())} recorded requests compared")


def test_what_differs_is_listed_with_its_reason(report):
    unlisted = [str(difference) for difference in report.differences if not reasons(difference)]
    assert not unlisted, "\n".join(["the local cloud differs from OpenNebula:", *unlisted])


def test_what_is_listed_still_differs(report):
    seen = {what for difference in report.differences for what in reasons(difference)}
    assert {what for what, _ in EXCEPTIONS} - seen == set(), "nothing differs so any more: take it off the list"


def test_every_body_is_one_that_pyone_knows(report):
    """Its bindings warn of values that do not fit their types (an error here), and drop what they do not know."""
    kinds = defaultdict(int)
    for line, body in report.bodies:
        read = pyone.bindings.parseString(body.encode())
        kinds[type(read).__name__] += 1
        unknown = {child.tag for child in ElementTree.fromstring(body) if not hasattr(read, child.tag)}
        assert not unknown, f"{line}: {type(read).__name__} has no {unknown}"
    assert kinds["VMSub"] > 40
    assert {"VM_POOLSub", "IMAGESub", "VNETSub", "VMTEMPLATESub", "HOST_POOLSub", "USERSub"} <= set(kinds)
