"""One runner as `mayfly runner` is, but with a rate of its own for OpenNebula.

`python -m bench.scale.one_runner LIMIT RATE`. RATE: requests per second, `inf` for no limit, `default` for what every
runner has. The rest is in the environment.
"""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import sys

from orchestrator import bootstrap, log
from orchestrator.opennebula import Cloud, read_session
from orchestrator.runner.loop import serve
from orchestrator.settings import Settings


async def run(limit: int, rate: str) -> None:
    """Serve until SIGTERM."""
    settings = Settings.from_environment()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with bootstrap.open_house(settings) as house, bootstrap.open_tools(house) as tools:
        if rate == "default":
            await serve(tools, stop, limit=limit)
            return
        session = read_session(settings.one_auth)
        async with Cloud(settings.one_xmlrpc, session, requests_per_second=float(rate)) as cloud:
            await serve(dataclasses.replace(tools, cloud=cloud), stop, limit=limit)


if __name__ == "__main__":
    log.configure()
    asyncio.run(run(int(sys.argv[1]), sys.argv[2]))
