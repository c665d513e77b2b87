"""A bare machine, over the connection that Mayfly's own guest has."""

from __future__ import annotations

from pathlib import Path

from bench.start.bare import ADDRESS, FIRST_PORT, Bare
from orchestrator.guest import Guest, connect


async def reach(machine: Bare) -> Guest:
    """By the keys that its plain ssh has. Raises Unreachable."""
    words = list(machine.ssh)
    known = next(word for word in words if word.startswith("UserKnownHostsFile=")).partition("=")[2]
    return await connect(
        ADDRESS,
        FIRST_PORT,
        host_key=Path(known).read_text().split(" ", 1)[1],  # noqa: ASYNC240 - a line
        client_key=Path(words[words.index("-i") + 1]).read_text(),  # noqa: ASYNC240
        deadline=300,
    )
