"""The floor of a machine that is restored: QEMU alone, from the state that the local cloud saved, and plain `ssh`."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.main_job import Place
from bench.start.bare import Bare, bare, prepared
from orchestrator.localcloud.hypervisors.bare_clone import BareClone, bare_clone

STATE_SECONDS = 180.0
LISTEN_SECONDS = 10.0


def cloned(place: Place) -> bool:
    """Whether the cloud restores machines of this size. It saves a state some time after the first of them was asked
    for, or the image promoted; that is waited for."""
    deadline = time.monotonic() + STATE_SECONDS
    while time.monotonic() < deadline:
        with prepared(place, 0) as (spec, _):
            if bare_clone(place.cloud_home, spec) is not None:
                return True
        time.sleep(1)
    return False


@contextmanager
def fastest(place: Place, number: int = 0) -> Iterator[Bare]:
    """A clone, killed at the end; where there is no state, a cold machine."""
    with prepared(place, number) as (spec, ssh):
        began = time.monotonic()
        found = bare_clone(place.cloud_home, spec)
        if found is not None:
            with _restored(found) as qemu:
                if qemu.poll() is not None:
                    raise RuntimeError(f"QEMU ended at once, with {qemu.returncode}")
                yield Bare(began, ssh)
            return
    with bare(place, number) as cold:
        yield cold


@contextmanager
def _restored(found: BareClone) -> Iterator[subprocess.Popen[bytes]]:
    with (Path(found.directory) / "qemu.err").open("wb") as said:
        qemu = subprocess.Popen(found.argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    try:
        deadline = time.monotonic() + LISTEN_SECONDS
        while True:
            try:
                found.restore()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
        yield qemu
    finally:
        qemu.kill()
        qemu.wait()
