"""The buffer that a session's client fills with audio."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable

from jarvis_core.errors import InvalidRequest, RequestError, TooLarge
from jarvis_core.handlers.events import AudioFormat
from jarvis_core.handlers.realtime.refusals import BufferExpired, BufferGaveWay, CommitEmpty
from jarvis_core.speech.held_audio import AudioHold
from jarvis_core.speech.transcription import CLIP_LIMIT_S, Transcriber, clip_bytes

RATE_BYTES_S = 1_000
"""How much has to be added each second, on the whole; an eighth of the slowest samples."""
PART_BYTES = 1 << 18
"""Frames are put together up to this: thousands of small ones would take more memory than their samples."""


class Recording:
    """The samples of a committed buffer; holds their share of the buffer limit until it is closed."""

    def __init__(self, parts: list[bytes], audio_format: AudioFormat, hold: AudioHold | None) -> None:
        self.parts = parts
        self.format = audio_format
        self._hold = hold

    def close(self) -> None:
        """Drop the samples and release their share of the buffer limit."""
        self.parts = []
        if self._hold is not None:
            self._hold.close()


class InputBuffer:
    """
    Collects samples until the client commits them; at most ten minutes.

    Cleared where nothing is added for the transcriber's ``buffer_idle_s``, or when others need the room after some seconds
    of quiet: *on_lost* is told why.
    """

    def __init__(self, transcriber: Transcriber, on_lost: Callable[[RequestError], None]) -> None:
        self._transcriber = transcriber
        self._on_lost = on_lost
        self._parts: list[bytes] = []
        self._last = bytearray()
        """Samples that are not yet enough for a part."""
        self.length_bytes = 0
        """The number of bytes in the buffer."""
        self._hold: AudioHold | None = None
        self._due = 0.0
        """When it expires, of the loop's clock."""
        self._timer: asyncio.TimerHandle | None = None

    def append(self, samples: bytes, audio_format: AudioFormat) -> None:
        """
        Add samples, and nothing where it raises: ``TooLarge`` over ten minutes, ``Overloaded`` and ``RateLimited`` where
        there is no room.
        """
        if not samples:
            return
        length_bytes = self.length_bytes + len(samples)
        if length_bytes > CLIP_LIMIT_S * bytes_per_second(audio_format):
            raise TooLarge(
                f"The buffer holds at most {CLIP_LIMIT_S:g} s; commit or clear it.", details={"limit_s": CLIP_LIMIT_S}
            )
        hold = self._hold
        if hold is None:
            hold = self._transcriber.held.hold(self._give_way)
        try:
            hold.grow(length_bytes)
        except RequestError:
            if not self.length_bytes:
                hold.close()
            raise
        self._hold = hold
        if not self.length_bytes:
            self._transcriber.expect()
        self._last += samples
        self.length_bytes = length_bytes
        if len(self._last) >= PART_BYTES:
            self._parts.append(bytes(self._last))
            self._last.clear()
        self._stay(len(samples))

    def commit(self, audio_format: AudioFormat) -> Recording:
        """
        Return all samples, leaving none. Half a sample at the end is dropped.

        Raises ``CommitEmpty`` where there are none; ``Overloaded`` and ``RateLimited`` where there is no room to hear them,
        and leaves them then.
        """
        sample_bytes = audio_format.sample_bytes
        if self.length_bytes < sample_bytes:
            raise CommitEmpty
        if self._hold is not None:
            duration_s = self.length_bytes / bytes_per_second(audio_format)
            self._hold.grow(self.length_bytes + clip_bytes(duration_s))
        if self.length_bytes % sample_bytes:
            last = self._last or bytearray(self._parts.pop())
            self._last = last[:-1]
        if self._hold is not None:
            self._hold.keep()
        recording = Recording([*self._parts, bytes(self._last)], audio_format, self._hold)
        self._forget()
        return recording

    def clear(self) -> None:
        """Drop all samples."""
        hold = self._hold
        self._forget()
        if hold is not None:
            hold.close()

    def _forget(self) -> None:
        self._parts, self._last, self.length_bytes, self._hold = [], bytearray(), 0, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stay(self, added_bytes: int) -> None:
        """Put off the end: what was added early earns no more than one pause."""
        loop = asyncio.get_running_loop()
        latest = loop.time() + self._transcriber.buffer_idle_s
        if self._timer is None:
            self._due = latest
            self._timer = loop.call_at(latest, self._expire)
        else:
            # One timer that looks at the clock when it fires costs less than one for each frame.
            self._due = min(self._due + added_bytes / RATE_BYTES_S, latest)

    def _expire(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() < self._due:
            self._timer = loop.call_at(self._due, self._expire)
            return
        self.clear()
        self._on_lost(BufferExpired(self._transcriber.buffer_idle_s))

    def _give_way(self) -> None:
        self.clear()
        self._on_lost(BufferGaveWay())


def bytes_per_second(audio_format: AudioFormat) -> int:
    """Return how many bytes a second of sound has."""
    return audio_format.rate * audio_format.sample_bytes


def from_base64(audio: str) -> bytes:
    """Return the samples that an event carries; raises ``InvalidRequest``."""
    try:
        return base64.b64decode(audio, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise InvalidRequest.field("$.audio", "is not base64") from exc
