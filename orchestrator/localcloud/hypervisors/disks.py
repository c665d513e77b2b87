"""Disks, through qemu-img: overlays over images, and images out of overlays."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from orchestrator.localcloud.hypervisors import DiskSpec, HypervisorError

_COPY_SECONDS = 3600.0
_QUICK_SECONDS = 60.0


def disk_path(directory: Path, disk: DiskSpec) -> Path:
    """The file that the machine writes to."""
    return disk.backing if disk.persistent else directory / f"disk.{disk.disk_id}"


def disk_format(disk: DiskSpec) -> str:
    """The format of that file."""
    return disk.format if disk.persistent else "qcow2"


def lay_out(directory: Path, disk: DiskSpec) -> None:
    """Make the overlay, or grow the persistent disk; a size below the image's own changes nothing. Raises
    HypervisorError."""
    if not disk.backing.is_file():
        raise HypervisorError(f"disk {disk.disk_id}: the image's file {disk.backing} is missing")
    path = disk_path(directory, disk)
    if not disk.persistent:
        create_overlay(path, str(disk.backing.absolute()), disk.format)
    wanted = disk.size_mb * 1024 * 1024
    if wanted > virtual_size(path, disk_format(disk)):
        _qemu_img("resize", "-q", "-f", disk_format(disk), str(path), str(wanted))


def create_overlay(path: Path, backing: str, backing_format: str) -> None:
    """An empty overlay in place of what is there. A relative `backing` is beside the overlay, wherever that is moved.
    Raises HypervisorError."""
    path.unlink(missing_ok=True)
    _qemu_img("create", "-q", "-f", "qcow2", "-F", backing_format, "-b", backing, str(path))


def virtual_size(path: Path, disk_format: str) -> int:
    """Bytes that the guest sees. `--force-share`: it may be in use. Raises HypervisorError."""
    answer = _qemu_img("info", "--force-share", "--output=json", "-f", disk_format, str(path))
    return int(json.loads(answer)["virtual-size"])


def copy_whole(source: Path, source_format: str, target: Path) -> None:
    """Write `source`, backing files and all, to `target` as qcow2. The target appears complete or not at all. Raises
    HypervisorError."""
    part = target.with_name(target.name + ".part")
    try:
        _qemu_img("convert", "-f", source_format, "-O", "qcow2", str(source), str(part), seconds=_COPY_SECONDS)
        part.replace(target)
    except OSError as error:
        raise HypervisorError(f"{target}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def create_empty(path: Path, size: int) -> None:
    """A qcow2 file of `size` bytes with nothing in it. Raises HypervisorError."""
    _qemu_img("create", "-q", "-f", "qcow2", str(path), str(size))


def _qemu_img(*arguments: str, seconds: float = _QUICK_SECONDS) -> str:
    try:
        done = subprocess.run(
            ["qemu-img", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except FileNotFoundError:
        raise HypervisorError("qemu-img was not found: install qemu-utils") from None
    except subprocess.TimeoutExpired:
        raise HypervisorError(f"qemu-img {arguments[0]}: not done within {seconds:.0f} s") from None
    if done.returncode != 0:
        raise HypervisorError(done.stderr.strip() or f"qemu-img {arguments[0]}: exit status {done.returncode}")
    return done.stdout
