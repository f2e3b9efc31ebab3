"""``POST /v1/audio/speech``: a text as speech, sent from the first sentence on."""

from __future__ import annotations

import base64

import msgspec

from jarvis_core.codec.messages import OutputFormat
from jarvis_core.errors import InvalidRequest, RequestError
from jarvis_core.handlers.call import Call, text_field
from jarvis_core.handlers.openai.event_stream import Send, event, send_all
from jarvis_core.handlers.openai.models import VOICE_NAMES, check_model
from jarvis_core.handlers.openai.warning import left_out
from jarvis_core.handlers.openai.wire import SpeechDone, SpeechRequest, VoiceId
from jarvis_core.handlers.speech_reply import MEDIA_TYPES, send_speech, unspeakable
from jarvis_core.models import Caller
from jarvis_core.speech.synthesis import SpeechOptions, Synthesizer, Voices, pieces_of
from jarvis_core.words.languages import language_code

OPENAI_VOICES = {
    **dict.fromkeys(("alloy", "coral", "marin", "nova", "sage", "shimmer"), "female"),
    **dict.fromkeys(("ash", "ballad", "cedar", "echo", "fable", "onyx", "verse"), "male"),
}
"""Their names, and how they sound."""
FORMATS: dict[str, OutputFormat] = {
    "mp3": "mp3", "opus": "opus", "aac": "aac", "flac": "flac", "wav": "wav", "pcm": "pcm16",
}  # fmt: skip
PCM_RATE_HZ = 24_000
"""Which OpenAI's clients take for granted, where there is no header."""
TEXT_PATH = "$.input"

_decoder = msgspec.json.Decoder(SpeechRequest)


class SpeechHandlers:
    """The route for speech."""

    def __init__(self, synthesizer: Synthesizer, voices: Voices, *, body_limit_bytes: int) -> None:
        self._synthesizer = synthesizer
        self._voices = voices
        self._body_limit_bytes = body_limit_bytes

    async def speak(self, call: Call) -> None:
        """Answer ``POST /v1/audio/speech``."""
        request = await call.decode(_decoder, self._body_limit_bytes)
        check_model(request.model, VOICE_NAMES)
        pieces = pieces_of(text_field(TEXT_PATH, request.input))
        if not pieces:
            raise unspeakable(TEXT_PATH)
        output_format = FORMATS[request.response_format]
        options = SpeechOptions(
            output_format,
            await self._voice(request.voice.id if isinstance(request.voice, VoiceId) else request.voice, call.caller),
            speed=request.speed,
            sample_rate_hz=PCM_RATE_HZ if request.response_format == "pcm" else None,
        )
        headers = left_out(["instructions"] if request.instructions else [])
        if request.stream_format == "sse":
            await send_all(call, lambda send: self._send_events(send, pieces, options, call), headers=headers)
            return
        media_type = MEDIA_TYPES[output_format]
        await send_speech(
            call, self._synthesizer, pieces, options, output_format, media_type, path=TEXT_PATH, headers=headers
        )

    async def _voice(self, name: str, caller: Caller) -> str | None:
        """
        Return the id of the voice that *name* means; None leaves the choice to whoever speaks.

        Raises ``InvalidRequest`` for one that is neither ours nor OpenAI's.
        """
        meant = name.lower()
        sounds = OPENAI_VOICES.get(meant)
        try:
            known = await self._voices.fetch(caller)
        except RequestError:
            return None if sounds is not None else name
        own = next((voice.id for voice in known if voice.id.lower() == meant), None)
        if own is not None:
            return own
        if sounds is None:
            rule = f"is no voice of this server, which has {', '.join(voice.id for voice in known[:50])}"
            raise InvalidRequest.field("$.voice", rule)
        default = language_code(self._voices.default_language)
        spoken = [voice for voice in known if voice.language == default] or known
        alike = [voice for voice in spoken if voice.gender == sounds] or spoken
        # As many different ones as there are.
        namesakes = [one for one, kind in OPENAI_VOICES.items() if kind == sounds]
        return alike[namesakes.index(meant) % len(alike)].id if alike else None

    async def _send_events(self, send: Send, pieces: list[str], options: SpeechOptions, call: Call) -> None:
        spoken = False
        async with self._synthesizer.open_stream(options, call.caller) as speech:
            for text in pieces:
                piece = await speech.say(text)
                if piece is not None and piece.data:
                    spoken = True
                    await send(_audio_event(piece.data))
            if not spoken:
                raise unspeakable(TEXT_PATH)
            rest = await speech.finish()
            if rest.data:
                await send(_audio_event(rest.data))
        await send(event(SpeechDone()))


def _audio_event(data: bytes) -> bytes:
    # Base64 needs no escaping, and there is much of it.
    return b'data: {"type":"speech.audio.delta","audio":"%s"}\n\n' % base64.b64encode(data)
