"""What can go wrong, drawn as a tree. A job's exit is never here: it is a value, see `outcome`.

MayflyError                      anything that we raise on purpose
 ├─ UserError                    somebody can put it right: names the field and the remedy
 │   ├─ InvalidTask              the submission is wrong
 │   ├─ InvalidPool              an inventory entry is wrong
 │   ├─ NotFound                 no such task, pool, image or version
 │   └─ NotPossible              right in itself, but not now or not here (home in use, results folder not empty)
 └─ PlatformError                the platform failed; carries a Reason, so that a task can be judged by it
     ├─ CloudError               OpenNebula refused, failed or did not answer
     │   ├─ CloudUnreachable     no answer at all
     │   ├─ CloudDenied          authentication or authorization (restricted attributes included)
     │   │   ├─ QuotaExceeded    a quota of the account or its group is used up
     │   │   └─ CloudLocked      somebody locked the object
     │   ├─ CloudMissing         no such object
     │   ├─ CloudWrongState      not in this state, which is often "not yet"
     │   ├─ ProvisionFailed      the VM will not come up
     │   └─ NotDestroyed         the VM is still there; it must not be forgotten
     ├─ GuestError               the machine over SSH
     │   ├─ Unreachable          no SSH before the deadline; keeps the console log
     │   ├─ WrongHostKey         somebody answered with a key that we did not make
     │   ├─ ConnectionLost       the connection dropped and did not come back
     │   ├─ SealBroken           the machine could reach something
     │   └─ StagingFailed        inputs did not go in, or outputs did not come out, whole
     │       └─ Unstageable      nor ever will: too many, too large, or with impossible names
     ├─ DatabaseUnavailable      the database is down, restarting, full of connections or busy
     ├─ LayerFailed              a task's packages are not installed, or for an image version that is gone
     ├─ HostDiskFull             no space left on this machine
     └─ RunnerLost               the runner's lease expired
"""

from __future__ import annotations

from orchestrator.domain.outcome import Reason


class MayflyError(Exception):
    """Anything that we raise on purpose."""


class UserError(MayflyError):
    """Somebody can put it right.

    `field` names what is wrong (an option, a key of a pool, a path), `problem` says how, `remedy` says what to do.
    """

    def __init__(self, field: str, problem: str, remedy: str = "") -> None:
        self.field = field
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{field}: {problem}" + (f" ({remedy})" if remedy else ""))


class InvalidTask(UserError):
    """The submission is wrong."""


class InvalidPool(UserError):
    """An inventory entry is wrong."""


class NotFound(UserError):
    """No such task, pool, image or version."""


class NotPossible(UserError):
    """Right in itself, but not now or not here."""


class PlatformError(MayflyError):
    """The platform failed. `reason` goes into the task's verdict; `evidence` (a console log, say) is kept beside it.
    `final`: another try would fail alike, for it is the process that made it so."""

    reason: Reason = Reason.INTERNAL
    final: bool = False

    def __init__(self, message: str, *, evidence: str = "") -> None:
        self.evidence = evidence
        super().__init__(message)


class CloudError(PlatformError):
    """OpenNebula refused, failed or did not answer. `code` is its error code, 0 when there was no reply."""

    reason = Reason.PROVISION_FAILED

    def __init__(self, message: str, *, code: int = 0, evidence: str = "") -> None:
        self.code = code
        super().__init__(message, evidence=evidence)


class CloudUnreachable(CloudError):
    """OpenNebula did not answer."""


class CloudDenied(CloudError):
    """OpenNebula refused: authentication or authorization (a restricted attribute comes so too)."""


class QuotaExceeded(CloudDenied):
    """A quota of the account or of its group is used up."""

    reason = Reason.QUOTA


class CloudLocked(CloudDenied):
    """Somebody locked the object."""


class CloudMissing(CloudError):
    """OpenNebula has no such object."""


class CloudWrongState(CloudError):
    """OpenNebula will not do that in this state, which is often "not yet"."""


class ProvisionFailed(CloudError):
    """The VM will not come up."""


class NotDestroyed(CloudError):
    """The VM is still there after `within` seconds: never forget it. `state`: the last that was seen."""

    def __init__(self, vm_id: int, state: str, within: float, refused: str = "") -> None:
        self.vm_id = vm_id
        self.state = state
        last = f"; OpenNebula's last word: {refused}" if refused else ""
        super().__init__(
            f"VM {vm_id} is not DONE after {within:g} s, it is {state}{last} "
            f"(if it stays so, only an administrator can end it: onevm recover --delete {vm_id})"
        )


class GuestError(PlatformError):
    """The machine over SSH failed us: it did not do what a machine of ours does, or said what none would say."""

    reason = Reason.GUEST_FAILED


class Unreachable(GuestError):
    """The VM never answered over SSH."""

    reason = Reason.UNREACHABLE


class WrongHostKey(GuestError):
    """A host answered with a key that we did not make."""

    reason = Reason.WRONG_HOST_KEY


class ConnectionLost(GuestError):
    """The connection to the VM dropped and did not come back."""

    reason = Reason.CONNECTION_LOST


class SealBroken(GuestError):
    """The VM could reach something."""

    reason = Reason.SEAL_BROKEN


class StagingFailed(GuestError):
    """Inputs did not go in whole, or outputs did not come out whole."""

    reason = Reason.STAGING_FAILED


class Unstageable(StagingFailed):
    """Inputs or outputs cannot be copied, however often it is tried: too many, too large, or with impossible names."""

    final = True


class DatabaseUnavailable(PlatformError):
    """The database does not answer, or was kept busy for too long: ask again later."""


class LayerFailed(PlatformError):
    """What was installed for a task is not there, or for an image version that is gone."""

    reason = Reason.LAYER_FAILED
    final = True


class HostDiskFull(PlatformError):
    """No space is left on this machine's disk."""

    reason = Reason.HOST_DISK_FULL


class RunnerLost(PlatformError):
    """The runner's lease expired."""

    reason = Reason.RUNNER_LOST
