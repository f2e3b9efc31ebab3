"""What the pages list is what there is: routes, codes, events, settings and the sizes of downloads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from jarvis_core.handlers.failure import STATUSES
from jarvis_core.local.catalogue import CATALOGUE
from jarvis_core.local.choice import SMALL
from jarvis_core.settings import Settings, environment_names
from tests.docs.pages import REPOSITORY, name_of, paths

PACKAGE = REPOSITORY / "jarvis_core"
PAGES = [pytest.param(path, id=name_of(path)) for path in paths()]

ROUTE = re.compile(r'Route\("(\w+)", "([^"]+)"')
EVENT = re.compile(r'"((?:session|conversation\.item|input_audio_buffer|response)(?:\.[a-z_]+)+)"')
VARIABLE = re.compile(r"\b([A-Z]{2,}(?:_[A-Z0-9]+)+|HOST|PORT|WORKERS)\b")
OTHERS = { "ENGINE", "BUILD_FLAGS", "RUN_FLAGS", "FAULTS_SEED", "FUZZ_CASES", "JARVIS_CONFIG", "JARVIS_KILL_TURNS", "JARVIS_PORT",
    "PERF_BASE", "PERF_LIMIT_S", "PERF_ROUNDS", "PERF_SECONDS", "PERF_WEIGHTS", "POSTGRES_PASSWORD", "S16_LE",
}  # fmt: skip
"""Variables of make, compose, the tests and arecord."""
SUFFIXES = {"_TIMEOUT_S"}


def read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def settings() -> Iterator[tuple[str, ...]]:
    """Give the names of every setting in the environment."""
    for section in msgspec.structs.fields(Settings):
        for field in msgspec.structs.fields(section.type):
            yield environment_names(field.type)


def test_every_route_is_listed() -> None:
    """The table of routes has every method on every path, and no other."""
    there = set(ROUTE.findall((PACKAGE / "app.py").read_text(encoding="utf-8")))
    table = read("docs/api.md").partition("\n## Routes\n")[2].partition("\n## ")[0]
    listed = {
        (method, path)
        for cell in re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)
        for methods, named in [
            (re.findall(r"\b(GET|POST|PATCH|DELETE|PUT)\b", cell), re.findall(r"(/[\w/{}.]+)", cell))
        ]
        for method in methods
        for path in named
    }
    assert there <= listed
    assert listed - there == {("GET", "/ws"), ("GET", "/v1/realtime")}


def test_every_error_is_listed() -> None:
    """The table of errors has each code in the line of its status."""
    rows = re.findall(r"^\| ([\d, ]+) \| ([^|]+) \|", read("docs/api.md"), re.MULTILINE)
    listed = {
        (int(status), code)
        for numbers, codes in rows
        for status in numbers.split(",")
        for code in re.findall(r"`(\w+)`", codes)
    }
    assert {(status, kind.code) for kind, status in STATUSES.items()} <= listed
    assert (500, "internal") in listed


def test_every_event_is_listed() -> None:
    """The page of the WebSocket has the full name of every event that goes over it."""
    sources = [*(PACKAGE / "handlers").glob("*.py"), *(PACKAGE / "handlers" / "realtime").glob("*.py")]
    events = {event for source in sources for event in EVENT.findall(source.read_text(encoding="utf-8"))}
    assert len(events) > 20
    page = read("docs/realtime.md")
    assert {event for event in events if f"`{event}`" not in page} == set()


@pytest.mark.parametrize("path", PAGES)
def test_named_settings_exist(path: Path) -> None:
    """What looks like a variable of the environment in a page is one."""
    known = {name for names in settings() for name in names} | OTHERS | SUFFIXES
    text = path.read_text(encoding="utf-8")
    shell = set(re.findall(r"^([A-Z][A-Z0-9_]+)=", text, re.MULTILINE))
    assert set(VARIABLE.findall(text)) - known - shell == set()


def test_sizes_of_downloads() -> None:
    """The README says how long the downloads of a first start are."""
    chosen = Settings().local
    [model, ears, mouth] = [
        round(CATALOGUE[name].size_bytes / 1e6) for name in (SMALL, chosen.stt_model, chosen.tts_model)
    ]
    text = " ".join(read("README.md").split())
    assert f"(language {model} MB, speech recognition {ears} MB, voices {mouth} MB)" in text
