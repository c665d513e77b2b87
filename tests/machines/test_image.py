"""What is in the promoted base image, read from its disk without booting it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.driver import TestCloud

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


@pytest.fixture(scope="module")
def disk(running_cloud: TestCloud, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The promoted version's root disk, as a sparse raw file."""
    client = running_cloud.client()
    templates = client.templatepool.info(-2, -1, -1).VMTEMPLATE
    (promoted,) = [
        each.TEMPLATE
        for each in templates
        if each.TEMPLATE.get("MAYFLY_IMAGE") == "debian-12" and each.TEMPLATE.get("MAYFLY_STATE") == "promoted"
    ]
    image = client.image.info(int(promoted["DISK"]["IMAGE_ID"]))
    raw = tmp_path_factory.mktemp("image") / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", image.SOURCE, str(raw)], check=True)
    return raw


def debugfs(disk: Path, request: str) -> str:
    done = subprocess.run(
        ["debugfs", "-R", request, str(disk)],
        env={**os.environ, "PATH": PATH},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout if "File not found" not in done.stderr else ""


def names(disk: Path, folder: str) -> set[str]:
    return {line.split("/")[5] for line in debugfs(disk, f"ls -p {folder}").splitlines() if line} - {".", ".."}


def owner_and_mode(disk: Path, path: str) -> tuple[int, int, str]:
    told = debugfs(disk, f"stat {path}")
    found = re.search(r"Mode:\s+(\d+).*?User:\s+(\d+)\s+Group:\s+(\d+)", told, re.DOTALL)
    assert found is not None, f"{path} is not in the image"
    return int(found[2]), int(found[3]), found[1]


def test_the_file_system_was_unmounted_and_is_whole(disk: Path) -> None:
    done = subprocess.run(
        ["e2fsck", "-fn", str(disk)], env={**os.environ, "PATH": PATH}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    dumped = subprocess.run(
        ["dumpe2fs", "-h", str(disk)], env={**os.environ, "PATH": PATH}, capture_output=True, text=True
    )
    assert re.search(r"Filesystem state:\s+clean\n", dumped.stdout)


def test_nothing_of_the_machine_that_was_provisioned_is_in_it(disk: Path) -> None:
    assert not [name for name in names(disk, "/etc/ssh") if name.startswith("ssh_host")]
    assert debugfs(disk, "cat /etc/machine-id") == ""
    assert "machine-id" in names(disk, "/etc")
    for folder, name in [("/etc", "hostname"), ("/etc", "resolv.conf"), ("/root", ".ssh"), ("/root", ".bash_history")]:
        assert name not in names(disk, folder)
    assert names(disk, "/tmp") == set()
    assert not {name for name in names(disk, "/var/lib/apt/lists") if name.startswith("deb")}
    assert names(disk, "/boot") == set()


def test_nobody_has_a_password_and_only_root_may_come_in(disk: Path) -> None:
    fields = [line.split(":") for line in debugfs(disk, "cat /etc/shadow").splitlines()]
    assert {"root", "task"} <= {name for name, *_ in fields}
    assert [name for name, password, *_ in fields if password not in {"*", "!", "!*"}] == []
    sshd = debugfs(disk, "cat /etc/ssh/sshd_config.d/10-mayfly.conf").splitlines()
    assert {"AllowUsers root", "PasswordAuthentication no", "PermitRootLogin prohibit-password"} <= set(sshd)


def test_the_folders_of_a_task(disk: Path) -> None:
    assert re.search(r"^task:.:1000:1000:", debugfs(disk, "cat /etc/passwd"), re.MULTILINE)
    assert owner_and_mode(disk, "/task") == (0, 0, "0755")
    assert owner_and_mode(disk, "/task/in") == (0, 0, "0755")
    assert owner_and_mode(disk, "/task/out") == (1000, 1000, "0755")
    assert owner_and_mode(disk, "/task/tmp") == (1000, 1000, "0755")


@pytest.mark.parametrize("tool", ["strace", "python3", "tar", "systemd-run", "busybox"])
def test_what_a_task_is_run_with(disk: Path, tool: str) -> None:
    assert tool in names(disk, "/usr/bin")


def test_the_context_script_is_roots_alone_to_change(disk: Path) -> None:
    assert owner_and_mode(disk, "/usr/sbin/mayfly-context") == (0, 0, "0755")
    assert owner_and_mode(disk, "/etc/systemd/system/ssh.service") == (0, 0, "0644")


def test_it_knows_how_to_wait_and_become_a_clone(disk: Path) -> None:
    assert owner_and_mode(disk, "/usr/sbin/mayfly-clone") == (0, 0, "0755")
    wanted = names(disk, "/etc/systemd/system/multi-user.target.wants")
    assert {"mayfly-clone.service", "mayfly-clone-sshd.service"} <= wanted
