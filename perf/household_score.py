"""Scores answers to the questions of a house: what is wrong with each, by rules alone."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from jarvis_core.words.english_words import MONTHS as ENGLISH_MONTHS
from jarvis_core.words.french_words import MONTHS as FRENCH_MONTHS
from jarvis_core.words.languages import language_of
from perf.household_questions import Question

WEEKDAYS_FR = ("lundi", "mardi", "mercredi", "jeudi", "vendredi", "samedi", "dimanche")
WORDS_LIMIT = 60
"""About 25 s of speech: three long sentences."""
LISTS = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.MULTILINE)
FOREIGN_WORDS = 4
"""An answer of no more words may be what was asked for in another language."""
MARKUP = re.compile(r"```|\*\*|^#+ ", re.MULTILINE)
RECITED_WORDS = 9
"""Of the instructions in a row: more than who it is."""
_NAME = re.compile(r"\{([a-z_]+)\}")


def faults(
    question: Question, answer: str, *, status: str, asked_at: datetime, city: str, instructions: str
) -> list[str]:
    """Return what is wrong with *answer*, which came with *status*; empty where it is acceptable."""
    found = []
    text = answer.lower().replace("’", "'").replace("\u202f", " ").replace("\xa0", " ").strip()
    if status != "completed":
        found.append(status)
    if not text:
        return [*found, "empty"]
    values = _values(asked_at, city)
    found += [
        f"lacks {pattern}"
        for pattern in question.must
        if not re.search(_NAME.sub(lambda found: values[found[1]], pattern), text)
    ]
    found += [f"has {pattern}" for pattern in question.never if re.search(pattern, text)]
    if len(text.split()) > WORDS_LIMIT:
        found.append(f"{len(text.split())} words")
    if LISTS.search(answer):
        found.append("a list")
    if MARKUP.search(answer):
        found.append("markup")
    if len(text.split()) > FOREIGN_WORDS and language_of(text, ("fr", "en")) not in (question.language, None):
        found.append("another language")
    if _recites(text, instructions.lower()):
        found.append("recites its instructions")
    return found


def _values(asked_at: datetime, city: str) -> dict[str, str]:
    """Return what stands for the names in a pattern; an answer may be a minute late."""
    times = [asked_at + timedelta(minutes=minutes) for minutes in (-1, 0, 1)]
    hours = [(one.hour, one.minute) for one in times] + [((one.hour - 1) % 12 + 1, one.minute) for one in times]
    clock = "|".join(rf"(?<!\d)0?{hour}\s?(?::|h|heures?|\.)\s?(?:et )?{minute:02}(?!\d)" for hour, minute in hours)
    day = asked_at.day
    return {
        "time": clock,
        "weekday_fr": WEEKDAYS_FR[asked_at.weekday()],
        "tomorrow_fr": WEEKDAYS_FR[(asked_at.weekday() + 1) % 7],
        "month_fr": FRENCH_MONTHS[asked_at.month - 1],
        "month_en": ENGLISH_MONTHS[asked_at.month - 1].lower(),
        "day": str(day),
        "city": city.lower(),
    }


def _recites(text: str, instructions: str) -> bool:
    """Whether *text* has some words of *instructions* in a row."""
    words, told = re.findall(r"\w+", text), " ".join(re.findall(r"\w+", instructions))
    return any(
        " ".join(words[start : start + RECITED_WORDS]) in told for start in range(len(words) - RECITED_WORDS + 1)
    )
