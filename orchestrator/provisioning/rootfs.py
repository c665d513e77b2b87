"""The first stage of a base image: a root file system from mmdebstrap, packed as disk, kernel and initrd.

As root, or as an ordinary user in a user namespace of its own (mmdebstrap's `unshare` mode): nothing is mounted and
no loop device is used, so that neither needs more privileges than that.
"""

from __future__ import annotations

import asyncio
import getpass
import hashlib
import io
import os
import shlex
import shutil
import signal
import tarfile
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from orchestrator.domain.errors import NotPossible, PlatformError
from orchestrator.provisioning.definition import Definition
from orchestrator.provisioning.ports import Progress
from orchestrator.provisioning.sources import AptSources

STEP = "root file system"
_KEPT_DAYS = 14  # older ones are made again, so that Debian's security updates get in
_OUTPUTS = ("disk.qcow2", "vmlinuz", "initrd", "packages.txt")
_NEEDED = {
    "mmdebstrap": "mmdebstrap",
    "mkfs.ext4": "e2fsprogs",
    "qemu-img": "qemu-utils",
    "cpio": "cpio",
    "tar": "tar",
}
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_FRACTIONS = {
    "I: running apt-get update": 0.05,
    "I: downloading packages with apt": 0.1,
    "I: extracting archives": 0.25,
    "I: installing essential packages": 0.35,
    "I: installing remaining packages": 0.5,
    "I: cleaning package lists": 0.95,
}
"""How far mmdebstrap is when it says so; from timings of one build of 50 s."""


@dataclass(frozen=True, slots=True)
class BootFiles:
    """What a machine boots: a qcow2 disk with an ext4 root file system, the kernel and the initrd beside it, and a list
    of `package version` lines."""

    disk: Path
    kernel: Path
    initrd: Path
    packages: Path

    @classmethod
    def inside(cls, folder: Path) -> BootFiles:
        return cls(*(folder / name for name in _OUTPUTS))

    @property
    def complete(self) -> bool:
        return all(path.is_file() for path in (self.disk, self.kernel, self.initrd, self.packages))


def missing_tools() -> list[tuple[str, str]]:
    """Commands that this stage needs and does not find, each with the Debian package that has it."""
    missing = [(tool, package) for tool, package in _NEEDED.items() if shutil.which(tool, path=_search_path()) is None]
    if not _KEYRING.exists():
        missing.append((str(_KEYRING), "debian-archive-keyring"))
    if os.geteuid() != 0 and shutil.which("newuidmap", path=_search_path()) is None:
        missing.append(("newuidmap", "uidmap"))
    return missing


def kept_folder(definition: Definition, sources: AptSources, cache: Path) -> Path:
    """Where the boot files of this definition are kept: named by all that they are made of but versions."""
    key = hashlib.sha256(f"{definition.fingerprint()}\0{sources.lines}".encode()).hexdigest()
    return cache / f"{definition.name}-{key[:16]}"


async def make_rootfs(definition: Definition, sources: AptSources, cache: Path, tell: Progress) -> BootFiles:
    """The boot files of this definition: kept ones of the last 14 days, else made now (about a minute).

    Raises NotPossible naming the tool that is missing and its package, PlatformError with mmdebstrap's log as evidence.
    """
    folder = await asyncio.to_thread(kept_folder, definition, sources, cache)
    kept = BootFiles.inside(folder)
    if kept.complete and time.time() - kept.disk.stat().st_mtime < _KEPT_DAYS * 86400:
        tell(STEP, 1.0, f"kept from an earlier build: {folder}")
        return kept
    _require_tools()
    await asyncio.to_thread(cache.mkdir, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{definition.name}-", dir=cache) as work:
        overlay = Path(work, "overlay.tar")
        await asyncio.to_thread(_write_overlay, definition, overlay)
        fresh = Path(work, "out")
        await asyncio.to_thread(fresh.mkdir)
        tell(STEP, 0.0, f"mmdebstrap {definition.suite}, {len(definition.packages)} packages and what they need")
        await _mmdebstrap(_command(definition, sources, overlay, fresh), sources, tell)
        await asyncio.to_thread(_replace, fresh, folder, f"{definition.name}-*")
    tell(STEP, 1.0, f"{kept.disk.stat().st_size // 2**20} MiB")
    return kept


def _require_tools() -> None:
    if missing := missing_tools():
        names = ", ".join(name for name, _ in missing)
        packages = " ".join(dict.fromkeys(package for _, package in missing))
        raise NotPossible("image build", f"not installed: {names}", f"apt install {packages}")
    if os.geteuid() != 0:
        user = getpass.getuser()
        lines = [line.split(":")[0] for line in _read_lines(Path("/etc/subuid"))]
        if user not in lines and str(os.geteuid()) not in lines:
            raise NotPossible(
                "image build",
                f"{user} has no range in /etc/subuid",
                f"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}, or build as root",
            )


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _search_path() -> str:
    """An ordinary user's PATH may lack the sbin folders, where mkfs is."""
    return f"{os.environ.get('PATH', '')}:{_PATH}"


def _command(definition: Definition, sources: AptSources, overlay: Path, out: Path) -> list[str]:
    command = [
        "mmdebstrap",
        f"--mode={'root' if os.geteuid() == 0 else 'unshare'}",
        "--variant=apt",
        "--format=null",
        "--architectures=amd64",
        f"--components={','.join(definition.components)}",
        f"--include={','.join(definition.packages)}",
        '--aptopt=APT::Install-Recommends "false"',
        '--aptopt=Acquire::Languages "none"',
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        # Our initrd is not made by initramfs-tools, which the kernel's package brings along.
        "--dpkgopt=path-exclude=/etc/kernel/postinst.d/initramfs-tools",
        "--dpkgopt=force-confold",
        f"--customize-hook=tar-in {shlex.quote(str(overlay))} /",
        '--customize-hook=sh "$1/mayfly-build/pack.sh" "$1"',
    ]
    if sources.proxy:
        command.append(f'--aptopt=Acquire::http::Proxy "{sources.proxy}"')
    for name in _OUTPUTS:
        target = shlex.quote(str(out / name))
        command.append(f"--customize-hook=download /mayfly-build/{name} {target}")
    return [*command, definition.suite, "/dev/null", *sources.lines]


def _write_overlay(definition: Definition, target: Path) -> None:
    """A tarball of what goes over the root file system: the definition's `files`, its units enabled or masked, and
    /mayfly-build with what `pack.sh` needs. All is root's; modes are as in the checkout, for the owner alone."""
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted((definition.folder / "files").rglob("*")):
            if path.is_file():
                executable = path.read_bytes().startswith(b"#!")
                name = str(path.relative_to(definition.folder / "files"))
                _add_file(tar, name, path.read_bytes(), 0o755 if executable else 0o644)
        for unit in definition.masked_units:
            _add_link(tar, f"etc/systemd/system/{unit}", "/dev/null")
        for generator in definition.masked_generators:
            _add_link(tar, f"etc/systemd/system-generators/{generator}", "/dev/null")
        for unit in definition.enabled_units:
            _add_link(tar, f"etc/systemd/system/multi-user.target.wants/{unit}", f"/etc/systemd/system/{unit}")
        _add_link(tar, "etc/systemd/system/default.target", "/lib/systemd/system/multi-user.target")
        settings = {
            "disk_size": str(definition.disk_size),
            "label": "mayfly-root",
            "first_modules": " ".join(definition.initrd_modules),
            "fallback_modules": " ".join(definition.initrd_fallback_modules),
        }
        text = "".join(f"{key}={shlex.quote(value)}\n" for key, value in settings.items())
        _add_file(tar, "mayfly-build/settings", text.encode(), 0o644)
        _add_file(tar, "mayfly-build/init", (definition.folder / "initrd" / "init").read_bytes(), 0o755)
        _add_file(tar, "mayfly-build/pack.sh", (definition.folder / "pack.sh").read_bytes(), 0o755)


def _add_file(tar: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), mode
    tar.addfile(info, io.BytesIO(content))


def _add_link(tar: tarfile.TarFile, name: str, target: str) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    tar.addfile(info)


async def _mmdebstrap(command: list[str], sources: AptSources, tell: Progress) -> None:
    """Run it to its end. Cancelled: it is ended in its own way, by SIGTERM, so that it takes away what it mounted."""
    log: deque[str] = deque(maxlen=200)
    environment = {**os.environ, "PATH": _search_path(), "LC_ALL": "C.UTF-8"}
    if sources.proxy:
        environment["http_proxy"] = sources.proxy
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    assert process.stderr is not None
    fraction = 0.0
    try:
        while raw := await process.stderr.readline():
            line = raw.decode(errors="replace").rstrip()
            log.append(line)
            reached = [value for text, value in _FRACTIONS.items() if line.startswith(text)]
            if reached:
                fraction = reached[0]
                tell(STEP, fraction, line.removeprefix("I: "))
        status = await process.wait()
    except BaseException:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGTERM)
            await process.wait()
        raise
    if status != 0:
        raise PlatformError(f"mmdebstrap failed with {status}: {_complaint(log)}", evidence="\n".join(log))


def _complaint(log: deque[str]) -> str:
    errors = [line for line in log if line.startswith(("E:", "W: Failed", "mkfs", "cpio:", "tar:"))]
    return " / ".join(errors[:3]) or (log[-1] if log else "it said nothing")


def _replace(fresh: Path, folder: Path, stale: str) -> None:
    """Put the new folder in its place, and take away those that match `stale`: made from an older definition."""
    for old in folder.parent.glob(stale):
        shutil.rmtree(old, ignore_errors=True)
    fresh.rename(folder)
