"""
The address of the database, as other programs write it too, in libpq's words.

``DATABASE_URL`` is often handed over from another program, whose driver has parameters of its own. Each of them means
something here, or is named: nothing that was asked for is dropped without a word. libpq's own reader cannot do this: its
complaints quote the password, and it knows no parameters but its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote

from msgspec import Struct

from jarvis_core.errors import SettingsError
from jarvis_core.settings import Secret

SCHEMES = {"postgresql", "postgres", "pgsql", "psql"}
"""Each may be followed by a driver, ``+asyncpg``, and preceded by ``jdbc:``."""

LIBPQ = {
    *(
        "service",
        "host",
        "hostaddr",
        "port",
        "dbname",
        "user",
        "password",
        "passfile",
        "require_auth",
        "channel_binding",
    ),
    *("client_encoding", "options", "application_name", "fallback_application_name", "replication", "requirepeer"),
    *("target_session_attrs", "load_balance_hosts", "connect_timeout", "keepalives", "keepalives_idle"),
    *("keepalives_interval", "keepalives_count", "tcp_user_timeout", "min_protocol_version", "max_protocol_version"),
    *("sslmode", "sslnegotiation", "sslcompression", "sslcert", "sslkey", "sslcertmode", "sslpassword", "sslrootcert"),
    *("sslcrl", "sslcrldir", "sslsni", "ssl_min_protocol_version", "ssl_max_protocol_version", "sslkeylogfile"),
    *("gssencmode", "krbsrvname", "gsslib", "gssdelegation", "scram_client_key", "scram_server_key"),
    *("oauth_issuer", "oauth_client_id", "oauth_client_secret", "oauth_scope"),
}
"""https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS"""
ALIASES = {"database": "dbname", "username": "user", "applicationname": "application_name"}
SECRET = {"password", "sslpassword", "scram_client_key", "scram_server_key", "oauth_client_secret"}

SSL_MODES = {"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}
ENCRYPTED = {"require", "verify-ca", "verify-full"}
YES = {"true", "1", "on", "yes", "t"}
NO = {"false", "0", "off", "no", "f"}

SCHEMA = {"schema", "currentschema"}
"""Prisma's and JDBC's: one schema, by its name."""
SEARCH_PATH = {"search_path", "searchpath"}
"""Go's drivers': a list, as SQL writes it."""
PREPARES_NOTHING = {
    "statement_cache_size": NO,  # asyncpg, Prisma
    "prepared_statement_cache_size": NO,  # SQLAlchemy
    "statement_cache_capacity": NO,  # sqlx
    "preparethreshold": NO,  # JDBC
    "prepared_statements": NO,  # Rails
    "prepare": NO,  # postgres.js
    "prefer_simple_protocol": YES,
    "default_query_exec_mode": {"exec", "simple_protocol"},  # pgx
    "binary_parameters": YES,  # lib/pq
}
"""How other drivers are told that a pooler is between: by these values of these."""
POOLS_OF_OTHERS = re.compile(r"pool(_\w+)?|(max|min)_?size|max_overflow")
OTHERS = {
    *(
        "connection_limit",
        "socket_timeout",
        "single_use_connections",
        "sockettimeout",
        "connecttimeout",
        "logintimeout",
    ),
    *("command_timeout", "timeout", "checkout_timeout", "idle_timeout", "max_lifetime", "keepalive", "tcpkeepalives"),
    *("max_cached_statement_lifetime", "max_cacheable_statement_size", "prepared_statement_name_func"),
    *("prepare_threshold", "description_cache_capacity", "preparedstatementcachequeries", "async_fallback"),
    *("conn_max_age", "conn_health_checks", "serverversion", "server_version", "charset", "encoding", "uselibpqcompat"),
    *("max_connection_lifetime", "max_idle_connection_lifetime", "rewritebatchedinserts", "stringtype"),
    "connect_timeout",  # libpq's, and here DB_TIMEOUT_S'
}
"""What is asked of another program's pool and driver, and of nothing that is here."""
OURS = {"statement_timeout", "timezone"}
"""Settings of the session that are DB_TIMEOUT_S', or not for anybody to choose."""

URL = re.compile(r"(?:jdbc:)?([a-z][a-z0-9.-]*)(?:\+[a-z0-9_.-]*)?://(.*)", re.IGNORECASE | re.DOTALL)
# As libpq reads it: who connects ends at the first "@" that has no "/" before it.
USER = re.compile(r"([^@/]*)@(.*)", re.DOTALL)
PLACE = re.compile(r"([^/?]*)(?:/([^?]*))?(?:\?(.*))?", re.DOTALL)
HOST = re.compile(r"(\[[^\]@]*\]|[^:@]*)(?::([0-9]*))?")
PORT = re.compile(r"([1-9][0-9]{0,4})?")
KEYWORD = re.compile(r"\s*([^\s='\\]+)\s*=\s*(?:'((?:\\.|[^'\\])*)'|((?!')(?:\\.|[^\s\\])*))", re.DOTALL)
OPTION = re.compile(r"(?:-c ?|--)([A-Za-z_][\w.-]*)=(.*)", re.DOTALL)

EXPECTED = "must be a postgresql:// address or a libpq conninfo string"


class Address(Struct, frozen=True):
    """Where the database is, and what a session is to be like there."""

    conninfo: Secret
    """For the driver; what is below is no part of it."""
    settings: tuple[tuple[str, str], ...]
    """Of every session, by name: its ``options``, its schema."""
    pooled: bool
    """Whether it says that a pooler is between; where it does not, there may be one."""
    unused: tuple[str, ...]
    """Its parameters that mean something to other programs, and nothing here."""


def parse(text: str) -> Address:
    """
    Read the address of a PostgreSQL server.

    Raises ``SettingsError`` that names the part which is not understood, and never holds a secret.
    """
    try:
        return _Reader(_pairs(text.strip())).address()
    except ValueError as exc:
        raise SettingsError(f"DATABASE_URL: {exc}") from exc


class _Reader:
    """Takes what is written, one (key, value, may the key be told) after another, for what it means."""

    def __init__(self, pairs: Iterator[tuple[str, str, bool]]) -> None:
        self._libpq: dict[str, str] = {}
        self._settings: dict[str, str] = {}
        self._ssl: str | None = None
        self._pooled = False
        self._unused: list[str] = []
        for key, value, may_be_told in pairs:
            if "\0" in value:
                raise ValueError("has a NUL")
            self._take(key, value, may_be_told=may_be_told)

    def address(self) -> Address:
        """Return the whole."""
        mode = self._libpq.get("sslmode")
        if self._ssl is not None:
            if mode is not None and (mode in ENCRYPTED) != (self._ssl in ENCRYPTED):
                raise ValueError("ssl and sslmode say different things")
            self._libpq["sslmode"] = mode or self._ssl
        quoted = ((key, value.replace("\\", "\\\\").replace("'", "\\'")) for key, value in self._libpq.items())
        return Address(
            Secret(" ".join(f"{key}='{value}'" for key, value in quoted)),
            tuple(self._settings.items()),
            self._pooled,
            tuple(self._unused),
        )

    def _take(self, key: str, value: str, *, may_be_told: bool) -> None:
        name = key.lower().replace("-", "_")
        name = ALIASES.get(name, name)
        if name == "options":
            self._take_options(value)
        elif name in ("ssl", "sslmode"):
            self._take_ssl(name, value)
        elif name in SCHEMA:
            self._settings["search_path"] = '"{}"'.format(value.replace('"', '""'))
        elif name in SEARCH_PATH:
            self._settings["search_path"] = value
        elif name == "pgbouncer":
            self._pooled |= _truth(name, value)
        elif name in PREPARES_NOTHING and value.lower() in PREPARES_NOTHING[name]:
            self._pooled = True
        elif name in OTHERS or name in OURS or name in PREPARES_NOTHING or POOLS_OF_OTHERS.fullmatch(name):
            self._unused.append(key)
        elif name in LIBPQ:
            if name == "port" and not all(PORT.fullmatch(one) and int(one or 1) < 1 << 16 for one in value.split(",")):
                raise ValueError("port must be a number from 1 to 65535")
            self._libpq[name] = value
        elif may_be_told:
            raise ValueError(f"has a parameter {key[:40]!r}, which is not understood")
        else:
            raise ValueError("has a parameter after the password that is not understood; is all of that escaped?")

    def _take_ssl(self, name: str, value: str) -> None:
        mode = value.lower()
        if mode == "no-verify":  # node-postgres'
            mode = "require"
        elif name == "ssl":
            mode = "require" if mode in YES else "disable" if mode in NO else mode
        if mode not in SSL_MODES:
            raise ValueError(f"{name} must be one of {', '.join(sorted(SSL_MODES))}")
        if name == "ssl":
            self._ssl = mode
        else:
            self._libpq["sslmode"] = mode

    def _take_options(self, text: str) -> None:
        """Take the server's options for what they set; the rest, such as what a proxy is to know, is passed on."""
        rest = []
        words = iter(re.findall(r"(?:\\.|[^\s\\])+", text, re.DOTALL))
        for word in words:
            one = f"{word} {next(words, '')}" if word == "-c" else word
            found = OPTION.fullmatch(one)
            if found is None:
                rest.append(one)
                continue
            name = found[1].replace("-", "_")
            if name.lower() in OURS:
                self._unused.append(name)
            else:
                self._settings[name] = re.sub(r"\\(.)", r"\1", found[2], flags=re.DOTALL)
        if rest:
            self._libpq["options"] = " ".join(rest)


def _pairs(text: str) -> Iterator[tuple[str, str, bool]]:
    """Give the parts of an address, as (key, value, may the key be told)."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]  # docker --env-file leaves them
    url = URL.fullmatch(text)
    if url is None:
        return _pairs_of_conninfo(text)
    if url[1].lower() not in SCHEMES:
        raise ValueError(f"{EXPECTED}, not {url[1].lower()}://")
    return _pairs_of_url(url[2])


def _pairs_of_url(text: str) -> Iterator[tuple[str, str, bool]]:
    """Give the parts of a URL after its scheme."""
    user = USER.fullmatch(text)
    if user is not None:
        name, colon, password = user[1].partition(":")
        if name:
            yield "user", unquote(name), True
        if colon:
            yield "password", unquote(password), True
        text = user[2]
    place = PLACE.fullmatch(text)
    assert place is not None  # noqa: S101 - it takes any text
    hosts = [HOST.fullmatch(one) for one in place[1].split(",")]
    if not all(hosts) or (user is None and "@" in (place[2] or "")):
        raise ValueError(
            "has no host[:port] where one is expected; in a user and a password @ is written %40, / %2F and : %3A"
        )
    if place[1]:
        found = [one for one in hosts if one is not None]
        yield "host", ",".join(unquote(one[1].strip("[]")) for one in found), True
        if any(one[2] for one in found):
            yield "port", ",".join(one[2] or "" for one in found), True
    if place[2]:
        yield "dbname", unquote(place[2]), True
    # Where another "@" follows, the password was cut at the wrong place.
    may_be_told = "@" not in text
    for pair in filter(None, (place[3] or "").split("&")):
        key, equals, value = pair.partition("=")
        key = unquote(key)
        if not equals and not (may_be_told and key.isidentifier()):
            raise ValueError("has a parameter without a value")
        if not equals:
            raise ValueError(f"has no value for the parameter {key[:40]!r}")
        # A form's plus is no part of an option; elsewhere it is a plus, as libpq has it.
        yield key, unquote(value.replace("+", " ") if key.lower() == "options" else value), may_be_told
        may_be_told &= key not in SECRET


def _pairs_of_conninfo(text: str) -> Iterator[tuple[str, str, bool]]:
    """Give the pairs of a conninfo string."""
    position, may_be_told = 0, True
    while text[position:].strip():
        found = KEYWORD.match(text, position)
        if found is None:
            raise ValueError(f"{EXPECTED}; in the latter a value with a space is written 'in quotes'")
        quoted, plain = found[2], found[3]
        yield found[1], re.sub(r"\\(.)", r"\1", plain if quoted is None else quoted, flags=re.DOTALL), may_be_told
        may_be_told &= found[1] not in SECRET
        position = found.end()


def _truth(name: str, value: str) -> bool:
    if value.lower() not in YES | NO:
        raise ValueError(f"{name} must be true or false")
    return value.lower() in YES
