"""Logs: which lines are written, and what is in them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from jarvis_core import log
from jarvis_core.errors import SettingsError
from jarvis_core.settings import Log

PACKAGES = ("jarvis_core", "jarvis_core.turns.turns", "granian", "_granian", "asyncio", "psycopg", "some_library")


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    """Leave logging as it was."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in PACKAGES}
    yield
    root.handlers[:], level = before
    root.setLevel(level)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    structlog.reset_defaults()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Return the JSON lines written since the last look."""
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


@pytest.mark.parametrize(
    ("text", "general", "packages"),
    [
        ("info", logging.INFO, {}),
        ("WARN", logging.WARNING, {}),
        ("trace", logging.DEBUG, {}),
        ("off", logging.CRITICAL + 10, {}),
        ("", logging.INFO, {}),
        ("info,jarvis_core=debug", logging.INFO, {"jarvis_core": logging.DEBUG}),
        (" warn , jarvis_core = error ", logging.WARNING, None),
        ("jarvis_core::turns=error", logging.INFO, {"jarvis_core.turns": logging.ERROR}),
        ("error,jarvis_core", logging.ERROR, {"jarvis_core": logging.DEBUG}),
        ("jarvis_core=off,debug", logging.DEBUG, {"jarvis_core": logging.CRITICAL + 10}),
    ],
)
def test_filters(text: str, general: int, packages: dict[str, int] | None) -> None:
    """RUST_LOG's form is understood: a level, levels by package, a package alone."""
    if packages is None:
        packages = {"jarvis_core": logging.ERROR}
    assert log.parse_filters(text) == (general, packages)


@pytest.mark.parametrize("text", ["info,jarvis_core=loud", "jarvis_core=", "=debug", "in fo", "info;debug", "[span]"])
def test_bad_filters(text: str) -> None:
    """An unknown level or a malformed filter is a SettingsError in one line that names the variable."""
    with pytest.raises(SettingsError, match=r"^RUST_LOG: [^\n]*$"):
        log.parse_filters(text)


def test_levels_hold_by_package(capsys: pytest.CaptureFixture[str]) -> None:
    """A package's filter decides over the general level, for what is below it too."""
    log.set_up(Log(level="warn,jarvis_core=debug", format="json"))
    log.get("jarvis_core.turns.turns").debug("one")
    log.get("some_library").info("two")
    logging.getLogger("some_library").warning("three")
    assert [line["event"] for line in lines(capsys)] == ["one", "three"]


def test_chatty_packages_are_quiet_unless_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Some packages start one level higher than asked, unless a filter names them."""
    log.set_up(Log(level="info", format="json"))
    logging.getLogger("granian").info("one")
    logging.getLogger("granian").warning("two")
    log.set_up(Log(level="info,granian=info", format="json"))
    logging.getLogger("granian").info("three")
    assert [line["event"] for line in lines(capsys)] == ["two", "three"]


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """A line is one JSON object with time, level, logger and fields, whatever the values are."""
    log.set_up(Log(format="json"))
    log.get("jarvis_core").warning("déjà\nvu", count=3, thing=ValueError("odd"), data=b"\xff")
    (line,) = lines(capsys)
    assert line["event"] == "déjà\nvu"
    assert (line["level"], line["logger"], line["count"]) == ("warning", "jarvis_core", 3)
    assert "odd" in line["thing"]
    assert line["timestamp"].endswith("Z")
    assert "request_id" not in line


def test_lines_of_a_request_have_its_id(capsys: pytest.CaptureFixture[str]) -> None:
    """Lines written while a request is answered carry its id, those of foreign packages too."""
    log.set_up(Log(format="json"))
    token = log.request_id.set("r-1")
    try:
        log.get("jarvis_core").info("ours")
        logging.getLogger("some_library").info("theirs")
    finally:
        log.request_id.reset(token)
    log.get("jarvis_core").info("outside")
    assert [line.get("request_id") for line in lines(capsys)] == ["r-1", "r-1", None]


async def test_lines_of_a_turn_name_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Lines of a task that works for a turn, and of those that it starts, name the turn; lines of others do not."""
    log.set_up(Log(format="json"))

    async def say() -> None:
        log.get("jarvis_core").info("ours", conversation_id="its own")

    async def work() -> None:
        log.bind_turn("r-1", "c-1")
        logging.getLogger("some_library").info("theirs")
        await asyncio.create_task(say())

    await asyncio.create_task(work())
    log.get("jarvis_core").info("outside")
    assert [(line.get("response_id"), line.get("conversation_id")) for line in lines(capsys)] == [
        ("r-1", "c-1"),
        ("r-1", "its own"),
        (None, None),
    ]


def test_exceptions_stay_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A traceback is a field of its JSON line."""
    log.set_up(Log(format="json"))
    try:
        raise ValueError("odd")
    except ValueError:
        log.get("jarvis_core").exception("failed")
    (line,) = lines(capsys)
    assert "ValueError: odd" in line["exception"]


def test_forms(capsys: pytest.CaptureFixture[str]) -> None:
    """Where standard error is no terminal, auto is JSON; console is for people."""
    log.set_up(Log(format="auto"))
    log.get("jarvis_core").info("one")
    assert lines(capsys)[0]["event"] == "one"
    structlog.reset_defaults()
    log.set_up(Log(format="console"))
    log.get("jarvis_core").info("two", count=3)
    written = capsys.readouterr().err
    assert "two" in written
    assert not written.startswith("{")


def test_set_up_again_replaces(capsys: pytest.CaptureFixture[str]) -> None:
    """Setting up twice does not write lines twice."""
    log.set_up(Log(format="json"))
    log.set_up(Log(format="json"))
    log.get("jarvis_core").info("once")
    assert len(lines(capsys)) == 1


def test_bad_level_stops_set_up() -> None:
    """A bad level is told before anything is changed."""
    before = logging.getLogger().handlers[:]
    with pytest.raises(SettingsError):
        log.set_up(Log(level="info,jarvis_core=loud"))
    assert logging.getLogger().handlers == before
