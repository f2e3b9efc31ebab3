"""
What four people told their assistant over months and what they ask it later, written by hand: nothing is tuned on it.

The weights of the search were chosen on `memory_corpus`, so what is measured there flatters them. Here each sentence was
written by itself, without its templates, and with no method in mind: near-duplicates that differ in the one thing that
matters, preferences that changed, two languages in one breath, hints that lead from one entry to another. Whoever changes
the search may look at the figures, but not choose by them; when that has happened, this set has to be written anew.

Each person is a file in ``heldout/``: ``[told]`` has the entries in the order in which they were told, each under a
label, and ``[asked.<language>.<kind>]`` the questions, each with the labels of the entries that answer it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from perf.memory_corpus import Kind, Language, Person, Question

DIRECTORY = Path(__file__).with_name("heldout")


class Told(msgspec.Struct, forbid_unknown_fields=True):
    """A person's file."""

    told: dict[str, str]
    """What was told, by its label."""
    asked: dict[Language, dict[Kind, dict[str, str | list[str]]]]
    """Labels of what answers a question, by language, kind and question."""


def people() -> Iterator[Person]:
    """Return each person with what they told and ask; raises ``KeyError`` for an answer that nobody told."""
    for path in sorted(DIRECTORY.glob("*.toml")):
        person = msgspec.toml.decode(path.read_bytes(), type=Told)
        places = {label: place for place, label in enumerate(person.told)}
        questions = [
            Question(text, kind, language, frozenset(places[one] for one in _listed(answers)))
            for language, by_kind in person.asked.items()
            for kind, by_text in by_kind.items()
            for text, answers in by_text.items()
        ]
        yield Person(path.stem, list(person.told.values()), questions)


def _listed(labels: str | list[str]) -> list[str]:
    return [labels] if isinstance(labels, str) else labels
