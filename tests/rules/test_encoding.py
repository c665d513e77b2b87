"""Nouns of the domain as JSON: what goes in comes out, and what an earlier version wrote is still read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.outcome import DiskFull, Exited, Lost, Outcome, OutOfMemory, Signaled, TimedOut
from orchestrator.domain.task import (
    Delivery,
    Entrypoint,
    InputSpec,
    Limits,
    Packages,
    TaskSpec,
    Terms,
    TraceProfile,
)
from orchestrator.store.encoding import outcome_from_json, outcome_to_json, spec_from_json, spec_to_json

words = st.text(st.characters(codec=None), max_size=6)
counts = st.none() | st.integers(1, 2**50)
specs = st.builds(
    TaskSpec,
    pool=words,
    command=st.lists(words, max_size=3).map(tuple),
    entrypoint=st.sampled_from(Entrypoint),
    inputs=st.lists(st.builds(InputSpec, words, words, words, code=st.booleans(), pinned=words), max_size=2).map(tuple),
    outputs=st.lists(words, max_size=2).map(tuple),
    environment=st.dictionaries(words, words, max_size=2),
    limits=st.builds(Limits, st.none() | st.floats(0.5, 1e6), counts, counts, counts, counts, counts),
    trace=st.sampled_from(TraceProfile),
    seal=words,
    packages=st.builds(Packages, words, st.lists(words, max_size=2).map(tuple)),
    name=words,
    terms=st.builds(
        Terms,
        priority=st.integers(-100, 100),
        not_before=st.none() | st.datetimes(timezones=st.timezones()),
        depends_on=st.lists(words, max_size=2).map(tuple),
        delivery=st.sampled_from(Delivery),
        max_attempts=counts,
        retry_job=st.booleans(),
    ),
)


def through_json(data: Any) -> Any:
    text = json.dumps(data, allow_nan=False)
    assert text.isascii(), "no database changes it"
    return json.loads(text)


@given(specs)
def test_a_description_comes_back_as_it_was(spec: TaskSpec) -> None:
    back = spec_from_json(through_json(spec_to_json(spec)))
    assert back == spec
    assert spec_to_json(back) == spec_to_json(spec)


# As it was written before there were terms; then before there were seals, packages, pins and limits of open files.
FIRST: dict[str, Any] = {
    "pool": "small",
    "command": ["sh", "-c", "true"],
    "entrypoint": "data-exchange",
    "inputs": [{"source": "/data", "dest": "data", "blob": "sha256:00"}],
    "outputs": ["*.csv"],
    "environment": {"A": "b"},
    "limits": {"timeout_seconds": 60.0, "memory_bytes": None, "processes": 7},
    "trace": "full",
    "name": "old",
}
TERMS: dict[str, Any] = {
    "terms": {
        "priority": 3,
        "not_before": "2026-03-01T12:00:00+00:00",
        "depends_on": ["0123456789abcdef"],
        "delivery": "at_most_once",
        "max_attempts": 2,
        "retry_job": True,
    }
}


@pytest.mark.parametrize("later", [{}, TERMS])
def test_what_an_earlier_version_wrote_means_what_it_meant(later: dict[str, Any]) -> None:
    spec = spec_from_json(through_json({**FIRST, **later}))
    assert spec.inputs == (InputSpec("/data", "data", "sha256:00", code=False, pinned=""),)
    assert spec.limits == Limits(60.0, None, 7, None, None, None)
    assert (spec.trace, spec.seal, spec.entrypoint) == (TraceProfile.FULL, "", Entrypoint.DATA_EXCHANGE)
    assert spec.packages == Packages() and not spec.packages
    assert spec.terms.priority == (3 if later else 0)
    assert spec_from_json(through_json(spec_to_json(spec))) == spec


OUTCOMES = [
    Exited(3),
    Signaled("KILL"),
    OutOfMemory(2**30),
    OutOfMemory(2**30, 2**29),
    DiskFull("/task/tmp", 2**20, 1),
    TimedOut(1.5),
    Lost("the connection \udcff dropped"),
]


@pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda outcome: type(outcome).__name__)
def test_an_outcome_comes_back_as_it_was(outcome: Outcome) -> None:
    back = outcome_from_json(through_json(outcome_to_json(outcome)))
    assert back == outcome and repr(back) == repr(outcome)  # the peak is not compared


def test_an_earlier_version_did_not_say_how_much_memory_was_used_at_most() -> None:
    old = outcome_from_json({"kind": "out_of_memory", "limit_bytes": 5})
    assert isinstance(old, OutOfMemory) and (old.limit_bytes, old.peak_bytes) == (5, None)


@pytest.mark.parametrize(
    "wrong",
    [{}, {"kind": "eaten"}, {"kind": "disk_full", "where": "/task/out"}, {"kind": "out_of_memory", "limit_bytes": "5"}],
)
def test_what_is_no_outcome_is_told(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not an outcome"):
        outcome_from_json(wrong)
