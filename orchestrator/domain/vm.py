"""A virtual machine: made for one attempt, used by at most one, then destroyed."""

from __future__ import annotations

from enum import StrEnum


class VmState(StrEnum):
    """IN_USE never goes back to READY: that is the product's promise."""

    REQUESTED = "REQUESTED"
    BOOTING = "BOOTING"
    READY = "READY"
    IN_USE = "IN_USE"
    DESTROYING = "DESTROYING"
    DESTROYED = "DESTROYED"


LEGAL_MOVES: dict[VmState, frozenset[VmState]] = {
    VmState.REQUESTED: frozenset({VmState.BOOTING, VmState.DESTROYING, VmState.DESTROYED}),
    VmState.BOOTING: frozenset({VmState.READY, VmState.DESTROYING}),
    VmState.READY: frozenset({VmState.IN_USE, VmState.DESTROYING}),
    VmState.IN_USE: frozenset({VmState.DESTROYING}),
    VmState.DESTROYING: frozenset({VmState.DESTROYED}),
    VmState.DESTROYED: frozenset(),
}
"""REQUESTED goes straight to DESTROYED only when OpenNebula never made the VM."""
