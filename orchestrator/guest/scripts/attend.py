"""The attendant: sends what a process writes, as it is written; then how it ended; then its outputs, when asked.

Words: token of the launch, the offsets in stdout, stderr and trace from which to send, bytes of each stream to send.
Writes frames: one byte of kind, four of length (big-endian), the payload.

    o e t   bytes of stdout, stderr, trace
    x       the exit record, lines of key=value; everything written has been sent before it
    n       there is no such process, and why

After x or n it reads requests for outputs, see `stage_out`. When its input ends, it ends.
"""

from __future__ import annotations

import os
import sys

from orchestrator.guest.scripts.follow import follow
from orchestrator.guest.scripts.stage_out import serve

if __name__ == "__main__":
    follow(sys.argv[2], [int(word) for word in sys.argv[3:6]], int(sys.argv[6]))
    serve(os.fdopen(0, "rb"))
