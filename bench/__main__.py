"""`make bench`: measurements, each beside its floor or its peers. One of them: `python -m bench queue --help`."""

from __future__ import annotations

import signal
import sys

from bench import aims, overhead, parse, trace, transfers
from bench.queue import run as queue
from bench.scale import run as scale

MEASUREMENTS = {
    "aims": aims.main,
    "main_job": overhead.main,
    "parse": parse.main,
    "queue": queue.main,
    "scale": scale.main,
    "trace": trace.main,
    "transfers": transfers.main,
}
ALL = ("aims", "main_job", "parse", "queue", "scale", "trace")  # transfers are among the aims


def main() -> None:
    """All of them, in their smaller form where there are two, or the one that is named, with its options."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that no server is left behind
    match sys.argv[1:]:
        case []:
            for name in ALL:
                print(f"== {name}\n", flush=True)
                MEASUREMENTS[name]([])
                print(flush=True)
        case [name, *options] if name in MEASUREMENTS:
            MEASUREMENTS[name](options)
        case _:
            sys.exit(f"usage: python -m bench [{' | '.join(MEASUREMENTS)}] [--help]")


if __name__ == "__main__":
    main()
