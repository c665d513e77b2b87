"""The databases that the store's tests run on: `store_url` is an empty one, of each kind."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.store import Store
from tests.postgres import Postgres, binaries, running_server

KINDS = ("sqlite", "postgresql")
TEMPLATE = "migrated"
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """One server for all tests of a run."""
    if binaries() is None:
        pytest.skip("no PostgreSQL server is installed")
    with running_server(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture
def new_database(postgres: Postgres) -> Iterator[Callable[..., str]]:
    """Makes an empty database on the server, each time another; they are gone after the test."""
    made: list[str] = []

    def make(template: str = "template0") -> str:
        made.append(f"test{next(_numbers)}")
        return postgres.create(made[-1], template)

    yield make
    for name in made:
        postgres.drop(name)


@pytest.fixture(scope="session")
def migrated(postgres: Postgres) -> str:
    """The name of a database with today's schema and nothing in it, to be copied: migrations take a second."""

    async def migrate() -> None:
        await (await Store.open(postgres.create(TEMPLATE))).close()

    asyncio.run(migrate())
    return TEMPLATE


@pytest.fixture(params=KINDS)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a database without rows is, or will be: each test that takes it runs on both kinds."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'home' / 'mayfly.db'}"
    url: str = request.getfixturevalue("new_database")(template=request.getfixturevalue("migrated"))
    return url


@pytest.fixture(params=KINDS)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """As `store_url`, without a schema."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'home' / 'mayfly.db'}"
    url: str = request.getfixturevalue("new_database")()
    return url


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    async with await Store.open(store_url) as opened:
        yield opened
