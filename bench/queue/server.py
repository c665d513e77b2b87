"""A PostgreSQL of Debian's package, durable as it comes, for one run."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
SETTINGS = {"listen_addresses": "", "shared_buffers": "512MB", "max_wal_size": "4GB", "max_connections": "100"}
"""A larger max_wal_size than the default: a checkpoint would else fall into the one measurement or the other."""


@contextmanager
def running_postgres(folder: Path) -> Iterator[str]:
    """The socket's folder. As root, the server is run as the user `postgres`; it refuses to run as root."""
    binaries = BINARIES[-1]
    user = "postgres" if os.geteuid() == 0 else None
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    data = folder / "data"
    data.mkdir(mode=0o700)
    if user is not None:
        owner = pwd.getpwnam(user)
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        os.chown(data, owner.pw_uid, owner.pw_gid)

    def run(*words: str) -> None:
        subprocess.run(words, user=user, check=True, stdout=subprocess.DEVNULL, cwd="/")

    run(str(binaries / "initdb"), "-D", str(data), "-A", "trust", "-U", "mayfly", "-E", "UTF8", "--no-locale")
    with (data / "postgresql.conf").open("a") as file:
        file.writelines(f"{name} = '{value}'\n" for name, value in SETTINGS.items())
        file.write(f"unix_socket_directories = '{folder}'\n")
    run(str(binaries / "pg_ctl"), "-D", str(data), "-l", str(data / "log"), "-w", "start")
    try:
        yield str(folder)
    finally:
        run(str(binaries / "pg_ctl"), "-D", str(data), "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder)
