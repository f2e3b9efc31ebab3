"""Voice agents of OpenAI's Agents SDK for JavaScript, unmodified, over ``/v1/realtime``."""

from __future__ import annotations

import pytest

from tests.clients.house import House
from tests.clients.programs import checks_of, needs_environment, run_program

PROGRAM = "agents_realtime_node.mjs"
pytestmark = needs_environment(PROGRAM)


@pytest.fixture(scope="module")
def results(house: House) -> dict[str, str]:
    """Run the program."""
    return run_program(PROGRAM, house)


@pytest.mark.parametrize("check", checks_of(PROGRAM))
def test_client(results: dict[str, str], check: str) -> None:
    """What the check's own docstring says holds."""
    assert not results[check], results[check]
