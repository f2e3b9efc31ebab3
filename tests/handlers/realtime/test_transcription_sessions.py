"""Sessions that only listen: what they hear is told, and neither stored nor answered."""

from __future__ import annotations

import aiohttp
import pytest

from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.conftest import ALICE
from tests.handlers.realtime.test_turns_of_speech import clip, play, silence
from tests.handlers.realtime_client import open_socket
from tests.handlers.shown import newest_conversation
from tests.system.server import Server

COMPLETED = "conversation.item.input_audio_transcription.completed"
PCM = {"type": "audio/pcm", "rate": 16_000}


@pytest.mark.parametrize("by_address", [True, False])
@pytest.mark.behaviour("session.transcription")
async def test_listens_only(
    server: Server, bridges: FakeBridges, alice: aiohttp.ClientSession, *, by_address: bool
) -> None:
    """Turns of speech are found and told, one after another; no message is made, no model asked, no response given."""
    bridges.mode = BridgesMode(shape="ndjson", transcript="Quelle heure est-il ?")
    async with alice.post("/api/chat/conversation", json={}) as made:
        newest = (await made.json())["id"]
    intent = "transcription" if by_address else ""
    async with open_socket(server.url, "/v1/realtime", key=ALICE, intent=intent) as socket:
        session = {"audio": {"input": {"format": PCM}}}
        await socket.send("session.update", session=session if by_address else {"type": "transcription", **session})
        shown = (await socket.until("session.updated"))["session"]
        assert (shown["type"], shown["object"]) == ("transcription", "realtime.transcription_session")
        for _ in range(2):
            await play(socket, silence(0.5), clip("fx16k_fr_1"), silence(1))
            words = await socket.until(COMPLETED)
            assert (words["transcript"], words["conversation_id"]) == ("Quelle heure est-il ?", None)
        await socket.send("response.create")
        assert (await socket.error())["param"] == "$.type"
        assert "response.created" not in [event["type"] for event in socket.seen]
        assert (await newest_conversation(alice))["id"] == newest
        await socket.send("session.update", session={"type": "realtime"})
        assert (await socket.until("session.updated"))["session"]["object"] == "realtime.session"
        await socket.ask("and now?")
        assert (await socket.done())["status"] == "completed"
    assert bridges.last("/api/llm").json["prompt"].endswith("and now?")
