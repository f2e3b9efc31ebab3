"""
Watches whether the database answers, and holds the connections to it while it does.

One task watches. A broken connection or a failed connect wakes it; after a second without an answer it probes the
database. If the probe fails too, the database is away: there are no connections then, requests do not wait, and only the
task probes, until there is an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg
import psycopg.conninfo

from jarvis_core import cancellation, log
from jarvis_core.errors import JarvisError
from jarvis_core.settings import Database
from jarvis_core.store.address import Address
from jarvis_core.store.connections import Connection, Connections, GivenUp, PoolTimeout
from jarvis_core.store.session import SEARCH_PATH, is_definite
from jarvis_core.tasks import start_in

logger = log.get(__name__)
_seldom = log.LogThrottle()

IDLE_S = 1.0
"""Probes the database after so long without an answer."""
DOUBT_S = 0.75
"""A probe without an answer for so long makes ``healthy`` false, while the database is probed once more."""
PROBE_LIMIT_S = 2.0
"""Longest wait for a new connection and an answer over it, for each host of the address."""
AWAY_INTERVAL_S = 0.25
"""Pause between two probes of a database that is away."""
PATIENCE_S = 3.0
"""Patient requests wait until the database has been away for so long: a restart takes less, other outages far more."""
PROBE_INTERVAL_S = 0.05
"""Shortest pause between two probes, whatever is reported meanwhile."""
PROBE = "select current_setting('transaction_read_only')"
"""Refuses a database that takes no writes: after a failover it may be the old primary."""


class Away(JarvisError):
    """The database is away; nothing was sent to it."""


class _TakesNoWrites(Exception):
    """The database answers, and may only be read."""

    def __init__(self) -> None:
        super().__init__("it takes no writes")


class Availability:
    """Holds the connections to the database at *address*, and knows whether it answers."""

    def __init__(self, settings: Database, address: Address) -> None:
        self._timeout_s = settings.timeout_s
        self._max_connections = settings.max_connections
        self._conninfo = address.conninfo.reveal()
        hosts = str(psycopg.conninfo.conninfo_to_dict(self._conninfo).get("host") or "").count(",") + 1
        self._probe_limit_s = PROBE_LIMIT_S * hosts
        self._options: dict[str, Any] = {
            "autocommit": True,
            "prepare_threshold": 1,
            "connect_timeout": max(1, round(settings.timeout_s)),
            "fallback_application_name": "jarvis-core",
        }
        self._pooled = address.pooled
        self._settings = dict(address.settings)
        self._settings["TimeZone"] = "UTC"
        self._settings["statement_timeout"] = str(round(settings.timeout_s * 1_000))
        """Set in every session."""
        self._search_path: str | None = None
        """A ``search_path`` that finds the extensions; None where the server's own finds them."""
        self._search_path_is_known = False
        self._connections: Connections | None = None
        """The connections of the database's present life; None while it is away."""
        self._closing: set[asyncio.Task[None]] = set()
        self._watcher: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._back = asyncio.Event()
        """Set while there are connections, and after ``close``."""
        self._closed = False
        self._renew = False
        """Whether to replace the connections although the database answers."""
        self._answered_at = 0.0
        self._lost_at = 0.0
        self.healthy = False
        """Whether the database can be used."""
        self.losses = 0
        """How often the database has gone away."""

    async def open(self) -> None:
        """
        Connect; raises ``Away`` from the last error. May be tried again.

        Raises ``psycopg.Error`` where the database refuses a setting.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s
        while True:
            try:
                await self._ask_anew(limit_s=min(self._probe_limit_s, max(deadline - loop.time(), 0.0)))
            except (psycopg.Error, OSError, TimeoutError, _TakesNoWrites) as exc:
                if isinstance(exc, psycopg.Error) and is_definite(exc):
                    raise
                if _seldom.held_back(_reason(exc)) is not None:
                    logger.warning("the database does not answer yet", error=_reason(exc))
                if loop.time() + AWAY_INTERVAL_S >= deadline:
                    raise Away from exc
            else:
                break
            await asyncio.sleep(AWAY_INTERVAL_S)
        await self._make_connections()
        self._watcher = loop.create_task(self._watch())

    async def close(self) -> None:
        """Close idle connections now, and those in use when they are given back."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        self.healthy = False
        self._closed = True
        self._give_up()
        self._back.set()
        if self._closing:
            await asyncio.wait(self._closing)

    def take(self) -> tuple[Connections, Connection] | None:
        """Return what ``borrow`` does where a connection is at hand; it never waits."""
        connections = self._connections
        connection = None if connections is None else connections.take()
        return None if connections is None or connection is None else (connections, connection)

    async def borrow(self, *, patient: bool) -> tuple[Connections, Connection]:
        """
        Return a connection, and the ``Connections`` to return it to.

        Raises ``Away`` at once while the database is away, or when *patient* after ``PATIENCE_S`` of that;
        ``PoolTimeout`` after the deadline, ``QueueFull`` where too many wait already.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s
        while True:
            if (connections := self._connections) is not None:
                # Given up: replaced by others, or because the database is away.
                with contextlib.suppress(GivenUp):
                    return connections, await connections.borrow(max(deadline - loop.time(), 0.0))
            elif patient and not self._closed and loop.time() < (limit := min(deadline, self._lost_at + PATIENCE_S)):
                with contextlib.suppress(TimeoutError):
                    async with cancellation.timeout_at(limit):
                        await self._back.wait()
            else:
                raise Away

    def note_answer(self, connections: Connections) -> None:
        """Note that the database has answered over one of *connections*."""
        if connections is self._connections:
            self._answered_at = asyncio.get_running_loop().time()
            self.healthy = True

    def suspect(self, connections: Connections, *, renew: bool = False) -> None:
        """
        Note that the database may be away: one of *connections* broke, or a connect failed.

        *renew* replaces all connections even where the database answers.
        """
        if connections is self._connections:
            self.healthy = False
            self._renew |= renew
            self._wake.set()

    def ask(self) -> None:
        """Have the database probed, and leave ``healthy`` as it is."""
        self._wake.set()

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self._connections is None:
                pause_s = AWAY_INTERVAL_S
                self._wake.clear()
            else:
                pause_s = max(self._answered_at + IDLE_S - loop.time(), 0.0)
            with contextlib.suppress(TimeoutError):
                async with cancellation.timeout(pause_s):
                    await self._wake.wait()
            asked = self._wake.is_set()
            self._wake.clear()
            if asked or loop.time() >= self._answered_at + IDLE_S:
                try:
                    await self._check_server(asked=asked)
                except Exception:
                    logger.exception("the database was not looked at through a defect")
                await asyncio.sleep(PROBE_INTERVAL_S)

    async def _check_server(self, *, asked: bool) -> None:
        """Probe the database; *asked* where a caller has reason to doubt it."""
        loop = asyncio.get_running_loop()
        connections = self._connections
        started = loop.time()

        def answered() -> bool:
            return self._answered_at > started

        def doubt() -> None:
            if not answered():
                self.healthy = False

        timer = loop.call_later(DOUBT_S, doubt)
        try:
            if not asked and connections is not None and await self._ask_idle(connections):
                self.note_answer(connections)
                return
            await self._ask_anew(limit_s=self._probe_limit_s)
        except _TakesNoWrites as exc:
            self._lose(exc)
        except (psycopg.Error, OSError, TimeoutError) as exc:
            if connections is None:
                return
            # A server at its limit of connections may still answer over those that are open.
            if not answered() and await self._ask_idle(connections):
                self.note_answer(connections)
            while not answered() and loop.time() < started + DOUBT_S and connections.any_open():  # noqa: ASYNC110
                await asyncio.sleep(PROBE_INTERVAL_S)
            if answered():
                connections.failed = False
            else:
                self._lose(exc)
        else:
            await self._find()
        finally:
            timer.cancel()

    async def _ask_idle(self, connections: Connections) -> bool:
        """Return whether the database answers over an idle connection."""
        if not connections.any_idle():
            return False
        try:
            connection = await connections.borrow_idle(DOUBT_S)
        except (GivenUp, PoolTimeout):
            return False
        try:
            with _limit(connection, DOUBT_S):
                row = await (await connection.execute(PROBE)).fetchone()
            if row != ("off",):
                raise _TakesNoWrites
        except psycopg.Error:
            return False
        except _TakesNoWrites:
            # The address may lead to another server by now, which takes writes.
            self._renew = True
            return False
        finally:
            await connections.give_back_idle(connection)
        return True

    async def _ask_anew(self, *, limit_s: float) -> None:
        """Probe over a new connection, and fetch the search path the first time; raises what goes wrong."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + limit_s
        options = {**self._options, "connect_timeout": min(2, self._options["connect_timeout"])}
        async with cancellation.timeout_at(deadline):
            connection = await Connection.connect(self._conninfo, **options)
        try:
            settings = tuple(self._settings.items())
            await connection.meet(settings, pooled=self._pooled, limit_s=deadline - loop.time())
            if not connection.session.takes_writes:
                raise _TakesNoWrites
            if not self._search_path_is_known:
                with _limit(connection, deadline - loop.time()):
                    [[(self._search_path,)]] = await connection.run_in_one_trip([(SEARCH_PATH, ())])
                self._search_path_is_known = True
        finally:
            await connection.close()

    def _lose(self, why: Exception) -> None:
        """Note that the database is away, and give its connections up."""
        self.healthy = False
        if self._connections is not None:
            self.losses += 1
            self._lost_at = asyncio.get_running_loop().time()
            logger.warning("the database is away", error=_reason(why))
            self._give_up()

    async def _find(self) -> None:
        """Note that the database answers, and replace connections that are of no use."""
        connections = self._connections
        if connections is None:
            away_s = asyncio.get_running_loop().time() - self._lost_at
            logger.info("the database is back", away_s=round(away_s, 1))
        if connections is None or connections.failed or self._renew:
            await self._make_connections()
        else:
            self.note_answer(connections)

    async def _make_connections(self) -> None:
        found = {} if self._search_path is None else {"search_path": self._search_path}
        connections = Connections(
            self._conninfo,
            {**self._options, "settings": tuple({**self._settings, **found}.items()), "pooled": self._pooled},
            limit=self._max_connections,
            reconnect_limit_s=self._timeout_s,
            on_failure=self.suspect,
        )
        await connections.open()
        self._give_up()
        self._connections = connections
        self._back.set()
        self._renew = False
        self.note_answer(connections)

    def _give_up(self) -> None:
        """Close the connections in the background; those in use are closed when they are given back."""
        connections, self._connections = self._connections, None
        self._back.clear()
        if connections is not None:
            start_in(self._closing, connections.close(self._timeout_s))


@contextlib.contextmanager
def _limit(connection: Connection, limit_s: float) -> Iterator[None]:
    """Break *connection* off after *limit_s* seconds."""
    timer = asyncio.get_running_loop().call_later(max(limit_s, 0.0), connection.break_off)
    try:
        yield
    finally:
        timer.cancel()


def _reason(why: Exception) -> str:
    return str(why).strip().partition("\n")[0] or type(why).__name__
