"""Languages: known by their codes."""

from __future__ import annotations

import pytest

from jarvis_core.words.languages import language_code


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("fr", "fr"),
        ("fr-FR", "fr"),
        ("fr_FR", "fr"),
        ("EN", "en"),
        ("zh-Hans-CN", "zh"),
        ("auto", None),
        ("AUTO", None),
    ],
)
def test_language_code(language: str, code: str | None) -> None:
    """A language is known by the code in front; "auto" is none."""
    assert language_code(language) == code
