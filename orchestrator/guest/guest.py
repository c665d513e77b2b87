"""A machine over SSH, as the runner sees it: what may be asked of it, in the order in which it is asked.

Every step may be asked again, so a dropped connection is made anew, to the same host key, and the step repeated: a
launch by its token, streams from the offsets that the sinks have reached, outputs from the first that is missing. So
another process, with another connection, can go on (`resume`) where one ended that held nothing but this.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import asyncssh

from orchestrator.domain.errors import ConnectionLost, PlatformError, Unreachable
from orchestrator.domain.outcome import Lost, Outcome, Usage
from orchestrator.guest import wire
from orchestrator.guest.adoption import Started, look_request, read_look
from orchestrator.guest.arming import require_answer
from orchestrator.guest.attendant import Attendant
from orchestrator.guest.errors import Dropped, LaunchFailed, OutputRefused, StepFailed, VmLost
from orchestrator.guest.exit_record import outcome_of, parse_record, usage_of
from orchestrator.guest.following import NoProcess, Sink, Unhurried, pump
from orchestrator.guest.launch import Arming, Launch, arm_request, arming_programs, start_message
from orchestrator.guest.layer import LAYER_FOLDER, mount_request, require_mounted
from orchestrator.guest.outputs import (
    MAX_ENTRIES,
    OutputEntry,
    OutputSink,
    Taking,
    read_listing,
)
from orchestrator.guest.readiness import Facts, read_facts
from orchestrator.guest.seal import PROBE_WINDOW_SECONDS, Probe, probe_words, read_probes
from orchestrator.guest.staging_in import InputEntry, Progress, Sending, check_tree
from orchestrator.guest.tracing import Tracing, read_tracing
from orchestrator.guest.way import VmGone, Way

RECONNECT_SECONDS = 30.0
CHECK_SECONDS = 5.0
_FRUITLESS = 3
"""So many tries in a row at which nothing came are as good as no connection."""

_REPORT_SECONDS = 60.0
"""How long after a process must have ended the guest may take to say so."""

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_Work = Callable[[asyncssh.SSHClientConnection], Coroutine[Any, Any, _T]]


async def connect(
    address: str,
    port: int,
    *,
    host_key: str,
    client_key: str,
    deadline: float,
    vm_gone: asyncio.Event | None = None,
    reconnect_seconds: float = RECONNECT_SECONDS,
) -> Guest:
    """Reach a machine that may still be booting.

    host_key: the public line that it must show. client_key: a private key in OpenSSH's format. deadline: in seconds
    from now. vm_gone: set by the caller when the cloud says that the VM is off; every wait ends then.

    Raises WrongHostKey at once, Unreachable at the deadline or when the VM is gone, saying what was tried.
    """
    way = Way(address, port, host_key=host_key, client_key=client_key, vm_gone=vm_gone)
    try:
        return Guest(way, await way.open(deadline), reconnect_seconds)
    except VmGone as gone:
        raise Unreachable(f"the VM went away before SSH at {way} answered: {way.tried}") from gone


class Guest:
    """One machine. Every method may raise ConnectionLost, WrongHostKey, and StepFailed beside what it names.

    cut: the streams ("stdout", "stderr", "trace") that are not whole, known after `follow`: they are longer than the
    launch allowed, the guest's disk was full, or strace was killed with what it traced. tracing: how the process was
    traced, known then too.
    """

    def __init__(self, way: Way, connection: asyncssh.SSHClientConnection, reconnect_seconds: float) -> None:
        self.cut: tuple[str, ...] = ()
        self.tracing = Tracing(lost="the machine has not said what became of it")
        self._way = way
        self._connection = connection
        self._reconnect_seconds = reconnect_seconds
        self._reconnecting = asyncio.Lock()
        self._tries = itertools.count(1)
        """Of staging in, so that the guest can tell a late one from the last."""
        self._armed: Attendant | None = None
        """One that waits for what to start."""
        self._arming: Arming | None = None
        """What the unit was last armed for."""
        self._fresh: Attendant | None = None
        """The one that `start` left: nothing was read from it yet."""
        self._waiting: Attendant | None = None
        """One that has told the end, and waits for requests."""
        self._launch: Launch | None = None

    async def facts(self) -> Facts:
        """What the machine is. May run beside `probe_seal`. An unmet requirement is told, not raised: see `require`."""
        return read_facts(await self._run(wire.request("facts", body="facts.py")))

    async def probe_seal(
        self, extra: Sequence[tuple[str, int]] = (), window: float = PROBE_WINDOW_SECONDS
    ) -> tuple[Probe, ...]:
        """Try to reach things from inside: gateway, DNS, metadata, neighbours, public addresses, and the TCP targets
        `extra`. `window`: seconds to listen. Something reached is told, not raised: see `require_sealed`."""
        return read_probes(await self._run(wire.request("probe", *probe_words(extra, window), body="probe.py")))

    async def stage_in(
        self, entries: Sequence[InputEntry], progress: Progress | None = None, *, folder: str = ""
    ) -> None:
        """Put a tree under /task/in, or another folder, as root's, its files hashed on both ends. Raises
        StagingFailed."""
        check_tree(entries)
        if not entries:
            return
        sending = Sending(entries, progress)

        async def send(connection: asyncssh.SSHClientConnection) -> None:
            words = [str(next(self._tries)), *([folder] if folder else [])]
            text = wire.request("stage-in", *words, body="stage_in.py")
            async with wire.step(connection, text) as process:
                await sending.send(process)

        await self._persist(send, progress=lambda: sending.done)

    async def lay(self, entry: InputEntry, progress: Progress | None = None) -> None:
        """Put a layer into the machine, and mount it read-only at /task/layer: a squashfs, which nothing but that
        machine's kernel reads. `entry`: that file, its path LAYER_FILE. Raises StagingFailed."""
        await self.stage_in([entry], progress, folder=LAYER_FOLDER)
        require_mounted(await self._run(mount_request()))

    async def make_ready(
        self, arming: Arming, extra: Sequence[tuple[str, int]] = (), window: float = PROBE_WINDOW_SECONDS
    ) -> tuple[Facts, tuple[Probe, ...]]:
        """`facts`, `probe_seal` and `arm` in one request, at the same time; then the same is tried from inside of the
        unit, as the user `task`. An open profile has no probes. Why a machine that does not meet its requirements
        cannot be armed is told by its facts; else raises LaunchFailed when it cannot."""
        closed = arming.seal.closed
        text = arm_request(arming, probe_words(extra, window) if closed else ["open"])

        async def ask(connection: asyncssh.SSHClientConnection) -> tuple[Facts, tuple[Probe, ...]]:
            async with self._arm_channel(connection, text) as attendant:
                facts = read_facts(wire.Reply(await attendant.expect(b"i"), "", 0))
                told = wire.Reply(await attendant.expect(b"p"), "", 0)
                probes = read_probes(told) if closed else ()
                answer = await attendant.expect(b"a")
                if not facts.unmet:
                    require_answer(answer, b"armed", str(self._way))
                if answer == b"armed":
                    self._armed, self._arming = attendant, arming
                return facts, probes

        return await self._persist(ask)

    async def arm(self, arming: Arming) -> None:
        """Make the unit with its limits, namespaces and tracer, its launcher waiting, so that `start` is one message.
        May be repeated, for the same or for something else. Raises AlreadyStarted, VmRestarted (also when it has
        restarted since it was armed), LaunchFailed."""

        async def ask(connection: asyncssh.SSHClientConnection) -> None:
            async with self._arm_channel(connection, arm_request(arming)) as attendant:
                require_answer(await attendant.expect(b"a"), b"armed", str(self._way))
                self._armed, self._arming = attendant, arming

        await self._persist(ask)

    @property
    def armed(self) -> bool:
        """`start` is one message, if what was armed fits the launch."""
        return self._armed is not None and self.connected

    @property
    def connected(self) -> bool:
        """The connection is open, as far as is known: a peer that is silent is given up after 15 to 20 s."""
        return not self._connection.is_closed()

    async def dropped(self) -> None:
        """Return when the connection that is open now is not so any more, or the VM is gone."""
        with suppress(VmGone):
            await self._way.unless_gone(self._connection.wait_closed())

    async def check(self, within: float = CHECK_SECONDS) -> None:
        """See that an armed machine lives and is still armed; over a new connection when there is no answer `within`
        seconds. Raises ConnectionLost, VmLost, and what `arm` raises."""
        if self._arming is None:
            raise StepFailed("nothing was armed in this VM")
        arming = self._arming

        async def ask(connection: asyncssh.SSHClientConnection) -> None:
            if self._armed is None:
                await self.arm(arming)
                return
            attendant, self._armed = self._armed, None
            try:
                async with asyncio.timeout(within):
                    await attendant.send(b"ping\n")
                    require_answer(await attendant.expect(b"a", anew=False), b"pong", str(self._way))
                self._armed = attendant
            except TimeoutError as error:
                raise Dropped(f"no answer within {within:g} s") from error
            finally:
                if self._armed is not attendant:
                    await attendant.close()

        await self._persist(ask)

    async def start(self, launch: Launch) -> None:
        """Start the process: one message when the unit is armed, else it is armed by the same request. Raises
        AlreadyStarted when this VM has had one (VmRestarted: it has restarted since it was armed), LaunchFailed."""
        message = start_message(launch)

        async def ask(connection: asyncssh.SSHClientConnection) -> None:
            fitting = self._arming is not None and self._arming.fits(launch)
            async with self._arm_channel(connection, arm_request(Arming.of(launch)), keep=fitting) as attendant:
                held, self._armed = attendant is self._armed, None
                with suppress(Dropped):  # likewise
                    await attendant.send(message)
                if not held and (answer := await attendant.expect(b"a")) != b"used":
                    require_answer(answer, b"armed", str(self._way))
                require_answer(await attendant.expect(b"a", anew=not held), b"started", str(self._way))
                self._fresh, self._launch = attendant, launch

        await self._persist(ask)

    async def resume(self, launch: Launch) -> Started:
        """Take over a launch that another process may have started in this VM; starts nothing.

        RUNNING, ENDED and GONE: `follow` goes on from the sinks' offsets, and all else is as if we had started it.
        NEVER: it may be started now. Raises AlreadyStarted when the VM has had the process of another launch.
        """
        found = read_look(await self._run(look_request(launch)), str(self._way))
        if found is not Started.NEVER:
            self._launch = launch
        return found

    async def follow(self, stdout: Sink, stderr: Sink, trace: Sink) -> tuple[Outcome, Usage]:
        """Give each sink its stream, while the process runs and to the end; then tell how it ended, and what it used.

        Returns Lost when the VM is gone or has restarted. Raises ConnectionLost when only the way to it is gone, or
        when it does not say that the process has ended (what the sinks' writes take is not counted); LaunchFailed when
        the process was never started.
        """
        launch = self._launched()
        within = launch.timeout_seconds + 2 * launch.kill_grace_seconds + _REPORT_SECONDS

        async def follow_once(_: asyncssh.SSHClientConnection) -> bytes:
            sinks = {b"o": Unhurried(stdout, limit), b"e": Unhurried(stderr, limit), b"t": Unhurried(trace, limit)}
            attendant = await self._attend([sink.offset for sink in sinks.values()])
            try:
                record = await pump(attendant, sinks, launch.max_log_bytes)
            except BaseException:
                await attendant.close()
                raise
            self._waiting = attendant
            return record

        try:
            async with asyncio.timeout(within) as limit:
                told = await self._persist(follow_once, progress=lambda: stdout.offset + stderr.offset + trace.offset)
        except TimeoutError as error:
            raise ConnectionLost(f"the guest did not say within {within:g} s that the process had ended") from error
        except NoProcess as gone:
            return Lost(str(gone)), Usage()
        except VmLost:
            return Lost("the VM went away while the process ran"), Usage()
        record = parse_record(told)
        self.tracing = read_tracing(told, fast_asked="--seccomp-bpf" in launch.trace)
        self.cut = tuple(name for name in ("stdout", "stderr", "trace") if name in record.get("cut", "").split())
        return outcome_of(record, launch), usage_of(record)

    async def stop(self, grace: float) -> None:
        """SIGTERM to the process and its children, SIGKILL when `grace` seconds (or the launch's, if shorter) are
        over. Idempotent; `follow`, which may be running, then ends by itself. What was written by then is kept."""
        await self._run(wire.request("stop", f"{grace:g}", body="stop.sh"), within=grace + wire.STEP_SECONDS)

    async def list_outputs(self, max_entries: int = MAX_ENTRIES) -> tuple[OutputEntry, ...]:
        """Every entry of /task/out, by path, once the process has ended. Raises StagingFailed over `max_entries`."""

        return await self._persist(self._at_the_end(lambda attendant: read_listing(attendant, max_entries)))

    async def stage_out(
        self,
        entries: Sequence[OutputEntry],
        sink: OutputSink,
        *,
        limit_bytes: int,
        progress: Progress | None = None,
    ) -> None:
        """Write these files to `sink`, each hashed on both ends.

        Raises StagingFailed when all are more than `limit_bytes`. Raises OutputRefused when all that can be taken was,
        and names the others: what is not a regular file, what `task` cannot read, what changed while it was read.
        """
        taking = Taking(entries, sink, limit_bytes, progress)
        try:
            await self._persist(self._at_the_end(taking.take), progress=lambda: taking.done)
        except PlatformError:
            await taking.keep()
            raise
        finally:
            await taking.end()
        if taking.refused:
            raise OutputRefused(taking.refused)

    async def close(self) -> None:
        """End the connection, not the process. Idempotent, never raises."""
        for attendant in (self._armed, self._fresh, self._waiting):
            if attendant:
                await attendant.close()
        self._armed = self._fresh = self._waiting = None
        self._connection.abort()
        with suppress(Exception):
            await self._connection.wait_closed()

    @asynccontextmanager
    async def _arm_channel(
        self, connection: asyncssh.SSHClientConnection, text: str, *, keep: bool = False
    ) -> AsyncIterator[Attendant]:
        """The one that waits, if it is to be kept, or else a new one, asked with `text`. Closed at the end of the block
        unless it is in use then."""
        held = self._armed
        if held and not keep:
            self._armed = None
            await held.close()
        attendant = held if held and keep else Attendant(await wire.ask(connection, text), "mayfly-arm")
        try:
            async with asyncio.timeout(wire.STEP_SECONDS):
                if attendant is not held:
                    with suppress(Dropped):  # it ended early, and says why; or the connection dropped, as is found next
                        await attendant.send(arming_programs())
                yield attendant
        except TimeoutError as error:
            raise LaunchFailed(f"the guest did not answer within {wire.STEP_SECONDS:g} s") from error
        finally:
            if attendant not in (self._armed, self._fresh):
                await attendant.close()

    def _launched(self) -> Launch:
        if self._launch is None:
            raise StepFailed("nothing was started in this VM")
        return self._launch

    async def _attend(self, offsets: Sequence[int]) -> Attendant:
        """The attendant that `start` left, if it begins where the sinks are; else a new one."""
        left, self._fresh = self._fresh, None
        if left and not any(offsets):
            return left
        if left:
            await left.close()
        launch = self._launched()
        words = [launch.token, *(str(min(at, launch.max_log_bytes)) for at in offsets), str(launch.max_log_bytes)]
        return Attendant(await wire.ask(self._connection, wire.request("attend", *words, body="attend.py")))

    def _at_the_end(self, ask: Callable[[Attendant], Coroutine[Any, Any, _T]]) -> _Work[_T]:
        """Ask something of an attendant that has told the end. One that was interrupted is not asked again."""

        async def work(_: asyncssh.SSHClientConnection) -> _T:
            attendant, self._waiting = self._waiting, None
            try:
                if attendant is None:
                    attendant = await self._attend([self._launched().max_log_bytes] * 3)
                    async with asyncio.timeout(_REPORT_SECONDS):
                        await pump(attendant, {}, 0)
                answer = await ask(attendant)
            except BaseException as error:
                if attendant:
                    await attendant.close()
                if isinstance(error, NoProcess):
                    raise VmLost(str(error)) from error
                if isinstance(error, TimeoutError):
                    raise StepFailed("the process has not ended yet") from error
                raise
            self._waiting = attendant
            return answer

        return work

    async def _run(self, text: str, *, within: float = wire.STEP_SECONDS) -> wire.Reply:
        return await self._persist(lambda connection: wire.run(connection, text, within=within))

    async def _persist(self, work: _Work[_T], *, progress: Callable[[], int] = lambda: 0) -> _T:
        """The result of `work`, asked again over a new connection when one drops. `progress` rises when a try was not
        in vain. Raises ConnectionLost, VmLost, WrongHostKey."""
        fruitless = 0
        while True:
            connection, before = self._connection, progress()
            try:
                return await self._way.unless_gone(work(connection))
            except VmGone as gone:
                raise VmLost(f"the VM at {self._way} went away") from gone
            except Dropped as drop:
                fruitless = 0 if progress() > before else fruitless + 1
                if fruitless >= _FRUITLESS:
                    raise ConnectionLost(f"the connection to {self._way} dropped {fruitless} times: {drop}") from drop
                _log.warning("the connection to %s dropped: %s", self._way, drop)
            await self._reconnect(connection)

    async def _reconnect(self, dropped: asyncssh.SSHClientConnection) -> None:
        async with self._reconnecting:
            if self._connection is not dropped:
                return
            dropped.abort()
            try:
                self._connection = await self._way.open(self._reconnect_seconds)
            except Unreachable as error:
                raise ConnectionLost(f"the connection dropped and did not come back: {error}") from error
            except VmGone as gone:
                raise VmLost(f"the VM at {self._way} went away") from gone
