"""
What was spoken before: the same words in the same voice are not made twice.

Kept in this worker's memory, and where workers share a Redis also there, in a fixed number of places: what falls on
another one's place takes it, so that all of it together stays small whatever is said. Failures are never kept.
"""

from __future__ import annotations

import hashlib

import msgspec

from jarvis_core.models import Caller, SpokenAudio, TextToSpeech, Voice
from jarvis_core.shared.cache import Cache, LocalCache

KEPT_S = 3_600
PLACES = 256
SHARED_LIMIT_BYTES = 512 << 10
"""Of one place: 128 MiB together."""
VOICES_KEPT_S = 1_800
"""The bridges answer the question for their voices 50 times an hour, however many workers ask."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(SpokenAudio).decode
_decode_voices = msgspec.msgpack.Decoder(list[Voice]).decode
_decode_place = msgspec.msgpack.Decoder(tuple[bytes, bytes]).decode


class SpeechCache:
    """
    Speaks through *speaker*, whose *address* tells it from others, and keeps what it said.

    At most *limit_bytes* of audio are kept in memory; 0 keeps none anywhere.
    """

    def __init__(self, speaker: TextToSpeech, address: str, cache: Cache, *, limit_bytes: int) -> None:
        self._speaker = speaker
        self._address = hashlib.sha256(address.encode()).hexdigest()[:16]
        self._cache = cache
        self._mine = LocalCache(limit_bytes) if limit_bytes else None
        self.hits = 0
        """How often nothing had to be made."""

    async def synthesize(self, text: str, voice: str | None, speed: float, caller: Caller) -> SpokenAudio:
        """Return *text* as speech; raises as the speaker does."""
        if self._mine is None:
            return await self._speaker.synthesize(text, voice, speed, caller)
        name = hashlib.sha256(_encode((self._address, text, voice, speed))).digest()
        kept = await self._mine.get(name.hex())
        if kept is None and (kept := await self._shared(name)) is not None:
            await self._mine.put(name.hex(), kept, KEPT_S)
        if kept is not None:
            self.hits += 1
            return _decode(kept)
        audio = await self._speaker.synthesize(text, voice, speed, caller)
        data = _encode(audio)
        await self._mine.put(name.hex(), data, KEPT_S)
        if self._cache.state == "healthy" and len(data) <= SHARED_LIMIT_BYTES:
            await self._cache.put(_place(name), _encode((name, data)), KEPT_S)
        return audio

    async def fetch_voices(self, caller: Caller) -> list[Voice]:
        """Return the voices that there are, as any worker was last told; raises as the speaker does."""
        key = f"voices:{self._address}"
        kept = await self._cache.get(key) if self._cache.state == "healthy" else None
        if kept is not None:
            return _decode_voices(kept)
        voices = await self._speaker.fetch_voices(caller)
        if self._cache.state == "healthy":
            await self._cache.put(key, _encode(voices), VOICES_KEPT_S)
        return voices

    async def _shared(self, name: bytes) -> bytes | None:
        if self._cache.state != "healthy":
            return None
        found = await self._cache.get(_place(name))
        if found is None:
            return None
        theirs, data = _decode_place(found)
        return data if theirs == name else None


def _place(name: bytes) -> str:
    return f"spoken:{int.from_bytes(name[:4], 'big') % PLACES}"
