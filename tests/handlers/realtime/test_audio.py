"""The buffer of a session's audio: what it holds, and what that costs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from jarvis_core.errors import InvalidRequest, Overloaded, TooLarge
from jarvis_core.handlers.realtime.audio import PART_BYTES, RESERVED_BYTES, InputBuffer
from jarvis_core.speech.transcription import Transcriber


class Room(Transcriber):
    """Counts what is reserved, and hears nothing."""

    def __init__(self, limit_bytes: int = 1 << 30) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self.expected = 0

    @contextmanager
    def reserve_buffer(self, length_bytes: int) -> Iterator[None]:
        """Reserve room."""
        if self.held_bytes + length_bytes > self.limit_bytes:
            raise Overloaded("Full.")
        self.held_bytes += length_bytes
        try:
            yield
        finally:
            self.held_bytes -= length_bytes

    def expect(self, *, upload: bool = False) -> None:
        """Take note that audio is on its way."""
        self.expected += 1


def test_small_frames_are_put_together() -> None:
    """A hundred thousand frames of one sample become a few parts with all samples in their order."""
    buffer = InputBuffer(Room())
    frames = [number.to_bytes(2, "little") for number in range(1 << 16)] * 5
    for frame in frames:
        buffer.append(frame, 8_000)
        buffer.append(b"", 8_000)
    recording = buffer.commit(8_000)
    assert b"".join(recording.parts) == b"".join(frames)
    assert len(recording.parts) <= 2 * len(frames) // PART_BYTES + 1


def test_room() -> None:
    """Room is reserved as the buffer fills, and given back by what was committed, or when the buffer is cleared."""
    room = Room()
    buffer = InputBuffer(room)
    buffer.append(bytes(10), 8_000)
    buffer.append(bytes(10), 8_000)
    assert (room.held_bytes, room.expected) == (RESERVED_BYTES, 1)
    buffer.append(bytes(2 * RESERVED_BYTES), 8_000)
    assert 2 * RESERVED_BYTES + 20 <= room.held_bytes <= 4 * RESERVED_BYTES
    recording = buffer.commit(8_000)
    held_bytes = room.held_bytes
    buffer.append(bytes(10), 8_000)
    assert (room.held_bytes, room.expected) == (held_bytes + RESERVED_BYTES, 2)
    recording.close()
    assert room.held_bytes == RESERVED_BYTES
    buffer.clear()
    assert room.held_bytes == 0
    with pytest.raises(InvalidRequest):
        buffer.commit(8_000)


def test_what_is_refused_changes_nothing() -> None:
    """Audio for which there is no room, or which is over ten minutes, is refused, and what was there before is kept."""
    room = Room(limit_bytes=RESERVED_BYTES)
    buffer = InputBuffer(room)
    buffer.append(b"ab", 8_000)
    with pytest.raises(Overloaded):
        buffer.append(bytes(RESERVED_BYTES), 8_000)
    with pytest.raises(TooLarge):
        buffer.append(bytes(600 * 8_000 * 2), 8_000)
    with pytest.raises(InvalidRequest):
        buffer.append_base64("?", 8_000)
    buffer.append(b"cd", 8_000)
    assert b"".join(buffer.commit(8_000).parts) == b"abcd"
