"""
Home Assistant, which understands sentences about the house without a model (``POST /api/conversation/process``).

Measured on 2024.3.3 and 2025.4.4: fields that are ``null`` or unknown are refused with 400, ``agent_id`` among them under
the wrong one of its two names, so that it is left out; ``conversation_id`` comes back as ``null`` from the older one; 401 and 500
are plain text, and 500 is also what a sentence gets whose intent no device offers ("what is the temperature?").
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from jarvis_core import log
from jarvis_core.errors import BadGateway, DeadlineExceeded, Unavailable
from jarvis_core.models import HouseAnswer
from jarvis_core.services.contract import NONSENSE
from jarvis_core.services.transport import Answer, Refused, Transport
from jarvis_core.settings import Home

logger = log.get(__name__)

SPEECH_LIMIT_CHARS = 5_000
"""More of an answer is not spoken: what text to speech takes at a time."""

CODES: dict[str | None, Literal["unmatched", "unknown"]] = {
    "no_intent_match": "unmatched",
    "no_valid_targets": "unknown",
}
"""Of errors that are none of the house's; with any other a thing of the house did not do what it was told."""


class Sentence(Struct, frozen=True, omit_defaults=True):
    """What somebody said to the house."""

    text: str
    language: str
    conversation_id: str | UnsetType = UNSET


class Plain(Struct, frozen=True):
    """Words without markup."""

    speech: str | None = None


class Speech(Struct, frozen=True):
    """What is to be spoken."""

    plain: Plain | None = None


class ErrorData(Struct, frozen=True):
    """Why a sentence came to nothing; other answers have other fields here."""

    code: str | None = None


class Response(Struct, frozen=True):
    """What the house made of a sentence."""

    response_type: str
    speech: Speech | None = None
    data: ErrorData | None = None


class Processed(Struct, frozen=True):
    """The answer to a sentence."""

    response: Response
    conversation_id: str | None = None


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Processed)

Outcome = Literal["done", "told", "failed", "unknown", "unmatched"]

OUTCOMES: dict[str, Outcome] = {"action_done": "done", "query_answer": "told", "error": "failed"}


class HomeAssistant:
    """``HouseControl`` of a Home Assistant."""

    def __init__(self, transport: Transport, settings: Home) -> None:
        self._transport = transport
        token = "" if settings.token is None else settings.token.reveal()
        transport.hide(token)
        self._headers = {"Authorization": "Bearer " + token, "Content-Type": "application/json"}

    async def check(self, timeout_s: float) -> None:
        """Ask whether its API answers, as ``HouseControl`` has it."""
        await self._call("GET", "/api/", None, timeout_s)

    async def process(
        self, text: str, language: str, conversation_id: str | None = None, *, timeout_s: float
    ) -> HouseAnswer:
        """Have a sentence understood, as ``HouseControl`` has it; it is sent once, whatever happens to its answer."""
        body = _encoder.encode(Sentence(text, language, conversation_id or UNSET))
        try:
            answer = await self._call("POST", "/api/conversation/process", body, timeout_s)
        except Refused:
            raise
        except (DeadlineExceeded, BadGateway, Unavailable) as exc:
            if not self._transport.was_sent(exc):
                raise
            return HouseAnswer("unclear")
        try:
            processed = _decoder.decode(answer.body)
        except NONSENSE as exc:
            self._transport.health.learn("degraded", "it sent what is not its contract")
            logger.warning("the house sent what is not its contract", error=str(exc)[:200])
            return HouseAnswer("unclear")
        response = processed.response
        outcome: Outcome = OUTCOMES.get(response.response_type, "unmatched")
        if outcome == "failed" and response.data is not None:
            outcome = CODES.get(response.data.code, "failed")
        if outcome == "unmatched":
            return HouseAnswer("unmatched", conversation_id=processed.conversation_id)
        plain = None if response.speech is None else response.speech.plain
        speech = "" if plain is None or plain.speech is None else plain.speech.strip()[:SPEECH_LIMIT_CHARS]
        return HouseAnswer(outcome, speech, processed.conversation_id)

    async def _call(self, method: str, path: str, body: bytes | None, timeout_s: float) -> Answer:
        try:
            return await self._transport.call(
                method, path, body=body, headers=self._headers, timeout_s=timeout_s, once=True
            )
        except Refused as exc:
            if exc.status in (401, 403):
                self._transport.health.learn("unavailable", "it does not accept HOME_ASSISTANT_TOKEN")
            elif exc.status == 404:
                self._transport.health.learn(
                    "unavailable", "HOME_ASSISTANT_URL leads to no Home Assistant with conversation"
                )
            raise
