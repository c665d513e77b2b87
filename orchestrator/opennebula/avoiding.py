"""Hosts to avoid where OpenNebula's scheduler places VMs: a requirement of the VM's own, taken back when it only keeps
the VM waiting.

An ordinary user may set SCHED_REQUIREMENTS (unless oned.conf restricts it), and sees no hosts: whether another one has
room is not known. So what is a wish to us is given to the scheduler as a rule, for as long as a scheduler with default
settings needs to find a host; then it is lifted, and any host will do. It lives in the USER_TEMPLATE, where
`one.vm.update` changes it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable

from orchestrator.domain.errors import CloudError
from orchestrator.opennebula.client import Client
from orchestrator.opennebula.render import quote

log = logging.getLogger(__name__)

LIFTED_AFTER_SECONDS = 25.0
"""A default scheduler places within 15 s (measured on 7.2.0)."""
_MERGE = 1
_REMEMBERED = 1000


def requirements(present: str, avoid: Iterable[str]) -> str:
    """The expression `present`, which may be empty, and none of these hosts.

    >>> print(requirements("", ["alpha", "beta"]))
    NAME != "alpha" & NAME != "beta"
    >>> print(requirements('CLUSTER_ID = 100 | HYPERVISOR = "kvm"', ["alpha"]))
    (CLUSTER_ID = 100 | HYPERVISOR = "kvm") & NAME != "alpha"
    """
    others = [f'NAME != "{name}"' for name in sorted(avoid) if '"' not in name and "\\" not in name]
    return " & ".join([f"({present})", *others] if present and others else others or [present])


class Avoiding:
    """The requirements of VMs that the scheduler places, and what to put back for each."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._allowed = True
        self._lift: dict[int, str] = {}

    async def present(self, template_id: int) -> str:
        """What the VM template requires itself, which what a VM is made with replaces."""
        found = (await self._client.ask("template.info", template_id)).TEMPLATE or {}
        text = found.get("SCHED_REQUIREMENTS") or ""
        return text if isinstance(text, str) else ""

    def wanted(self, avoid: Collection[str]) -> bool:
        """Whether there is something to require."""
        return self._allowed and bool(avoid)

    def refused(self) -> None:
        """OpenNebula lets this account require nothing: it is not tried again."""
        self._allowed = False
        log.info("this account may not set SCHED_REQUIREMENTS: hosts on which VMs failed are not avoided")

    def made(self, vm_id: int, present: str) -> None:
        """A VM was made with a requirement."""
        if len(self._lift) >= _REMEMBERED:
            del self._lift[next(iter(self._lift))]
        self._lift[vm_id] = present

    async def lift(self, vm_id: int) -> None:
        """Let any host do for a VM that waits for too long already; nothing for one that has no such requirement."""
        present = self._lift.pop(vm_id, None)
        if present is None:
            return
        log.info("VM %d waits, perhaps for want of a host that is not to be avoided: any will do now", vm_id)
        try:
            await self._client.ask("vm.update", vm_id, f"SCHED_REQUIREMENTS={quote(present)}", _MERGE)
        except CloudError as error:
            log.warning("what VM %d requires of a host cannot be lifted: %s", vm_id, error)
