"""The console log: what a guest prints, kept within bounds.

A guest can print for ever, so QEMU must not write the file itself. A small process of ours, one a machine, stands
between them: it keeps at most `LIMIT` bytes in `console.log` and as much, older, in `console.log.1`. Like QEMU it
outlives the cloud's process; it ends by itself when QEMU does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from orchestrator.localcloud.hypervisors import HypervisorError
from orchestrator.localcloud.hypervisors.process import Process

LOG = "console.log"
OLDER = "console.log.1"
LIMIT = 512 * 1024

# Run by `python -I -S -c`: it is told the log's path and its limit, and copies standard input. The parent ends at once,
# so that nobody has to wait for the child, whose pid it says. No room on the disk loses console output, nothing else.
_KEEPER = """
import os, sys
child = os.fork()
if child:
    os.write(1, b"%d" % child)
    os._exit(0)
os.dup2(2, 1)
os.setsid()
os.chdir("/")
path, limit = sys.argv[1], int(sys.argv[2])
os.umask(0o077)
def fresh():
    try:
        os.replace(path, path + ".1")
    except OSError:
        pass
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
log, size = fresh(), 0
while True:
    data = os.read(0, 65536)
    if not data:
        break
    if size + len(data) > limit:
        if log is not None:
            os.close(log)
        log, size = fresh(), 0
    try:
        size += len(data) if log is None else os.write(log, data)
    except OSError:
        pass
"""


def start_keeper(directory: Path, limit: int = LIMIT) -> tuple[int, Process | None]:
    """Start the log's keeper. Returns the descriptor that the console is to be written to, and the keeper, which ends
    when the last copy of that descriptor is closed. What was in the log (an earlier power cycle) becomes the older
    part. Raises HypervisorError."""
    reading, writing = os.pipe()
    try:
        return writing, keep_from(directory, reading, limit)
    except HypervisorError:
        os.close(writing)
        raise
    finally:
        os.close(reading)


def keep_from(directory: Path, reading: int, limit: int = LIMIT) -> Process | None:
    """Start the keeper of a log that is being written already. Raises HypervisorError."""
    try:
        started = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _KEEPER, str(directory.absolute() / LOG), str(limit)],
            stdin=reading,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise HypervisorError(f"the console log's keeper did not start: {error}") from error
    return Process.of(int(started.stdout))


def read_console(directory: Path, limit: int = LIMIT) -> str:
    """The last `limit` bytes of what the machine printed, as text; empty when it printed nothing."""
    parts = [(directory / name).read_bytes() for name in (OLDER, LOG) if (directory / name).is_file()]
    return b"".join(parts)[-limit:].decode("utf-8", "replace")
