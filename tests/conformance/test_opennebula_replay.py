"""The local cloud against a real OpenNebula's recorded replies: what differs is listed with its reason."""

import subprocess
from collections import defaultdict

import pyone.bindings
import pytest

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


STEPS = ("prolog", "boot", "shutdown", "destroy", "epilog", "save", "plug")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """One replay of the whole recording."""
    home = tmp_path_factory.mktemp("replay")
    files = home / "import"
    files.mkdir()
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", files / "debian-one.qcow2", "900M"], check=True)
    (files / "vmlinuz").write_bytes(b"a kernel, as far as the cloud can tell")
    # Steps last long enough to be seen by polling.
    hypervisor = SimulatedHypervisor(**{f"{step}_takes": 0.08 for step in STEPS})
    knobs = CloudSettings(
        monitor_interval=0.05, figures_interval=0.05, crash_visible_after=1.0, image_lock_time=0.2, passing_time=0.08
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
    """generateDS warns of what does not fit the schema's types, and drops what it does not know."""
    kinds = defaultdict(int)
    for _line, body in report.bodies:
        kinds[type(pyone.bindings.parseString(body.encode())).__name__] += 1
    assert kinds["VMSub"] > 40
    assert {"VM_POOLSub", "IMAGESub", "VNETSub", "VMTEMPLATESub", "HOST_POOLSub", "USERSub"} <= set(kinds)
