"""The questions that are held out from tuning: enough of each kind, and nothing of the set that was tuned on."""

from __future__ import annotations

from collections import Counter

import pytest

from jarvis_core.words.normalization import fingerprint, gist
from perf import memory_corpus, memory_heldout
from perf.memory_corpus import Person

PEOPLE = list(memory_heldout.people())


def test_there_are_people_of_both_languages() -> None:
    """Four people are asked for, two who mostly speak French and two who mostly speak English."""
    languages = [Counter(one.language for one in person.questions).most_common(1)[0][0] for person in PEOPLE]
    assert sorted(languages) == ["en", "en", "fr", "fr"]


@pytest.mark.parametrize("person", PEOPLE, ids=lambda person: person.name)
def test_each_person_has_many_entries_and_questions_of_every_kind(person: Person) -> None:
    """A person has at least 60 entries and 60 questions, at least five of each of the seven kinds."""
    kinds = Counter(one.kind for one in person.questions)
    assert len(person.entries) >= 60
    assert len(person.questions) >= 60
    assert len(kinds) == 7
    assert min(kinds.values()) >= 5


@pytest.mark.parametrize("person", PEOPLE, ids=lambda person: person.name)
def test_every_entry_stays_one_of_its_own(person: Person) -> None:
    """No two entries of a person would be taken for the same fact, so an answer always has its place."""
    assert len({fingerprint(text) for text in person.entries}) == len(person.entries)
    assert len({gist(text) for text in person.entries}) == len(person.entries)


def test_nothing_is_in_the_set_that_was_tuned_on() -> None:
    """No entry and no question is also one of the templates' set."""
    tuned = {
        fingerprint(text)
        for person in memory_corpus.people()
        for text in (*person.entries, *(one.text for one in person.questions))
    }
    held_out = {
        fingerprint(text) for person in PEOPLE for text in (*person.entries, *(one.text for one in person.questions))
    }
    assert len(held_out) > 500
    assert not tuned & held_out
