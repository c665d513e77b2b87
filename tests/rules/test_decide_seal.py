"""What of the cloud's own view contradicts a seal."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.decide.seal import complaints
from orchestrator.domain.outside import Direction, Nic, NicKind, OutsideView, Rule
from orchestrator.domain.seal import Network, Seal

SEALED = Seal("sealed", 1)
NIC = Nic("sealed", "10.0.0.5", "02:00:0a:00:00:05", (104,), NicKind.NIC, external=False)
SSH = Rule(104, "TCP", Direction.INBOUND, "22", "")
VIEW = OutsideView((NIC,), (SSH,), datetime(2026, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize("seal", [SEALED, replace(SEALED, network=Network.NONE)])
def test_one_nic_that_only_ssh_reaches_holds(seal: Seal) -> None:
    assert complaints(seal, VIEW) == ()
    assert complaints(seal, replace(VIEW, rules=())) == ()
    own = replace(SSH, ports="2222,22", addresses="10.0.0.0/24")
    assert complaints(seal, replace(VIEW, rules=(SSH, own)), ssh_port=2222) == ()


@pytest.mark.parametrize(
    ("nics", "said"),
    [
        ((), ["it has 0 NICs, and not one"]),
        ((NIC, replace(NIC, ip="10.0.0.6")), ["it has 2 NICs, and not one"]),
        ((replace(NIC, security_groups=()),), ["NIC 10.0.0.5 in sealed has no security group"]),
        ((replace(NIC, external=True),), ["NIC 10.0.0.5 in sealed is reached from outside"]),
        ((replace(NIC, kind=NicKind.ALIAS),), ["NIC 10.0.0.5 in sealed is a second address of another"]),
        (
            (replace(NIC, kind=NicKind.PCI, ip="", security_groups=()),),
            [
                "NIC 02:00:0a:00:00:05 in sealed is a device of the host, which no security group filters",
                "NIC 02:00:0a:00:00:05 in sealed has no security group",
            ],
        ),
    ],
)
def test_any_other_way_in_or_out_is_complained_of(nics: tuple[Nic, ...], said: list[str]) -> None:
    assert list(complaints(SEALED, replace(VIEW, nics=nics))) == said


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (replace(SSH, direction=Direction.OUTBOUND), "security group 104 lets it send TCP to ports 22"),
        (Rule(0, "ALL", Direction.OUTBOUND, "", ""), "security group 0 lets it send ALL"),
        (Rule(7, "UDP", Direction.OUTBOUND, "", "network 3"), "security group 7 lets it send UDP (network 3)"),
        (replace(SSH, protocol="ALL", ports=""), "security group 104 lets it be sent ALL"),
        (replace(SSH, protocol="UDP"), "security group 104 lets it be sent UDP to ports 22"),
        (replace(SSH, ports=""), "security group 104 lets it be sent TCP"),
        (replace(SSH, ports="22,80"), "security group 104 lets it be sent TCP to ports 22,80"),
        (replace(SSH, ports="22:23"), "security group 104 lets it be sent TCP to ports 22:23"),
        (replace(SSH, ports="2222"), "security group 104 lets it be sent TCP to ports 2222"),
    ],
)  # fmt: skip
def test_any_rule_but_ssh_is_complained_of(rule: Rule, said: str) -> None:
    assert complaints(SEALED, replace(VIEW, rules=(SSH, rule))) == (said,)


def test_an_open_profile_wants_nothing() -> None:
    anything = replace(VIEW, nics=(NIC, NIC), rules=(Rule(0, "ALL", Direction.OUTBOUND, "", ""),))
    assert complaints(Seal("open", 1, network=Network.OPEN), anything) == ()


@given(st.text(max_size=12))
def test_no_text_passes_for_the_port_of_ssh(ports: str) -> None:
    held = complaints(SEALED, replace(VIEW, rules=(replace(SSH, ports=ports),))) == ()
    assert held == (set(ports.split(",")) == {"22"})
