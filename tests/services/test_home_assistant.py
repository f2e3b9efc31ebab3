"""Home Assistant's adapter: what it sends, what it makes of every answer, and that it sends nothing twice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal

import pytest

from jarvis_core.errors import RequestError
from jarvis_core.models import HouseAnswer
from jarvis_core.services.home_assistant import HomeAssistant
from jarvis_core.services.transport import Transport
from jarvis_core.settings import Home, Neighbours, Secret
from tests.fakes.faults import Fault, FaultKind
from tests.fakes.home_assistant import PROCESS, FakeHomeAssistant, HomeAssistantMode

TOKEN = "a.long-lived.token"
TOGGLE = "bascule la lumière du salon"


@pytest.fixture
async def home() -> AsyncIterator[FakeHomeAssistant]:
    """Run the house."""
    async with FakeHomeAssistant(TOKEN) as home:
        yield home


@pytest.fixture
async def transport(home: FakeHomeAssistant) -> AsyncIterator[Transport]:
    """Give the way to it."""
    transport = Transport("home_assistant", home.url, Neighbours(connect_timeout_s=0.5))
    yield transport
    await transport.close()


@pytest.fixture
def adapter(transport: Transport) -> HomeAssistant:
    """Give the adapter."""
    return HomeAssistant(transport, Home(url=transport.base_url, token=Secret(TOKEN)))


async def process(adapter: HomeAssistant, text: str, language: str = "fr", name: str | None = None) -> HouseAnswer:
    """Have *text* understood."""
    return await adapter.process(text, language, name, timeout_s=0.5)


async def test_answers(adapter: HomeAssistant, home: FakeHomeAssistant) -> None:
    """Each kind of answer is told from the others; nothing is sent that is null, or that is not asked for."""
    assert await process(adapter, "allume la lumière du salon") == HouseAnswer("done", "Allumé")
    assert home.last(PROCESS).json == {"text": "allume la lumière du salon", "language": "fr"}
    assert await process(adapter, "is the living room light on?", "en") == HouseAnswer("told", "Yes")
    assert await process(adapter, "bonjour") == HouseAnswer("unmatched")
    assert await process(adapter, "") == HouseAnswer("unmatched")
    failed = await process(adapter, "allume le four")
    assert (failed.outcome, failed.speech) == ("unknown", "Désolé, je ne connais pas l'appareil four")
    home.mode = HomeAssistantMode(failing=True)
    assert (await process(adapter, "allume la lumière du salon")).outcome == "failed"


async def test_conversations(adapter: HomeAssistant, home: FakeHomeAssistant) -> None:
    """The house's name of a conversation is given back, and goes with the next sentence."""
    home.mode = HomeAssistantMode(version="2025.4")
    name = (await process(adapter, "bonjour")).conversation_id
    assert name
    assert (await process(adapter, "bonjour", name=name)).conversation_id == name
    assert home.last(PROCESS).json["conversation_id"] == name


@pytest.mark.parametrize(
    ("kind", "warm"),
    [("close", False), ("close", True), ("reset", False), ("reset", True), ("hang", False), ("close_reused", True)],
)
async def test_sent_once(adapter: HomeAssistant, home: FakeHomeAssistant, kind: FaultKind, warm: bool) -> None:
    """A sentence whose connection breaks after it was sent is not sent again; whether it was done is not known."""
    if warm:
        await adapter.check(1)
    home.mode = HomeAssistantMode(faults={PROCESS: Fault(kind)})
    assert (await process(adapter, TOGGLE)).outcome == "unclear"
    assert home.requests_seen[PROCESS] == 1


async def test_done_and_lost(adapter: HomeAssistant, home: FakeHomeAssistant) -> None:
    """What was done before its connection broke is done once."""
    home.mode = HomeAssistantMode(lost="after")
    assert (await process(adapter, TOGGLE)).outcome == "unclear"
    assert home.acts == [("toggle", "salon")]


async def test_not_reached(adapter: HomeAssistant, home: FakeHomeAssistant) -> None:
    """A house that takes no connection has certainly done nothing, and is looked for again."""
    await home.go_away()
    for _ in range(7):  # until its breaker is open, too
        with pytest.raises(RequestError):
            await process(adapter, TOGGLE)
    await home.come_back()


@pytest.mark.parametrize(
    ("status", "state"), [(401, "unavailable"), (404, "unavailable"), (400, "healthy"), (500, "degraded")]
)
async def test_refused(
    adapter: HomeAssistant,
    transport: Transport,
    home: FakeHomeAssistant,
    status: int,
    state: Literal["healthy", "degraded", "unavailable"],
) -> None:
    """A refusal is an error, which names no secret; what is wrong for good is told of the house's health."""
    home.mode = HomeAssistantMode(faults={PROCESS: Fault(status=status)})
    with pytest.raises(RequestError) as caught:
        await process(adapter, TOGGLE)
    assert TOKEN not in str(caught.value)
    assert (transport.health.state, home.acts) == (state, [])


async def test_wrong_token(transport: Transport, home: FakeHomeAssistant) -> None:
    """A token that is not taken is known after the first look."""
    home.token = "another"
    adapter = HomeAssistant(transport, Home(url=home.url, token=Secret(TOKEN)))
    with pytest.raises(RequestError, match="does not accept the credentials"):
        await adapter.check(1)
    assert transport.health.state == "unavailable"


@pytest.mark.parametrize(
    "kind", ["empty", "html", "nonsense", "null", "list", "wrong_shape", "nested", "garbage", "truncated"]
)
async def test_nonsense(adapter: HomeAssistant, transport: Transport, home: FakeHomeAssistant, kind: FaultKind) -> None:
    """What is not the house's contract tells nothing of what was done."""
    home.mode = HomeAssistantMode(faults={PROCESS: Fault(kind)})
    assert (await process(adapter, TOGGLE)).outcome == "unclear"
    assert transport.health.state == "degraded"


async def test_wordless(adapter: HomeAssistant, home: FakeHomeAssistant) -> None:
    """An answer may have no words, and may be of a kind that nobody knows."""
    home.mode = HomeAssistantMode(speechless=True)
    assert await process(adapter, TOGGLE) == HouseAnswer("done")
    home.mode = HomeAssistantMode(response_type="partial_action_done")
    assert await process(adapter, TOGGLE) == HouseAnswer("unmatched")
