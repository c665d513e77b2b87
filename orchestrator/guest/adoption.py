"""What a machine says of a launch that somebody else may have started in it."""

from __future__ import annotations

from enum import Enum

from orchestrator.guest.errors import AlreadyStarted, StepFailed, printable
from orchestrator.guest.launch import Launch
from orchestrator.guest.wire import Reply, request


class Started(Enum):
    """Whether a launch was started in a VM. Only of NEVER it is right to start it there."""

    NEVER = "never"
    RUNNING = "running"
    ENDED = "ended"
    GONE = "gone"
    """It was, and the VM has restarted since: how far it came, nobody knows."""


def look_request(launch: Launch) -> str:
    """The text of the request."""
    return request("look", launch.token, body="look.sh")


def read_look(reply: Reply, where: str) -> Started:
    """Raises AlreadyStarted when the VM, at `where`, has had another launch's process; StepFailed when it says nothing
    of the kind."""
    word = reply.stdout.decode(errors="replace").strip()
    if reply.status == 0 and word == "other":
        raise AlreadyStarted(f"the VM at {where} has had the process of another launch")
    try:
        if reply.status == 0:
            return Started(word)
    except ValueError:
        pass
    raise StepFailed(
        f"the guest answered '{printable(word)}' (status {reply.status}) when asked what it runs: {reply.stderr}"
    )
