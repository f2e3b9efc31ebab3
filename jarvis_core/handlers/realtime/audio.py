"""The buffer that a session's client fills with audio."""

from __future__ import annotations

import base64
import binascii
from contextlib import ExitStack

from jarvis_core.errors import InvalidRequest, TooLarge
from jarvis_core.handlers.realtime.refusals import CommitEmpty
from jarvis_core.speech.transcription import CLIP_LIMIT_S, Transcriber

SAMPLE_BYTES = 2
RESERVED_BYTES = 1 << 20
"""The buffer limit is charged in steps of this."""
PART_BYTES = 1 << 18
"""Frames are put together up to this: thousands of small ones would take more memory than their samples."""


class Recording:
    """The samples of a committed buffer; holds their share of the buffer limit until it is closed."""

    def __init__(self, parts: list[bytes], sample_rate_hz: int, reservation: ExitStack) -> None:
        self.parts = parts
        self.sample_rate_hz = sample_rate_hz
        self._reservation = reservation

    def close(self) -> None:
        """Drop the samples and release their share of the buffer limit."""
        self.parts = []
        self._reservation.close()


class InputBuffer:
    """Collects 16-bit samples until the client commits them; at most ten minutes."""

    def __init__(self, transcriber: Transcriber) -> None:
        self._transcriber = transcriber
        self._parts: list[bytes] = []
        self._last = bytearray()
        """Samples that are not yet enough for a part."""
        self.length_bytes = 0
        """The number of bytes in the buffer."""
        self._reserved = 0
        self._reservation = ExitStack()

    def append_base64(self, audio: str, sample_rate_hz: int) -> None:
        """Add samples in base64; raises as ``append`` does."""
        try:
            samples = base64.b64decode(audio, validate=True)
        except (binascii.Error, ValueError) as exc:
            raise InvalidRequest.field("$.audio", "is not base64") from exc
        self.append(samples, sample_rate_hz)

    def append(self, samples: bytes, sample_rate_hz: int) -> None:
        """
        Add samples; raises ``TooLarge`` over ten minutes and ``Overloaded`` over the buffer limit, and adds nothing
        then.
        """
        if self.length_bytes + len(samples) > CLIP_LIMIT_S * sample_rate_hz * SAMPLE_BYTES:
            raise TooLarge(
                f"The buffer holds at most {CLIP_LIMIT_S:g} s; commit or clear it.", details={"limit_s": CLIP_LIMIT_S}
            )
        missing = self.length_bytes + len(samples) - self._reserved
        if missing > 0:
            step = max(missing, RESERVED_BYTES)
            self._reservation.enter_context(self._transcriber.reserve_buffer(step))
            self._reserved += step
        if not self.length_bytes:
            self._transcriber.expect()
        self._last += samples
        self.length_bytes += len(samples)
        if len(self._last) >= PART_BYTES:
            self._parts.append(bytes(self._last))
            self._last.clear()

    def commit(self, sample_rate_hz: int) -> Recording:
        """Return all samples, leaving none; raises ``CommitEmpty`` where there are none. Half a sample at the end is dropped."""
        if self.length_bytes < SAMPLE_BYTES:
            raise CommitEmpty
        if self.length_bytes % SAMPLE_BYTES:
            last = self._last or bytearray(self._parts.pop())
            self._last = last[:-1]
        recording = Recording([*self._parts, bytes(self._last)], sample_rate_hz, self._reservation.pop_all())
        self._forget()
        return recording

    def clear(self) -> None:
        """Drop all samples."""
        self._forget()
        self._reservation.close()

    def _forget(self) -> None:
        self._parts, self._last, self.length_bytes, self._reserved = [], bytearray(), 0, 0
