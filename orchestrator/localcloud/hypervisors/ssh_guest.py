"""An SSH server that answers as the guest of a machine that does not exist, so that thousands can be driven.

It takes the requests that Mayfly sends to a real guest, reads their first line (`set -- mayfly-VERB WORD…`) instead of
running the script below it, and answers in the same bytes. All guests of a process share one event loop in one thread.

The command is the scenario; see `ssh_scenario`. It must be UTF-8: asyncssh's server refuses any other request.
"""

from __future__ import annotations

import asyncio
import shlex
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import asyncssh

from orchestrator.localcloud.hypervisors import HypervisorError, MachineSpec
from orchestrator.localcloud.hypervisors.guest_frames import Frames
from orchestrator.localcloud.hypervisors.guest_loop import SharedLoop
from orchestrator.localcloud.hypervisors.guest_network import GuestNetwork
from orchestrator.localcloud.hypervisors.guest_staging import take_inputs
from orchestrator.localcloud.hypervisors.runs import RunLog
from orchestrator.localcloud.hypervisors.ssh_scenario import Scenario

_Session = asyncssh.SSHServerProcess[bytes]

Answer = Callable[["SimulatedGuest", _Session], Awaitable[None]]
"""What a guest does about a request, on the loop that all guests share. When it returns, the status is 0."""


async def never(guest: SimulatedGuest, session: _Session) -> None:
    """The Answer that does not come."""
    await asyncio.Event().wait()


class SimulatedGuest:
    """One guest that listens. `close` is idempotent and may be called from any thread, as may the others.

    asked: the verbs of the requests so far, in order; and "mayfly-start" for each message that starts its process.
    """

    def __init__(
        self,
        spec: MachineSpec,
        on_poweroff: Callable[[], None],
        answers: Mapping[str, Answer] | None = None,
        runs: Path | None = None,
    ) -> None:
        self.asked: list[str] = []
        self._spec = spec
        self._runs = runs and RunLog(runs, spec.vm_id, spec.context.get("SET_HOSTNAME", ""))
        self._on_poweroff = on_poweroff
        self._answers = answers or {}
        self._network = GuestNetwork(spec, self._serve)
        self._serving: set[asyncio.Task[Any] | None] = set()
        self._token = ""
        self._scenario: Scenario | None = None
        self._closed = False

    def close(self) -> None:
        """Stop listening, drop every connection, end the process."""
        if not self._closed:
            self._closed = True
            _loop.run(self._close())
            _loop.release()

    def drop_connections(self) -> None:
        """Drop every connection; the process goes on, and new connections are taken."""
        _loop.run(self._network.drop())

    def freeze(self, frozen: bool = True) -> None:
        """The network is silent, both ways, and the process goes on; or all goes on."""
        _loop.run(self._network.freeze(frozen))

    def lose_address(self) -> None:
        """Nobody reaches it any more, as another machine has its address; the process goes on."""
        _loop.run(self._network.lose_address())

    def answer_after(self, seconds: float) -> None:
        """Every request from now on is answered so much later."""
        self._network.slow_seconds = seconds

    def rewire(self, spec: MachineSpec) -> None:
        """What its NICs may send out is as this says from now on."""
        self._spec = spec

    async def listen(self) -> None:
        await self._network.listen()

    async def _close(self) -> None:
        await self._network.stop_listening()
        if self._scenario:
            self._scenario.abandon()
        await self._network.drop()
        for serving in self._serving:
            if serving:
                serving.cancel()

    async def _serve(self, session: _Session) -> None:
        first = (session.command or "").partition("\n")[0]
        words = shlex.split(first)[2:]
        self.asked += words[:1]
        serving = asyncio.current_task()
        self._serving.add(serving)  # the loop itself holds a task that waits for nothing but weakly
        try:
            await asyncio.sleep(self._network.slow_seconds)
            match words:
                case [verb, *_] if verb in self._answers:
                    await self._answers[verb](self, session)
                case ["mayfly-facts"]:
                    session.stdout.write(self.facts().encode())
                case ["mayfly-probe", *_]:
                    session.stdout.write(self._probes().encode())
                case ["mayfly-stage-in", _, *_]:
                    await take_inputs(session)
                case ["mayfly-mount-layer", _file, _folder, _unit]:
                    pass
                case ["mayfly-arm", _grace, _memory, _tasks, window, *_]:
                    await self._arm(session, window != "-")
                case ["mayfly-look", token]:
                    session.stdout.write(self._look(token).encode())
                case ["mayfly-attend", token, out, err, trace, limit]:
                    await self._attend(session, token, [int(out), int(err), int(trace)], int(limit))
                case ["mayfly-stop", grace]:
                    if self._scenario:
                        await self._scenario.stop(float(grace))
                case _:
                    session.stderr.write(b"not a request that a simulated guest knows\n")
                    session.exit(127)
                    return
            await self._network.flowing.wait()
            session.exit(0)
        except (asyncssh.Error, OSError, asyncio.IncompleteReadError):
            session.close()
        finally:
            self._serving.discard(serving)

    def facts(self) -> str:
        """A sound guest's answer to mayfly-facts."""
        programs = ("strace", "python3", "systemd-run", "systemctl")
        lines = [
            *(f"program={program}" for program in programs),
            "systemd=yes",
            "cgroup2=yes",
            "user=1000:1000",
            f"memory_kib={self._spec.memory_mb * 1024}",
            "uptime=1.00",
            f"boot={self._spec.uuid}",
            "kernel=simulated",
            f"clock={time.time():.9f}",
            "directory=/task/in:0:755",
            "directory=/task/out:1000:755",
            "directory=/task/tmp:1000:755",
            "disk=262144:4096",
        ]
        return "\n".join([*lines, *(["used=yes"] if self._token else [])]) + "\n"

    def _probes(self) -> str:
        """A NIC that may send out reaches everything, one that may not reaches nothing."""
        targets = ("gateway 10.0.2.2 TCP 22", "DNS 10.0.2.3 UDP 53", "public 1.1.1.1 TCP 443")
        out = any(nic.outbound for nic in self._spec.nics)
        return "".join(f"{target}\t{int(out)}\t{'connected' if out else 'silence for 0.3 s'}\n" for target in targets)

    async def _arm(self, session: _Session, tell: bool) -> None:
        frames = Frames(session, self._network.flowing)
        await session.stdin.readexactly(int((await session.stdin.readline()).split()[2]))  # the programs that do it
        if tell:
            await frames.send(b"i", self.facts().encode())
            await frames.send(b"p", self._probes().encode())
        await frames.send(b"a", b"used" if self._token else b"armed")
        while words := (await session.stdin.readline()).split():
            if words[0] == b"ping":
                await frames.send(b"a", b"pong")
                continue
            self.asked.append("mayfly-start")
            token, timeout, grace, memory, _tasks, limit, launch = (
                (await session.stdin.readexactly(int(words[1]))).decode(errors="surrogateescape").split("\0", 6)
            )
            if self._token and token != self._token:
                await frames.send(b"a", b"refused")
                return
            if not self._token:
                self._start(token, float(timeout), float(grace), int(memory), _launched(launch))
            await frames.send(b"a", b"started")
            await self._attend(session, token, [0, 0, 0], int(limit))
            return

    def _start(self, token: str, limit: float, grace: float, memory: int, argv: list[str]) -> None:
        self._token = token
        self._scenario = Scenario(
            argv, limit, grace, memory, drop=self._network.drop, power_off=self._power_off, note=self._note
        )

    def _note(self, event: str, details: Mapping[str, Any]) -> None:
        if self._runs:
            self._runs.add(event, self._token, details)

    def _look(self, token: str) -> str:
        if self._scenario is None:
            return "never\n"
        if token != self._token:
            return "other\n"
        return "ended\n" if self._scenario.record else "running\n"

    async def _power_off(self) -> None:
        await self._network.stop_listening()
        await self._network.drop()
        # Not in a thread of the loop's: it may be this that closes the last guest, and with it the loop.
        threading.Thread(target=self._on_poweroff, daemon=True).start()

    async def _attend(self, session: _Session, token: str, offsets: list[int], limit: int) -> None:
        scenario, frames = self._scenario, Frames(session, self._network.flowing)
        if scenario is None or token != self._token:
            await frames.send(b"n", b"the VM has restarted, and the process is gone")
        else:
            await frames.follow(scenario, offsets, limit)
        while line := await session.stdin.readline():
            words = line.split()
            if words[0] == b"list":
                await frames.tell_outputs(scenario, int(words[1]))
            else:
                names = (await session.stdin.readexactly(int(words[1]))).split(b"\0")[:-1]
                await frames.send_outputs(scenario, names, int(words[2]))


def start_guest(
    spec: MachineSpec,
    on_poweroff: Callable[[], None] = lambda: None,
    answers: Mapping[str, Answer] | None = None,
    runs: Path | None = None,
) -> SimulatedGuest:
    """Answer as the guest of `spec`, at its first NIC's `address:host_port`, until closed. Blocks until it listens.

    The host key is the context's MAYFLY_HOST_KEY_BASE64, and SSH_PUBLIC_KEY may log in. `on_poweroff` is called, in a
    thread, when the scenario powers the machine off. `answers`, by verb ("mayfly-facts"), take the place of a sound
    guest's. `runs` is the file that its process counts itself in. Raises HypervisorError.
    """
    if not spec.nics:
        raise HypervisorError("a simulated guest needs a NIC")
    guest = SimulatedGuest(spec, on_poweroff, answers, runs)
    _loop.acquire()
    try:
        _loop.run(guest.listen())
    except (OSError, KeyError, ValueError, asyncssh.Error) as error:
        _loop.release()
        raise HypervisorError(f"the simulated guest cannot listen: {type(error).__name__}: {error}") from error
    return guest


def _launched(launch: str) -> list[str]:
    """The argv in the text that a launcher is to do: behind `set --`, and `env -i NAME=VALUE…` if it has that."""
    words = shlex.split(launch)
    argv = words[words.index("set") + 2 :]
    if argv[:2] != ["/usr/bin/env", "-i"]:
        return argv
    return argv[next((at for at, word in enumerate(argv) if at > 1 and "=" not in word), len(argv)) :]


_loop = SharedLoop()
