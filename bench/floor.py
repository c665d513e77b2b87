"""The floor: a bare QEMU on the same image, and OpenSSH's `ssh`."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from bench.main_job import JOB, Place
from orchestrator.guest.keys import make_key
from orchestrator.localcloud.hypervisors import DiskSpec, MachineSpec, NicSpec
from orchestrator.localcloud.hypervisors.acceleration import probe
from orchestrator.localcloud.hypervisors.qemu import QemuHypervisor

ADDRESS, PORT = "127.99.99.99", 2299
STAGGER_SECONDS = 0.4
AT_ONCE = 4


@dataclass(frozen=True)
class Floor:
    """Seconds: from the start of QEMU to the end of the job, which is the first SSH command that works; and from there
    to no QEMU."""

    start_to_output: float
    exit_to_gone: float


def floor_round(place: Place) -> Floor:
    """Boot, `ssh` until it answers, run the job on it, kill."""
    host, client = make_key("bench-host"), make_key("bench-client")
    with tempfile.TemporaryDirectory(prefix="mayfly-floor-") as scratch:
        folder = Path(scratch)
        key, known = folder / "key", folder / "known_hosts"
        key.touch(mode=0o600)
        key.write_text(client.private)
        known.write_text(f"[{ADDRESS}]:{PORT} {host.public}\n")
        hypervisor = QemuHypervisor(folder)
        probe(folder, place.kernel)  # whether KVM works is found out before the clock starts
        spec = MachineSpec(
            vm_id=1,
            name="floor",
            uuid=str(uuid.uuid4()),
            directory=folder / "vms" / "1",
            cpus=place.cpus,
            memory_mb=place.memory_mb,
            disks=(DiskSpec(0, place.disk),),
            nics=(NicSpec(0, ADDRESS, "02:00:7f:63:63:63", PORT, outbound=False),),
            context={
                "NETWORK": "YES",
                "ETH0_IP": "10.0.2.15",
                "ETH0_MASK": "255.255.255.0",
                "ETH0_GATEWAY": "10.0.2.2",
                "ETH0_DNS": "10.0.2.3",
                "ETH0_MAC": "02:00:7f:63:63:63",
                "SET_HOSTNAME": "floor",
                "SSH_PUBLIC_KEY": client.public,
                "MAYFLY_HOST_KEY_BASE64": host.private_base64,
            },
            kernel=place.kernel,
            initrd=place.initrd,
            kernel_cmdline=place.kernel_cmdline,
        )
        spec.directory.mkdir(parents=True)
        ssh = ["ssh", "-i", str(key), "-p", str(PORT), "-o", f"UserKnownHostsFile={known}", "-o", "BatchMode=yes"]
        ssh += ["-o", "StrictHostKeyChecking=yes", "-o", "LogLevel=ERROR", "-F", os.devnull, f"root@{ADDRESS}"]
        began = time.monotonic()
        hypervisor.prolog(spec)
        hypervisor.boot(spec)
        try:
            _first_answer([*ssh, JOB])
            done = time.monotonic()
        finally:
            hypervisor.destroy(spec.vm_id)
            hypervisor.epilog(spec.vm_id, spec.directory)
        gone = time.monotonic()
    return Floor(done - began, gone - done)


def _first_answer(command: list[str]) -> None:
    """A fresh `ssh` every 0.4 s, the earlier ones still trying (four at most), until one succeeds: QEMU's user network
    accepts long before the guest listens, so that a single early connection would wait for a retransmission."""
    trying: list[subprocess.Popen[bytes]] = []
    deadline = time.monotonic() + 300
    try:
        while time.monotonic() < deadline:
            if len(trying) < AT_ONCE:
                trying.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            pause = time.monotonic() + STAGGER_SECONDS
            while time.monotonic() < pause:
                if any(each.poll() == 0 for each in trying):
                    return
                trying = [each for each in trying if each.poll() is None]
                time.sleep(0.01)
        raise TimeoutError("the machine never answered")
    finally:
        for each in trying:
            each.kill()
            each.wait()
