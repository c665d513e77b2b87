"""The comparison itself: it must notice what it is there for."""

import pytest

from tests.conformance.opennebula_replay import Replay
from tests.replay_server import ReplayServer, recorded, transcript

SESSIONS = {"oneadmin": "oneadmin:x"}
KNOWN = {
    kind: {n: n for n in range(70)}
    for kind in ("vm", "image", "template", "vnet", "secgroup", "host", "datastore", "cluster", "user")
}


def differences(line, reply=None):
    """What is said of the reply to one request; without a reply, the recorded one is given."""
    row = next(row for row in transcript() if row["line"] == line)
    with ReplayServer() as server:
        server.answers[row["method"]].append(row["reply"] if reply is None else reply)
        report = Replay(server.url, {**SESSIONS, row["as_user"]: "a:b"}, known=KNOWN, wait=0.05).run((row,))
    assert report.compared == [line]
    return [difference.what for difference in report.differences]


@pytest.mark.parametrize("line", [0, 2, 8, 10, 13, 14, 18, 19, 21, 26, 126, 128, 130, 187, 213, 249, 265])
def test_the_recorded_reply_is_the_same(line):
    assert differences(line) == []


def changed(line, old, new):
    _, body, *rest = recorded(line)
    assert old in body
    return [True, body.replace(old, new, 1), *rest]


@pytest.mark.parametrize(
    ("line", "reply", "said"),
    [
        (126, [True, "<VM/>", 0], "replied"),
        (126, [False, recorded(126)[1], 2048, 999999, -1], "code 2048 instead of 1024"),
        (126, [False, "[one.vm.info] Error getting VM [999999].", 1024, 999999, -1], "text"),
        (126, {"FAULT": {"faultCode": -501, "faultString": "no"}}, "replied"),
        (128, {"FAULT": {"faultCode": -500, "faultString": recorded(128)["FAULT"]["faultString"]}}, "fault"),
        (0, [True, 7, 0], "a int instead of a str"),
        (0, [True, "6.8", 0], "'6.8' instead of '7.2.0'"),
        (26, changed(26, "<RESCHED>0</RESCHED>", ""), "no VM/RESCHED"),
        (26, changed(26, "<RESCHED>", "<NEW/><RESCHED>"), "VM/NEW too much"),
        (26, changed(26, "<ID>0</ID><UID>0</UID>", "<UID>0</UID><ID>0</ID>"), "VM: order UID ID"),
        (26, changed(26, "<IP><![CDATA[10.78.0.10]]></IP>", ""), "no VM/TEMPLATE/NIC/IP"),
        (26, changed(26, "<OWNER_M>1<", "<OWNER_M>0<"), "VM/PERMISSIONS/OWNER_M is '0' instead of '1'"),
        (26, changed(26, "hello", "bye"), "VM/USER_TEMPLATE/MYTAG is 'bye'"),
        (26, changed(26, "<LCM_STATE>3<", "<LCM_STATE>2<"), "state RUNNING never seen; seen BOOT"),
        (249, [True, "<CLUSTER_POOL></CLUSTER_POOL>", 0], "CLUSTER_POOL: 0 objects instead of"),
        (249, [True, "<HOST_POOL></HOST_POOL>", 0], "<HOST_POOL> instead of <CLUSTER_POOL>"),
    ],
)
def test_a_difference_is_noticed(line, reply, said):
    assert any(what.startswith(said) for what in differences(line, reply)), differences(line, reply)


def test_a_pool_in_the_wrong_order_is_noticed():
    body = recorded(229)[1]
    vms = body.removeprefix("<VM_POOL>").removesuffix("</VM_POOL>").split("</VM>")[:-1]
    turned = f"<VM_POOL>{''.join(f'{vm}</VM>' for vm in reversed(vms))}</VM_POOL>"
    assert any("order of ids" in what for what in differences(229, [True, turned, 0]))


def test_a_state_that_never_comes_is_noticed():
    row = next(row for row in transcript() if row["line"] == 280)
    with ReplayServer() as server:
        server.answers["one.vm.info"].append(recorded(26))
        report = Replay(server.url, SESSIONS, known=KNOWN, wait=0.05).run((row,))
        assert [difference.what for difference in report.differences] == ["state BOOT never seen; seen RUNNING"]
        assert not server.asked("one.vm.action")


def test_ids_are_those_of_the_other_server():
    """VM 0 of the recording is VM 100 there: in arguments and in messages."""
    row = {**next(row for row in transcript() if row["line"] == 105), "note": ""}
    refused = [False, recorded(105)[1].replace("VM 0", "VM 100"), 2048, -1, -1]
    with ReplayServer() as server:
        server.answers["one.vm.info"].append(recorded(106))
        server.answers["one.vm.action"].append(refused)
        report = Replay(server.url, SESSIONS, known={"vm": {0: 100}}).run((row,))
        assert report.differences == []
        assert server.asked("one.vm.action") == [("terminate", 100)]
