"""
Home Assistant's conversation API, as 2024.3.3 and 2025.4.4 have it, over three lamps with names in two languages.

What it does not know is ``no_intent_match``, a device that is not there ``no_valid_targets``, also where a question is taken for
one ("quelle heure est-il ?"); "what is the temperature?" is a 500 in plain text. ``null``, unknown fields and a wrong
``agent_id`` are 400, a wrong token 401 in plain text.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from typing import Any, Literal

import msgspec
from aiohttp import web

from .command import make_parser, read_mode, serve
from .server import FakeServer, json_response
from .streams import FaultyMode

PROCESS = "/api/conversation/process"
LAMPS = {
    "lumière du salon": "salon",
    "living room light": "salon",
    "lumière de la cuisine": "cuisine",
    "kitchen light": "cuisine",
    "lampe de chevet": "chevet",
    "bedside lamp": "chevet",
}
SENTENCES: dict[str, list[tuple[str, re.Pattern[str]]]] = {
    "fr": [
        ("on", re.compile(r"(?:allume|allumer) (?:la |le |l')?(?P<name>.+)")),
        ("off", re.compile(r"(?:éteins|éteindre) (?:la |le |l')?(?P<name>.+)")),
        ("toggle", re.compile(r"bascule (?:la |le |l')?(?P<name>.+)")),
        ("dim", re.compile(r"mets (?:la |le |l')?(?P<name>.+) à (?P<level>\d+) ?%")),
        ("ask", re.compile(r"est-ce que (?:la |le |l')?(?P<name>.+) est allumée")),
        ("ask", re.compile(r"(?P<name>quelle heure) est-il")),
        ("ask", re.compile(r"(?P<name>.+) est au garage")),
    ],
    "en": [
        ("on", re.compile(r"turn on (?:the )?(?P<name>.+)")),
        ("off", re.compile(r"turn off (?:the )?(?P<name>.+)")),
        ("toggle", re.compile(r"toggle (?:the )?(?P<name>.+)")),
        ("dim", re.compile(r"set (?:the )?(?P<name>.+) to (?P<level>\d+) ?%")),
        ("ask", re.compile(r"is (?:the )?(?P<name>.+) on")),
        ("ask", re.compile(r"tell me (?P<name>.+)")),
        ("temperature", re.compile(r"what is the temperature")),
    ],
}
WORDS = {
    "fr": {"on": "Allumé", "off": "Éteint", "toggle": "Basculé", "dim": "Luminosité réglée", "yes": "Oui", "no": "Non",
           "unknown": "Désolé, je ne connais pas l'appareil {}", "unmatched": "Désolé, je n'ai pas compris",
           "failed": "Une erreur inattendue s'est produite"},
    "en": {"on": "Turned on the light", "off": "Turned off the light", "toggle": "Toggled", "dim": "Brightness set", "yes": "Yes",
           "no": "No", "unknown": "Sorry, I am not aware of any device called {}", "unmatched": "Sorry, I couldn't understand that",
           "failed": "An unexpected error occurred"},
}  # fmt: skip


class HomeAssistantMode(FaultyMode, frozen=True, kw_only=True):
    """How the house behaves; being slow, hanging and answering nonsense are ``faults``: ``{PROCESS: Fault("hang")}``."""

    version: Literal["2024.3", "2025.4"] = "2024.3"
    """The newer one names conversations, goes on with them, and says whether it does."""
    delay_s: float = 0.0
    """Before a sentence is understood."""
    lost: Literal["", "before", "after"] = ""
    """Close the connection before or after what was said is done."""
    held: bool = False
    """Do what was said, and wait for the gate before it is told."""
    failing: bool = False
    """Have no lamp do what it is told."""
    speechless: bool = False
    """Have no words for what was done."""
    response_type: str = ""
    """In place of the true one."""


class FakeHomeAssistant(FakeServer[HomeAssistantMode]):
    """The house; *token* is the one that it takes."""

    def __init__(self, token: str, *, mode: HomeAssistantMode | None = None, port: int = 0) -> None:
        super().__init__(mode or HomeAssistantMode(), port=port)
        self.token = token
        self.levels = dict.fromkeys(LAMPS.values(), 0)
        """Of each lamp, in percent; 0 is off."""
        self.acts: list[tuple[str, str]] = []
        """What was done, and to which lamp."""
        self.sentences: list[tuple[str, str]] = []
        """What was said, and in which language; empty ones are left out."""

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/api/", self._root), web.post(PROCESS, self._process)]

    def forget(self) -> None:
        super().forget()
        self.acts.clear()
        self.sentences.clear()

    async def _root(self, request: web.Request) -> web.Response:
        return self._refused(request) or json_response({"message": "API running."})

    async def _process(self, request: web.Request) -> web.StreamResponse:
        if refused := self._refused(request):
            return refused
        try:
            said = msgspec.json.decode(await request.read(), type=dict[str, Any])
        except msgspec.DecodeError:
            return json_response({"message": "Invalid JSON specified."}, 400)
        for name, value in said.items():
            if name == "agent_id":
                return json_response(
                    {"message": "Message format incorrect: invalid agent ID for dictionary value"}, 400
                )
            if name not in ("text", "language", "conversation_id") or not isinstance(value, str):
                return json_response(
                    {"message": f"Message format incorrect: extra keys not allowed @ data['{name}']"}, 400
                )
        text, language = said["text"], said.get("language", "fr")
        if text:
            self.sentences.append((text, language))
        await asyncio.sleep(self.mode.delay_s)
        if self.mode.lost == "before":
            return self._lose(request)
        answer = self._understand(text.lower().rstrip(" .?!"), language)
        if self.mode.lost == "after":
            return self._lose(request)
        if self.mode.held and text:
            await self.gate.enter()
        if answer is None:
            return web.Response(status=500, text="500 Internal Server Error\n\nServer got itself in trouble")
        return json_response(answer | self._conversation(said.get("conversation_id")))

    def _refused(self, request: web.Request) -> web.Response | None:
        if request.headers.get("Authorization") == f"Bearer {self.token}":
            return None
        return web.Response(status=401, text="401: Unauthorized")

    def _lose(self, request: web.Request) -> web.Response:
        if request.transport is not None:
            request.transport.close()
        return web.Response()

    def _conversation(self, given: str | None) -> dict[str, object]:
        if self.mode.version == "2024.3":
            return {"conversation_id": None}
        return {"conversation_id": given or uuid.uuid4().hex, "continue_conversation": False}

    def _understand(self, text: str, language: str) -> dict[str, Any] | None:
        words = WORDS.get(language, WORDS["en"])
        for act, pattern in SENTENCES.get(language, []):
            if found := pattern.fullmatch(text):
                if act == "temperature":
                    return None
                if (lamp := LAMPS.get(found["name"])) is None:
                    return self._error(language, "no_valid_targets", words["unknown"].format(found["name"]))
                if act == "ask":
                    return self._told(language, "query_answer", words["yes" if self.levels[lamp] else "no"], lamp)
                if self.mode.failing:
                    return self._error(language, "failed_to_handle", words["failed"])
                self._do(act, lamp, int(found["level"]) if act == "dim" else 0)
                return self._told(language, "action_done", "" if self.mode.speechless else words[act], lamp)
        return self._error(language, "no_intent_match", words["unmatched"])

    def _do(self, act: str, lamp: str, level: int) -> None:
        self.acts.append((act, lamp))
        before = self.levels[lamp]
        self.levels[lamp] = {"on": 100, "off": 0, "toggle": 0 if before else 100}.get(act, level)

    def _told(self, language: str, response_type: str, speech: str, lamp: str) -> dict[str, Any]:
        data = {"targets": [], "success": [{"name": lamp, "type": "entity", "id": f"light.{lamp}"}], "failed": []}
        return self._response(language, self.mode.response_type or response_type, speech, data)

    def _error(self, language: str, code: str, speech: str) -> dict[str, Any]:
        return self._response(language, self.mode.response_type or "error", speech, {"code": code})

    def _response(self, language: str, response_type: str, speech: str, data: dict[str, Any]) -> dict[str, Any]:
        spoken = {"plain": {"speech": speech, "extra_data": None}} if speech else {}
        fields = {"speech": spoken, "card": {}, "language": language, "response_type": response_type, "data": data}
        return {"response": fields}


def main() -> None:
    """Serve until told to stop."""
    parser = make_parser("Fake Home Assistant")
    parser.add_argument("--token", default="token")
    options = parser.parse_args()
    serve(FakeHomeAssistant(options.token, mode=read_mode(options, HomeAssistantMode), port=options.port))


if __name__ == "__main__":
    main()
