"""Errors that are told from one process to another by their code."""

from __future__ import annotations

import pytest

from jarvis_core.errors import BY_CODE, Conflict, MethodNotAllowed, RequestError, Stopping, Unavailable, of_code


def test_each_class_has_a_code_of_its_own() -> None:
    """No two classes beside one another in the tree share a code; ``Stopping`` shows its parent's."""
    assert set(BY_CODE.values()) == {
        kind for kind in RequestError.__subclasses__() if kind.__module__ == Conflict.__module__
    }
    assert BY_CODE["unavailable"] is Unavailable
    assert Stopping.code == Unavailable.code


@pytest.mark.parametrize("kind", BY_CODE.values())
def test_code_and_back(kind: type[RequestError]) -> None:
    """An error arrives as its class with message and details; what cannot be told whole arrives as a defect."""
    error = of_code(kind.code, "It is so.", {"path": "$"})
    assert type(error) is (RequestError if kind is MethodNotAllowed else kind)
    assert (error.message, error.details) == ("It is so.", {"path": "$"})


def test_unknown_code() -> None:
    """A code that is not known here is a defect."""
    assert type(of_code("made_up", "It is so.")) is RequestError
