"""``/v1/models``, and what the names of models mean."""

from __future__ import annotations

import time

import msgspec

from jarvis_core.errors import RequestError, UnknownModel
from jarvis_core.handlers.call import Call, Reply
from jarvis_core.handlers.openai.wire import ModelCard, ModelList
from jarvis_core.models import CompletionModel

ASSISTANT = "jarvis"
HEARING = "jarvis-hear"
VOICE = "jarvis-voice"
EMBEDDING = "jarvis-embed"
OWNER = "jarvis-core"
HEARING_NAMES = (HEARING, "whisper-1", "gpt-4o-transcribe", "gpt-4o-mini-transcribe")
VOICE_NAMES = (VOICE, "tts-1", "tts-1-hd", "gpt-4o-mini-tts")
EMBEDDING_NAMES = (EMBEDDING, "text-embedding-3-small", "text-embedding-3-large")
"""What means ours: clients that were made for OpenAI's service have its names built in."""

_encoder = msgspec.json.Encoder()


class ModelHandlers:
    """The routes below ``/v1/models``; *speaks* and *embeds* say whether there is anybody who does."""

    def __init__(self, model: CompletionModel, *, speaks: bool, embeds: bool) -> None:
        self._model = model
        self._own = [ASSISTANT, *((HEARING, VOICE) if speaks else ()), *((EMBEDDING,) if embeds else ())]
        self._made_at = int(time.time())

    async def list_models(self, call: Call) -> Reply:
        """Answer ``GET /v1/models``."""
        del call
        return Reply(_encoder.encode(ModelList(await self._cards())))

    async def model(self, call: Call) -> Reply:
        """Answer ``GET /v1/models/{id}``."""
        cards = await self._cards()
        meant = own_name(call.path_param)
        # The router has the path's last part in small letters.
        card = next((card for card in cards if card.id.lower() == meant), None)
        if card is None:
            raise UnknownModel(call.path_param)
        return Reply(_encoder.encode(card))

    async def _cards(self) -> list[ModelCard]:
        cards = [ModelCard(name, self._made_at, OWNER) for name in self._own]
        try:
            behind = await self._model.fetch_name()
        except RequestError:
            return cards  # it is away, and listed when it is back
        if behind and behind not in self._own:
            cards.append(ModelCard(behind, self._made_at, "llm"))
        return cards


def own_name(name: str) -> str:
    """Return our name of what OpenAI's service calls *name*; of another the same."""
    for names in (HEARING_NAMES, VOICE_NAMES, EMBEDDING_NAMES):
        if name in names:
            return names[0]
    return name


def check_model(name: str, names: tuple[str, ...]) -> None:
    """Raise ``UnknownModel`` where *name* is none of *names*."""
    if name not in names:
        raise UnknownModel(name)
