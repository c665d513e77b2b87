"""A guest of a few lines of shell: the base image's kernel, and its initrd with another first process."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.driver import TestCloud

# OpenNebula's image types (one.image.info, TYPE).
KERNEL, RAMDISK = 3, 4
CMDLINE = "console=ttyS0 quiet net.ifnames=0 rdinit=/first-process"


def boot_files_with(first_process: str, cloud: TestCloud, folder: Path) -> tuple[Path, Path]:
    """The newest base image's kernel, and its initrd with `first_process` added."""
    images = cloud.client().imagepool.info(-2, -1, -1).IMAGE
    newest = {kind: max((i for i in images if kind == i.TYPE), key=lambda i: i.ID).SOURCE for kind in (KERNEL, RAMDISK)}
    (folder / "first-process").write_text(first_process)
    (folder / "first-process").chmod(0o755)
    more = subprocess.run(
        ["cpio", "--quiet", "--create", "--format=newc"],
        cwd=folder,
        input=b"first-process",
        capture_output=True,
        check=True,
    ).stdout
    initrd = folder / "initrd"
    initrd.write_bytes(Path(newest[RAMDISK]).read_bytes() + more)
    return Path(newest[KERNEL]), initrd
