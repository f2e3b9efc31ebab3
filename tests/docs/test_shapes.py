"""What a page shows is held against what comes, so that a page which says otherwise is found."""

from __future__ import annotations

from typing import Any

import pytest

from tests.docs.shapes import differences, reads_like


@pytest.mark.parametrize(
    ("shown", "actual"),
    [
        ({"id": "a", "n": 1}, {"id": "b", "n": 2.5}),
        ({"status": "completed", "error": None}, {"status": "completed", "error": None}),
        ([{"role": "user", "tokens": None}, {"role": "assistant", "tokens": 3}], [{"role": "assistant", "tokens": 9}]),
        ({"results": []}, {"results": []}),
    ],
)
def test_other_values_of_the_same_kind_are_the_same(shown: Any, actual: Any) -> None:
    """Ids, numbers and texts may be others; one entry may stand for many."""
    assert differences(shown, actual) == []


@pytest.mark.parametrize(
    ("shown", "actual", "what"),
    [
        ({"id": "a"}, {}, "$.id is not there"),
        ({}, {"id": "a"}, "$.id is not shown"),
        ({"n": 1}, {"n": "1"}, "$.n is a text, shown is a number"),
        ({"n": None}, {"n": 1}, "$.n is a number, shown is null"),
        ({"n": True}, {"n": 1}, "$.n is a number, shown is a boolean"),
        ({"code": "timeout"}, {"code": "unavailable"}, "$.code is 'unavailable', shown is 'timeout'"),
        ({"results": [1]}, {"results": []}, "$.results has 0 entries, shown are 1"),
        ([{"role": "user"}], [{"role": "user"}, {"role": "system"}], "$[1].role is 'system', shown is 'user'"),
    ],
)
def test_what_is_otherwise_is_named(shown: Any, actual: Any, what: str) -> None:
    """A field that is missing, new or of another kind, and a stable word that is another, are told."""
    assert differences(shown, actual) == [what]


def test_a_gap_is_anything() -> None:
    """Three dots are any characters of a line, and alone on a line any lines, also none."""
    assert reads_like("first …\n…\nlast\n", "first line\nsecond\nthird\nlast\n")
    assert reads_like("first\n…\nlast\n", "first\nlast")
    assert not reads_like("first …\nlast\n", "first line\nsecond\nlast\n")
    assert not reads_like("first\n…\nlast\n", "first\nlast one\n")
    assert not reads_like("a.c\n", "abc\n")
