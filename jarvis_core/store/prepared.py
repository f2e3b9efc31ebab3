"""
The statements of one connection, each prepared when it is first run, and sent without a cursor.

The driver's cursors look for the types of parameters and results anew each time, arm a timer for every wait, and have the
loop watch the socket anew. What is found once for a statement is kept here, and a wait is one future. That saves half of
the CPU of a short statement (0.09 -> 0.05 ms of a turn's beginning, without its wait).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import psycopg
from psycopg import pq
from psycopg.adapt import PyFormat, Transformer
from psycopg.rows import TupleRow

Parameters = Sequence[Any] | Mapping[str, Any]

PLACEHOLDER = re.compile(r"%(?:\((\w+)\)s|s|%)")
CANCEL_TIMEOUT_S = 1.0
"""How long the server is given to hear that nobody waits for a statement any more."""


class _Statement:
    """One statement on one connection, with what was learnt of its parameters and rows."""

    __slots__ = ("formats", "names", "prepared", "text", "transformer")

    def __init__(self, sql: str, connection: psycopg.AsyncConnection[TupleRow]) -> None:
        self.text, self.names, count = translated(sql)
        self.transformer = Transformer(connection)
        self.formats = [PyFormat.AUTO] * count
        self.prepared: dict[tuple[int, ...] | None, bytes] = {}
        """Names of it by the types of its parameters: an integer's depends on how large it is."""


class SocketReadiness:
    """
    Tells when there is something to read on the socket *file*.

    The loop watches it all the time: to ask for that before every wait and to take it back takes seven system calls
    (uvloop 0.22). Only while the driver reads by itself, or the server says something that nobody waits for, it does not.
    It is watched under a number of its own, as the driver has the loop watch and leave its one as it likes.
    """

    __slots__ = ("_file", "_loop", "_ready", "_watching")

    def __init__(self, file: int) -> None:
        self._file = os.dup(file)
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] | None = None
        self._watching = False

    async def wait(self, writable: int | None = None) -> None:
        """Wait until something can be read, or *writable* written to."""
        self._ready = ready = self._loop.create_future()
        if not self._watching:
            self._watching = True
            self._loop.add_reader(self._file, self._note)
        if writable is not None:
            self._loop.add_writer(writable, self._note)
        try:
            await ready
        finally:
            self._ready = None
            if writable is not None:
                self._loop.remove_writer(writable)

    def close(self) -> None:
        """Watch no more; the connection is closed only then. Whoever waits sees that it is."""
        self._leave()
        if self._ready is not None:
            self._note()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _note(self) -> None:
        if self._ready is None:
            self._leave()
        elif not self._ready.done():
            self._ready.set_result(None)

    def _leave(self) -> None:
        if self._watching:
            self._watching = False
            self._loop.remove_reader(self._file)


class PreparedStatements:
    """
    Runs statements on *connection*, which nobody else uses meanwhile, outside of a pipeline.

    For statements that are constants of this program: what was prepared stays for as long as the connection. To be closed
    before that is.
    """

    __slots__ = ("_answers", "_connection", "_count", "_statements")

    def __init__(self, connection: psycopg.AsyncConnection[TupleRow]) -> None:
        self._connection = connection
        self._statements: dict[str, _Statement] = {}
        self._count = 0
        self._answers = SocketReadiness(connection.fileno())

    def close(self) -> None:
        """Let go of the connection's socket."""
        self._answers.close()

    async def run(self, sql: str, parameters: Parameters = ()) -> list[TupleRow]:
        """
        Run one statement and return its rows, none where it has none; raises ``psycopg.Error`` as a cursor does.

        Placeholders are the driver's, ``%s`` and ``%(name)s``. Whoever is cancelled here has to close the connection: the
        server was told to stop, and its answer is still to come.
        """
        try:
            return await self._run(sql, parameters)
        except psycopg.errors.InvalidSqlStatementName:
            # The driver has the server forget everything after a rollback, and poolers do when they like.
            self._statements.clear()
            return await self._run(sql, parameters)

    async def _run(self, sql: str, parameters: Parameters) -> list[TupleRow]:
        statement = self._statements.get(sql)
        if statement is None:
            statement = self._statements[sql] = _Statement(sql, self._connection)
        values = [parameters[name] for name in statement.names] if isinstance(parameters, Mapping) else list(parameters)
        pgconn = self._connection.pgconn
        transformer = statement.transformer
        dumped = transformer.dump_sequence(values, statement.formats)
        types = transformer.types
        name = statement.prepared.get(types)
        if name is None:
            self._count += 1
            name = b"jarvis_%d" % self._count
            pgconn.send_prepare(name, statement.text, types)
            self._check(await self._result())
            statement.prepared[types] = name
        pgconn.send_query_prepared(name, dumped, transformer.formats)
        result = self._check(await self._result())
        if result.status != pq.ExecStatus.TUPLES_OK:
            return []
        transformer.set_pgresult(result)
        rows = transformer.load_rows(0, result.ntuples, tuple)
        transformer.set_pgresult(None)  # or it would be kept until the next one
        return rows

    def _check(self, result: pq.abc.PGresult) -> pq.abc.PGresult:
        if result.status not in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
            raise psycopg.errors.error_from_result(result, self._connection.info.encoding)
        return result

    async def _result(self) -> pq.abc.PGresult:
        """Send what was written and wait for what comes of it."""
        pgconn = self._connection.pgconn
        try:
            while pgconn.flush():
                await self._answers.wait(writable=pgconn.socket)
                pgconn.consume_input()
            last: pq.abc.PGresult | None = None
            while True:
                while pgconn.is_busy():
                    await self._answers.wait()
                    try:
                        pgconn.consume_input()
                    except psycopg.OperationalError:
                        # A server that ends the session says why before it hangs up.
                        if last is not None and last.status == pq.ExecStatus.FATAL_ERROR:
                            return last
                        raise
                result = pgconn.get_result()
                if result is None:
                    break
                if last is None or last.status != pq.ExecStatus.FATAL_ERROR:
                    last = result
        except asyncio.CancelledError:
            with contextlib.suppress(psycopg.Error):  # a server that cannot be told finds the connection closed
                await self._connection.cancel_safe(timeout=CANCEL_TIMEOUT_S)
            raise
        if last is None:
            raise psycopg.OperationalError("the connection was lost")
        return last


@cache  # one entry for each statement of the program
def translated(sql: str) -> tuple[bytes, tuple[str, ...], int]:
    """
    Return *sql* with the server's placeholders, the names of its parameters in their order, and how many there are.

    Raises ``ValueError`` for one that has both ``%s`` and ``%(name)s``.
    """
    numbers: dict[str, int] = {}
    unnamed = 0

    def numbered(found: re.Match[str]) -> str:
        nonlocal unnamed
        if found[0] == "%%":
            return "%"
        if found[1] is None:
            unnamed += 1
            return f"${unnamed}"
        return f"${numbers.setdefault(found[1], len(numbers) + 1)}"

    text = PLACEHOLDER.sub(numbered, sql)
    if unnamed and numbers:
        raise ValueError("a statement has its parameters either by name or by place")
    return text.encode(), tuple(numbers), unnamed or len(numbers)
