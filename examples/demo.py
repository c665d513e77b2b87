"""The main job, shown: `make demo`. Builds what is missing, runs one task on real data, and proves what it claims.

Everything goes through the `mayfly` command, as a person would type it. Ends with a non-zero status when a proof fails.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAYFLY = str(Path(sys.executable).with_name("mayfly"))
HOME = Path(os.environ.get("MAYFLY_HOME") or "~/.local/share/mayfly").expanduser().absolute()

REACH = """
import socket
for target in ("127.0.0.1", "10.0.2.2", "10.0.2.3", "169.254.169.254", "9.9.9.9"):
    try:
        socket.create_connection((target, 53), timeout=2).close()
        print(target, "REACHED")
    except OSError as error:
        print(target, "not reached:", error.strerror or error)
"""


def title(text):
    print(f"\n\033[1m── {text}\033[0m" if sys.stdout.isatty() else f"\n── {text}", flush=True)


def mayfly(*words, capture=False):
    print("$ mayfly " + " ".join(word if len(word) < 60 else "…" for word in words), flush=True)
    done = subprocess.run([MAYFLY, *words], cwd=ROOT, stdout=subprocess.PIPE if capture else None, text=True)
    if done.returncode:
        sys.exit(f"mayfly {words[0]} ended with {done.returncode}")
    return done.stdout


def machines_of(home):
    """The QEMU processes that run for this home, from the process table."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            if b"qemu-system" in line and os.fsencode(home) in line:
                found.append(int(entry.name))
    return found


def main():
    title("The base image (built once, then reused)")
    mayfly("image", "build", "debian-12", "--if-missing")
    title("The local cloud")
    mayfly("cloud", "start")
    try:
        with tempfile.TemporaryDirectory(prefix="mayfly-demo-") as scratch:
            results = Path(scratch) / "results"
            title("344 penguins, one fresh machine")
            mayfly(
                *("run", "--name", "penguins", "-i", "examples/penguins", "-o", "*.csv", "-o", "*.svg"),
                *("-d", str(results), "--", "python3", "/task/in/penguins/analyse.py"),
                "/task/in/penguins/data/penguins.csv",
            )
            for path in sorted(results.rglob("*.csv")):
                print(f"\n{path.relative_to(results)}\n{path.read_text().rstrip()}")
        title("Its report")
        task = json.loads(mayfly("list", "--json", capture=True))[0]["id"]
        mayfly("show", task)
        title("The seal: another task tries to get out")
        mayfly("run", "--name", "reach", "--", "python3", "-c", REACH)
        reach = json.loads(mayfly("list", "--json", capture=True))[0]["id"]
        title("What its trace says of that")
        attempts = json.loads(mayfly("trace", reach, "--json", capture=True))["network"]["listed"]
        for attempt in attempts:
            print(f"{attempt['call']} {attempt['address']} port {attempt['port']}: {attempt['outcome']}")
        title("Proof")
        report = json.loads(mayfly("show", task, "--json", capture=True))
        vm = report["attempts"][-1]["vm"]
        print(f"machine {vm['cloud_id']}: {vm['state']} at {vm['destroyed_at']}: {vm['proof']}")
        machines = json.loads(mayfly("vm", "list", "--json", capture=True))
        left = machines_of(HOME)
        print(f"machines that Mayfly knows: {len(machines)}; QEMU processes of this home: {len(left)}")
        wanted = {"127.0.0.1", "10.0.2.2", "10.0.2.3", "169.254.169.254", "9.9.9.9"}
        tried = {attempt["address"] for attempt in attempts}
        reached = [
            attempt
            for attempt in attempts
            if attempt["outcome"] in ("ok", "EINPROGRESS") and not attempt["address"].startswith("127.")
        ]
        if vm["state"] != "DESTROYED" or machines or left or reached or not wanted <= tried:
            sys.exit("the proof failed")
        print("sealed: every attempt to reach out failed, and the trace has them all")
    finally:
        title("Stop the local cloud")
        mayfly("cloud", "stop")


if __name__ == "__main__":
    main()
