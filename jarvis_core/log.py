"""
Logs: structlog over the standard library's levels, so that ``RUST_LOG`` filters hold for every package.

Lines are readable on a terminal and JSON elsewhere; a line written while a request is answered carries its id, and one
that is written for a turn the turn's and its conversation's.
"""

from __future__ import annotations

import logging
import sys
import time
from contextvars import ContextVar
from typing import Any

import structlog
from structlog.typing import EventDict, WrappedLogger

from jarvis_core.errors import SettingsError
from jarvis_core.settings import Log

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that the current task answers; empty outside one."""

current_turn: ContextVar[tuple[str, str] | None] = ContextVar("current_turn", default=None)
"""(turn's id, conversation's id) of what the current task works for."""

LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
    "off": logging.CRITICAL + 10,
}

OF_PACKAGES = str.maketrans("", "", "_-:.")
"""Characters of a package's name besides letters and digits."""

QUIET = {
    "granian": logging.WARNING,
    "_granian": logging.WARNING,
    "asyncio": logging.WARNING,
    "psycopg": logging.WARNING,
    "psycopg.pool": logging.ERROR,
}
"""The lowest level of chatty packages, unless a filter names them."""


SELDOM_S = 60.0


def get(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger of the module *name*; costs nothing until it is used."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(name)
    return logger


def bind_turn(turn_id: str, conversation_id: str) -> None:
    """Have the lines of the running task, and of the tasks that it starts, name a turn and its conversation."""
    current_turn.set((turn_id, conversation_id))


class LogThrottle:
    """Throttles lines that a busy hour would write by the thousand: one of each kind and minute."""

    def __init__(self) -> None:
        self._kinds: dict[str | int, tuple[float, int]] = {}
        """By kind: (when the last line was written, how many were held back since)."""

    def held_back(self, kind: str | int) -> int | None:
        """
        Return how many lines of *kind* were held back since the last one; None where this one is to be held back too.
        """
        now = time.monotonic()
        written_at, count = self._kinds.get(kind, (now - SELDOM_S, 0))
        if now - written_at < SELDOM_S:
            self._kinds[kind] = (written_at, count + 1)
            return None
        self._kinds[kind] = (now, 0)
        return count


def parse_filters(text: str) -> tuple[int, dict[str, int]]:
    """
    Return the general level and the levels by package of ``info,jarvis_core=debug``.

    Rust's ``::`` is read as a dot; a package alone means all that it says. Raises ``SettingsError`` on an unknown level.
    """
    general = logging.INFO
    packages: dict[str, int] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        target, separator, level = (text.strip() for text in part.partition("="))
        if not separator and target.lower() in LEVELS:
            general = LEVELS[target.lower()]
            continue
        if separator and level.lower() not in LEVELS:
            raise SettingsError(f"RUST_LOG: {part!r}: the level must be one of {', '.join(LEVELS)}")
        if not target.translate(OF_PACKAGES).isalnum():
            raise SettingsError(f"RUST_LOG: {part!r} is neither a level nor a package=level")
        packages[target.replace("::", ".")] = LEVELS[level.lower()] if separator else logging.DEBUG
    return general, packages


def set_up(settings: Log) -> None:
    """Send every package's log lines to standard error in the form that *settings* ask for."""
    general, packages = parse_filters(settings.level)
    json_lines = settings.format == "json" or (settings.format == "auto" and not sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_ids,
        structlog.processors.StackInfoRenderer(),
    ]
    final: list[structlog.typing.Processor]
    if json_lines:
        final = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_to_json)]
    else:
        final = [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(general)
    for name in QUIET.keys() | packages.keys():
        quiet = max(general, QUIET.get(name, general))
        logging.getLogger(name).setLevel(packages.get(name, packages.get(name.partition(".")[0], quiet)))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def _add_ids(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    current = request_id.get()
    if current:
        event.setdefault("request_id", current)
    turn = current_turn.get()
    if turn is not None:
        event.setdefault("response_id", turn[0])
        event.setdefault("conversation_id", turn[1])
    return event


def _to_json(event: Any, **_options: Any) -> str:
    import msgspec.json

    return msgspec.json.encode(event, enc_hook=repr).decode()
