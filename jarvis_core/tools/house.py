"""
The house, asked before the language model: what it understands needs no model.

A sentence goes to it in the language that was heard, then once in another one of the house, within ``home.timeout_s`` together.
What it does or answers is the turn's answer; what it does not understand is the model's. So is what it only seems to
understand: it takes "quelle heure est-il ?", "tell me a joke" and "mon vélo est au garage" for devices and rooms that it has not,
so that of those only orders are answered with its own words, and no question is.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable

from msgspec import Struct

from jarvis_core import log
from jarvis_core.errors import RequestError
from jarvis_core.models import HouseAnswer, HouseControl
from jarvis_core.settings import Home, Speech
from jarvis_core.words.languages import language_code
from jarvis_core.words.orders import is_order, is_question

logger = log.get(__name__)

HOUSE = "home-assistant"
"""The ``model`` of what the house answers."""
UNCLEAR = (
    "What the user asks for was given to the house before, and it is not known whether it was done. Say so; do not say that "
    "it was done."
)
"""What the model is told where the house must not be asked again."""
TEXT_LIMIT_CHARS = 500
"""Nobody says more to a lamp; longer texts are the model's."""
LANGUAGES_LIMIT = 2
"""In how many languages a sentence is tried."""
CONVERSATIONS_LIMIT = 1_000
"""Of how many conversations the house's own name is kept, those that were used last."""
LOOK_INTERVAL_S = 90.0
"""Between two looks at a house that is well; its answers tell as much."""
AWAY_INTERVAL_S = 5.0
"""The same of one that is not."""
LOOK_TIMEOUT_S = 10.0
"""A house that was just started loads a language in a third of a second on a quick machine."""
OURS = ("fr", "en")
"""The languages of a house of which none is known."""
DONE = {"fr": "C'est fait.", "en": "Done."}
"""What is said where the house did it and has no words for it."""


class Reply(Struct, frozen=True):
    """What came of asking the house."""

    speech: str = ""
    """Its answer; empty where the model is to be asked."""
    is_unclear: bool = False
    """Whether it may have done it, and did not answer."""


class House:
    """
    The house behind *control*.

    *spoken* returns the codes of what can be spoken, and *is_well* whether the last call went well. Run ``keep`` for as long as it
    is used.
    """

    def __init__(
        self,
        control: HouseControl,
        settings: Home,
        speech: Speech,
        *,
        spoken: Callable[[], Awaitable[Iterable[str]]],
        is_well: Callable[[], bool],
    ) -> None:
        self._control = control
        self._timeout_s = settings.timeout_s
        self._speech = speech
        self._fetch_spoken = spoken
        self._is_well = is_well
        self._languages = languages_of(speech, ())
        self._knows_spoken = bool(speech.languages)
        self._conversations: OrderedDict[str, str] = OrderedDict()
        """The house's name of each conversation, by ours."""
        self.outcomes: dict[str, float] = {}
        """How many sentences were tried, by what came of them."""
        self.looked = asyncio.Event()
        """Set once it was looked at for the first time, and has loaded its languages."""
        self.trouble = "it has not answered yet"
        """Why it was not to be had when it was looked at last, for a person; empty where all was well."""

    async def ask(self, text: str, language: str | None, conversation_id: str) -> Reply:
        """
        Have the house do or answer *text*, which was said in *language* (None: nobody knows).

        Never raises for a house that is away, slow or refuses.
        """
        text = text.strip()
        if not text or len(text) > TEXT_LIMIT_CHARS:
            return Reply()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s
        for code in self._order(language):
            left_s = deadline - loop.time()
            if left_s <= 0:
                break
            known = self._conversations.get(conversation_id)
            try:
                answer = await self._control.process(text, code, known, timeout_s=left_s)
            except RequestError as exc:
                self._count("refused")
                logger.info("the house was not to be had; the model is asked", error=str(exc))
                break
            self._count(answer.outcome)
            if answer.conversation_id:
                self._keep_conversation(conversation_id, answer.conversation_id)
            if answer.outcome != "unmatched":
                return Reply(_words(answer, text, code), is_unclear=answer.outcome == "unclear")
        return Reply()

    async def keep(self) -> None:
        """Look after the house now and then, and have it load its languages whenever it has come back."""
        loop = asyncio.get_running_loop()
        was_well = False
        while True:
            well = await self._look()
            if well:
                await self._learn_languages(load=not was_well)
            self.looked.set()
            was_well = well
            looked_at = loop.time()
            await asyncio.sleep(AWAY_INTERVAL_S)
            # Calls for turns tell of it, too.
            while was_well and self._is_well() and loop.time() < looked_at + LOOK_INTERVAL_S:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(AWAY_INTERVAL_S)
            was_well = was_well and self._is_well()

    async def _look(self) -> bool:
        try:
            await self._control.check(LOOK_TIMEOUT_S)
        except RequestError as exc:
            self.trouble = str(exc)
            return False
        self.trouble = ""
        return True

    async def _learn_languages(self, *, load: bool) -> None:
        """
        Learn what is spoken, and *load* what the house loads with the first sentence of a language, for which nobody is to wait.

        A second sentence that comes meanwhile is a 500 of Home Assistant 2024.3.3: the start waits for this.
        """
        if not self._knows_spoken:
            spoken = list(await self._fetch_spoken())
            self._languages = languages_of(self._speech, spoken)
            self._knows_spoken = bool(spoken)
        if not load:
            return
        for code in self._order(None):
            with contextlib.suppress(RequestError):
                # No sentence, so that it does nothing.
                await self._control.process("", code, timeout_s=LOOK_TIMEOUT_S)

    def _order(self, language: str | None) -> list[str]:
        """Return the languages in which a sentence is tried, of which it was said in *language*."""
        heard = None if language is None else language_code(language)
        codes = dict.fromkeys(self._languages if heard is None else (heard, *self._languages))
        return list(codes)[:LANGUAGES_LIMIT]

    def _count(self, outcome: str) -> None:
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def _keep_conversation(self, ours: str, theirs: str) -> None:
        self._conversations[ours] = theirs
        self._conversations.move_to_end(ours)
        if len(self._conversations) > CONVERSATIONS_LIMIT:
            self._conversations.popitem(last=False)


def languages_of(settings: Speech, spoken: Iterable[str]) -> tuple[str, ...]:
    """Return the codes of the house's languages: those that are set, else those *spoken*, else ours; the default one first."""
    codes = [code for code in map(language_code, settings.languages) if code]
    codes = codes or sorted(spoken, key=lambda code: (code not in OURS, code)) or list(OURS)
    default = language_code(settings.default_language)
    return tuple(sorted(dict.fromkeys(codes), key=lambda code: code != default))


def _words(answer: HouseAnswer, text: str, language: str) -> str:
    """Return what is said of *answer*; empty where the model is to be asked."""
    if answer.outcome in ("failed", "unknown") and is_question(text):
        return ""
    if answer.outcome == "unknown" and not is_order(text):
        return ""
    if answer.outcome == "done":
        return answer.speech or DONE.get(language, DONE["en"])
    return answer.speech
