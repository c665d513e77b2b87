"""The floor: a bare QEMU on the same image, nothing of ours but the context that it boots with, and OpenSSH's `ssh`."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.main_job import Place
from orchestrator.guest.keys import make_key
from orchestrator.localcloud.hypervisors import DiskSpec, MachineSpec, NicSpec
from orchestrator.localcloud.hypervisors.acceleration import probe
from orchestrator.localcloud.hypervisors.qemu import QemuHypervisor

ADDRESS, FIRST_PORT = "127.99.99.99", 2299
STAGGER_SECONDS = 0.4
AT_ONCE = 4
ANSWER_SECONDS = 300.0


@dataclass(frozen=True)
class Bare:
    """A machine that was switched on at `began` (monotonic clock). ssh: the words in front of a command."""

    began: float
    ssh: tuple[str, ...]

    def first_answer(self, command: str) -> float:
        """Run the command by the first `ssh` that gets through; the time (monotonic) when it had ended. A fresh one is
        tried every 0.4 s, the earlier ones still trying, four at most: QEMU's user network accepts long before the
        guest listens, so that a single early connection would wait for a retransmission."""
        trying: list[subprocess.Popen[bytes]] = []
        deadline = time.monotonic() + ANSWER_SECONDS
        try:
            while time.monotonic() < deadline:
                if len(trying) < AT_ONCE:
                    words = [*self.ssh, command]
                    trying.append(subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
                pause = time.monotonic() + STAGGER_SECONDS
                while time.monotonic() < pause:
                    if any(each.poll() == 0 for each in trying):
                        return time.monotonic()
                    trying = [each for each in trying if each.poll() is None]
                    time.sleep(0.002)
            raise TimeoutError("the machine never answered")
        finally:
            for each in trying:
                each.kill()
                each.wait()


@contextmanager
def bare(place: Place, number: int = 0) -> Iterator[Bare]:
    """A cold machine, killed at the end. number: of those that run beside each other."""
    with prepared(place, number) as (spec, ssh):
        home = spec.directory.parent.parent
        hypervisor = QemuHypervisor(home)
        probe(home, place.kernel)  # whether KVM works is found out before the clock starts
        began = time.monotonic()
        hypervisor.prolog(spec)
        hypervisor.boot(spec)
        try:
            yield Bare(began, ssh)
        finally:
            hypervisor.destroy(spec.vm_id)
            hypervisor.epilog(spec.vm_id, spec.directory)


@contextmanager
def prepared(place: Place, number: int) -> Iterator[tuple[MachineSpec, tuple[str, ...]]]:
    """A machine that is not switched on yet, with a folder of its own, and the words of `ssh` to it."""
    host, client = make_key("bench-host"), make_key("bench-client")
    port, mac = FIRST_PORT + number, f"02:00:7f:63:63:{number:02x}"
    with tempfile.TemporaryDirectory(prefix="mayfly-floor-") as scratch:
        folder = Path(scratch)
        spec = MachineSpec(
            vm_id=1,
            name="floor",
            uuid=str(uuid.uuid4()),
            directory=folder / "vms" / "1",
            cpus=place.cpus,
            memory_mb=place.memory_mb,
            disks=(DiskSpec(0, place.disk),),
            nics=(NicSpec(0, ADDRESS, mac, port, outbound=False),),
            context=context(mac, client.public, host.private_base64),
            kernel=place.kernel,
            initrd=place.initrd,
            kernel_cmdline=place.kernel_cmdline,
        )
        spec.directory.mkdir(parents=True)
        yield spec, ssh_words(folder, port, host.public, client.private)


def context(mac: str, client_public: str, host_private: str) -> dict[str, str]:
    """What the image's machine reads when it boots."""
    return {
        "NETWORK": "YES",
        "ETH0_IP": "10.0.2.15",
        "ETH0_MASK": "255.255.255.0",
        "ETH0_GATEWAY": "10.0.2.2",
        "ETH0_DNS": "10.0.2.3",
        "ETH0_MAC": mac,
        "SET_HOSTNAME": "floor",
        "SSH_PUBLIC_KEY": client_public,
        "MAYFLY_HOST_KEY_BASE64": host_private,
    }


def ssh_words(folder: Path, port: int, host_public: str, client_private: str) -> tuple[str, ...]:
    """OpenSSH's `ssh` to this machine: nothing of the user's configuration, the host key checked."""
    key, known = folder / "key", folder / "known_hosts"
    key.touch(mode=0o600)
    key.write_text(client_private)
    known.write_text(f"[{ADDRESS}]:{port} {host_public}\n")
    options = ("UserKnownHostsFile=" + str(known), "BatchMode=yes", "StrictHostKeyChecking=yes", "LogLevel=ERROR")
    words = ["ssh", "-F", os.devnull, "-i", str(key), "-p", str(port)]
    for option in options:
        words += ["-o", option]
    return (*words, f"root@{ADDRESS}")
