"""``POST /v1/audio/transcriptions``: a recording in a form, its words in the format that is asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from jarvis_core.codec.client import Clip
from jarvis_core.errors import InvalidRequest, Overloaded, RateLimited, TooLarge, UnsupportedMediaType
from jarvis_core.handlers.call import Call, Reply
from jarvis_core.handlers.openai.event_stream import Send, event, send_all
from jarvis_core.handlers.openai.models import HEARING_NAMES, check_model
from jarvis_core.handlers.openai.warning import left_out
from jarvis_core.handlers.openai.wire import (
    DurationUsage,
    TranscriptDelta,
    TranscriptDone,
    Transcription,
    TranscriptionSegment,
    VerboseTranscription,
)
from jarvis_core.models import Segment
from jarvis_core.speech.transcription import CLIP_LIMIT_BYTES, Heard, Transcriber
from jarvis_core.words.languages import LANGUAGE_NAMES

FORM_LIMIT_BYTES = CLIP_LIMIT_BYTES + (64 << 10)
FIELDS = ("model", "response_format", "stream", "prompt", "temperature", "timestamp_granularities[]", "include[]")
UNUSED = ("prompt", "temperature", "include[]")
"""Fields that the recogniser has no use for."""
TEXT = b"text/plain; charset=utf-8"
FORMATS = ("json", "text", "verbose_json", "srt", "vtt")

_encode = msgspec.json.Encoder().encode


class TranscriptionHandlers:
    """The route for recordings."""

    def __init__(self, transcriber: Transcriber) -> None:
        self._transcriber = transcriber

    async def transcribe(self, call: Call) -> Reply | None:
        """Answer ``POST /v1/audio/transcriptions``."""
        content_type = call.header(b"content-type")
        if not content_type.lower().startswith("multipart/form-data"):
            raise UnsupportedMediaType("The body has to be multipart/form-data with the recording as file.")
        try:
            with self._transcriber.held.growing() as grow:
                call.declared_length(FORM_LIMIT_BYTES)
                self._transcriber.expect(upload=True)
                parts = await call.body_parts(FORM_LIMIT_BYTES, grow)
                clip = await call.unless_left(
                    self._transcriber.read_upload(parts, content_type, call.caller, fields=FIELDS)
                )
        except (TooLarge, Overloaded, RateLimited):
            await call.discard_body()
            raise
        parts.clear()
        write = _format_of(clip.fields)
        headers = left_out(_unused(clip.fields))
        # Without a language OpenAI's own finds out.
        language = clip.language or "auto"
        if clip.fields.get("stream", "").lower() in ("true", "1"):
            await send_all(call, lambda send: self._send_events(send, clip, language, call), headers=headers)
            return None
        heard = await call.unless_left(self._transcriber.transcribe_clip(clip, language, call.caller))
        body, kind = write(heard)
        return Reply(body, content_type=kind, headers=headers)

    async def _send_events(self, send: Send, clip: Clip, language: str, call: Call) -> None:
        told: asyncio.Queue[str | None] = asyncio.Queue()  # bounded by the clip, of which each word comes once
        hearing = asyncio.get_running_loop().create_task(
            self._transcriber.transcribe_clip(clip, language, call.caller, told.put)
        )
        hearing.add_done_callback(lambda _: told.put_nowait(None))
        try:
            while (words := await told.get()) is not None:
                await send(event(TranscriptDelta(words)))
            heard = hearing.result()
            await send(event(TranscriptDone(heard.text, _usage(heard))))
        finally:
            hearing.cancel()
            await asyncio.wait([hearing])


Write = Callable[[Heard], tuple[bytes, bytes]]


def _format_of(fields: dict[str, str]) -> Write:
    """Return what writes the format that a form asks for; raises ``InvalidRequest``."""
    if "model" not in fields:
        raise InvalidRequest.field("$.model", "is missing")
    check_model(fields["model"], HEARING_NAMES)
    wanted = fields.get("response_format") or "json"
    write = WRITERS.get(wanted)
    if write is None:
        raise InvalidRequest.field("$.response_format", f"must be one of {', '.join(WRITERS)}")
    return write


def _unused(fields: dict[str, str]) -> list[str]:
    """Return the fields of a form that had no effect."""
    unused = [name.removesuffix("[]") for name in UNUSED if fields.get(name)]
    # The last of several is known: whoever asks for both may put it first.
    if fields.get("timestamp_granularities[]") == "word":
        unused.append("timestamp_granularities")
    return unused


def _usage(heard: Heard) -> DurationUsage:
    return DurationUsage(heard.duration_ms / 1_000)


def _json(heard: Heard) -> tuple[bytes, bytes]:
    return _encode(Transcription(heard.text, _usage(heard))), b"application/json"


def _text(heard: Heard) -> tuple[bytes, bytes]:
    return heard.text.encode() + b"\n", TEXT


def _verbose(heard: Heard) -> tuple[bytes, bytes]:
    segments = [
        TranscriptionSegment(number, one.start_ms / 1_000, one.end_ms / 1_000, one.text)
        for number, one in enumerate(heard.segments)
    ]
    language = LANGUAGE_NAMES.get(heard.language, heard.language).lower()
    body = VerboseTranscription(language, heard.duration_ms / 1_000, heard.text, segments, _usage(heard))
    return _encode(body), b"application/json"


def _srt(heard: Heard) -> tuple[bytes, bytes]:
    blocks = [
        f"{number}\n{_clock(one.start_ms, ',')} --> {_clock(one.end_ms, ',')}\n{_line(one)}\n\n"
        for number, one in enumerate(_shown(heard), start=1)
    ]
    return "".join(blocks).encode(), TEXT


def _vtt(heard: Heard) -> tuple[bytes, bytes]:
    blocks = [f"{_clock(one.start_ms, '.')} --> {_clock(one.end_ms, '.')}\n{_line(one)}\n\n" for one in _shown(heard)]
    return ("WEBVTT\n\n" + "".join(blocks)).encode(), b"text/vtt; charset=utf-8"


WRITERS: dict[str, Write] = {"json": _json, "text": _text, "verbose_json": _verbose, "srt": _srt, "vtt": _vtt}


def _shown(heard: Heard) -> list[Segment]:
    """Return what subtitles show: the segments, or all at once where the recogniser told none."""
    return heard.segments or ([Segment(0, heard.duration_ms, heard.text)] if heard.text else [])


def _line(segment: Segment) -> str:
    """Return a segment's text as subtitles can have it: an arrow or an empty line would end it."""
    return " ".join(segment.text.split()).replace("-->", "→")


def _clock(time_ms: int, mark: str) -> str:
    seconds, milliseconds = divmod(time_ms, 1_000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{mark}{milliseconds:03}"
