"""One call on the wire: bounded in time, told apart by code, whatever the far side does."""

import asyncio
import datetime
import ipaddress
import socket
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from orchestrator.domain.errors import (
    CloudDenied,
    CloudError,
    CloudMissing,
    CloudUnreachable,
    CloudWrongState,
    NotPossible,
    QuotaExceeded,
)
from orchestrator.opennebula.client import Client
from orchestrator.opennebula.transport import NeverSent
from tests.replay_server import Misbehaviour, ReplayServer, transcript


@pytest.fixture
def server():
    with ReplayServer() as replay:
        yield replay


@pytest.fixture
def client(server):
    connected = Client(server.url, "oneadmin:secret", timeout=5, patience=0)
    yield connected
    connected.close()


async def test_the_session_goes_first_and_the_value_comes_back(server, client):
    assert await client.ask("system.version") == "7.2.0"
    assert server.sessions == ["oneadmin:secret"]


FAILURES = [row for row in transcript() if isinstance(row["reply"], list) and row["reply"][0] is False]
FAULTS = [row for row in transcript() if isinstance(row["reply"], dict)]


@pytest.mark.parametrize("row", FAILURES, ids=lambda row: f"{row['line']}-{row['method']}")
async def test_every_recorded_failure_keeps_its_code_and_text(server, client, row):
    _, text, code, *_ = row["reply"]
    kind = {256: CloudDenied, 512: CloudDenied, 1024: CloudMissing, 2048: CloudWrongState}.get(code, CloudError)
    if "quota" in text:
        kind = QuotaExceeded
    server.answers[row["method"]].append(row["reply"])
    with pytest.raises(CloudError) as caught:
        await client.ask(row["method"].removeprefix("one."))
    assert type(caught.value) is kind
    assert caught.value.code == code
    assert text in str(caught.value)


@pytest.mark.parametrize("row", FAULTS, ids=lambda row: row["method"])
async def test_a_fault_is_an_error_with_its_code(server, client, row):
    server.answers[row["method"]].append(row["reply"])
    with pytest.raises(CloudError) as caught:
        await client.ask(row["method"].removeprefix("one."))
    assert caught.value.code == row["reply"]["FAULT"]["faultCode"]
    assert str(caught.value) == row["reply"]["FAULT"]["faultString"]


async def test_a_wrong_password_says_where_to_look(server, client):
    server.answers["one.system.version"].append(
        [False, "[one.system.version] User couldn't be authenticated, aborting call.", 256, -1, -1]
    )
    with pytest.raises(CloudDenied, match="ONE_AUTH"):
        await client.ask("system.version")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("way", [Misbehaviour.SILENCE, Misbehaviour.DRIP])
async def test_a_call_ends_however_slowly_the_reply_comes(server, way):
    client = Client(server.url, "a:b", timeout=0.3, patience=0)
    server.answers["one.system.version"].append(way)
    with pytest.raises(CloudUnreachable, match="the time for it is over"):
        await client.ask("system.version")
    client.close()


@pytest.mark.timeout(60)
async def test_a_call_ends_when_the_connection_is_not_taken():
    """A listener whose queue is full answers no SYN: the connection attempt itself has to end."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        waiting = [socket.create_connection(listener.getsockname())]
        client = Client(f"http://127.0.0.1:{listener.getsockname()[1]}/RPC2", "a:b", timeout=0.3, patience=0)
        with pytest.raises(CloudUnreachable):
            await client.ask("system.version")
        client.close()
        for one in waiting:
            one.close()


async def test_the_process_keeps_its_default_socket_timeout(client):
    await client.ask("system.version")
    assert socket.getdefaulttimeout() is None


async def test_nobody_listening_names_the_variable_to_look_at():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    client = Client(f"http://127.0.0.1:{port}/RPC2", "a:b", timeout=5, patience=0)
    with pytest.raises(NeverSent, match=rf"nothing answers at http://127.0.0.1:{port}/RPC2: .*refused.*ONE_XMLRPC"):
        await client.ask("system.version")
    client.close()


@pytest.mark.parametrize("way", [Misbehaviour.DROP, Misbehaviour.HALF, Misbehaviour.BAD_GATEWAY])
async def test_a_lost_reply_is_no_answer(server, client, way):
    server.answers["one.system.version"].append(way)
    with pytest.raises(CloudUnreachable) as caught:
        await client.ask("system.version")
    assert not isinstance(caught.value, NeverSent)


@pytest.mark.parametrize("way", [Misbehaviour.GARBAGE, Misbehaviour.NOT_OPENNEBULA])
async def test_nonsense_leaves_open_whether_the_call_was_done(server, client, way):
    server.answers["one.system.version"].append(way)
    with pytest.raises(CloudUnreachable, match="ONE_XMLRPC") as caught:
        await client.ask("system.version")
    assert not isinstance(caught.value, NeverSent)


async def test_something_else_that_answers_is_said_to_be_that(server, client):
    server.answers["one.system.version"].append(Misbehaviour.NOT_FOUND)
    with pytest.raises(CloudError, match="ONE_XMLRPC") as caught:
        await client.ask("system.version")
    assert not isinstance(caught.value, CloudUnreachable)


async def test_a_question_is_asked_again_when_the_reply_is_lost(server):
    client = Client(server.url, "a:b", timeout=5, patience=30)
    server.answers["one.system.version"].extend([Misbehaviour.DROP, Misbehaviour.HALF, [True, "7.2.0", 0]])
    assert await client.ask("system.version") == "7.2.0"
    assert len(server.requests) == 3
    client.close()


async def test_an_order_is_not_given_twice_when_the_reply_is_lost(server):
    client = Client(server.url, "a:b", timeout=5, patience=30)
    server.answers["one.template.instantiate"].extend([Misbehaviour.DROP, [True, 7, 0]])
    with pytest.raises(CloudUnreachable):
        await client.order("template.instantiate", 0, "name", False, "", False)
    assert len(server.requests) == 1
    client.close()


async def test_an_order_that_never_left_is_given_again():
    """The port is free at first; a server takes it while the client is still trying."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    client = Client(f"http://127.0.0.1:{port}/RPC2", "a:b", timeout=5, patience=60)
    with pytest.raises(NeverSent):
        await client.once("system.version")
    order = asyncio.create_task(client.order("system.version"))
    await asyncio.sleep(0)
    with ReplayServer(port=port) as late:
        assert await order == "7.2.0"
        assert len(late.requests) == 1
    client.close()


async def test_no_more_calls_at_once_than_connections(server):
    client = Client(server.url, "a:b", timeout=20, patience=0, connections=3)
    server.gate.clear()
    calls = [asyncio.create_task(client.ask("system.version")) for _ in range(9)]
    async with asyncio.timeout(20):
        while server.under_way() < 3:
            await asyncio.sleep(0.01)
    server.gate.set()
    assert await asyncio.gather(*calls) == ["7.2.0"] * 9
    assert server.most_at_once == 3
    client.close()


@pytest.mark.parametrize("text", ["a\0b", "a\x1bb", "a\rb", "\ud800", "\uffff"])
async def test_what_xml_cannot_carry_is_not_sent(server, client, text):
    with pytest.raises(CloudError, match="cannot be sent"):
        await client.ask("vm.rename", 1, text)
    assert server.requests == []


@pytest.mark.parametrize("endpoint", ["", "localhost:2633", "ftp://localhost/RPC2", "http://", "http://x:port/RPC2"])
def test_an_endpoint_that_is_none_names_the_variable(endpoint):
    with pytest.raises(NotPossible, match="ONE_XMLRPC"):
        Client(endpoint, "a:b")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that signs itself, with its key, in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "certificate.pem"
    pem.write_bytes(
        signed.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return pem


def _serving(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


async def test_https_with_a_certificate_that_the_system_trusts(certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with ReplayServer(tls=_serving(certificate)) as server:
        client = Client(server.url, "a:b", timeout=5, patience=0)
        assert await client.ask("system.version") == "7.2.0"
        client.close()


@pytest.mark.timeout(60)
async def test_an_encrypted_reply_is_bounded_too(certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with ReplayServer(tls=_serving(certificate)) as server:
        client = Client(server.url, "a:b", timeout=0.5, patience=0)
        server.answers["one.system.version"].append(Misbehaviour.DRIP)
        with pytest.raises(CloudUnreachable, match="the time for it is over"):
            await client.ask("system.version")
        client.close()


async def test_https_with_a_certificate_that_nobody_vouches_for(certificate):
    with ReplayServer(tls=_serving(certificate)) as server:
        client = Client(server.url, "a:b", timeout=5, patience=0)
        with pytest.raises(CloudUnreachable, match="certificate verify failed"):
            await client.ask("system.version")
        assert server.requests == []
        client.close()


# ── what is counted ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        ([True, 1, 0], "ok"),
        ([False, "Not authorized", 512, -1, -1], "denied"),
        ([False, "wrong password", 256, -1, -1], "denied"),
        ([False, "limit of 1 reached for VMS quota in VM.", 512, -1, -1], "quota"),
        ([False, "locked", 32768, -1, -1], "locked"),
        ([False, "no such", 1024, -1, -1], "missing"),
        ([False, "wrong state", 2048, -1, -1], "wrong_state"),
        ([False, "internal", 8192, -1, -1], "failed"),
        (Misbehaviour.DROP, "unreachable"),
        (Misbehaviour.GARBAGE, "unreachable"),
        (Misbehaviour.NOT_FOUND, "failed"),
    ],
)
async def test_each_request_is_told_with_its_result(server, answer, result):
    told = []
    client = Client(server.url, "a:b", patience=0, on_request=lambda *request: told.append(request))
    server.answers["one.vm.action"].append(answer)
    try:
        await client.order("vm.action", "hold", 1)
    except CloudError:
        assert result != "ok"
    client.close()
    [(method, said, seconds)] = told
    assert (method, said) == ("vm.action", result)
    assert seconds >= 0


async def test_each_try_is_a_request(server):
    told = []
    client = Client(server.url, "a:b", patience=5, on_request=lambda *request: told.append(request[:2]))
    server.answers["one.vm.info"].extend([Misbehaviour.DROP, [True, "", 0]])
    await client.ask_raw("vm.info", 1)
    client.close()
    assert told == [("vm.info", "unreachable"), ("vm.info", "ok")]


async def test_what_is_not_sent_is_no_request(server):
    told = []
    client = Client(server.url, "a:b", on_request=lambda *request: told.append(request))
    with pytest.raises(CloudError, match="cannot be sent"):
        await client.once("vm.update", 1, "\x00", 1)
    client.close()
    assert told == []


async def test_a_request_for_which_nobody_waited_is_not_told(server):
    told = []
    server.gate.clear()
    client = Client(server.url, "a:b", on_request=lambda *request: told.append(request))
    asking = asyncio.create_task(client.once("vm.action", "hold", 1))
    async with asyncio.timeout(30):
        while not server.under_way():
            await asyncio.sleep(0.01)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    server.gate.set()
    client.close()
    assert told == []
