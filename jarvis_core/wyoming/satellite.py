"""
What a client asks over one connection: what is heard, what is said, how a text sounds.

The order is the one in which Home Assistant's integration calls (describe; then a connection each for hearing, answering,
speaking). In an answer that comes in pieces the whole one stands before the end, for clients that know no pieces.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from typing import NamedTuple

from jarvis_core import cancellation
from jarvis_core.errors import InvalidRequest, RequestError, TooLarge
from jarvis_core.models import Caller, Status
from jarvis_core.shares import current_user
from jarvis_core.speech.held_audio import AudioHold
from jarvis_core.speech.synthesis import SpeechOptions, SpeechStream, Synthesizer, Voices, pieces_of
from jarvis_core.speech.transcription import CLIP_LIMIT_BYTES, Transcriber
from jarvis_core.turns.ask import Ask
from jarvis_core.turns.conversations import Conversations
from jarvis_core.turns.log import Reader, Step, Turn
from jarvis_core.turns.turns import Turns
from jarvis_core.words.languages import language_code
from jarvis_core.words.markup import speakable
from jarvis_core.words.sentences import SentenceSplitter
from jarvis_core.wyoming.connection import Connection
from jarvis_core.wyoming.events import (
    TEXT_LIMIT_CHARS,
    Answer,
    AudioChunk,
    AudioFormat,
    AudioStart,
    AudioStop,
    Context,
    Describe,
    Event,
    Failure,
    Ping,
    Synthesize,
    SynthesizeChunk,
    SynthesizeStart,
    SynthesizeStop,
    Text,
    Transcribe,
    Transcript,
    Voice,
    read_event,
)
from jarvis_core.wyoming.info import Info, info_of

RATE_HZ = 22_050
"""Of the speech that is sent, where a voice has said nothing yet."""
CHUNK_S = 0.1
DESCRIBE_TIMEOUT_S = 2.0
"""Longest wait for the voices' names: hubs give up a description after five seconds."""
NOTHING_SAID = "There was nothing to answer."


class Assistant(NamedTuple):
    """The parts behind the door, and for whom it is open."""

    turns: Turns
    conversations: Conversations
    transcriber: Transcriber
    synthesizer: Synthesizer
    voices: Voices
    caller: Caller
    key: Callable[[str], str]
    """Returns under which name a client at this address is counted."""
    charge: Callable[[str], Awaitable[object]]
    """Counts a request under a name; raises ``RateLimited``."""
    home_control: bool = False


class Satellite:
    """Serves one connection."""

    def __init__(self, assistant: Assistant, connection: Connection) -> None:
        self._assistant = assistant
        self._connection = connection
        self._language: str | None = None
        """Of the sound that comes, as it was announced."""
        self._clip: _Clip | None = None
        self._speech: _Speech | None = None
        """A text that comes in pieces."""

    async def serve(self) -> None:
        """
        Answer until the client leaves.

        An error is told and ends the connection: clients wait for their answer, whatever else comes. Raises ``ClientLeft``.
        """
        try:
            while (frame := await self._connection.next()) is not None:
                event = read_event(frame)
                if event is not None:
                    await self._handle(event, frame.payload)
        except RequestError as exc:
            await self._connection.send("error", Failure(exc.message, exc.code))
        finally:
            await self._forget()

    async def _handle(self, event: Event, payload: bytes) -> None:
        match event:
            case Describe():
                await self._connection.send("info", await self._describe())
            case Ping():
                await self._connection.send("pong", event)
            case Transcribe():
                self._language = event.language
            case AudioStart() | AudioChunk():
                self._listen(event, payload)
            case AudioStop():
                await self._transcribe()
            case Transcript():
                await self._answer(event)
            case Synthesize():
                # Who sends its pieces sends the whole text too, for servers that know no pieces.
                if self._speech is None:
                    await self._synthesize(event)
            case SynthesizeStart():
                await self._forget()
                await self._assistant.charge(current_user.get())
                self._speech = _Speech(self._assistant, self._connection, event.voice)
            case SynthesizeChunk():
                if self._speech is not None:
                    await self._speech.feed(event.text)
            case SynthesizeStop():
                if self._speech is not None:
                    speech, self._speech = self._speech, None
                    await speech.finish()
                    await self._connection.send("synthesize-stopped")

    async def _describe(self) -> Info:
        assistant = self._assistant
        try:
            async with cancellation.timeout(DESCRIBE_TIMEOUT_S):
                voices = await assistant.voices.fetch(assistant.caller)
                languages = [one.code for one in await assistant.voices.languages(assistant.caller)]
        except (RequestError, TimeoutError):
            voices, languages = [], []
        default = language_code(assistant.voices.default_language)
        return info_of(voices, languages or [default or "en"], home_control=assistant.home_control)

    def _listen(self, event: AudioStart | AudioChunk, payload: bytes) -> None:
        if isinstance(event, AudioStart) or self._clip is None:
            if self._clip is not None:
                self._clip.close()
            self._clip = _Clip(event, self._assistant.transcriber.held.hold())
            self._assistant.transcriber.expect(upload=True)
        if payload:
            self._clip.add(payload)

    async def _transcribe(self) -> None:
        clip, self._clip = self._clip, None
        language, self._language = self._language, None
        text = ""
        heard_language = language
        if clip is not None:
            try:
                await self._assistant.charge(current_user.get())
                heard = await self._connection.during(
                    self._assistant.transcriber.transcribe_upload(
                        clip.wav(), "audio/wav", self._assistant.caller, language=language
                    )
                )
                text, heard_language = heard.text, heard.language or language
            finally:
                clip.close()
        await self._connection.send("transcript-start", Transcript("", heard_language))
        if text:
            await self._connection.send("transcript-chunk", Text(text))
        await self._connection.send("transcript", Transcript(text, heard_language))
        await self._connection.send("transcript-stop")

    async def _answer(self, said: Transcript) -> None:
        """Answer in a turn; what goes wrong is ``not-handled``, and the connection goes on."""
        text = said.text.replace("\0", "").strip()
        name = said.context.conversation_id if said.context is not None else None
        try:
            if not text:
                raise InvalidRequest(NOTHING_SAID)
            await self._assistant.charge(current_user.get())
            turn = await self._connection.during(self._start(text, name, said.language))
        except RequestError as exc:
            await self._connection.send("not-handled", Answer(exc.message, None if name is None else Context(name)))
            return
        context = Context(name or turn.conversation_id)
        self._assistant.turns.attach(turn)
        try:
            await self._follow(turn, context)
        finally:
            await self._assistant.turns.detach(turn)

    async def _start(self, text: str, name: str | None, language: str | None) -> Turn:
        assistant = self._assistant
        conversation_id = None
        if name:
            conversation_id = await assistant.conversations.named(assistant.caller.user_id, name, text)
        ask = Ask(text, conversation_id, language=None if language is None else language_code(language))
        return await assistant.turns.start(ask, assistant.caller)

    async def _follow(self, turn: Turn, context: Context) -> None:
        reader = Reader(turn)
        begun = False
        ended = False
        while not ended:
            taken = await self._connection.during(reader.next())
            ended = not taken or taken[-1][1] is Step.ENDED
            for _, entry in taken:
                if not isinstance(entry, str):
                    continue
                if not begun:
                    await self._connection.send("handled-start", Answer(context=context))
                    begun = True
                await self._connection.send("handled-chunk", Text(entry))
        text = turn.text()
        if turn.status is Status.FAILED or not text:
            reason = turn.error.message if turn.error is not None else NOTHING_SAID
            await self._connection.send("not-handled", Answer(reason, context))
        else:
            await self._connection.send("handled", Answer(text, context))
        if begun:
            await self._connection.send("handled-stop")

    async def _synthesize(self, asked: Synthesize) -> None:
        await self._assistant.charge(current_user.get())
        speech = _Speech(self._assistant, self._connection, asked.voice)
        try:
            for piece in pieces_of(asked.text):
                await speech.say(piece)
            await speech.finish()
        finally:
            await speech.close()

    async def _forget(self) -> None:
        """Let go of what was begun."""
        if self._clip is not None:
            self._clip.close()
            self._clip = None
        if self._speech is not None:
            await self._speech.close()
            self._speech = None


class _Clip:
    """Sound that comes, held as it arrives."""

    def __init__(self, form: AudioFormat, hold: AudioHold) -> None:
        self._form = form
        self._hold = hold
        self._parts: list[bytes] = []
        self._length_bytes = 0

    def add(self, samples: bytes) -> None:
        """Add *samples*; raises ``TooLarge``, or as holding audio does."""
        self._length_bytes += len(samples)
        if self._length_bytes > CLIP_LIMIT_BYTES:
            raise TooLarge(
                f"The sound is over {CLIP_LIMIT_BYTES >> 20} MiB.", details={"limit_bytes": CLIP_LIMIT_BYTES}
            )
        self._hold.grow(self._length_bytes)
        self._parts.append(samples)

    def wav(self) -> list[bytes]:
        """Return it as a file."""
        self._hold.keep()
        frame_bytes = self._form.width * self._form.channels
        length = self._length_bytes
        head = struct.pack(
            "<4sI4s4sIHHIIHH4sI",
            *(b"RIFF", 36 + length, b"WAVE", b"fmt ", 16, 1, self._form.channels, self._form.rate),
            *(self._form.rate * frame_bytes, frame_bytes, 8 * self._form.width, b"data", length),
        )
        return [head, *self._parts]

    def close(self) -> None:
        """Hold it no longer."""
        self._parts.clear()
        self._hold.close()


class _Speech:
    """A text that is spoken as it comes."""

    def __init__(self, assistant: Assistant, connection: Connection, voice: Voice | None) -> None:
        self._assistant = assistant
        self._connection = connection
        self._options = SpeechOptions(
            "pcm16",
            voice=None if voice is None else voice.name,
            language=None if voice is None else voice.language,
            strict=False,
        )
        self._splitter = SentenceSplitter()
        self._stack = AsyncExitStack()
        self._stream: SpeechStream | None = None
        self._chars = 0
        self._form: AudioFormat | None = None
        """Of the sound that was sent; None before its beginning."""

    async def feed(self, text: str) -> None:
        """Say the sentences that have ended with *text*; raises ``TooLarge``, and as ``say`` does."""
        self._chars += len(text)
        if self._chars > TEXT_LIMIT_CHARS:
            raise TooLarge(
                f"The text is over {TEXT_LIMIT_CHARS} characters.", details={"limit_chars": TEXT_LIMIT_CHARS}
            )
        await self._say_each(self._splitter.feed(text))

    async def _say_each(self, sentences: Iterable[str]) -> None:
        for sentence in sentences:
            if words := speakable(sentence):
                await self.say(words)

    async def say(self, words: str) -> None:
        """Send the sound of *words*; raises as a voice does, and ``ClientLeft``."""
        if self._stream is None:
            opening = self._assistant.synthesizer.open_stream(self._options, self._assistant.caller)
            self._stream = await self._stack.enter_async_context(opening)
        piece = await self._connection.during(self._stream.say(words))
        if piece is not None:
            await self._send(piece.data, piece.sample_rate_hz)

    async def finish(self) -> None:
        """Say what is left, and send the end of the sound, of which there may be none."""
        await self._say_each(self._splitter.end())
        if self._stream is not None:
            rest = await self._connection.during(self._stream.finish())
            await self._send(rest.data, rest.sample_rate_hz)
        await self._begin(RATE_HZ)
        await self._connection.send("audio-stop", AudioStop())
        await self.close()

    async def close(self) -> None:
        """Let go of the voice."""
        await self._stack.aclose()

    async def _begin(self, rate_hz: int) -> AudioFormat:
        if self._form is None:
            self._form = AudioFormat(rate=rate_hz, width=2, channels=1)
            await self._connection.send("audio-start", self._form)
        return self._form

    async def _send(self, samples: bytes, rate_hz: int) -> None:
        if not samples:
            return
        form = await self._begin(rate_hz)
        chunk_bytes = form.width * round(CHUNK_S * form.rate)
        for start in range(0, len(samples), chunk_bytes):
            await self._connection.send("audio-chunk", form, samples[start : start + chunk_bytes])
