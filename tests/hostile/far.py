"""The far side of the attacks that need no real machine: a process of its own, which speaks SSH through paramiko.

`python -m tests.hostile.far`, with an order as one line of JSON on its standard input, listens until that is closed. So
what it needs is not counted as ours. Up to the step that is attacked it answers as a sound machine.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import paramiko
from paramiko.common import cMSG_CHANNEL_WINDOW_ADJUST, cMSG_GLOBAL_REQUEST, cMSG_IGNORE, cMSG_KEXINIT

from tests.misbehaving_ssh import Channel, Meets, MisbehavingServer, frame

RECORD = b"result=success\ncode=exited\nstatus=0\nlaunched=yes\ntraced=yes\ncut=\n"
BLOCK = b"x" * 65536
ESCAPES = b"\x1b[2J\x1b]0;owned\x07\xe2\x80\xaegpj.exe"


class Far:
    """One request, as a machine sees it."""

    def __init__(self, channel: Channel, facts: bytes, probes: bytes) -> None:
        self.channel = channel
        self.facts = facts
        self.probes = probes

    def exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.channel.recv(count - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def line(self) -> bytes:
        data = b""
        while not data.endswith(b"\n"):
            data += self.exactly(1)
        return data

    def say(self, pieces: Iterator[bytes]) -> None:
        for piece in pieces:
            self.channel.sendall(piece)

    def drop(self) -> None:
        self.channel.get_transport().close()


Says = Callable[[Far], Iterator[bytes]]


def armed(far: Far) -> Iterator[bytes]:
    yield frame(b"i", far.facts) + frame(b"p", far.probes) + frame(b"a", b"armed")


def started(far: Far) -> Iterator[bytes]:
    yield frame(b"a", b"started")


def ran(far: Far) -> Iterator[bytes]:
    yield frame(b"o", b"out\n") + frame(b"x", RECORD)


def listed(far: Far) -> Iterator[bytes]:
    yield one("out.txt") + frame(b"k")


def came(far: Far) -> Iterator[bytes]:
    yield whole(b"1\n")


def takes(far: Far) -> None:
    """Inputs, as they must be taken."""
    while head := far.channel.recv(1):
        payload = far.exactly(int.from_bytes(far.exactly(4), "big"))
        if head == b"B":
            payload = zlib.decompress(payload)
        if head in b"bB":
            far.channel.sendall(frame(b"h", hashlib.sha256(payload).hexdigest().encode()))
    far.channel.send_exit_status(0)
    far.channel.close()


@dataclass(frozen=True)
class Script:
    """What it does at each step. meets: see MisbehavingServer. host_key, later_host_key: it shows another than ours, at
    all, or from the second connection on."""

    meets: Sequence[Meets] = (Meets.SERVICE,)
    host_key: bool = False
    later_host_key: bool = False
    transport: type[paramiko.Transport] = paramiko.Transport
    arm: Says = armed
    stage_in: Callable[[Far], None] = takes
    start: Says = started
    follow: Says = ran
    list: Says = listed
    read: Says = came


def one(path: str | bytes, size: int | str = 2, kind: str = "f", mode: int | str = 644) -> bytes:
    """A frame of one listed entry."""
    name = path.encode(errors="surrogateescape") if isinstance(path, str) else path
    return frame(b"l", f"{kind} {mode} {size} 0 ".encode() + name + b"\0")


def many(paths: Iterator[bytes], size: int = 0) -> Iterator[bytes]:
    """Frames that list them."""
    batch = bytearray()
    for path in paths:
        batch += b"f 644 %d 0 %s\0" % (size, path)
        if len(batch) > 60_000:
            yield frame(b"l", bytes(batch))
            batch.clear()
    yield frame(b"l", bytes(batch))


def whole(data: bytes, claimed: bytes = b"") -> bytes:
    return frame(b"w", (claimed or hashlib.sha256(data).hexdigest().encode()) + b" same\n" + data)


def listing(*entries: bytes) -> Says:
    return lambda far: iter([b"".join(entries), frame(b"k")])


def says(*pieces: bytes) -> Says:
    """These, and then nothing more."""
    return lambda far: iter(pieces)


def nothing(far: Far) -> Iterator[bytes]:
    """Nothing, for ever."""
    return iter(())


def again(*pieces: bytes) -> Says:
    """These, without end."""

    def endless(far: Far) -> Iterator[bytes]:
        data = b"".join(pieces)
        block = data * max(1, 65536 // len(data))
        while True:
            yield block

    return endless


def then(first: Says, second: Says) -> Says:
    def both(far: Far) -> Iterator[bytes]:
        yield from first(far)
        yield from second(far)

    return both


def with_facts(**changes: bytes) -> Says:
    """Sound but for these lines."""

    def arm(far: Far) -> Iterator[bytes]:
        kept = [line for line in far.facts.split(b"\n") if line and line.partition(b"=")[0].decode() not in changes]
        lines = kept + [key.encode() + b"=" + value for key, value in changes.items()]
        yield frame(b"i", b"\n".join(lines) + b"\n") + frame(b"p", far.probes) + frame(b"a", b"armed")

    return arm


def ended(**changes: bytes) -> Says:
    """An exit record that is sound but for these fields."""
    fields = dict(line.partition(b"=")[::2] for line in RECORD.splitlines())
    fields |= {key.encode(): value for key, value in changes.items()}
    return says(frame(b"x", b"".join(b"%s=%s\n" % field for field in fields.items())))


def drips(far: Far) -> Iterator[bytes]:
    for at in range(10_000):
        time.sleep(0.3)
        yield frame(b"i", far.facts)[at : at + 1]


def dropping(far: Far) -> Iterator[bytes]:
    """A byte of output, and the connection is gone; and so again."""
    yield frame(b"o", b"x")
    time.sleep(0.05)
    far.drop()


def to_stderr(far: Far) -> Iterator[bytes]:
    while True:
        far.channel.sendall_stderr(BLOCK)
        yield b""


def says_nothing_of_its_end(far: Far) -> Iterator[bytes]:
    yield frame(b"o", b"out\n")
    far.channel.shutdown_write()


def keeps_taking(far: Far) -> None:
    """All that comes is taken, and nothing is ever said of it."""
    while far.channel.recv(65536):
        pass


def takes_nothing(far: Far) -> None:
    threading.Event().wait()


def answers_without_end(far: Far) -> None:
    while True:
        far.channel.sendall(frame(b"h", b"0" * 64) * 1000)


class NoChannels(paramiko.Transport):
    """Answers keepalives, and never a request for a channel."""

    def _parse_channel_open(self, message: paramiko.Message) -> None:
        pass


def deaf(far: Far) -> paramiko.Transport:
    """From now on nothing is read."""
    transport = far.channel.get_transport()
    transport.packetizer.read_message = threading.Event().wait
    return transport


def questions(far: Far) -> Iterator[bytes]:
    """What must be answered, without end."""
    transport = deaf(far)
    question = paramiko.Message()
    question.add_byte(cMSG_GLOBAL_REQUEST)
    question.add_string("are-you-there@example.org")
    question.add_boolean(True)
    while True:
        transport._send_message(question)
        yield b""


def window(far: Far) -> paramiko.Message:
    """The words for a window of 4 GiB."""
    opened = paramiko.Message()
    opened.add_byte(cMSG_CHANNEL_WINDOW_ADJUST)
    opened.add_int(far.channel.remote_chanid)
    opened.add_int((1 << 32) - (1 << 24))
    return opened


def wide_open(far: Far) -> None:
    """A window of 4 GiB for the inputs, of which nothing is read."""
    deaf(far)._send_message(window(far))
    threading.Event().wait()


def exchanging(far: Far) -> None:
    """The same, and a key exchange that is begun and never ended; what must not be said meanwhile is said now and
    then."""
    transport = deaf(far)
    transport._send_message(window(far))
    begun = paramiko.Message()
    begun.add_byte(cMSG_KEXINIT)
    begun.add_bytes(os.urandom(16))
    offered = ("curve25519-sha256", "ssh-ed25519", *["aes128-ctr"] * 2, *["hmac-sha2-256"] * 2, *["none"] * 2, "", "")
    for each in offered:
        begun.add_string(each)
    begun.add_boolean(False)
    begun.add_int(0)
    transport._send_message(begun)
    while True:
        time.sleep(1)
        still = paramiko.Message()
        still.add_byte(cMSG_IGNORE)
        still.add_string("still here")
        transport._send_message(still)


def _numbered(count: int) -> Iterator[bytes]:
    return (b"%07d" % number for number in range(count))


def _long(count: int) -> Iterator[bytes]:
    return (b"/".join([b"%0240d" % number] * 16) for number in range(count))


FORGED_TRACE = (
    b'4242 1.000000 execve("/usr/bin/innocent", ["innocent"], 0x1 /* 1 var */) = 0\n'
    b"4242 1.0 openat(AT_FDCWD, \x1b[2J\0\n\n<... resumed>) = ?\n+++ exited with\n\xff\xfe\n" + b"9" * 5000 + b" x(\n"
)

SCRIPTS: dict[str, Script] = {
    "a banner that never ends": Script(meets=(Meets.ENDLESS,)),
    "a server's name that never ends": Script(meets=(Meets.LONG_NAME,)),
    "silence after the connection": Script(meets=(Meets.SILENCE,)),
    "silence in the handshake": Script(meets=(Meets.BANNER,)),
    "another protocol": Script(meets=(Meets.GARBAGE,)),
    "a login that is always refused": Script(meets=(Meets.DENIAL,)),
    "another host key": Script(host_key=True),
    "a host key that changes": Script(later_host_key=True, follow=dropping),
    "a connection that closes after each login": Script(meets=(Meets.CLOSED_AFTER_AUTH,)),
    "a channel that is never opened": Script(transport=NoChannels),
    "questions without end, and no answer read": Script(follow=questions),
    "no answer to the first request": Script(arm=nothing),
    "an answer a byte at a time": Script(arm=drips),
    "complaints without end": Script(arm=to_stderr),
    "an answer of 4 GiB": Script(arm=says(b"i\xff\xff\xff\xff")),
    "facts that are no facts": Script(arm=with_facts(disk=b"9" * 5000 + b":1")),
    "facts beyond all numbers": Script(arm=with_facts(uptime=b"inf", clock=b"nan")),
    "facts with terminal escapes": Script(arm=with_facts(kernel=ESCAPES * 1000)),
    "inputs that are not taken": Script(stage_in=takes_nothing),
    "a window of 4 GiB, and nothing read": Script(stage_in=wide_open),
    "a key exchange that never ends": Script(stage_in=exchanging),
    "inputs that are taken and never acknowledged": Script(stage_in=keeps_taking),
    "acknowledgements that nothing asked for": Script(stage_in=answers_without_end),
    "a start that is never confirmed": Script(start=nothing, follow=nothing),
    "a process that is started twice": Script(start=says(frame(b"a", b"started") * 2)),
    "a stdout of 100 GB": Script(follow=again(frame(b"o", BLOCK))),
    "a trace of 100 GB": Script(follow=again(frame(b"t", BLOCK))),
    "frames with nothing in them": Script(follow=again(frame(b"o"))),
    "frames of one byte": Script(follow=again(frame(b"o", b"x"))),
    "an exit status that never comes": Script(follow=says(frame(b"o", b"out\n"))),
    "an end of output without an exit status": Script(follow=says_nothing_of_its_end),
    "a connection that drops after each byte": Script(follow=dropping),
    "an exit status beyond all": Script(follow=ended(status=b"9" * 400)),
    "figures beyond 64 bits": Script(follow=ended(cpu_usec=b"9" * 20, memory_peak=b"9" * 20)),
    "an exit record with terminal escapes": Script(follow=ended(result=ESCAPES * 100, code=b"exploded")),
    "an exit record of 100 KiB": Script(follow=says(frame(b"x", b"A=" * 51200))),
    "a trace with forged lines": Script(
        follow=says(frame(b"t", FORGED_TRACE), frame(b"o", ESCAPES), frame(b"x", RECORD))
    ),
    "a name with ..": Script(list=listing(one("../../../escaped"))),
    "an absolute name": Script(list=listing(one("/tmp/escaped"))),
    "a name of 4 KiB": Script(list=listing(one("x" * 4096))),
    "a name with a NUL": Script(list=listing(one("a\0b"))),
    "a name with a newline": Script(list=listing(one("a\nb"))),
    "a name with terminal escapes": Script(list=listing(one(ESCAPES))),
    "names that look alike": Script(
        list=listing(one("caf\u00e9"), one("cafe\u0301")), read=says(whole(b"1\n") + whole(b"2\n"))
    ),
    "a name that is there twice": Script(list=listing(one("a"), one("a/b")), read=says(whole(b"1\n") * 2)),
    "a folder in a folder, and so on": Script(list=listing(one("/".join("d" * 1000)))),
    "a link, a device and a pipe for outputs": Script(
        list=listing(one("link", kind="l"), one("null", kind="b"), one("pipe", kind="p"), one("good"))
    ),
    "10^6 files": Script(list=lambda far: many(_numbered(1_000_000))),
    "names of many megabytes": Script(list=lambda far: many(_long(90_000))),
    "a listing that never ends": Script(list=again(frame(b"l"))),
    "a listing that never comes": Script(list=nothing),
    "more files than are taken": Script(
        list=then(lambda far: many(_numbered(1200)), says(frame(b"k"))), read=again(whole(b""))
    ),
    "a bomb of many files": Script(list=then(lambda far: many(_numbered(900), size=100_000), says(frame(b"k")))),
    "a size of an exbibyte": Script(list=listing(one("huge", size=1 << 60))),
    "a size that is no number": Script(list=listing(one("huge", size="9" * 5000))),
    "a file that is larger than it was said": Script(
        list=listing(one("grows", 100_000)), read=then(says(frame(b"f", b"100000")), again(frame(b"d", BLOCK)))
    ),
    "a file that grows without end": Script(
        list=listing(one("grows", 2)), read=then(says(frame(b"f", b"9" * 18)), again(frame(b"d", BLOCK)))
    ),
    "a file that is smaller than it was said": Script(list=listing(one("shrinks", 100_000)), read=says(whole(b"1\n"))),
    "a file that stops in the middle": Script(
        list=listing(one("stops", 100_000)), read=says(frame(b"f", b"100000") + frame(b"d", b"x"))
    ),
    "a file in pieces of nothing": Script(
        list=listing(one("empty", 100_000)), read=then(says(frame(b"f", b"100000")), again(frame(b"d")))
    ),
    "a sha256 that is another's": Script(read=says(whole(b"1\n", claimed=b"0" * 64))),
    "a refusal with terminal escapes": Script(read=says(frame(b"!", ESCAPES * 1000))),
    "files that nothing asked for": Script(read=again(whole(b"1\n"))),
}


def serve(script: Script, facts: bytes, probes: bytes, channel: Channel, words: list[str]) -> None:
    far = Far(channel, facts, probes)
    with suppress(EOFError, OSError):
        match words[0]:
            case "mayfly-arm":
                far.exactly(int(far.line().split()[2]))
                far.say(script.arm(far))
                while (line := far.line().split())[0] != b"start":
                    far.channel.sendall(frame(b"a", b"pong"))
                far.exactly(int(line[1]))
                far.say(script.start(far))
                far.say(script.follow(far))
                _requests(script, far)
            case "mayfly-attend":
                far.say(script.follow(far))
                _requests(script, far)
            case "mayfly-stage-in":
                script.stage_in(far)
            case _:
                channel.send_exit_status(0)
                channel.close()


def _requests(script: Script, far: Far) -> None:
    while True:
        words = far.line().split()
        if words[0] == b"list":
            far.say(script.list(far))
        else:
            far.exactly(int(words[1]))
            far.say(script.read(far))


def main() -> None:
    order = json.loads(sys.stdin.readline())
    script = SCRIPTS[order["attack"]]
    ours, other = (paramiko.Ed25519Key.from_private_key(io.StringIO(key)) for key in order["keys"])
    server = MisbehavingServer(
        other if script.host_key else ours,
        order["client_key"],
        on_connection=script.meets,
        on_exec=partial(serve, script, order["facts"].encode(), order["probes"].encode()),
        address=(order["address"], order["port"]),
        transport=script.transport,
        later_host_key=other if script.later_host_key else None,
    )
    print("ready", flush=True)
    sys.stdin.read()
    print(server.connections, file=sys.stderr)
    os._exit(0)  # whatever its threads are at


if __name__ == "__main__":
    main()
