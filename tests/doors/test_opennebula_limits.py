"""How often OpenNebula is asked: turns, what is kept for a moment, what is placed and made in that moment."""

import asyncio
import time
from xml.etree import ElementTree

import pytest

from orchestrator.decide.admission import QuotaOf
from orchestrator.domain.errors import CloudError, CloudUnreachable
from orchestrator.opennebula.cache import Cache
from orchestrator.opennebula.capacity import PendingSince, host_rooms, quota_rooms
from orchestrator.opennebula.limiter import Limiter
from orchestrator.opennebula.objects import CloudVm, Host
from orchestrator.opennebula.placement import Placements
from orchestrator.opennebula.sights import Sight, read_pool
from orchestrator.opennebula.states import Phase
from tests.doors.test_opennebula_objects import VM_INFO, read
from tests.replay_server import recorded, transcript

# ── turns ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Skipping(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next thing that is due, instead of waiting for it."""

    now = 0.0

    def time(self):
        return self.now

    def _run_once(self):
        if not self._ready and self._scheduled:
            self.now = max(self.now, self._scheduled[0]._when)
        super()._run_once()


def turns(rate, burst, play):
    """When `play`, given a limiter, does what it does: it returns a list of times."""
    with asyncio.Runner(loop_factory=Skipping) as runner:
        return runner.run(play(Limiter(rate, burst)))


async def at(limiter, **how):
    await limiter.turn(**how)
    return asyncio.get_running_loop().time()


def test_a_burst_and_then_the_rate():
    async def play(limiter):
        await asyncio.sleep(100)
        return [await at(limiter) - 100 for _ in range(7)]

    assert turns(4, 3, play) == pytest.approx([0, 0, 0, 0.25, 0.5, 0.75, 1.0])


def test_over_any_longer_time_no_more_than_the_rate():
    async def play(limiter):
        return await asyncio.gather(*(at(limiter) for _ in range(1000)))

    times = turns(28, 60, play)
    assert times == sorted(times)
    assert all(later - earlier >= (100 - 60) / 28 for earlier, later in zip(times, times[100:], strict=False))


def test_the_urgent_do_not_wait_and_those_behind_them_do():
    async def play(limiter):
        first = [at(limiter) for _ in range(3)]
        return await asyncio.gather(*first, at(limiter, urgent=True), at(limiter))

    start, *waited, urgent, last = turns(1, 1, play)
    assert (urgent - start, [one - start for one in waited], last - start) == (0, [1, 2], 4)


def test_a_turn_that_nobody_takes_any_more_is_the_next_ones():
    async def play(limiter):
        await at(limiter)
        given_up = asyncio.create_task(at(limiter))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        return [await at(limiter)]

    assert turns(1, 1, play) == [1]


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (-1, 1), (1, 0)])
def test_a_limit_that_is_none(rate, burst):
    with pytest.raises(ValueError, match="rate above 0"):
        Limiter(rate, burst)


# ── what is kept ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_several_who_ask_at_once_wait_for_one_reading():
    asked = []

    async def reading(key):
        asked.append(key)
        await asyncio.sleep(0)
        return key.upper()

    cache = Cache(reading, 3600)
    assert {value for value, _ in await asyncio.gather(*(cache.get("a") for _ in range(9)))} == {"A"}
    assert (await cache.get("b"))[0] == "B"
    assert asked == ["a", "b"]
    cache.forget()
    await cache.get("a")
    assert asked == ["a", "b", "a"]


async def test_what_could_not_be_read_is_asked_for_again():
    answers = [CloudUnreachable("gone"), "here"]

    async def reading(_):
        if isinstance(answer := answers.pop(0), Exception):
            raise answer
        return answer

    cache = Cache(reading, 3600)
    with pytest.raises(CloudUnreachable):
        await cache.get(None)
    assert (await cache.get(None))[0] == "here"


# ── where it goes ───────────────────────────────────────────────────────────────────────────────────────────────────


def host(number, *, cpus=4.0, memory=2**30, name=None, usable=True):
    return Host(number, name or f"h{number}", 0, usable, not usable, cpus, memory, 0)


def test_what_was_placed_since_the_hosts_were_read_is_taken_off():
    placements, hosts = Placements(), [host(1), host(2)]
    read_at = time.monotonic()
    with placements.counting(hosts[0], cpus=1, memory_bytes=2**20) as placement:
        assert [one.cpu_free for one in placements.after(hosts, read_at)] == [3, 4]
        placement.happened = True
    assert placements.after(hosts, read_at)[0].memory_free_bytes == 2**30 - 2**20
    assert placements.after(hosts, time.monotonic() + 1) == hosts


def test_what_could_not_be_placed_is_not_taken_off():
    placements = Placements()
    with pytest.raises(CloudError), placements.counting(host(1), cpus=1, memory_bytes=1):
        raise CloudError("no")
    assert placements.after([host(1)], 0.0) == [host(1)]


def test_rooms_are_of_hosts_that_take_vms():
    [room] = host_rooms([host(1), host(2, usable=False)])
    assert (room.name, room.cpus_free, room.memory_free_bytes, room.clusters) == ("h1", 4.0, 2**30, frozenset({0}))


# ── what is left ────────────────────────────────────────────────────────────────────────────────────────────────────


def user(quota, default=""):
    def section(name, text):
        return f"<{name}><VM_QUOTA>{text}</VM_QUOTA></{name}>"

    body = f"<USER><VM_QUOTA>{quota}</VM_QUOTA>{section('DEFAULT_USER_QUOTAS', default)}</USER>"
    return {
        (room.whose, room.what): room.left
        for room in quota_rooms(ElementTree.fromstring(body), "u", "DEFAULT_USER_QUOTAS")
    }


def test_quotas_as_they_were_recorded():
    recorded_user = ElementTree.fromstring(recorded(218)[1])
    assert list(quota_rooms(recorded_user, "user alice", "DEFAULT_USER_QUOTAS")) == []
    limited = recorded(218)[1].replace("<VMS><![CDATA[-2]]>", "<VMS><![CDATA[3]]>")
    limited = limited.replace("<RUNNING_MEMORY><![CDATA[-1]]>", "<RUNNING_MEMORY><![CDATA[100]]>")
    rooms = list(quota_rooms(ElementTree.fromstring(limited), "user alice", "DEFAULT_USER_QUOTAS"))
    assert [(room.whose, room.what, room.left) for room in rooms] == [
        ("user alice", QuotaOf.VMS, 2),
        ("user alice, running", QuotaOf.MEMORY, 36 * 2**20),
    ]


def test_a_default_quota_holds_for_those_without_their_own():
    default = "<VM><CPU>2</CPU><VMS>-1</VMS></VM>"
    assert user("", default) == {("u", QuotaOf.CPUS): 2}
    assert user("<VM><CPU>-1</CPU><CPU_USED>0.5</CPU_USED></VM>", default) == {("u", QuotaOf.CPUS): 1.5}
    assert user("<VM><CPU>-2</CPU><CPU_USED>0.5</CPU_USED></VM>", default) == {}
    assert user("<VM><CPU>0</CPU><CPU_USED>0</CPU_USED></VM>") == {("u", QuotaOf.CPUS): 0}


def test_a_quota_of_one_cluster_is_not_taken_for_all_of_them():
    assert user("<VM><CLUSTER_IDS>1,2</CLUSTER_IDS><VMS>1</VMS></VM><VM><VMS>5</VMS></VM>") == {("u", QuotaOf.VMS): 5}


def pending(*vms):
    said = "<SCHED_MESSAGE>[HOST] none</SCHED_MESSAGE>"
    return "".join(
        ["<VM_POOL>"]
        + [
            f"<VM><ID>{vm_id}</ID><STIME>{int(time.time() - age)}</STIME>"
            f"<USER_TEMPLATE>{said if explained else ''}</USER_TEMPLATE></VM>"
            for vm_id, age, explained in vms
        ]
        + ["</VM_POOL>"]
    )


def test_the_oldest_pending_vm_of_which_the_scheduler_says_nothing():
    found = PendingSince().read(pending((3, 10, False), (2, 500, False), (1, 9000, True)))
    assert (found.count, found.sched_message) == (3, "[HOST] none")
    assert 499 <= found.unexplained_seconds < 600


def test_a_clock_that_jumps_makes_no_vm_older():
    known = PendingSince()
    known.read(pending((1, 1, False)))
    assert known.read(pending((1, 10**6, False))).unexplained_seconds < 60


def test_nothing_pending():
    found = PendingSince().read("<VM_POOL></VM_POOL>")
    assert (found.count, found.unexplained_seconds, found.sched_message) == (0, 0, "")


@pytest.mark.parametrize("body", ["", "<VM_POOL>", "<html></html>"])
def test_what_is_no_pool_is_an_error(body):
    with pytest.raises(CloudError):
        PendingSince().read(body)
    with pytest.raises(ValueError, match=r"not XML|instead of a VM_POOL"):
        read_pool(body)


# ── what a tick shows ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("line", VM_INFO)
def test_a_sight_is_what_pyone_reads_too(line):
    vm = CloudVm.read(read(line))
    assert read_pool(f"<VM_POOL>{recorded(line)[1]}</VM_POOL>") == {vm.id: Sight.of(vm)}


SHORT_POOLS = [
    row["line"]
    for row in transcript()
    if row["method"] in ("one.vmpool.info", "one.vmpool.infoset") and row["reply"][0] is True
]


@pytest.mark.parametrize("line", SHORT_POOLS)
def test_every_recorded_short_pool_can_be_read(line):
    body = recorded(line)[1]
    sights = read_pool(body)
    assert len(sights) == body.count("<VM>")
    for sight in sights.values():
        assert (sight.address is not None) is (sight.phase is Phase.RUNNING)
        assert sight.host or sight.phase is Phase.DONE


def test_the_short_body_has_address_and_host():
    sight = read_pool(recorded(187)[1])[8]
    assert (sight.name, sight.state_name, sight.address, sight.host) == ("alice-vm", "RUNNING", "10.78.0.11", "dummy1")
