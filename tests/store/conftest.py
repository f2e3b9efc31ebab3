"""What is stored is stored alike behind a pooler."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.pgbouncer import pgbouncer


@pytest.fixture(scope="session", params=["direct", "pooled"])
def shared_database(request: pytest.FixtureRequest, shared_database: str) -> Iterator[str]:
    """Give the address of the database behind ``pool``, and then once more behind PgBouncer."""
    if request.param == "direct":
        yield shared_database
    else:
        with pgbouncer(shared_database, mode="transaction") as pooler:
            yield pooler.url
