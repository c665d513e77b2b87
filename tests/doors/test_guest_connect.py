"""Reaching a guest: patience while it boots, and none with a host key that is not ours."""

from __future__ import annotations

import asyncio

import paramiko
import pytest

from orchestrator.domain.errors import Unreachable, WrongHostKey
from orchestrator.guest import make_key, read_key
from tests.guest_ends import free_port, misbehaving_server, reach, simulated
from tests.misbehaving_ssh import Meets


async def test_a_guest_is_reached_and_tells_its_facts() -> None:
    async with simulated() as (guest, _):
        facts = await guest.facts()
    assert facts.unmet == ()
    assert facts.kernel == "simulated"


@pytest.mark.parametrize("key", [paramiko.RSAKey.generate(2048), paramiko.ECDSAKey.generate()], ids=["rsa", "ecdsa"])
async def test_a_host_key_of_another_kind_is_wrong_and_not_tried_again(key: paramiko.PKey) -> None:
    server = misbehaving_server(host=key)
    try:
        with pytest.raises(WrongHostKey, match="a host key that we did not make"):
            await reach(server.port)
    finally:
        server.close()
    assert server.asked == []


async def test_another_key_of_the_right_kind_is_wrong() -> None:
    server = misbehaving_server()
    try:
        with pytest.raises(WrongHostKey):
            await reach(server.port, host_key=make_key("another").public)
    finally:
        server.close()


@pytest.mark.parametrize(
    ("meets", "said"),
    [
        (Meets.CLOSED, "closed the connection at once"),
        (Meets.SILENCE, "took a connection, and said nothing"),
        (Meets.BANNER, "did not end the SSH handshake in time"),
        (Meets.GARBAGE, "broke off the SSH handshake"),
        (Meets.DENIAL, "refused our key"),
    ],
)
async def test_at_the_deadline_it_is_said_what_was_met(meets: Meets, said: str) -> None:
    server = misbehaving_server(on_connection=[meets])
    try:
        with pytest.raises(Unreachable, match=said):
            await reach(server.port, deadline=1.5)
    finally:
        server.close()
    assert server.connections >= 1


async def test_where_nothing_listens_it_is_said_so() -> None:
    with pytest.raises(Unreachable, match=r"no SSH at 127\.0\.0\.1:\d+ within 0\.6 s: Connection refused"):
        await reach(free_port(), deadline=0.6)


async def test_a_guest_that_answers_late_is_reached() -> None:
    meets = [Meets.CLOSED, Meets.SILENCE, Meets.CLOSED, Meets.SILENCE, Meets.SILENCE, Meets.SERVICE]
    server = misbehaving_server(on_connection=meets)
    try:
        guest = await reach(server.port)
        await guest.close()
    finally:
        server.close()
    assert server.connections >= len(meets)


async def test_the_news_that_the_vm_is_gone_ends_the_wait() -> None:
    gone = asyncio.Event()
    waiting = asyncio.create_task(reach(free_port(), deadline=600.0, vm_gone=gone))
    await asyncio.sleep(0)
    gone.set()
    with pytest.raises(Unreachable, match="the VM went away"):
        async with asyncio.timeout(60):
            await waiting


def test_a_key_is_a_pair_and_keeps_its_secret_to_itself() -> None:
    key = make_key("vm-1.2")
    assert key.public.startswith("ssh-ed25519 ")
    assert key.public.endswith(" vm-1.2")
    assert key.private not in repr(key)
    assert read_key(key.private).public == key.public
    with pytest.raises(ValueError, match="not an unencrypted private key"):
        read_key("no key")
