"""The floor of a warm start: one more command on a connection that plain OpenSSH holds open (ControlMaster)."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.start.bare import Bare


@contextmanager
def held(machine: Bare) -> Iterator[tuple[str, ...]]:
    """The words in front of a command, with a connection open inside the block."""
    machine.first_answer("true")
    with TemporaryDirectory(prefix="mayfly-held-") as folder:
        words = (*machine.ssh[:-1], "-o", f"ControlPath={Path(folder) / 'way'}", machine.ssh[-1])
        master = subprocess.Popen([*words[:-1], "-M", "-N", words[-1]], stdin=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 60
            while subprocess.run([*words[:-1], "-O", "check", words[-1]], capture_output=True).returncode:
                if time.monotonic() > deadline or master.poll() is not None:
                    raise TimeoutError("the connection was not held")
                time.sleep(0.05)
            yield words
        finally:
            master.terminate()
            master.wait()


def first_byte(words: tuple[str, ...], command: str) -> float:
    """Seconds from the start of `ssh` to the first byte that the command writes."""
    began = time.monotonic()
    with subprocess.Popen([*words, command], stdout=subprocess.PIPE) as process:
        if process.stdout is None or not process.stdout.read(1):
            raise RuntimeError("the command wrote nothing")
        return time.monotonic() - began
