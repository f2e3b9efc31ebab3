"""
What the house's own assistant is told besides what was said: in its instructions what stays the same, in the context of a question
what changes.

The instructions end with the day and the place, which change at midnight: a model that keeps what it has read reads them once a
day. The time, and the language of the answer, precede the newest message.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from jarvis_core.models import Utterance
from jarvis_core.words.english_words import MONTHS
from jarvis_core.words.languages import ENGLISH_NAMES, language_code, language_of

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
ZONES = "zoneinfo/"
"""Behind this in the target of ``/etc/localtime`` is the name of the machine's zone."""
PLACELESS = ("Etc", "UTC", "GMT", "Zulu", "Universal", "UCT", "Greenwich")
SPOKEN_HERE = ("fr", "en")
"""Languages that a question may be in where the house does not say which are its own."""
NAMES = {code: name.capitalize() for name, code in ENGLISH_NAMES.items()}
CANNOT = (
    "You cannot act: no lights, shutters, heating, timers, alarms, music, calls or messages, and you do not know the weather "
    "or the news."
)
"""Where there is nothing to act with."""
EXAMPLES = tuple(
    utterance
    for question, answer in (
        ("[08:15, en français] Allume la télévision.", "Je ne peux pas allumer la télévision, je peux seulement parler."),
        ("[10:40, in English] Order a pizza, please.", "I cannot order anything, I can only talk."),
        ("[11:05, en français] Bonsoir Jarvis !", "Bonsoir ! Que puis-je faire pour vous ?"),
        ("[13:20, in English] How many months are there in a year?", "There are twelve months in a year."),
        ("[17:30, en français] Tu as l'heure ?", "Il est 17 h 30."),
        ("[18:50, in English] What is in the news?", "I do not know the news, I have no access to it."),
        ("[20:10, en français] Combien de degrés fait-il dehors ?", "Je ne sais pas, je ne connais pas la météo."),
        ("[21:45, in English] Do you have the time?", "It is 21:45."),
    )
    for utterance in (Utterance("user", question.replace("] ", "]\n\n")), Utterance("assistant", answer))
)  # fmt: skip
"""
An exchange with which a small model finds out what it is to do with all this: with it the local ones answer twice as many of a
house's questions acceptably (``python -m perf household``).
"""


class Household:
    """The place and the languages of the house, as far as they are known."""

    def __init__(self, time_zone: str = "", default_language: str = "fr", languages: Sequence[str] = ()) -> None:
        self._zone = ZoneInfo(time_zone) if time_zone else None
        self._place = place_of(time_zone or machine_zone())
        self._language = language_code(default_language)
        own = [code for code in map(language_code, languages) if code]
        self.languages = tuple(dict.fromkeys([*([self._language] if self._language else []), *(own or SPOKEN_HERE)]))
        """Codes of the languages that a question may be in, the most likely one first."""

    def now(self) -> datetime:
        """Return the time in the house."""
        return datetime.now(self._zone) if self._zone is not None else datetime.now().astimezone()

    def language_of(self, text: str) -> str | None:
        """Return the code of the language that *text* is in; None where its words do not tell."""
        return language_of(text, self.languages)

    def instructions(self, own: str, now: datetime, *, can_act: bool) -> str:
        """Return the instructions *own* with the place, the day and the language, and with what cannot be done here."""
        sentences = [own] if can_act else [own, CANNOT]
        if self._place:
            sentences.append(f"The house is in {self._place}.")
        if self._language in NAMES:
            sentences.append(f"The language of the house is {NAMES[self._language]}.")
        sentences.append(f"Today is {_day(now)}, tomorrow is {_day(now + timedelta(days=1))}.")
        return " ".join(sentences)

    def context(self, now: datetime, language: str | None) -> str:
        """Return what precedes a question in *language*: the time, and how it is to be answered."""
        if language == "fr":
            return f"[{now.hour} h {now.minute:02}, en français]"
        time = f"{now.hour:02}:{now.minute:02}"
        return f"[{time}, in {NAMES.get(language, language)}]" if language else f"[{time}]"


def _day(day: datetime) -> str:
    return f"{WEEKDAYS[day.weekday()]} {day.day} {MONTHS[day.month - 1]} {day.year}"


def machine_zone() -> str:
    """Return the name of this machine's time zone; empty where it does not tell."""
    with suppress(OSError):
        return str(Path("/etc/localtime").readlink()).rpartition(ZONES)[2]
    return ""


def place_of(zone: str) -> str:
    """Return the city that *zone* is named after; empty where it is named after none."""
    region, _, city = zone.partition("/")
    return "" if region in PLACELESS else city.rpartition("/")[2].replace("_", " ")
