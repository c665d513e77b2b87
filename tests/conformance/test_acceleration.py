"""KVM is tried, not assumed: the verdict on QEMUs that come up, hang, break down, or are not there.

The QEMU of these tests is a script of that name in PATH, which prints what a guest's console would show.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.localcloud.hypervisors import HypervisorError, acceleration
from orchestrator.localcloud.hypervisors.acceleration import host_accelerator, installed_qemu, probe, verdict

UP = "echo '[0.0] Linux version 6.1'; echo '[0.9] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown'"
SILENT = "exec sleep 60"
HUNG = "echo '[0.0] Linux version 6.1'; echo '[0.1] tsc: calibrating'; exec sleep 60"
BROKEN = "echo 'qemu-system-x86_64: error: failed to set MSR 0x10a to 0x69' >&2; exit 134"
STOPPED = "echo '[0.0] Linux version 6.1'; echo '[0.2] BUG: bad page'; exit 0"

Installer = Callable[..., Path]


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    installed_qemu.cache_clear()
    yield
    installed_qemu.cache_clear()


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "vmlinuz"
    path.write_bytes(b"a kernel")
    return path


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """Something that opens as /dev/kvm would."""
    path = tmp_path / "kvm"
    path.touch()
    return path


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installer:
    """Put a QEMU in PATH, whose guests do as `guest` says. Returns the file that counts its trials."""

    def put(guest: str, version: str = "7", sandbox: bool = True) -> Path:
        folder, tried = tmp_path / "bin", tmp_path / "tried"
        folder.mkdir(exist_ok=True)
        greeting = '{"QMP": {"version": {"qemu": {"major": %s, "minor": 2, "micro": 0}, "package": "Test"}}}'
        script = folder / "qemu-system-x86_64"
        script.write_text(
            f"""#!/bin/sh
            case "$*" in
                *-sandbox*) {"true" if sandbox else "echo no sandbox here >&2; exit 1"} ;;
            esac
            case "$*" in
                *-qmp*) echo '{greeting % version}'; exit 0 ;;
            esac
            echo "$*" >> {tried}
            {guest}
            """
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        installed_qemu.cache_clear()
        return tried

    return put


def trials(tried: Path) -> list[str]:
    return tried.read_text().splitlines() if tried.exists() else []


def test_a_kernel_that_comes_up_gets_kvm(install: Installer, tmp_path: Path, kernel: Path, device: Path) -> None:
    tried = install(UP)
    found = probe(tmp_path / "home", kernel, device=device)
    assert (found.accelerator, found.reason) == ("kvm", "a guest kernel came up under KVM")
    (words,) = trials(tried)
    assert "-accel kvm -cpu host" in words
    assert f"-kernel {kernel}" in words


@pytest.mark.parametrize(
    ("guest", "reason"),
    [
        (SILENT, "a guest under KVM printed nothing within 0.5 s"),
        (HUNG, "a guest under KVM hung: not up within 0.5 s after '[0.1] tsc: calibrating'"),
        (BROKEN, "a guest under KVM ended before it was up: error: failed to set MSR 0x10a to 0x69"),
        (STOPPED, "a guest under KVM ended before it was up: [0.2] BUG: bad page"),
        ("exit 0", "a guest under KVM ended before it was up: silently"),
    ],
)
def test_whatever_else_happens_is_emulation_with_the_reason(
    install: Installer, tmp_path: Path, kernel: Path, device: Path, guest: str, reason: str
) -> None:
    install(guest)
    found = probe(tmp_path / "home", kernel, deadline=0.5, device=device)
    assert (found.accelerator, found.reason) == ("tcg", reason)


def test_a_hung_guest_is_not_left_behind(install: Installer, tmp_path: Path, kernel: Path, device: Path) -> None:
    mark = tmp_path / "pid"
    install(f"echo $$ > {mark}; {SILENT}")
    probe(tmp_path / "home", kernel, deadline=1.0, device=device)
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


@pytest.mark.parametrize("guest", [UP, BROKEN])
def test_a_verdict_is_remembered_until_a_new_trial_is_forced(
    install: Installer, tmp_path: Path, kernel: Path, device: Path, guest: str
) -> None:
    tried, home = install(guest), tmp_path / "home"
    assert verdict(home, kernel, device) is None
    first = probe(home, kernel, device=device)
    assert probe(home, kernel, device=device) == first
    assert verdict(home, kernel, device) == first
    assert len(trials(tried)) == 1
    probe(home, kernel, force=True, device=device)
    assert len(trials(tried)) == 2


def test_another_kernel_or_another_qemu_is_tried_anew(
    install: Installer, tmp_path: Path, kernel: Path, device: Path
) -> None:
    home = tmp_path / "home"
    install(UP)
    probe(home, kernel, device=device)
    kernel.write_bytes(b"another kernel")
    assert verdict(home, kernel, device) is None
    probe(home, kernel, device=device)
    install(UP, version="8")
    assert verdict(home, kernel, device) is None


def test_another_host_kernel_is_tried_anew(
    install: Installer, tmp_path: Path, kernel: Path, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(UP)
    probe(tmp_path / "home", kernel, device=device)
    monkeypatch.setattr(acceleration.platform, "release", lambda: "6.99")
    assert verdict(tmp_path / "home", kernel, device) is None


def test_no_device_needs_no_trial_and_is_not_remembered(
    install: Installer, tmp_path: Path, kernel: Path, device: Path
) -> None:
    tried, missing = install(UP), tmp_path / "missing"
    found = probe(tmp_path / "home", kernel, force=True, device=missing)
    assert (found.accelerator, found.reason) == ("tcg", f"{missing} cannot be opened: No such file or directory")
    assert trials(tried) == []
    assert probe(tmp_path / "home", kernel, device=device).accelerator == "kvm"
    # What was found once does not help a device that no longer opens.
    assert probe(tmp_path / "home", kernel, device=missing).accelerator == "tcg"


def test_a_machine_without_a_kernel_of_ours_gets_what_the_host_was_seen_to_do(
    install: Installer, tmp_path: Path, kernel: Path, device: Path
) -> None:
    install(BROKEN)
    home = tmp_path / "home"
    assert host_accelerator(home, device) == "tcg"
    probe(home, kernel, device=device)
    assert host_accelerator(home, device) == "tcg"
    install(UP)
    probe(home, kernel, force=True, device=device)
    assert host_accelerator(home, device) == "kvm"
    assert host_accelerator(home, tmp_path / "missing") == "tcg"
    install(UP, version="8")
    assert host_accelerator(home, device) == "tcg"


@pytest.mark.parametrize("content", ["", "not json", "[]", "{"])
def test_a_spoilt_memory_means_a_new_trial(
    install: Installer, tmp_path: Path, kernel: Path, device: Path, content: str
) -> None:
    tried = install(UP)
    (tmp_path / "acceleration.json").write_text(content)
    assert probe(tmp_path, kernel, device=device).accelerator == "kvm"
    assert verdict(tmp_path, kernel, device) is not None
    assert len(trials(tried)) == 1


def test_a_qemu_without_a_sandbox_is_used_without(install: Installer) -> None:
    install(UP, sandbox=False)
    assert installed_qemu().sandbox == ()
    install(UP, sandbox=True)
    assert installed_qemu().sandbox[0] == "-sandbox"
    assert installed_qemu().version == "7.2.0 Test"


def test_no_qemu_and_no_kernel_are_errors_with_a_remedy(
    install: Installer, tmp_path: Path, kernel: Path, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(UP)
    with pytest.raises(HypervisorError, match="missing: No such file or directory"):
        probe(tmp_path, tmp_path / "missing", device=device)
    monkeypatch.setenv("PATH", str(tmp_path))
    installed_qemu.cache_clear()
    with pytest.raises(HypervisorError, match="install qemu-system-x86"):
        probe(tmp_path, kernel, device=device)
