"""Every fault that can be asked for as a document, and who plays it."""

from __future__ import annotations

from typing import Any

from orchestrator.localcloud import reach
from orchestrator.localcloud.cloud import Cloud
from orchestrator.localcloud.faults import Faults
from orchestrator.localcloud.hypervisors import machine_faults

KINDS = frozenset({*Faults.KINDS, *Faults.STATES, *machine_faults.KINDS, "unreachable_host"})


def inject(cloud: Cloud, order: Any) -> None:
    """Of the wire, of actions and the scheduler (`Faults`), of a host (`reach`) or of a machine (`machine_faults`).

    Raises ValueError for what is none, and for a machine's fault when the hypervisor plays none."""
    match order:
        case {"kind": "unreachable_host", "host": int(host)}:
            reach.cut(cloud, host, bool(order.get("unreachable", True)))
        case {"kind": str(kind)} if kind in machine_faults.KINDS:
            if (play := getattr(cloud.hypervisor, "inject", None)) is None:
                raise ValueError(f"hypervisor {cloud.hypervisor.name} plays no faults")
            play(order)
        case dict():
            cloud.faults.inject(order)
        case _:
            raise ValueError(f"not a fault: {order}")
