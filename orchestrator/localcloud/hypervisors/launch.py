"""Starting a QEMU that is nobody's child."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from orchestrator.localcloud.hypervisors import HypervisorError
from orchestrator.localcloud.hypervisors.process import Process
from orchestrator.localcloud.hypervisors.qemu_argv import BINARY
from orchestrator.localcloud.hypervisors.qmp import Qmp

_SECONDS = 60.0
_WORDS = 8192
# QEMU's own -daemonize does not go together with a sandbox that denies it new sessions and processes. So a shell starts
# it in the background, says its pid and ends; the machine's parent is then the host's init.
_IN_BACKGROUND = '"$@" >/dev/null & echo $!'
# Before the command line of a machine that nobody waits for: it gets what others leave of the processors.
BEHIND_OTHERS = ("nice", "-n", "15")


def start_detached(argv: list[str], inherited: tuple[int, ...]) -> tuple[Process | None, int]:
    """Start `argv` in a session of its own, with the descriptors `inherited`. Returns the process (None when it has
    ended already), and the descriptor that its standard error can be read from, to be closed by the caller."""
    reading, writing = os.pipe()
    try:
        shell = subprocess.run(
            ["/bin/sh", "-c", _IN_BACKGROUND, "sh", *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=writing,
            pass_fds=inherited,
            start_new_session=True,
            umask=0o077,
            cwd="/",
            check=True,
            timeout=_SECONDS,
        )
    except (OSError, subprocess.SubprocessError) as error:
        os.close(reading)
        raise HypervisorError(f"{argv[0]} was not started: {error}") from error
    finally:
        os.close(writing)
    return Process.of(int(shell.stdout)), reading


def wait_ready(directory: Path, qemu: Process | None, errors: int) -> Process:
    """Return when QEMU has set everything up, which it shows by answering on its control socket. Raises HypervisorError
    with QEMU's own words when it ends instead; a QEMU that does neither is killed."""
    try:
        with Qmp(directory, seconds=_SECONDS):
            pass
    except HypervisorError as silent:
        ended = qemu is None or qemu.wait(1.0)
        if qemu is not None:
            qemu.kill()
        words = plain_words(os.read(errors, _WORDS))
        raise HypervisorError(words or ("QEMU ended without a word" if ended else str(silent))) from None
    if qemu is None or not qemu.alive():
        raise HypervisorError("QEMU ended as soon as it had started")
    return qemu


def plain_words(errors: bytes) -> str:
    """QEMU's complaint on one line, without its own name before each sentence."""
    lines = (line.strip().removeprefix(f"{BINARY}: ") for line in errors.decode("utf-8", "replace").splitlines())
    return " / ".join(line for line in lines if line)
