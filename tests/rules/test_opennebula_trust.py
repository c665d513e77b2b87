"""How far events are relied on, and which looks they cause."""

import math

from orchestrator.opennebula.events import Announced
from orchestrator.opennebula.trust import EarlyLooks, Trust


def told(trust, state, vm_id=7):
    trust.heard(Announced(vm_id, state, settled=True))


def test_nothing_is_relied_on_before_it_has_proved_itself():
    trust = Trust()
    assert not trust.proven
    told(trust, "RUNNING")
    assert not trust.proven


def test_a_change_that_was_announced_is_a_proof():
    trust = Trust()
    told(trust, "RUNNING")
    trust.seen(7, "RUNNING", "BOOT", now=1.0)
    assert trust.proven
    assert not trust.missed(now=100.0)


def test_a_change_of_which_nothing_was_heard_ends_it_until_the_next_proof():
    trust = Trust(proven=True)
    trust.seen(7, "RUNNING", "BOOT", now=1.0)
    assert not trust.missed(now=2.0)
    assert trust.proven
    assert trust.missed(now=3.5)
    assert not trust.proven
    assert not trust.missed(now=3.6)
    told(trust, "DONE")
    trust.seen(7, "DONE", "RUNNING", now=4.0)
    assert trust.proven


def test_an_event_that_comes_a_little_later_than_the_look_is_none_missed():
    trust = Trust()
    trust.seen(7, "RUNNING", "BOOT", now=1.0)
    told(trust, "RUNNING")
    assert trust.proven
    assert not trust.missed(now=100.0)


def test_another_state_or_vm_is_no_excuse():
    trust = Trust(proven=True)
    told(trust, "RUNNING", vm_id=8)
    told(trust, "BOOT")
    trust.seen(7, "RUNNING", "BOOT", now=1.0)
    told(trust, "DONE")
    assert trust.missed(now=10.0)


def test_what_is_seen_for_the_first_time_or_unchanged_proves_nothing_missing():
    trust = Trust(proven=True)
    trust.seen(7, "RUNNING", None, now=1.0)
    trust.seen(7, "RUNNING", "RUNNING", now=2.0)
    assert not trust.missed(now=100.0)


def test_an_interrupted_stream_has_to_prove_itself_again():
    trust = Trust()
    told(trust, "RUNNING")
    trust.seen(7, "RUNNING", "BOOT", now=1.0)
    trust.forget()
    assert not trust.proven
    trust.seen(7, "RUNNING", "BOOT", now=2.0)
    assert not trust.proven


def test_what_is_remembered_is_bounded():
    trust = Trust()
    for vm_id in range(5000):
        told(trust, "RUNNING", vm_id)
    for number in range(5000):
        told(trust, f"STATE_{number}")
    assert len(trust._heard) <= 1000
    assert all(len(states) <= 12 for states in trust._heard.values())
    trust.seen(4999, "RUNNING", "BOOT", now=1.0)
    assert trust.proven


def test_nothing_wanted_is_never_due():
    assert EarlyLooks(1.0).moment() == math.inf


def test_a_vm_is_looked_at_when_it_is_announced_and_no_more_when_it_showed_that():
    looks = EarlyLooks(1.0)
    looks.want(7, "DONE", now=10.0)
    assert looks.moment() <= 10.0
    assert looks.take(10.0) == [7]
    looks.looked(7, "DONE", began=10.0, now=10.1)
    assert looks.moment() == math.inf


def test_a_vm_that_does_not_show_it_is_looked_at_three_times_more_and_later_each_time():
    looks = EarlyLooks(0.001)
    looks.want(7, "DONE", now=10.0)
    moments = []
    while (moment := looks.moment()) != math.inf:
        moments.append(max(moment, 10.0))
        looks.take(moments[-1])
        looks.looked(7, "EPILOG", began=moments[-1], now=moments[-1])
    assert [round(moment - 10.0, 3) for moment in moments] == [0.0, 0.05, 0.25, 0.75]


def test_a_look_that_began_before_the_event_does_not_answer_it():
    looks = EarlyLooks(1.0)
    looks.want(7, "DONE", now=10.0)
    looks.looked(7, "DONE", began=9.9, now=10.1)
    assert looks.take(10.1) == [7]


def test_any_state_answers_one_who_only_wants_a_look():
    looks = EarlyLooks(1.0)
    looks.want(7, "", now=10.0)
    looks.looked(7, "BOOT", began=10.0, now=10.1)
    assert looks.moment() == math.inf


def test_five_looks_at_once_then_one_a_gap():
    looks = EarlyLooks(2.0)
    taken = []
    for _ in range(8):
        looks.want(7, "DONE", now=100.0)
        moment = max(looks.moment(), 100.0)
        taken.append(moment)
        looks.take(moment)
    assert taken == [100.0] * 5 + [102.0, 104.0, 106.0]


def test_a_vm_that_nobody_waits_for_is_forgotten():
    looks = EarlyLooks(1.0)
    looks.want(7, "DONE", now=10.0)
    looks.forget(7)
    looks.forget(8)
    assert looks.moment() == math.inf
