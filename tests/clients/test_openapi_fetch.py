"""Types for TypeScript, made from the document; a program that calls every operation and takes every event apart by them."""

from __future__ import annotations

import shutil
import urllib.request
from pathlib import Path

import pytest

from tests.clients.house import House
from tests.clients.programs import COMPILED, NODE_MODULES, checks_of, needs_environment, run_program, run_tool
from tests.system.server import REPOSITORY

PROGRAM = "openapi_fetch.mts"
TYPES = REPOSITORY / "jarvis_core" / "console" / "api.d.ts"
COMPILER = ("--strict", "--noUncheckedIndexedAccess", "--module", "nodenext", "--target", "es2022", "--types", "node",
            "--lib", "es2022,dom,dom.asynciterable", "--typeRoots", NODE_MODULES / "@types")  # fmt: skip
pytestmark = needs_environment(PROGRAM)


@pytest.fixture(scope="module")
def types(house: House) -> Path:
    """Make the types of the document that the server gives."""
    shutil.rmtree(COMPILED, ignore_errors=True)
    COMPILED.mkdir()
    document, made = COMPILED / "openapi.json", COMPILED / "api.d.ts"
    with urllib.request.urlopen(f"{house.url}/openapi.json", timeout=10) as answer:  # noqa: S310 - our own
        document.write_bytes(answer.read())
    run_tool("openapi-typescript", document, "--output", made)
    return made


@pytest.fixture(scope="module")
def results(house: House, types: Path) -> dict[str, str]:
    """Compile the program, and run it."""
    program = shutil.copy(Path(__file__).parent / PROGRAM, types.parent)
    run_tool("tsc", *COMPILER, program)
    return run_program(PROGRAM, house)


def test_types_are_the_documents(types: Path) -> None:
    """The types that are kept for pages are those of the document."""
    assert TYPES.read_text() == types.read_text(), "make types writes them anew"


@pytest.mark.parametrize("check", checks_of(PROGRAM))
def test_client(results: dict[str, str], check: str) -> None:
    """What the check's own comment says holds."""
    assert not results[check], results[check]
