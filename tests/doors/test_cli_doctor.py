"""What doctor says of OpenNebula and of the scheduler that leads."""

from datetime import timedelta

import pytest

from orchestrator import bootstrap
from orchestrator.cli import doctor as doctors
from orchestrator.opennebula import Cloud
from orchestrator.scheduler.leader import LEADER_SECONDS, NAME
from orchestrator.settings import Settings
from tests.doors.test_opennebula_events import Oned, unused_address
from tests.driver import Mayfly
from tests.replay_server import ReplayServer, recorded

NO_HOSTS, ONE_HOST = recorded(203), recorded(10)
ADMINISTRATOR, ALICE = recorded(2), recorded(165)


@pytest.fixture
def server():
    with ReplayServer() as replay:
        yield replay


@pytest.mark.parametrize(
    ("hosts", "user", "seen", "advised"),
    [
        (ONE_HOST, ADMINISTRATOR, "places VMs itself, on the one host", False),
        (ONE_HOST, ALICE, "not of the group oneadmin", True),
        (NO_HOSTS, ALICE, "sees no host", True),
    ],
)
async def test_who_places_and_what_it_costs(server, hosts, user, seen, advised):
    server.answers["one.hostpool.info"].append(hosts)
    server.answers["one.user.info"].append(user)
    async with Cloud(server.url, "a:b") as cloud:
        found = await doctors._placement(cloud)
    assert found.met and seen in found.seen
    assert ("10 to 15 s" in found.seen) is advised
    assert ("SCHED_MAX_WND_TIME" in found.advice) is advised


async def test_where_events_come_from(server):
    oned = Oned()
    try:
        async with Cloud(server.url, "a:b", events=oned.address) as cloud:
            found = await doctors._events(cloud)
        assert found.seen == f"OpenNebula's come from {oned.address}" and not found.advice
    finally:
        oned.close()


async def test_where_no_events_come_from(server):
    address = unused_address()
    async with Cloud(server.url, "a:b", events=address, events_once=True) as cloud:
        found = await doctors._events(cloud)
    assert address in found.seen and "ONE_ZMQ" in found.advice
    async with Cloud(server.url, "a:b") as cloud:
        found = await doctors._events(cloud)
    assert found.met and "not asked for" in found.seen


@pytest.fixture(scope="module")
def mayfly(tmp_path_factory):
    home = tmp_path_factory.mktemp("doctor") / "home"
    mayfly = Mayfly({"MAYFLY_HOME": str(home), "MAYFLY_DATABASE_URL": "", "ONE_XMLRPC": "", "ONE_AUTH": ""})
    started = mayfly("cloud", "start", "--hypervisor", "simulated", "--json")
    assert started.exit_code == 0, started.stderr
    assert started.json()["one_zmq"].startswith("tcp://127.0.0.1:")
    yield mayfly
    assert mayfly("cloud", "stop").exit_code == 0


def found(mayfly, requirement):
    return next(each for each in mayfly("doctor", "--json").json() if each["requirement"] == requirement)


def test_the_local_cloud_publishes_and_places(mayfly):
    address = mayfly("cloud", "status", "--json").json()["one_zmq"]
    assert address in mayfly("cloud", "status").stdout
    assert found(mayfly, "events")["seen"] == f"OpenNebula's come from {address}"
    assert "places VMs itself" in found(mayfly, "placement")["seen"]


def test_the_local_cloud_by_its_address(mayfly):
    """As any other OpenNebula: with ONE_ZMQ or without."""
    facts = mayfly("cloud", "status", "--json").json()
    named = {"ONE_XMLRPC": facts["url"], "ONE_AUTH": facts["one_auth"]}
    assert "come from" in found(mayfly.with_environment(**named, ONE_ZMQ=facts["one_zmq"]), "events")["seen"]
    assert "not asked for" in found(mayfly.with_environment(**named, ONE_ZMQ="none"), "events")["seen"]
    wrong = mayfly.with_environment(**named, ONE_ZMQ="localhost:2101")("doctor")
    assert wrong.exit_code == 1
    assert "ONE_ZMQ" in wrong.stdout and "tcp://HOST:2101" in wrong.stdout and "Traceback" not in wrong.stderr


async def test_when_the_leader_was_heard(tmp_path):
    settings = Settings.from_environment({"MAYFLY_HOME": str(tmp_path)})
    async with bootstrap.open_house(settings) as house:
        now = await house.store.clock.sync()
        assert (await doctors._scheduler(house.store, now, 0)).seen == "none leads, and 0 tasks wait"
        assert await house.store.leaders.lead(NAME, "me", seconds=LEADER_SECONDS, now=now) == 1
        soon, later = now + timedelta(seconds=3), now + timedelta(minutes=5)
        assert (await doctors._scheduler(house.store, soon, 0)).seen == "me leads, in term 1, heard 3 s ago"
        silent = await doctors._scheduler(house.store, later, 2)
        assert silent.seen == "none leads, me was the last and was heard 5 min ago; 2 tasks wait"
        assert not silent.met and "mayfly scheduler" in silent.hint
        assert await house.store.leaders.resign(NAME, "me")
        assert "me was the last and resigned" in (await doctors._scheduler(house.store, soon, 0)).seen
