"""What a simulated guest sends while somebody attends its process: frames of a letter, a length and a payload."""

from __future__ import annotations

import asyncio
import hashlib

import asyncssh

from orchestrator.localcloud.hypervisors.ssh_scenario import Scenario

_CHUNK = 1 << 16


class Frames:
    """To one session. `flowing` is cleared while nothing may leave the guest."""

    def __init__(self, session: asyncssh.SSHServerProcess[bytes], flowing: asyncio.Event) -> None:
        self._session = session
        self._flowing = flowing

    async def send(self, kind: bytes, payload: bytes) -> None:
        await self._flowing.wait()
        self._session.stdout.write(kind + len(payload).to_bytes(4, "big") + payload)
        await self._session.stdout.drain()

    async def follow(self, scenario: Scenario, offsets: list[int], limit: int) -> None:
        while True:
            record, growth = scenario.record, scenario.growth()
            moved = False
            for number, (kind, log) in enumerate(zip((b"o", b"e", b"t"), scenario.logs, strict=True)):
                data = bytes(log[offsets[number] : min(limit, offsets[number] + _CHUNK)])
                if data:
                    await self.send(kind, data)
                    offsets[number] += len(data)
                    moved = True
            if moved:
                continue
            if record:
                names = ("stdout", "stderr", "trace")
                cut = [name for name, log, at in zip(names, scenario.logs, offsets, strict=True) if len(log) > at]
                await self.send(b"x", (record + f"cut={' '.join(cut)}\n").encode())
                return
            await growth

    async def tell_outputs(self, scenario: Scenario | None, most: int) -> None:
        outputs = scenario.outputs if scenario else {}
        if scenario and scenario.mute:
            await asyncio.Event().wait()
        if len(outputs) > most:
            await self.send(b"!", f"more than {most} files and directories".encode())
            return
        for path, content in outputs.items():
            kind, size = ("l", 11) if content is None else ("f", len(content))
            await self.send(b"l", f"{kind} 644 {size} 1700000000 {path}\0".encode(errors="surrogateescape"))
        await self.send(b"k", b"")

    async def send_outputs(self, scenario: Scenario | None, names: list[bytes], offset: int) -> None:
        outputs = scenario.outputs if scenario else {}
        for name in names:
            content = outputs.get(name.decode(errors="surrogateescape"))
            if content is None:
                await self.send(b"!", b"not a regular file")
                continue
            about = hashlib.sha256(content).hexdigest().encode() + b" same"
            if len(content) <= _CHUNK and not offset:
                await self.send(b"w", about + b"\n" + content)
                continue
            await self.send(b"f", b"%d" % len(content))
            for at in range(offset, len(content), _CHUNK):
                await self.send(b"d", content[at : at + _CHUNK])
            await self.send(b"h", about)
            offset = 0
