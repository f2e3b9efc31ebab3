"""The speech service behind its queues: whose recording or text is next."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from jarvis_core.errors import Overloaded
from jarvis_core.models import Caller, SpokenAudio, Transcript, Voice
from jarvis_core.shares import current_user
from jarvis_core.speech.queued_speech import QueuedSpeech

pytestmark = pytest.mark.every_python


class Service:
    """Listens and speaks when it is told to go on."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.at_once = 0
        self.most = 0
        self.go_on = asyncio.Event()

    async def _work(self, caller: Caller) -> None:
        self.order.append(caller.user_id)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await self.go_on.wait()
            await asyncio.sleep(0)
        finally:
            self.at_once -= 1

    async def transcribe(
        self,
        audio: bytes,
        language: str | None,
        caller: Caller,
        *,
        languages: Sequence[str] = (),
        enhanced: bytes | None = None,
    ) -> Transcript:
        """Listen; everything is passed on."""
        assert (audio, language, languages, enhanced) == (b"audio", "fr", ["fr"], b"clean")
        await self._work(caller)
        return Transcript("words", "fr", 1.0, [])

    async def synthesize(self, text: str, voice: str | None, speed: float, caller: Caller) -> SpokenAudio:
        """Speak; everything is passed on."""
        assert (text, voice, speed) == ("words", "siwis", 1.5)
        await self._work(caller)
        return SpokenAudio(b"", "base64", 16_000, "siwis")

    async def fetch_voices(self, caller: Caller) -> list[Voice]:
        """List the voices."""
        return [Voice("siwis", "Siwis", "fr", "female")]


async def use(speech: QueuedSpeech, what: str, user: str) -> object:
    """Listen or speak as *user*."""
    current_user.set(user)
    caller = Caller(user)
    if what == "listen":
        return await speech.transcribe(b"audio", "fr", caller, languages=["fr"], enhanced=b"clean")
    return await speech.synthesize("words", "siwis", 1.5, caller)


@pytest.mark.parametrize("what", ["listen", "speak"])
async def test_users_have_turns(what: str) -> None:
    """So much goes on at a time and no more, and behind a user with much to hear another is served at once."""
    service = Service()
    speech = QueuedSpeech(service, 4, stt_timeout_s=10, tts_timeout_s=10)
    tasks = [asyncio.create_task(use(speech, what, "ann")) for _ in range(12)]
    await asyncio.sleep(0)
    tasks.append(asyncio.create_task(use(speech, what, "ben")))
    for _ in range(5):
        await asyncio.sleep(0)
    assert service.order == ["ann", "ann", "ann", "ben"], "one user leaves a place to others"
    service.go_on.set()
    assert None not in await asyncio.gather(*tasks)
    assert (len(service.order), service.most) == (13, 4)
    assert (speech.listening.taken, speech.speaking.taken) == (0, 0)


async def test_listening_does_not_wait_for_speaking() -> None:
    """What is spoken is in nobody's way who is listened to, nor the list of voices."""
    service = Service()
    speech = QueuedSpeech(service, 1, stt_timeout_s=0.01, tts_timeout_s=10)
    speaking = asyncio.create_task(use(speech, "speak", "ann"))
    listening = asyncio.create_task(use(speech, "listen", "ann"))
    await asyncio.sleep(0)
    assert service.at_once == 2
    assert await speech.fetch_voices(Caller("ann"))
    with pytest.raises(Overloaded, match="the speech model"):
        await use(speech, "listen", "ann")
    service.go_on.set()
    await asyncio.gather(speaking, listening)
