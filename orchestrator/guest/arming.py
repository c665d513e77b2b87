"""What a machine answers when it is to be armed, or told to start."""

from __future__ import annotations

from orchestrator.guest.errors import AlreadyStarted, LaunchFailed, StepFailed, VmRestarted, printable


def require_answer(answer: bytes, wanted: bytes, where: str) -> None:
    """Raise AlreadyStarted, VmRestarted, LaunchFailed, or StepFailed, unless the VM at `where` gave the wanted one."""
    word, _, why = answer.decode(errors="replace").partition(" ")
    match word:
        case _ if answer == wanted:
            pass
        case "refused" | "used":
            raise AlreadyStarted(f"the VM at {where} has had its process, and gets no second one")
        case "gone":
            raise VmRestarted(f"the VM at {where} has restarted since it was made ready for its process")
        case "failed":
            raise LaunchFailed(f"the guest would not start the process: {printable(why, 1000)}")
        case _:
            raise StepFailed(f"the guest answered '{printable(word)}' instead of {wanted.decode()}")
