"""The buffer of a session's audio: what it holds, and what that costs."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from jarvis_core.errors import InvalidRequest, Overloaded, RateLimited, RequestError, TooLarge
from jarvis_core.handlers.events import PcmFormat
from jarvis_core.handlers.realtime.audio import PART_BYTES, InputBuffer, from_base64
from jarvis_core.shares import current_user
from jarvis_core.speech.held_audio import QUIET_S, STEP_BYTES, HeldAudio
from jarvis_core.speech.transcription import Transcriber, clip_bytes

PCM = PcmFormat(8_000)
FAST = PcmFormat(48_000)


class Room(Transcriber):
    """Has room for audio, and hears nothing."""

    def __init__(self, limit_bytes: int = 1 << 30, *, idle_s: float = 1_000.0) -> None:
        self.held = HeldAudio(limit_bytes)
        self.buffer_idle_s = idle_s
        self.expected = 0

    def expect(self, *, upload: bool = False) -> None:
        """Take note that audio is on its way."""
        self.expected += 1


def buffer_in(room: Room) -> tuple[InputBuffer, list[str]]:
    """Return an empty buffer, and the codes of what its client is told later."""
    lost: list[str] = []
    return InputBuffer(room, lambda error: lost.append(error.code)), lost


async def test_small_frames_are_put_together() -> None:
    """A hundred thousand frames of one sample become a few parts with all samples in their order."""
    buffer, _ = buffer_in(Room())
    frames = [number.to_bytes(2, "little") for number in range(1 << 16)] * 5
    for frame in frames:
        buffer.append(frame, PCM)
        buffer.append(b"", PCM)
    recording = buffer.commit(PCM)
    assert b"".join(recording.parts) == b"".join(frames)
    assert len(recording.parts) <= 2 * len(frames) // PART_BYTES + 1


async def test_room() -> None:
    """Room is taken as the buffer fills, and given back by what was committed, or when the buffer is cleared."""
    room = Room()
    buffer, _ = buffer_in(room)
    buffer.append(b"", PCM)
    assert (room.held.shares.taken, room.expected) == (0, 0)
    buffer.append(bytes(10), PCM)
    assert (room.held.shares.taken, room.expected) == (10, 1)
    buffer.append(bytes(2 * STEP_BYTES), PCM)
    assert 2 * STEP_BYTES + 10 <= room.held.shares.taken <= 4 * STEP_BYTES
    recording = buffer.commit(PCM)
    held_bytes = room.held.shares.taken
    buffer.append(bytes(10), PCM)
    assert (room.held.shares.taken, room.expected) == (held_bytes + 10, 2)
    recording.close()
    assert room.held.shares.taken == 10
    buffer.clear()
    assert room.held.shares.taken == 0
    assert not room.held.quiet
    with pytest.raises(InvalidRequest):
        buffer.commit(PCM)


async def test_what_is_refused_changes_nothing() -> None:
    """Audio for which there is no room, or which is over ten minutes, is refused, and what was there before is kept."""
    room = Room(limit_bytes=STEP_BYTES)
    buffer, _ = buffer_in(room)
    buffer.append(b"ab", PCM)
    with pytest.raises(Overloaded):
        buffer.append(bytes(STEP_BYTES), PCM)
    with pytest.raises(TooLarge):
        buffer.append(bytes(600 * 8_000 * 2), PCM)
    with pytest.raises(InvalidRequest):
        from_base64("?")
    buffer.append(b"cd", PCM)
    assert b"".join(buffer.commit(PCM).parts) == b"abcd"


async def test_buffer_expires() -> None:
    """A buffer to which nothing is added is cleared, its client is told, and it can be filled anew."""
    room = Room(idle_s=0.05)
    buffer, lost = buffer_in(room)
    buffer.append(b"ab", PCM)
    async with asyncio.timeout(5):
        while not lost:  # noqa: ASYNC110 - it is a timer that calls, and nothing to wait for
            await asyncio.sleep(0.01)
    assert lost == ["input_audio_buffer_expired"]
    assert (buffer.length_bytes, room.held.shares.taken) == (0, 0)
    buffer.append(b"cd", PCM)
    assert b"".join(buffer.commit(PCM).parts) == b"cd"
    await asyncio.sleep(0.1)
    assert lost == ["input_audio_buffer_expired"], "what was committed or cleared does not expire"


async def test_fast_beginning_earns_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Much audio at once keeps a buffer no longer than one pause; a byte now and then does not keep it at all."""
    loop = asyncio.get_running_loop()
    now = loop.time()
    room = Room(idle_s=60)
    buffer, lost = buffer_in(room)
    buffer.append(bytes(1 << 20), FAST)

    def pass_by(duration_s: float) -> None:
        nonlocal now
        now += duration_s
        monkeypatch.setattr(loop, "time", lambda: now)
        buffer._expire()

    for _ in range(10):
        pass_by(50)
        assert not lost
        buffer.append(bytes(60_000), FAST)
    for _ in range(2):
        pass_by(25)
        buffer.append(bytes(10), FAST)
        assert not lost
    pass_by(25)
    assert lost == ["input_audio_buffer_expired"]


async def test_quiet_buffer_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no room left, of the user who holds most the buffer that was quiet longest is dropped for another's."""
    room = Room(limit_bytes=10 * STEP_BYTES)
    counts = {"chris": 3, "ann": 4, "ben": 4, "dora": 1}
    users = {user: [buffer_in(room) for _ in range(count)] for user, count in counts.items()}
    clock = 100.0
    monkeypatch.setattr("time.monotonic", lambda: clock)
    for user, buffers in users.items():
        current_user.set(user)
        for buffer, _ in buffers:
            with contextlib.suppress(RequestError):
                buffer.append(bytes(STEP_BYTES), FAST)
            clock += 0.1
    held = {user: sum(buffer.length_bytes for buffer, _ in buffers) for user, buffers in users.items()}
    assert [held_bytes // STEP_BYTES for held_bytes in held.values()] == [3, 4, 3, 0]
    assert room.held.shares.free == 0
    current_user.set("dora")
    newcomer, _ = users["dora"][0]
    with pytest.raises(Overloaded):
        newcomer.append(bytes(10), FAST)
    clock += QUIET_S
    users["ben"][0][0].append(b"", FAST)
    newcomer.append(bytes(10), FAST)
    assert [lost for _, lost in users["ann"]] == [["input_audio_buffer_dropped"], [], [], []]
    assert users["ann"][0][0].length_bytes == 0
    assert not any(lost for user in ("ben", "chris", "dora") for _, lost in users[user])


async def test_own_quiet_buffers_give_way_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who has as much as one may makes room out of what lies about of the user's own, and takes nothing of others'."""
    room = Room(limit_bytes=16 * STEP_BYTES)
    clock = 100.0
    monkeypatch.setattr("time.monotonic", lambda: clock)
    current_user.set("ben")
    bens, bens_lost = buffer_in(room)
    bens.append(bytes(STEP_BYTES), FAST)
    current_user.set("ann")
    buffers = [buffer_in(room) for _ in range(13)]
    for buffer, _ in buffers[:12]:
        buffer.append(bytes(STEP_BYTES), FAST)
    last, _ = buffers[12]
    with pytest.raises(RateLimited):
        last.append(bytes(STEP_BYTES), FAST)
    clock += QUIET_S
    with pytest.raises(Overloaded):
        last.append(bytes(16 * STEP_BYTES), FAST)
    assert not any(lost for _, lost in buffers), "nothing gives way in vain"
    last.append(bytes(STEP_BYTES), FAST)
    assert [lost for _, lost in buffers] == [["input_audio_buffer_dropped"], *[[]] * 12]
    assert not bens_lost


async def test_commit_takes_room_for_what_is_heard() -> None:
    """A buffer is committed only where there is room to hear it; otherwise it keeps its samples, and can be cleared."""
    room = Room(limit_bytes=4 * STEP_BYTES)
    buffer, _ = buffer_in(room)
    buffer.append(bytes(2 * STEP_BYTES), PCM)
    with pytest.raises(Overloaded):
        buffer.commit(PCM)
    assert (buffer.length_bytes, room.held.shares.taken) == (2 * STEP_BYTES, 2 * STEP_BYTES)
    buffer.clear()
    buffer.append(bytes(STEP_BYTES // 2), PCM)
    recording = buffer.commit(PCM)
    assert room.held.shares.taken == STEP_BYTES // 2 + clip_bytes(STEP_BYTES / 4 / 8_000)
    assert not room.held.quiet, "what is being worked on gives way to nobody"
    recording.close()
    assert room.held.shares.taken == 0


async def test_share_of_one_user() -> None:
    """One user's buffers leave room for another's, and the refusal says that it is the user's share."""
    room = Room(limit_bytes=16 * STEP_BYTES)
    current_user.set("ann")
    buffers = [buffer_in(room)[0] for _ in range(14)]
    for buffer in buffers[:13]:
        buffer.append(bytes(STEP_BYTES), FAST)
    with pytest.raises(RateLimited) as caught:
        buffers[13].append(bytes(STEP_BYTES), FAST)
    assert caught.value.retry_after_s
    assert "16 MiB" in caught.value.message
    current_user.set("ben")
    buffer, _ = buffer_in(room)
    buffer.append(bytes(STEP_BYTES), FAST)
