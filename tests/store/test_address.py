"""Addresses of the database as other programs write them; what is wrong with one is named, without its password."""

from __future__ import annotations

import random
from urllib.parse import quote

import pytest
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from jarvis_core.errors import SettingsError
from jarvis_core.store.address import LIBPQ, Address, parse

PASSWORD = "hunter2"
BASE = f"postgresql://jarvis:{PASSWORD}@db:6432/jarvis"
FIELDS = {"user": "jarvis", "password": PASSWORD, "host": "db", "port": "6432", "dbname": "jarvis"}

PIECES = (*"é \\'\"=&?@/:%+#,[]'1a", "%4", PASSWORD)
"""What passwords are made of."""
TRIES = 3_000


def fields_of(address: Address) -> dict[str, object]:
    """Return what libpq makes of it."""
    return dict(conninfo_to_dict(address.conninfo.reveal()))


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg", "postgresql+psycopg", "PostgreSQL",
                                    "postgresql+psycopg2", "postgres+pg8000", "jdbc:postgresql", "pgsql"])  # fmt: skip
def test_schemes(scheme: str) -> None:
    """The driver that another program would use makes no difference."""
    assert fields_of(parse(BASE.replace("postgresql", scheme))) == FIELDS


@pytest.mark.parametrize(
    ("query", "mode"),
    [
        ("ssl=require", "require"),
        ("ssl=true", "require"),
        ("ssl=1", "require"),
        ("ssl=false", "disable"),
        ("ssl=verify-full", "verify-full"),
        ("sslmode=no-verify", "require"),
        ("sslmode=verify-ca&ssl=true", "verify-ca"),
        ("sslmode=Prefer", "prefer"),
    ],
)
def test_encryption(query: str, mode: str) -> None:
    """Every driver's way to ask for an encrypted connection is libpq's sslmode."""
    assert fields_of(parse(f"{BASE}?{query}")) == {**FIELDS, "sslmode": mode}


@pytest.mark.parametrize(
    "query",
    ["pgbouncer=true", "PGBOUNCER=1", "statement_cache_size=0", "statement-cache-capacity=0", "prepareThreshold=0",
     "prepared_statement_cache_size=0", "prepare=false", "default_query_exec_mode=simple_protocol"],
)  # fmt: skip
def test_pooler(query: str) -> None:
    """What tells other drivers that a pooler is between tells it here, and is nothing that libpq would have to know."""
    address = parse(f"{BASE}?{query}")
    assert address.pooled
    assert not address.unused
    assert fields_of(address) == FIELDS
    for other in ("", "?pgbouncer=false", "?statement_cache_size=100", "?prepareThreshold=5"):
        assert not parse(BASE + other).pooled


@pytest.mark.parametrize(
    ("query", "settings"),
    [
        ("schema=my%20house", {"search_path": '"my house"'}),
        ("currentSchema=house", {"search_path": '"house"'}),
        ("search_path=house,public", {"search_path": "house,public"}),
        ("options=-csearch_path=house", {"search_path": "house"}),
        (
            "options=-c%20search_path%3Dhouse,public%20--work-mem=8MB",
            {"search_path": "house,public", "work_mem": "8MB"},
        ),
        ("options=-c+search_path%3Da%5C%20b+-c+role%3Djarvis", {"search_path": "a b", "role": "jarvis"}),
    ],
)
def test_settings_of_the_session(query: str, settings: dict[str, str]) -> None:
    """A schema and options are what every session is to have; the server is not asked for them when connecting."""
    address = parse(f"{BASE}?{query}")
    assert dict(address.settings) == settings
    assert fields_of(address) == FIELDS


def test_options_that_set_nothing() -> None:
    """What a proxy is to be told goes on to it; a deadline of statements is not the address's to set."""
    address = parse(f"{BASE}?options=endpoint%3Dep-1%20-c%20statement_timeout%3D0%20-cwork_mem%3D8MB")
    assert fields_of(address) == {**FIELDS, "options": "endpoint=ep-1"}
    assert (dict(address.settings), address.unused) == ({"work_mem": "8MB"}, ("statement_timeout",))


def test_parameters_of_other_programs() -> None:
    """Those of others' pools and drivers are let pass, and told."""
    address = parse(f"{BASE}?connection_limit=5&pool_timeout=3&application_name=house&connect_timeout=3&charset=utf8")
    assert fields_of(address) == {**FIELDS, "application_name": "house"}
    assert address.unused == ("connection_limit", "pool_timeout", "connect_timeout", "charset")


@pytest.mark.parametrize(
    "text",
    [
        "postgresql:///jarvis?host=/var/run/postgresql",
        "postgresql://%2Fvar%2Frun/jarvis",
        "postgresql://[::1]:5433/",
        "postgresql://a:1,b,c:3/jarvis?target_session_attrs=read-write",
        "postgresql://jarvis@/?sslrootcert=system&sslmode=verify-full",
        "postgresql://",
        r"host=/tmp user = 'a b' password='it\'s' dbname=a\ b",
        "service=house",
    ],
)
def test_what_libpq_understands(text: str) -> None:
    """An address that is libpq's own is read as libpq reads it."""
    assert fields_of(parse(text)) == conninfo_to_dict(text)
    assert fields_of(parse(f' "{text}"\n')) == fields_of(parse(text)), "as docker --env-file leaves it"


def test_values() -> None:
    """Whatever stands in a value comes out of a conninfo string, and of a URL where it is escaped."""
    dice = random.Random(5)
    for _ in range(TRIES):
        fields = {key: "".join(dice.choices(PIECES, k=dice.randrange(1, 6))) for key in ("user", "password", "dbname")}
        assert fields_of(parse(make_conninfo("host=h", **fields))) == {"host": "h", **fields}
        user, password, dbname = (quote(value, safe="") for value in fields.values())
        assert fields_of(parse(f"postgresql://{user}:{password}@h/{dbname}")) == {"host": "h", **fields}
        query = f"user={user}&password={password}&dbname={dbname}"
        assert fields_of(parse(f"postgresql://h/?{query}")) == {"host": "h", **fields}


def test_libpqs_parameters() -> None:
    """All that libpq knows is known."""
    assert {one.keyword.decode() for one in pq.Conninfo.get_defaults()} <= LIBPQ


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (f"mysql://jarvis:{PASSWORD}@db/jarvis", "mysql://"),
        (f"{BASE}?frobnicate=3", "'frobnicate'"),
        (f"{BASE}?sslmode=always", "sslmode"),
        (f"{BASE}?ssl=maybe", "ssl must be one of"),
        (f"{BASE}?ssl=true&sslmode=disable", "ssl and sslmode"),
        (f"{BASE}?pgbouncer=perhaps", "pgbouncer"),
        (f"{BASE}?sslmode", "'sslmode'"),
        (f"postgresql://jarvis:{PASSWORD}@hunter3@db/jarvis", "%40"),
        (f"postgresql://jarvis:12/{PASSWORD}@db/jarvis", "%2F"),
        (f"postgresql://jarvis:{PASSWORD}/x@db/jarvis", "%2F"),
        (f"postgresql://jarvis:{PASSWORD}@db:64a2/jarvis", "port"),
        (f"host=db password=a {PASSWORD}", "in quotes"),
        (f"host=db password=a {PASSWORD}=b", "after the password"),
        (f"postgresql://db/jarvis?password=a&{PASSWORD}=b", "after the password"),
        (f"postgresql://db/jarvis?password=a&{PASSWORD}", "without a value"),
        (f"postgresql://jarvis:{PASSWORD}@db:64321,db2:99999/jarvis", "65535"),
        (f"host=db port=five password={PASSWORD}", "port must be"),
        (f"{BASE}?dbname=%00", "NUL"),
        (PASSWORD, "postgresql://"),
    ],
)
def test_what_is_not_understood(text: str, named: str) -> None:
    """What is wrong is named in one line, in which no part of the password stands."""
    with pytest.raises(SettingsError) as caught:
        parse(text)
    message = str(caught.value)
    assert message.startswith("DATABASE_URL: ")
    assert named in message
    assert PASSWORD not in message
    assert "\n" not in message


def test_password_is_never_told() -> None:
    """However a password was written that had to be escaped, no complaint tells it."""
    dice = random.Random(6)
    refused = []
    for _ in range(TRIES):
        password = "".join([*dice.choices(PIECES, k=dice.randrange(5)), PASSWORD, *dice.choices(PIECES, k=3)])
        for text in (
            f"postgresql://jarvis:{password}@db/jarvis?x=1",
            f"postgresql://db/jarvis?user=jarvis&password={password}&x=1",
            f"host=db password={password} x=1",
        ):
            try:
                parse(text)
            except SettingsError as exc:
                refused.append(str(exc))
    assert len(set(refused)) > 4, "for many reasons"
    assert not [message for message in refused if PASSWORD in message]
