"""The manifest of the realtime socket's behaviours, and the tests that name them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.handlers.realtime.behaviours import BEHAVIOURS

TESTS = Path(__file__).parents[2]


def named() -> Iterator[tuple[str, str]]:
    """Yield (id, test) of each mark on each test."""
    for path in TESTS.rglob("test_*.py"):
        text = path.read_text()
        if "mark.behaviour(" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for mark in node.decorator_list:
                    if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.behaviour":
                        yield from ((ast.literal_eval(one), f"{path.name}::{node.name}") for one in mark.args)


def test_each_behaviour_is_tested() -> None:
    """No behaviour is promised that no test names."""
    assert sorted(BEHAVIOURS.keys() - {behaviour for behaviour, _ in named()}) == []


def test_each_name_is_a_behaviour() -> None:
    """No test names a behaviour that the manifest has not."""
    assert [(behaviour, test) for behaviour, test in named() if behaviour not in BEHAVIOURS] == []


def test_each_behaviour_says_what_it_is() -> None:
    """Each says what clients can rely on and where that comes from, in sentences."""
    for behaviour, (source, what, differs) in BEHAVIOURS.items():
        assert source, behaviour
        assert what.endswith("."), behaviour
        assert not differs or differs.endswith("."), behaviour
