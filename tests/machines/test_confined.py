"""What a hostile process of a real machine tries against its unit: each is refused, and the record is right."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from orchestrator.domain.outcome import DiskFull, Exited
from orchestrator.domain.pool import SEALED
from orchestrator.domain.seal import Seal
from orchestrator.domain.task import TraceProfile
from orchestrator.guest import TRACE_PATH, Arming, require, require_sealed
from orchestrator.provisioning.seals import seal_from
from orchestrator.trace.command import traced
from tests.guest_ends import Sinks
from tests.machines.real_guests import MIB, Boot, as_root, launch, reached

STRICT, OPEN = seal_from("sealed-strict"), seal_from("open")

# Each name with what came of it: "done", or the error.
ATTACKS = r"""
import ctypes, errno, fcntl, json, os, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
found = {}
def attempt(name, what):
    try:
        found[name] = what() or "done"
    except OSError as error:
        found[name] = errno.errorcode.get(error.errno, str(error))
def call(number, *words):
    if libc.syscall(ctypes.c_long(number), *words) < 0:
        raise OSError(ctypes.get_errno(), "")
L = ctypes.c_long
attempt("mount", lambda: call(165, b"none", b"/task/tmp", b"tmpfs", L(0), None))
attempt("fsopen", lambda: call(430, b"tmpfs", L(0)))
attempt("umount", lambda: call(166, b"/task/in", L(0)))
attempt("unshare user", lambda: call(272, L(0x10000000)))
attempt("clone user", lambda: call(56, L(0x10000000 | 17), None, None, None, None))
attempt("setns", lambda: call(308, L(os.open("/proc/self/ns/net", os.O_RDONLY)), L(0)))
attempt("bpf", lambda: call(321, L(0), None, L(0)))
attempt("keyctl", lambda: call(250, L(0), L(-3), L(0)))
attempt("init_module", lambda: call(175, b"x", L(1), b""))
attempt("perf", lambda: call(298, b"\0" * 128, L(0), L(-1), L(-1), L(0)))
attempt("io_uring", lambda: call(425, L(4), b"\0" * 120))
attempt("userfaultfd", lambda: call(323, L(1)))
attempt("chroot", lambda: os.chroot("/task/tmp"))
attempt("setuid", lambda: os.setuid(0))
attempt("settime", lambda: call(227, L(0), struct.pack("qq", 0, 0)))
attempt("raw socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close())
attempt("packet socket", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close())
attempt("vsock", lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close())
attempt("alg socket", lambda: socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET).close())
attempt("sctp socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132).close())
def lo():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
attempt("loopback", lo)
def up():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, 0x8914, struct.pack("16sH14x", b"lo", 1))
attempt("raise loopback", up)
attempt("outside", lambda: socket.create_connection(("10.0.2.2", 22), 5).close())
attempt("ptrace init", lambda: call(101, L(16), L(1), None, None))
attempt("ptrace tracer", lambda: call(101, L(16), L(os.getppid()), None, None))
attempt("kill init", lambda: os.kill(1, 9))
attempt("others", lambda: " ".join(each for each in os.listdir("/proc") if each.isdigit() and
        os.stat("/proc/" + each).st_uid != os.getuid()))
attempt("environ of init", lambda: open("/proc/1/environ").close())
attempt("shadow", lambda: open("/etc/shadow").close())
attempt("memory", lambda: open("/dev/mem").close())
attempt("disk", lambda: open("/dev/vda").close())
attempt("kernel log", lambda: open("/dev/kmsg").close())
attempt("sysctl", lambda: open("/proc/sys/kernel/core_pattern", "w").close())
attempt("cgroup", lambda: open("/sys/fs/cgroup/system.slice/mayfly-task.service/pids.max", "w").close())
for folder in ("/task/out", "/task/tmp", "/tmp", "/var/tmp", "/dev/shm"):
    path = folder + "/program"
    with open(path, "w") as file:
        file.write("#!/bin/sh\n")
    os.chmod(path, 0o755)
    attempt("exec in " + folder, lambda: os.spawnv(os.P_WAIT, path, [path]) and "refused")
for path in ("/usr/x", "/etc/x", "/x", "/task/in/x", "/task/x", "/run/x", "/root/x", "/task/layer/x"):
    attempt("write " + path, lambda: open(path, "w").close())
status = dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
found["status"] = {key: status[key] for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs")}
files = []
try:
    while True:
        files.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    found["open files"] = [len(files), errno.errorcode[error.errno]]
for each in files:
    os.close(each)
print(json.dumps(found))
"""

REFUSED = {
    **dict.fromkeys(("mount", "fsopen", "umount", "unshare user", "clone user", "setns", "bpf", "keyctl"), "EPERM"),
    **dict.fromkeys(("init_module", "perf", "io_uring", "userfaultfd", "chroot", "setuid", "settime"), "EPERM"),
    **dict.fromkeys(("raw socket", "packet socket", "raise loopback"), "EPERM"),
    **dict.fromkeys(("ptrace init", "ptrace tracer", "kill init", "kernel log"), "EPERM"),
    **dict.fromkeys(("vsock", "alg socket"), "EAFNOSUPPORT"),
    **dict.fromkeys((f"write {each}" for each in ("/usr/x", "/etc/x", "/x", "/task/in/x", "/task/x")), "EROFS"),
    **dict.fromkeys(("shadow", "memory", "disk", "sysctl", "cgroup", "write /run/x", "write /root/x"), "EACCES"),
    "write /task/layer/x": "EROFS",
    "sctp socket": "EPROTONOSUPPORT",
    "outside": "ENETUNREACH",
    "others": "done",
    "environ of init": "ENOENT",
}
"""Whatever the closed profile. `others`: no process of others is seen."""

FOLDERS = ("/task/out", "/task/tmp", "/tmp", "/var/tmp", "/dev/shm")
CAPABILITIES = {**dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapAmb"), "0" * 16), "NoNewPrivs": "1"}
BOUNDING = f"{1 << 2 | 1 << 6 | 1 << 7 | 1 << 19:016x}"
"""CAP_DAC_READ_SEARCH, CAP_SETGID, CAP_SETUID, CAP_SYS_PTRACE: linux/capability.h."""


async def tried(boot: Boot, seal: Seal, profile: TraceProfile) -> tuple[dict[str, Any], str, list[str]]:
    """What came of each attack; the trace; what was tried from inside of the unit before."""
    wanted = launch("python3", "-c", ATTACKS, seal=seal, open_files=200, trace=traced(profile, output=TRACE_PATH))
    sinks = Sinks()
    async with reached(boot("sealed")) as guest:
        facts, probes = await guest.make_ready(Arming.of(wanted))
        require(facts)
        require_sealed(probes)
        assert facts.quotas
        await guest.start(wanted)
        outcome, usage = await guest.follow(*sinks)
    assert outcome == Exited(0), sinks.stderr.data
    assert usage.read_bytes is not None
    within = [probe.target for probe in probes if probe.target.startswith("unit: ")]
    return json.loads(sinks.stdout.data), text_of(sinks.trace.data), within


def text_of(trace: bytes) -> str:
    return (gzip.decompress(trace) if trace.startswith(b"\x1f\x8b") else trace).decode(errors="replace")


@pytest.mark.parametrize(
    ("seal", "profile", "loopback", "executed"),
    [(SEALED, TraceProfile.AUDIT, "done", "done"), (STRICT, TraceProfile.FULL, "EADDRNOTAVAIL", "refused")],
)
async def test_what_a_hostile_process_tries(
    boot: Boot, seal: Seal, profile: TraceProfile, loopback: str, executed: str
) -> None:
    found, trace, within = await tried(boot, seal, profile)
    assert found.pop("status") == CAPABILITIES | {"CapBnd": BOUNDING}
    count, why = found.pop("open files")
    assert 190 < count < 200
    assert why == "EMFILE"
    assert {folder: found.pop(f"exec in {folder}") for folder in FOLDERS} == dict.fromkeys(FOLDERS, executed)
    assert found.pop("loopback") == loopback
    assert found == REFUSED
    assert "unit: interfaces but lo" in within
    assert ("unit: loopback 127.0.0.1 TCP 9" in within) is (seal is STRICT)
    # what the kernel refuses by itself is in the trace; what the filter denies is in the full one only
    assert "AF_VSOCK" in trace
    assert "10.0.2.2" in trace
    assert (" mount(" in trace) is (profile is TraceProfile.FULL)


FILL = r"""
import errno, fcntl, json, os, struct, sys
def fill(path):
    written = 0
    try:
        with open(path, "wb", buffering=0) as file:
            while True:
                written += file.write(bytes(65536))
    except OSError as error:
        return [written, errno.errorcode[error.errno]]
found = {path: fill(path) for path in ("/task/out/a", "/tmp/a", "/task/tmp/a", "/var/tmp/a")}
file = os.open("/task/out/a", os.O_RDONLY)
words = list(struct.unpack("=5I8s", fcntl.ioctl(file, 0x801C581F, bytes(28))))
words[3] = 0
fcntl.ioctl(file, 0x401C5820, struct.pack("=5I8s", *words))
found["after it gave a file away"] = fill("/task/out/b")
print(json.dumps(found))
sys.exit(3)
"""


async def test_what_it_writes_is_bounded_and_a_full_room_is_told(boot: Boot) -> None:
    sinks = Sinks()
    async with reached(boot("sealed")) as guest:
        await guest.start(launch("python3", "-c", FILL, output_bytes=20 * MIB, scratch_bytes=10 * MIB))
        outcome, usage = await guest.follow(*sinks)
        assert (await guest.facts()).disk_free_bytes > 1024 * MIB
    found = json.loads(sinks.stdout.data)
    assert {error for _, error in found.values()} == {"EDQUOT"}
    written = {path: size for path, (size, _) in found.items()}
    assert 19 * MIB < written["/task/out/a"] <= 20 * MIB
    assert 9 * MIB < written["/tmp/a"] <= 10 * MIB
    assert written["/task/tmp/a"] + written["/var/tmp/a"] < MIB
    assert written["after it gave a file away"] < MIB
    assert outcome == DiskFull("/task/tmp", 10 * MIB, 3)
    assert usage.written_bytes and usage.written_bytes > 29 * MIB


async def test_what_is_mounted_after_arming_is_seen_in_the_unit(boot: Boot) -> None:
    machine, sinks = boot("sealed"), Sinks()
    async with reached(machine) as guest:
        wanted = launch("cat", "/task/layer/there")
        await guest.make_ready(Arming.of(wanted))
        said = await as_root(machine, "mount -t tmpfs -o mode=755 none /task/layer && echo late >/task/layer/there")
        assert said == ""
        assert (await as_root(machine, "cat /proc/sys/kernel/modules_disabled")) == "1\n"
        await guest.start(wanted)
        assert (await guest.follow(*sinks))[0] == Exited(0)
    assert sinks.stdout.data == b"late\n"


async def test_an_open_profile_is_not_probed_and_has_the_machines_network(boot: Boot) -> None:
    machine, sinks = boot("open"), Sinks()
    async with reached(machine) as guest:
        wanted = launch("cat", "/proc/net/dev", seal=OPEN)
        facts, probes = await guest.make_ready(Arming.of(wanted))
        require(facts)
        assert probes == ()
        await guest.start(wanted)
        assert (await guest.follow(*sinks))[0] == Exited(0)
    assert b"eth0:" in sinks.stdout.data
