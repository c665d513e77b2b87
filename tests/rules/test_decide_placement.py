"""Which host a VM goes to."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import pytest

from orchestrator.decide.placement import choose_host
from orchestrator.domain.pool import Placement

GIB = 2**30


@dataclass(frozen=True)
class Host:
    id: int = 0
    name: str = "a"
    cluster_id: int = 0
    usable: bool = True
    cpu_free: float = 2.0
    memory_free_bytes: int = 4 * GIB


A = Host()
B = Host(1, "b", memory_free_bytes=8 * GIB)
FULL = Host(2, "c", memory_free_bytes=GIB - 1)


@pytest.mark.parametrize(
    ("hosts", "spread", "packed"),
    [
        ([], None, None),
        ([A], 0, 0),
        ([A, B, FULL], 1, 0),
        ([B, A], 1, 0),
        ([replace(A, id=1), A], 0, 0),  # of equals the first
        ([A, replace(A, id=1, cpu_free=8.0)], 1, 0),
        ([A, replace(B, cpu_free=0.5)], 0, 0),
        ([A, replace(B, usable=False)], 0, 0),
        ([A, replace(B, cluster_id=100)], 0, 0),
        ([FULL], None, None),
        ([replace(A, cpu_free=1.0, memory_free_bytes=GIB)], 0, 0),  # as much as it needs
    ],
)
def test_the_emptiest_or_the_fullest_of_those_where_it_fits(
    hosts: list[Host], spread: int | None, packed: int | None
) -> None:
    for placement, expected in ((Placement.SPREAD, spread), (Placement.PACK, packed)):
        found = choose_host(hosts, {0}, cpus=1, memory_bytes=GIB, placement=placement)
        assert (found and found.id) == expected


@pytest.mark.parametrize("placement", Placement)
@pytest.mark.parametrize(
    ("avoid", "expected"), [((), {"a", "b"}), (("b",), {"a"}), (("a",), {"b"}), (("a", "b"), {"a", "b"})]
)
def test_one_to_avoid_is_taken_for_want_of_another(
    placement: Placement, avoid: Collection[str], expected: set[str]
) -> None:
    found = choose_host([A, B, FULL], {0}, cpus=1, memory_bytes=GIB, placement=placement, avoid=avoid)
    assert found is not None and found.name in expected


def test_any_of_the_clusters_will_do() -> None:
    assert choose_host([A, replace(B, cluster_id=100)], {0, 100}, cpus=1, memory_bytes=GIB) == replace(
        B, cluster_id=100
    )
    assert choose_host([A], {100}, cpus=1, memory_bytes=GIB) is None
