"""Whether KVM works here: tried with the image's own kernel, never assumed.

There are machines where /dev/kvm opens, and even creates a virtual machine, and then every guest hangs. So the kernel
is booted once under KVM, without a disk. A kernel that runs says its version and ends in the panic of having no root
file system: by then interrupts, timers and all virtual CPUs have worked. The verdict is kept in the home for this
kernel, this host kernel and this QEMU; another one of any of them is tried anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import threading
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from orchestrator.localcloud.hypervisors import HypervisorError
from orchestrator.localcloud.hypervisors.launch import plain_words
from orchestrator.localcloud.hypervisors.qemu_argv import (
    BINARY,
    SANDBOX,
    Accelerator,
    acceleration_arguments,
    base_arguments,
)

DEADLINE_SECONDS = 10.0
_FILE = "acceleration.json"
DEVICE = Path("/dev/kvm")
_STARTED = b"Linux version"
_CAME_UP = b"Unable to mount root fs"
_CMDLINE = "console=ttyS0 panic=-1 reboot=t"
_HELLO_AND_QUIT = '{"execute": "qmp_capabilities"}\n{"execute": "quit"}\n'
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Verdict:
    """`accelerator`: "kvm" or "tcg". `seconds`: how long the trial took. `checked_at`: ISO 8601, UTC."""

    accelerator: Accelerator
    reason: str
    seconds: float
    checked_at: str


@dataclass(frozen=True, slots=True)
class Qemu:
    """The QEMU of this host: its version, and the sandbox arguments that it takes (none without seccomp)."""

    version: str
    sandbox: tuple[str, ...]


@lru_cache(maxsize=1)
def installed_qemu() -> Qemu:
    """Asked once a process, by starting an empty machine. Raises HypervisorError when there is none."""
    for sandbox in (SANDBOX, ()):
        argv = [
            BINARY,
            *sandbox,
            "-machine",
            "none",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-qmp",
            "stdio",
        ]
        try:
            asked = subprocess.run(argv, input=_HELLO_AND_QUIT, capture_output=True, text=True, timeout=30, check=False)
        except FileNotFoundError:
            raise HypervisorError(f"{BINARY} was not found: install qemu-system-x86") from None
        except subprocess.TimeoutExpired:
            raise HypervisorError(f"{BINARY} gives no answer within 30 s") from None
        if asked.returncode == 0:
            version = json.loads(asked.stdout.splitlines()[0])["QMP"]["version"]
            number = ".".join(str(version["qemu"][part]) for part in ("major", "minor", "micro"))
            return Qemu(f"{number} {version['package']}".strip(), sandbox)
    raise HypervisorError(f"{BINARY}: {asked.stderr.strip()}")


def verdict(home: Path, kernel: Path, device: Path = DEVICE) -> Verdict | None:
    """What is known without a trial: what the last one of this kernel on this host and QEMU found, or that there can be
    none as the device does not open; None when a trial is due. Raises HypervisorError: no QEMU, no kernel."""
    closed = _why_closed(device)
    if closed is not None:
        return _verdict("tcg", closed)
    found = _remembered(home).get(_key(kernel))
    return Verdict(**found) if found else None  # type: ignore[arg-type]


def verdicts(home: Path) -> list[Verdict]:
    """Every trial that is remembered. Tries nothing."""
    return [Verdict(**found) for found in _remembered(home).values()]  # type: ignore[arg-type]


def probe(
    home: Path, kernel: Path, force: bool = False, deadline: float = DEADLINE_SECONDS, device: Path = DEVICE
) -> Verdict:
    """The known verdict, or a new one from a trial of at most `deadline` seconds (always a trial when `force`). Leaves
    no QEMU behind. Raises HypervisorError: no QEMU, no kernel."""
    with _lock:
        known = verdict(home, kernel, device)
        if known is not None and not (force and _why_closed(device) is None):
            return known
        found = _try_kvm(kernel, deadline)
        home.mkdir(parents=True, exist_ok=True)
        part = home / f"{_FILE}.{os.getpid()}"
        part.write_text(json.dumps(_remembered(home) | {_key(kernel): asdict(found)}, indent=2))
        part.replace(home / _FILE)
        return found


def host_accelerator(home: Path, device: Path = DEVICE) -> Accelerator:
    """For a machine that boots from its disk, whose kernel cannot be tried: KVM when any kernel came up on it here."""
    if _why_closed(device) is not None:
        return "tcg"
    here = _here()
    found = _remembered(home)
    return "kvm" if any(key.endswith(here) and found[key].get("accelerator") == "kvm" for key in found) else "tcg"


def _why_closed(device: Path) -> str | None:
    """Never remembered: a group membership or a module mends it."""
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{device} cannot be opened: {error.strerror}"
    return None


def _verdict(accelerator: Accelerator, reason: str, seconds: float = 0.0) -> Verdict:
    return Verdict(accelerator, reason, round(seconds, 2), datetime.now(UTC).isoformat(timespec="seconds"))


def _try_kvm(kernel: Path, deadline: float) -> Verdict:
    began = time.monotonic()
    said, errors, ended = _boot_under_kvm(kernel, deadline)
    lines = [line.strip() for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
    took = time.monotonic() - began
    if _STARTED in said and _CAME_UP in said:
        return _verdict("kvm", "a guest kernel came up under KVM", took)
    if ended:
        return _verdict(
            "tcg", f"a guest under KVM ended before it was up: {errors or (lines or ['silently'])[-1]}", took
        )
    if not lines:
        return _verdict("tcg", f"a guest under KVM printed nothing within {deadline:g} s", took)
    return _verdict("tcg", f"a guest under KVM hung: not up within {deadline:g} s after {lines[-1][:120]!r}", took)


def _boot_under_kvm(kernel: Path, deadline: float) -> tuple[bytes, str, bool]:
    """What the guest printed, what QEMU printed, and whether QEMU ended by itself."""
    argv = [
        *(BINARY, *installed_qemu().sandbox, *base_arguments(2, 256), *acceleration_arguments("kvm")),
        *("-no-reboot", "-serial", "stdio", "-kernel", str(kernel), "-append", _CMDLINE),
    ]
    qemu = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with qemu:
        try:
            said, errors = qemu.communicate(timeout=deadline)
            ended = True
        except subprocess.TimeoutExpired:
            qemu.kill()
            said, errors = qemu.communicate()
            ended = False
    return said, plain_words(errors), ended


def _remembered(home: Path) -> dict[str, dict[str, object]]:
    try:
        found = json.loads((home / _FILE).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _key(kernel: Path) -> str:
    try:
        status = kernel.stat()
    except OSError as error:
        raise HypervisorError(f"kernel {kernel}: {error.strerror}") from error
    digest = _digest(kernel, status.st_size, status.st_mtime_ns)
    return digest + _here()


def _here() -> str:
    return f" host {platform.release()} QEMU {installed_qemu().version}"


@lru_cache(maxsize=64)
def _digest(kernel: Path, _size: int, _mtime_ns: int) -> str:
    with kernel.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
