"""Begins and cancels the responses of a session."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec
from msgspec import UNSET, Struct

from jarvis_core.errors import Conflict, InvalidRequest, RequestError
from jarvis_core.handlers.events import Metadata, SpokenOutput
from jarvis_core.handlers.realtime.asides import Asides
from jarvis_core.handlers.realtime.config import SessionSettings, configured
from jarvis_core.handlers.realtime.dialogue import Dialogue
from jarvis_core.handlers.realtime.hearing import Hearing
from jarvis_core.handlers.realtime.interruption import Interrupter
from jarvis_core.handlers.realtime.items import text_of
from jarvis_core.handlers.realtime.lenient import take
from jarvis_core.handlers.realtime.output import AudioOutput, Output, TextOutput
from jarvis_core.handlers.realtime.refusals import AlreadyActive, NothingToCancel
from jarvis_core.handlers.realtime.response import ResponseStream
from jarvis_core.handlers.realtime.session_config import ResponseConfig
from jarvis_core.handlers.realtime.socket import Socket
from jarvis_core.handlers.realtime.transcriptions import PendingTranscriptions
from jarvis_core.handlers.realtime.wire import ClientItem, ItemReference, ResponseCancel, ResponseCreate, SessionBody
from jarvis_core.handlers.tool_wire import own_tools
from jarvis_core.models import Caller, Utterance
from jarvis_core.speech.synthesis import SpeechOptions, Synthesizer
from jarvis_core.turns.ask import Ask
from jarvis_core.turns.log import Turn
from jarvis_core.turns.receipt import TurnTimer
from jarvis_core.turns.turns import Turns

OnTurn = Callable[[Turn, Turn | None], None]
"""Told of the turn of a new response, and of that of the one before, which can no longer be resumed."""


class Wanted(Struct):
    """What a response is asked for with."""

    config: SessionBody
    metadata: Metadata | None = None
    input: list[ClientItem | ItemReference] | None = None
    """What the model is told was said before; None where that is the conversation."""
    aside: bool = False
    """Whether it is out of band."""


class Responder:
    """
    The responses of one session: begun by the client, or by what was said.

    Owns the task that answers what was said while a response was active.
    """

    def __init__(
        self,
        turns: Turns,
        synthesizer: Synthesizer,
        caller: Caller,
        socket: Socket,
        settings: SessionSettings,
        dialogue: Dialogue,
        hearing: Hearing,
        transcriptions: PendingTranscriptions,
        response: ResponseStream,
        interrupter: Interrupter,
        handling: asyncio.Lock,
        asides: Asides,
        on_turn: OnTurn,
    ) -> None:
        self._turns = turns
        self._synthesizer = synthesizer
        self._caller = caller
        self._socket = socket
        self._settings = settings
        self._dialogue = dialogue
        self._hearing = hearing
        self._transcriptions = transcriptions
        self._response = response
        self._interrupter = interrupter
        self._handling = handling
        """The session's lock, held while a response begins."""
        self._asides = asides
        self._on_turn = on_turn
        self._later: asyncio.Task[None] | None = None
        """Answers what was said while a response was active that was not interrupted."""

    async def respond(self, event: ResponseCreate) -> None:
        """
        Begin the response that the client asks for, or defer it until the words of all recordings are known.

        Raises ``AlreadyActive`` or ``InvalidRequest``, and as ``Turns.start`` does.
        """
        arrived_s = time.perf_counter()
        if self._settings.body.type == "transcription":
            raise InvalidRequest("A transcription session answers nothing.", details={"path": "$.type"})
        wanted = self._wanted(event.response)
        if wanted.aside:
            await self._respond_aside(event, wanted, TurnTimer(arrived_s))
            return
        if self._response.active:
            raise AlreadyActive("A response is active; wait for response.done or cancel it.")
        if self._transcriptions.defer(event):
            return
        await self._response.wait_sent()
        dialogue = self._dialogue
        context = await self._context(wanted)
        # Where nobody has said anything new the assistant begins, or goes on. A context of its own answers no message.
        dialogue.asked = dialogue.pending if context is None else None
        message_id, content = dialogue.asked or (None, "")
        if content and message_id != self._transcriptions.message_id:
            # It was written: its words tell, where they do.
            found = self._turns.household.language_of(content)
            self._transcriptions.language = found or self._transcriptions.language
        ask = self._ask(wanted, context, content, message_id)
        timer = TurnTimer(arrived_s)
        if context is None and dialogue.timer is not None:
            timer, dialogue.timer = dialogue.timer, None
        turn = await self._turns.start(ask, self._caller, timer=timer)
        self._turns.attach(turn)
        last = self._response.turn
        if context is None:
            dialogue.pending = None
        if dialogue.conversation_id is None:
            dialogue.conversation_id, dialogue.untitled = turn.conversation_id, True
        self._response.begin(turn, self.output_of(turn, wanted.config, wanted.metadata), wanted.config)
        self._on_turn(turn, last)
        if last is not None:
            await self._turns.detach(last)

    async def _respond_aside(self, event: ResponseCreate, wanted: Wanted, timer: TurnTimer) -> None:
        """Begin a response out of band, or defer it until the words of all recordings are known."""
        self._asides.admit()
        needs_words = wanted.input is None or any(isinstance(item, ItemReference) for item in wanted.input)
        if needs_words and self._transcriptions.defer(event, aside=True):
            return
        ask = self._ask(wanted, await self._context(wanted), "", None)
        turn = await self._turns.start(ask, self._caller, timer=timer)
        self._asides.begin(self.output_of(turn, wanted.config, wanted.metadata))

    def _ask(self, wanted: Wanted, context: list[Utterance] | None, content: str, message_id: str | None) -> Ask:
        config = wanted.config
        tools, choice = own_tools(config.tools, config.tool_choice, "$.response")
        return Ask(
            tools=tools,
            tool_choice=choice if tools is not UNSET else UNSET,
            content=content,
            conversation_id=self._dialogue.conversation_id,
            system_prompt=config.instructions,
            temperature=config.temperature,
            max_tokens=None if config.max_output_tokens == "inf" else config.max_output_tokens,
            stored_message_id=message_id,
            language=self._transcriptions.language,
            spoken=config.output_modalities == ["audio"],
            context=context,
            aside=wanted.aside,
        )

    async def _context(self, wanted: Wanted) -> list[Utterance] | None:
        """Return what the client says was said before; None where that is the conversation."""
        if wanted.input is None:
            return None
        context = []
        for number, item in enumerate(wanted.input):
            path = f"$.response.input[{number}]"
            if isinstance(item, ItemReference):
                found = await self._dialogue.fetch(item.id, f"{path}.id")
                context.append(Utterance(found.role, found.content))
            else:
                context.append(Utterance(item.role, text_of(item, path)))
        return context

    def expect(self) -> None:
        """Have the model read in advance what the answer to what is being said will follow."""
        if not self._response.active and self._settings.body.type == "realtime":
            self._turns.read_ahead(self._caller, self._ask(Wanted(self._settings.body), None, "", None))

    async def respond_or_complain(self, event: ResponseCreate) -> None:
        """Begin a response that was deferred; the client is told where that cannot be."""
        if self._socket.gone:
            return
        try:
            await self.respond(event)
        except RequestError as error:
            await self._socket.complain(error, event.event_id)

    async def answer(self, event: ResponseCreate) -> None:
        """Answer what was said, unless more is being said: then it is answered together."""
        if self._hearing.conversation.speaking:
            return
        if self._response.active:
            if self._later is None or self._later.done():
                self._later = asyncio.get_running_loop().create_task(self._answer_later(event))
            return
        await self.respond_or_complain(event)

    async def cancel(self, event: ResponseCancel) -> None:
        """Stop the active response, the one that waits for words, or one out of band; raises ``NothingToCancel``."""
        response = self._response
        if await self._asides.cancel(event.response_id):
            return
        if not response.active and event.response_id is None:
            deferred = self._transcriptions.take_deferred()
            if deferred is not None:
                error = Conflict("The response was cancelled before it was created.")
                await self._socket.complain(error, deferred.event_id)
                return
        if not response.active or response.turn is None or event.response_id not in (None, response.turn.id):
            raise NothingToCancel
        await self._interrupter.interrupt("cancelled")

    def output_of(self, turn: Turn, config: SessionBody, metadata: Metadata | None) -> Output:
        """Return how *turn* is told: as text, or as a voice."""
        if config.output_modalities != ["audio"]:
            return TextOutput(turn, metadata)
        wanted = config.audio.output
        options = SpeechOptions(
            wanted.format.encoding,
            wanted.voice,
            self._transcriptions.language,
            wanted.speed,
            sample_rate_hz=wanted.format.rate,
            strict=False,
        )
        shown = SpokenOutput(wanted.format, wanted.voice)
        return AudioOutput(turn, self._synthesizer, options, shown, self._caller, metadata)

    async def leave(self) -> None:
        """Answer nothing more."""
        if self._later is not None:
            self._later.cancel()
            await asyncio.wait([self._later])
        await self._asides.leave()

    def _wanted(self, given: object) -> Wanted:
        """Return what a response is asked for with *given*; raises ``InvalidRequest``."""
        if given is None:
            return Wanted(self._settings.body)
        asked, errors = take(ResponseConfig, given, "$.response")
        config, wrong = configured(self._settings.body, given, "$.response")
        if errors or wrong:
            raise (errors or wrong)[0]
        wanted = Wanted(config, aside=asked.conversation == "none")
        if isinstance(asked.metadata, dict):
            wanted.metadata = asked.metadata
        if isinstance(asked.input, list):
            wanted.input = [_input_item(item, f"$.response.input[{number}]") for number, item in enumerate(asked.input)]
        return wanted

    async def _answer_later(self, event: ResponseCreate) -> None:
        await self._response.wait_sent()
        async with self._handling:
            if self._dialogue.pending is not None:
                await self.answer(event)


def _input_item(given: object, path: str) -> ClientItem | ItemReference:
    try:
        if isinstance(given, dict) and given.get("type") == "item_reference":
            return msgspec.convert(given, ItemReference)
        return msgspec.convert(given, ClientItem)
    except msgspec.ValidationError as exc:
        rule, _, below = str(exc).partition(" - at `$")
        raise InvalidRequest.field(f"{path}{below.rstrip('`')}", rule) from exc
