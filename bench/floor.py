"""The floor of the main job: a bare QEMU on the same image, and OpenSSH's `ssh`."""

from __future__ import annotations

import time
from dataclasses import dataclass

from bench.main_job import JOB, Place
from bench.start.bare import bare


@dataclass(frozen=True)
class Floor:
    """Seconds: from the start of QEMU to the end of the job, which is the first SSH command that works; and from there
    to no QEMU."""

    start_to_output: float
    exit_to_gone: float


def floor_round(place: Place) -> Floor:
    """Boot, `ssh` until it answers, run the job on it, kill."""
    with bare(place) as machine:
        done = machine.first_answer(JOB)
    return Floor(done - machine.began, time.monotonic() - done)
