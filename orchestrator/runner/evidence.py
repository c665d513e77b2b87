"""The receipt of an attempt, once it is over: the best that can be done at once. The rest is upkeep's."""

from __future__ import annotations

import logging

from orchestrator.receipts import issue
from orchestrator.runner.tools import Tools
from orchestrator.store import Lease
from orchestrator.trouble import TROUBLE

_log = logging.getLogger(__name__)


async def prove(tools: Tools, lease: Lease) -> None:
    """Sign the receipt, if the attempt is over and its machine is gone. What goes wrong is logged, and changes nothing
    else."""
    if tools.keys is None:
        return
    try:
        await issue(tools.store, tools.artifacts, tools.keys, lease.task_id, lease.attempt)
    except (*TROUBLE, ValueError) as trouble:
        _log.warning("there is no receipt yet, and upkeep will sign it: %s", trouble)
