"""What the recording leaves out: the steps that lead to the states which it shows; and what differs here.

Which steps they were follows from the states before and after, and from the ids: OpenNebula counts up.
"""

from __future__ import annotations

import re

from orchestrator.localcloud.faults import Faults
from orchestrator.localcloud.hypervisors.simulated import SimulatedHypervisor
from tests.conformance.opennebula_replay import Bridge, Difference, Do, Step, Until, UntilImage, UntilSampled


def action(name: str, vm: int) -> Bridge:
    return Bridge("one.vm.action", (name, vm))


def made(name: str, vm: int, extra: str = "") -> Bridge:
    return Bridge("one.template.instantiate", (0, name, False, extra, False), binds=("vm", vm))


def usable(kind: str, recorded: int) -> Bridge:
    return Bridge(f"one.{kind}.chmod", (recorded, -1, -1, -1, -1, -1, -1, 1, -1, -1))


def steps(hypervisor: SimulatedHypervisor, faults: Faults) -> dict[int, tuple[Step, ...]]:
    """The steps for a cloud with this hypervisor and these faults."""

    def fails(step: str, times: int = 1) -> Do:
        return Do(f"the next {step} fails", lambda: hypervisor.fail_next(step, times=times))

    def stalled(on: bool) -> Do:
        return Do("the scheduler rests, as the administrator is quicker", lambda: faults.stall_scheduler(on))

    def resumed(vm: int, state: str) -> tuple[Step, ...]:
        return Until(vm, state), action("resume", vm)

    return {
        27: (UntilSampled(0),),
        53: resumed(0, "SUSPENDED"),
        59: resumed(0, "STOPPED"),
        66: resumed(0, "UNDEPLOYED"),
        72: resumed(0, "UNDEPLOYED"),
        123: (stalled(True),),
        125: (action("terminate-hard", 2), action("terminate-hard", 3), stalled(False)),
        191: (*resumed(8, "POWEROFF"), Until(8, "RUNNING")),
        224: tuple(step for vm in (5, 6, 7, 8) for step in (action("terminate-hard", vm), Until(vm, "DONE"))),
        226: (
            *(made(f"pool-{number}", 53 + number, f'TAG="t{number}"\n') for number in range(2, 8)),
            *(Until(53 + number, "RUNNING") for number in range(8)),
        ),
        259: (action("terminate-hard", 61), Until(61, "DONE")),
        262: (stalled(True),),
        263: (fails("boot"),),
        269: (action("terminate-hard", 64),),
        272: (fails("boot", 2),),
        274: (Until(65, "BOOT_FAILURE"),),
        275: (Until(65, "BOOT_FAILURE"),),
        277: (
            made("bootfail4", 67),
            made("bootfail5", 68),
            fails("boot"),
            Bridge("one.vm.deploy", (68, 0, False, 100, "")),
            Until(68, "BOOT_FAILURE"),
            Bridge("one.vm.recover", (68, 4)),
        ),
        278: (
            stalled(False),
            Until(68, "RUNNING"),
        ),
        238: (UntilSampled(53),),
        295: (Bridge("one.host.allocate", ("localhost-of-the-recording", "qemu", "qemu", 101), binds=("host", 1)),),
        312: (Until(1326, "RUNNING"), UntilSampled(1326)),
        316: resumed(1326, "SUSPENDED"),
        321: resumed(1326, "STOPPED"),
        324: resumed(1326, "UNDEPLOYED"),
        334: (UntilImage(6, 1),),
        343: (fails("prolog"),),
        357: (action("terminate-hard", 55),),
        369: (action("terminate-hard", 2149), Until(2149, "DONE")),
        376: (usable("template", 3), usable("image", 5), usable("vn", 2)),
        418: (Until(2194, "RUNNING"), Bridge("one.vm.attachnic", (2194, 'NIC=[NETWORK_ID="0"]'))),
    }


HOPELESS = {
    **dict.fromkeys((78, 80, 81, 420), "the local cloud refuses memory snapshots: no state HOTPLUG_SNAPSHOT"),
    **dict.fromkeys((85, 88, 328, 331), "the local cloud refuses disk snapshots: no state DISK_SNAPSHOT"),
    **dict.fromkeys((93, 95), "the local cloud refuses to attach disks: no state HOTPLUG"),
    101: "the local cloud refuses to resize disks: no state DISK_RESIZE",
    340: "the local cloud refuses to resize a running VM: no state HOTPLUG_RESIZE",
    385: "the local cloud's host is this machine: it is never out of reach (UNKNOWN)",
    386: "follows 385",
}
"""Lines that show a state which the local cloud cannot have: they are not sent."""

EXCEPTIONS: tuple[tuple[str, str], ...] = (
    (r"one\.system\.config: .*", "the settings of another program; clients read a few of them"),
    (
        r"one\.vm\.(snapshot|disksnapshot)\w+: .*napshots not supported by driver simulated.*",
        "a task's VM lives once: snapshots are refused as a driver without them has it",
    ),
    (r"one\.vm\.(attach|detach): .*not supported by driver simulated.*", "disks are not plugged while a VM runs"),
    (r"one\.vm\.diskresize: .*not supported by driver simulated.*", "disks keep their size"),
    (
        r"one\.vm\.resize: .*not supported by driver simulated.*",
        "as the recording's dummy driver has it, its name apart",
    ),
    (
        r"one\.host(pool)?\.\w+: no HOST\w*/(HOST/)?(HOST_SHARE/(PCI_DEVICES|NUMA_NODES)|TEMPLATE|MONITORING)/\w+",
        "what a host's probes report: a host that the recording made has none here",
    ),
    (r"one\.hostpool\.monitoring: no .*/NUMA_NODE", "no probe reports NUMA nodes"),
    (r"one\.host\.monitoring: no .*/NUMA_NODE", "no probe reports NUMA nodes"),
    (r"one\.vm\.info: no VM/MONITORING/VM_QEMU_PING", "a figure of the libvirt driver"),
    (r"one\.zonepool\.info: no ZONE_POOL/ZONE/TEMPLATE/ENDPOINT_GRPC", "the local cloud speaks XML-RPC only"),
    (r"one\.grouppool\.info: no GROUP_POOL/GROUP/TEMPLATE/SUNSTONE", "settings of a web interface"),
    (r"one\.vm\.info: no VM/(SNAPSHOTS|TEMPLATE/SNAPSHOT)", "follows from the refused snapshots"),
    (
        r"one\.image\.delete: text .*There are \d+ VMs using it.*",
        "how many depends on VMs that the recording leaves out",
    ),
    (
        r"one\.image\.delete: replied .*Error getting image \[\d+\].*",
        "line 342: there the deletion of line 334 was accepted and had not come to an end; here the image is gone",
    ),
    (
        r"(9|204) one\.datastorepool\.info: no .*/TEMPLATE/RESTRICTED_DIRS",
        "the local cloud's own datastores take files from everywhere: it is one user's, on one machine",
    ),
    (
        r"(64|122) one\.vm\.info: no VM/TEMPLATE/GRAPHICS/PORT",
        "an epilog gives the VNC port back; the recording shows both, before (64, 122) and after (70, 107)",
    ),
    (r"one\.host\.allocate: .*NAME is already taken by HOST 0.*", "the local cloud's own host is called localhost too"),
)
"""Differences that are known, each a pattern over `method: difference`, or `line method: difference`, with the reason.
Each must still occur."""


def reasons(difference: Difference) -> list[str]:
    """The patterns of EXCEPTIONS that the difference fits."""
    forms = (str(difference), f"{difference.method}: {difference.what}")
    return [what for what, _ in EXCEPTIONS if any(re.fullmatch(what, form, re.DOTALL) for form in forms)]
