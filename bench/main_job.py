"""One task through `mayfly run`, timed from outside and by its own report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyone

from orchestrator.localcloud import daemon
from orchestrator.localcloud.knobs import CloudSettings
from orchestrator.settings import Settings

JOB = "echo begun; echo ending"
HOST_CPUS = 8


@dataclass(frozen=True)
class Place:
    """Where it is measured: a cloud with the image promoted, a home of its own, and the image's files on this host."""

    environment: dict[str, str]
    cloud_home: Path
    disk: Path
    kernel: Path
    initrd: Path
    kernel_cmdline: str
    cpus: int
    memory_mb: int
    accelerator: str


@dataclass(frozen=True)
class Measured:
    """Seconds."""

    figures: dict[str, float]
    stages: dict[str, float]


def mayfly(environment: dict[str, str], *words: str) -> str:
    """Run the command; its stdout."""
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", *words],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


@contextmanager
def surroundings() -> Iterator[Place]:
    """The local cloud of the usual home, its image built if need be; tasks go into a home that is thrown away. Unless
    it runs already, its host is said to have cores for HOST_CPUS machines at once."""
    here: dict[str, str] = {}
    cloud_home = Settings.from_environment().cloud_home
    ran = daemon.status(cloud_home) is not None
    if not ran:
        daemon.start(cloud_home, knobs=CloudSettings(host_cpus=max(HOST_CPUS, os.cpu_count() or 1)))
    cloud = json.loads(mayfly(here, "cloud", "status", "--json"))
    try:
        mayfly(here, "image", "build", "debian-12", "--if-missing")
        client = pyone.OneServer(cloud["url"], session=Path(cloud["one_auth"]).read_text().strip())
        [version] = [v for v in json.loads(mayfly(here, "image", "list", "--json")) if v["state"] == "promoted"]
        template = client.template.info(version["template_id"]).TEMPLATE
        files = {key: _file(client, template["OS"][key]) for key in ("KERNEL_DS", "INITRD_DS")}
        pool = next(p for p in json.loads(mayfly(here, "pool", "list", "--json")) if p["name"] == "default")
        with tempfile.TemporaryDirectory(prefix="mayfly-bench-") as home:
            doctor = json.loads(
                subprocess.run(
                    [sys.executable, "-m", "orchestrator", "doctor", "--json"], stdout=subprocess.PIPE, text=True
                ).stdout
            )
            yield Place(
                environment={"MAYFLY_HOME": home, "ONE_XMLRPC": cloud["url"], "ONE_AUTH": cloud["one_auth"]},
                cloud_home=Path(cloud["one_auth"]).parent,
                disk=Path(client.image.info(int(template["DISK"]["IMAGE_ID"])).SOURCE),
                kernel=files["KERNEL_DS"],
                initrd=files["INITRD_DS"],
                kernel_cmdline=template["OS"]["KERNEL_CMD"],
                cpus=pool["cpus"],
                memory_mb=pool["memory_bytes"] // 2**20,
                accelerator=next((f["seen"] for f in doctor if f["requirement"] == "acceleration"), "not known"),
            )
    finally:
        if not ran:
            mayfly(here, "cloud", "stop")


def _file(client: pyone.OneServer, reference: str) -> Path:
    """The file behind `$FILE[IMAGE_ID=n]`."""
    number = int(reference.rpartition("=")[2].rstrip("]"))
    return Path(client.image.info(number).SOURCE)


def mayfly_round(place: Place) -> Measured:
    """One task, cold."""
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", "run", "--", "sh", "-c", JOB],
        env={**os.environ, **place.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    if process.stdout is None:
        raise RuntimeError("no stdout to read")
    first = process.stdout.readline()
    begun = datetime.now(UTC)
    process.communicate()
    if first != "begun\n" or process.returncode != 0:
        raise RuntimeError(f"the task ended with {process.returncode}")
    task = json.loads(mayfly(place.environment, "list", "--json"))[0]["id"]
    report = json.loads(mayfly(place.environment, "show", task, "--json"))
    attempt = report["attempts"][0]
    stages = {stage["stage"]: stage["seconds"] for stage in attempt["stages"]}
    submitted = datetime.fromisoformat(report["submitted_at"])
    destroyed = datetime.fromisoformat(attempt["vm"]["destroyed_at"])
    return Measured(
        figures={
            "boot_to_ssh": stages["PROVISIONING"] + stages["CONNECTING"],
            "submit_to_output": (begun - submitted).total_seconds(),
            "exit_to_gone": (destroyed - begun).total_seconds(),
        },
        stages=stages,
    )
