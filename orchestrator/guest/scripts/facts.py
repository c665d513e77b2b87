"""What this machine is, as lines of key=value."""
# ruff: noqa: PTH110, PTH112, PTH116, PTH118

from __future__ import annotations

import os
import time

from orchestrator.guest.scripts.place import read_file, used

PROGRAMS = ("strace", "python3", "systemd-run", "systemctl")
"""What arming, the process and its end need."""


def facts() -> str:
    told = [f"program={program}" for program in PROGRAMS if there(program)]
    if os.path.isdir("/run/systemd/system") and os.path.exists("/run/systemd/private"):
        told.append("systemd=yes")
    if os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        told.append("cgroup2=yes")
    for line in read_file("/etc/passwd").decode(errors="replace").splitlines():
        if line.startswith("task:"):
            told.append("user=" + ":".join(line.split(":")[2:4]))
    for line in read_file("/proc/meminfo").decode().splitlines():
        if line.startswith("MemTotal:"):
            told.append("memory_kib=" + line.split()[1])
    if any(b",prjquota" in line and b" / " in line for line in read_file("/proc/mounts").splitlines()):
        told.append("quotas=yes")
    told.append("uptime=" + read_file("/proc/uptime").decode().partition(" ")[0])
    told.append("boot=" + read_file("/proc/sys/kernel/random/boot_id").decode().strip())
    if used():
        told.append("used=yes")
    told.append("kernel=" + os.uname().release)
    told.append(f"clock={time.time():.9f}")
    try:
        for path in ("/task/in", "/task/out", "/task/tmp"):
            about = os.stat(path)
            told.append(f"directory={path}:{about.st_uid}:{about.st_mode & 0o7777:o}")
        disk = os.statvfs("/task")
        told.append(f"disk={disk.f_bavail}:{disk.f_frsize}")
    except OSError:
        pass
    return "\n".join(told) + "\n"


def there(program: str) -> bool:
    folders = os.environ.get("PATH", "").split(":")
    return any(os.access(os.path.join(folder, program), os.X_OK) for folder in folders)


if __name__ == "__main__":
    print(facts(), end="")
