"""
Caches speech: the same text in the same voice is not synthesized twice.

Speech is kept in this worker's memory, and in Redis where workers share one. In Redis there are ``PLACES`` slots,
direct-mapped by the key's hash: a collision overwrites, so that the total size is bounded. Failures are never cached.
"""

from __future__ import annotations

import hashlib

import msgspec

from jarvis_core.models import Caller, SpokenAudio, TextToSpeech, Voice
from jarvis_core.shared.cache import Cache, LocalCache

KEPT_S = 3_600
PLACES = 256
SHARED_LIMIT_BYTES = 512 << 10
"""Audio in one slot: 128 MiB in all slots together."""
VOICES_KEPT_S = 1_800
"""The bridges answer for their voices 50 times an hour, for all workers together."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(SpokenAudio).decode
_decode_voices = msgspec.msgpack.Decoder(list[Voice]).decode
_decode_place = msgspec.msgpack.Decoder(tuple[bytes, bytes]).decode


class SpeechCache:
    """
    Synthesizes through *speaker* and caches its speech; *address* tells speakers apart.

    At most *limit_bytes* of audio are kept in memory; 0 keeps none anywhere.
    """

    def __init__(self, speaker: TextToSpeech, address: str, cache: Cache, *, limit_bytes: int) -> None:
        self._speaker = speaker
        self._address = hashlib.sha256(address.encode()).hexdigest()[:16]
        self._cache = cache
        self._mine = LocalCache(limit_bytes) if limit_bytes else None
        self.hits = 0
        """How often speech came from the cache."""

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
        """Return the voices that the neighbour last gave any worker; raises as the speaker does."""
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
