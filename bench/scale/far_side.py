"""The local cloud as a process that counts the calls it gets: `python -m bench.scale.far_side HOME KNOBS`.

`mayfly.calls(session)` gives them as JSON, by method, since it started.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
import xmlrpc.client
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.localcloud import daemon, server
from orchestrator.localcloud.calls import Call, Caller
from orchestrator.localcloud.cloud import Cloud
from orchestrator.localcloud.knobs import CloudSettings

START_SECONDS = 30.0
ASKING = "mayfly.calls"


def main() -> None:
    """Serve until SIGTERM."""
    counted: Counter[str] = Counter()

    def counting(call: Call) -> Call:
        def count_and_do(*arguments: Any) -> Any:
            counted[call.name] += 1  # the cloud makes one call at a time, under its lock
            return call.function(*arguments)

        return dataclasses.replace(call, function=count_and_do)

    def calls(_cloud: Cloud, _caller: Caller) -> str:
        return json.dumps(counted)

    server.CALLS.update({name: counting(call) for name, call in server.CALLS.items()})
    server.CALLS[ASKING] = Call(ASKING, "", calls)
    daemon.serve(Path(sys.argv[1]), "simulated", CloudSettings.from_json(sys.argv[2]))


@dataclasses.dataclass(frozen=True)
class FarSide:
    """The cloud as seen from here. `home` is its own."""

    home: Path
    url: str
    auth: Path
    pid: int

    @property
    def session(self) -> str:
        return self.auth.read_text().strip()

    def calls(self) -> Counter[str]:
        """How often each method was called so far."""
        reply: Any = xmlrpc.client.ServerProxy(self.url).mayfly.calls(self.session)
        return Counter(json.loads(reply[1]))


@contextmanager
def running_far_side(home: Path, knobs: CloudSettings) -> Iterator[FarSide]:
    """The cloud, for the block; its machines end with it. Its log is `HOME/cloud.log`."""
    home.mkdir(parents=True)
    with (home / "cloud.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.scale.far_side", str(home), knobs.to_json()], stdout=log, stderr=log
        )
    try:
        yield _answering(home, process)
    finally:
        process.terminate()
        process.wait()
        daemon.end_machines(home)


def _answering(home: Path, process: subprocess.Popen[bytes]) -> FarSide:
    give_up = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up and process.poll() is None:
        found = daemon.status(home)
        if found is not None and found.pid == process.pid:
            far = FarSide(home, found.url, found.auth_path, found.pid)
            try:
                far.calls()
            except OSError:
                pass
            else:
                return far
        time.sleep(0.05)
    raise RuntimeError(f"the local cloud did not start: {(home / 'cloud.log').read_text()[-2000:]}")


if __name__ == "__main__":
    main()
